//! Events that other systems report, each of which may be delivered many times.

use axum::Json;
use axum::extract::State;
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::app::AppState;
use super::json::{JsonBody, NonEmpty};

#[derive(Deserialize)]
pub(crate) struct Delivery {
    event_id: EventId,
    r#type: NonEmpty,
    /// Whatever the sender has to say; this example has no further use for it.
    #[serde(rename = "data", default)]
    _data: IgnoredAny,
}

/// A processed event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event {
    event_id: EventId,
    r#type: String,
}

/// A string or an integer, which is what the idempotency layer takes for a key. It goes back as it
/// came, all digits included.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
struct EventId(Box<RawValue>);

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_string = text.starts_with('"') && text != "\"\"";
        if is_string || digits.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(raw))
        } else {
            Err(D::Error::custom(
                "`event_id` must be a string that is not empty, or an integer",
            ))
        }
    }
}

/// The answer to a delivery.
#[derive(Serialize)]
pub(crate) struct Receipt {
    event_id: EventId,
    received: bool,
}

#[derive(Serialize)]
pub(crate) struct Events {
    events: Vec<Event>,
}

/// Processes an event. That it is processed once is the idempotency layer's doing.
pub(crate) async fn receive(State(state): State<AppState>, JsonBody(delivery): JsonBody<Delivery>) -> Json<Receipt> {
    state.data.add_event(Event {
        event_id: delivery.event_id.clone(),
        r#type: delivery.r#type.into_inner(),
    });
    Json(Receipt {
        event_id: delivery.event_id,
        received: true,
    })
}

pub(crate) async fn list(State(state): State<AppState>) -> Json<Events> {
    let events = state.data.events();
    Json(Events { events })
}
