//! Receives events from other systems. Each event can be delivered many times, but is processed
//! only once.
//!
//! The idempotency layer outside the handlers takes the key from the body's `event_id`. A request
//! without a key reaches the handler, which refuses it with `422`, or with `400` if the body is
//! empty. If the key cannot be read, the request never reaches the handler: a body that is not
//! JSON, or an `event_id` that is neither a string nor an integer, gets `400` with the problem
//! `invalid-key`.

use axum::Json;
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::data::{Data, DataError};
use super::json::{JsonBody, NonEmpty};

#[derive(Deserialize)]
pub(crate) struct Delivery {
    event_id: EventId,
    r#type: NonEmpty,
    /// The sender's data. This example does not use it.
    #[serde(rename = "data", default)]
    _data: IgnoredAny,
}

/// A processed event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) event_id: EventId,
    pub(crate) r#type: String,
}

/// A string or an integer, which are the types that the idempotency layer accepts as a key. The
/// receipt contains the id exactly as it was sent, with all its digits.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct EventId(pub(crate) Box<RawValue>);

impl EventId {
    pub(crate) fn as_json(&self) -> &str {
        self.0.get()
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_string = text.starts_with('"') && text != "\"\"";
        if is_string || digits.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(raw))
        } else {
            Err(D::Error::custom("`event_id` must be a non-empty string or an integer"))
        }
    }
}

/// The response to a delivery.
#[derive(Serialize)]
pub(crate) struct Receipt {
    event_id: EventId,
    received: bool,
}

#[derive(Serialize)]
pub(crate) struct Events {
    events: Vec<Event>,
}

/// Processes an event. The idempotency layer makes sure that this happens once for each `event_id`.
pub(crate) async fn receive(data: Data, JsonBody(delivery): JsonBody<Delivery>) -> Result<Json<Receipt>, DataError> {
    let event = Event {
        event_id: delivery.event_id,
        r#type: delivery.r#type.into_inner(),
    };
    data.add_event(&event).await?;
    Ok(Json(Receipt {
        event_id: event.event_id,
        received: true,
    }))
}

pub(crate) async fn list(data: Data) -> Result<Json<Events>, DataError> {
    let events = data.events().await?;
    Ok(Json(Events { events }))
}
