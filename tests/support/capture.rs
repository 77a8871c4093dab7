//! Captures the events that are logged on the test's own thread, at every level.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// One event, with its fields as text.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    pub(crate) target: String,
    pub(crate) level: Level,
    pub(crate) fields: BTreeMap<String, String>,
    /// The names of the spans in which it happened, the outermost first.
    pub(crate) spans: Vec<String>,
}

impl Captured {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub(crate) fn message(&self) -> &str {
        self.field("message").unwrap_or_default()
    }
}

thread_local! {
    static EVENTS: RefCell<Vec<Captured>> = const { RefCell::new(Vec::new()) };
}

/// Installs the subscriber for the whole test process, once.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(ToThread);
        tracing::subscriber::set_global_default(subscriber).expect("nobody else installs one");
    });
}

/// Returns the events that this thread has logged since the last call.
pub(crate) fn take() -> Vec<Captured> {
    EVENTS.take()
}

/// Returns this crate's events since the last call that report an outcome.
pub(crate) fn take_outcomes() -> Vec<Captured> {
    let mut events = take();
    events.retain(|event| event.target == "tower_idempotency" && event.fields.contains_key("outcome"));
    events
}

struct ToThread;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ToThread {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root());
        let captured = Captured {
            target: event.metadata().target().to_owned(),
            level: *event.metadata().level(),
            fields: fields.0,
            spans: spans.map(|span| span.name().to_owned()).collect(),
        };
        EVENTS.with_borrow_mut(|events| events.push(captured));
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // The whole chain, in both of its spellings.
        let mut text = format!("{value:?}");
        let mut next = Some(value);
        while let Some(error) = next {
            let _ = write!(text, ": {error}");
            next = error.source();
        }
        self.0.insert(field.name().to_owned(), text);
    }
}
