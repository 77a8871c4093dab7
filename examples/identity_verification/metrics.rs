//! The metrics in Prometheus' text format.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use tower_idempotency::{Background, IdempotencyLayer, MemoryStore, Store};

use super::events::Deliveries;
use super::provider::Provider;

type Counts = Vec<(&'static str, u64)>;

/// The sources of the metrics, independent of the layers' store.
#[derive(Clone)]
pub(crate) struct Metrics {
    counts: Arc<dyn Fn() -> [Counts; 3] + Send + Sync>,
    background: [Background; 3],
    /// The store, if it is in this process. Other stores have metrics of their own.
    memory: Option<MemoryStore>,
    provider: Provider,
    deliveries: Option<Deliveries>,
}

impl Metrics {
    pub(crate) fn new<S: Store>(
        layers: [&IdempotencyLayer<S>; 3],
        memory: Option<MemoryStore>,
        provider: Provider,
        deliveries: Option<Deliveries>,
    ) -> Self {
        let background = layers.map(IdempotencyLayer::background);
        let layers = layers.map(IdempotencyLayer::clone);
        Self {
            counts: Arc::new(move || layers.each_ref().map(|layer| layer.counts().collect())),
            background,
            memory,
            provider,
            deliveries,
        }
    }

    pub(crate) async fn show(&self) -> impl IntoResponse + use<> {
        let mut text = render(self);
        if let Some(deliveries) = &self.deliveries {
            text.push_str(&render_events(deliveries).await);
        }
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
    }
}

fn render(metrics: &Metrics) -> String {
    let mut text = Exposition::default();

    text.describe(
        "idempotency_requests_total",
        "counter",
        "Requests by idempotency outcome.",
    );
    // All layers return the same outcomes in the same order.
    let [mut total, documents, webhooks] = (metrics.counts)();
    for layer in [documents, webhooks] {
        for ((_, sum), (_, count)) in total.iter_mut().zip(layer) {
            *sum += count;
        }
    }
    for (outcome, count) in total {
        text.sample(
            format_args!("idempotency_requests_total{{outcome=\"{outcome}\"}}"),
            count,
        );
    }
    text.metric(
        "idempotency_background_operations",
        "gauge",
        "Work that continues without its client.",
        metrics.background.iter().map(Background::len).sum::<usize>(),
    );
    if let Some(store) = &metrics.memory {
        let stats = store.stats();
        text.metric(
            "idempotency_store_entries",
            "gauge",
            "Claims and records in the store.",
            stats.entries,
        );
        text.metric(
            "idempotency_store_bytes",
            "gauge",
            "Bytes used by claims and records.",
            stats.bytes,
        );
        text.metric(
            "idempotency_store_evicted_total",
            "counter",
            "Records that were evicted before they expired.",
            stats.evicted,
        );
    }
    text.metric(
        "identity_provider_calls_total",
        "counter",
        "Calls to the identity provider.",
        metrics.provider.calls(),
    );
    text.0
}

async fn render_events(deliveries: &Deliveries) -> String {
    let mut text = Exposition::default();
    for (name, help, count) in [
        (
            "delivered",
            "Events that the subscriber has accepted.",
            deliveries.counts.delivered(),
        ),
        (
            "delivery_failures",
            "Failed attempts to deliver an event.",
            deliveries.counts.failures(),
        ),
        (
            "given_up",
            "Events that the subscriber has refused for too long.",
            deliveries.counts.given_up(),
        ),
    ] {
        text.metric(&format!("idv_events_{name}_total"), "counter", help, count);
    }
    // This number is unknown while the store is unreachable. The other metrics are still shown.
    if let Some(pending) = deliveries.pending().await {
        let help = "Events that are still to be delivered, by any server.";
        text.metric("idv_events_pending", "gauge", help, pending);
    }
    text.0
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn metric(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.describe(name, kind, help);
        self.sample(name, value);
    }

    fn describe(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: impl Display, value: impl Display) {
        self.line(format_args!("{name} {value}"));
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}
