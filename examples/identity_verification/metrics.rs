//! The metrics, in Prometheus' text format.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::app::AppState;

pub(crate) async fn show(State(state): State<AppState>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        render(&state),
    )
}

fn render(state: &AppState) -> String {
    let layers = [&state.idempotency.accounts, &state.idempotency.webhooks];
    let stats = state.idempotency.store.stats();
    let mut text = Exposition::default();

    text.describe(
        "idempotency_requests_total",
        "counter",
        "Requests by their idempotency outcome.",
    );
    // Both layers name the same outcomes in the same order.
    for ((outcome, accounts), (_, webhooks)) in layers[0].counts().zip(layers[1].counts()) {
        let name = format_args!("idempotency_requests_total{{outcome=\"{outcome}\"}}");
        text.sample(name, accounts + webhooks);
    }
    text.metric(
        "idempotency_background_operations",
        "gauge",
        "Work that goes on without its client.",
        layers.iter().map(|layer| layer.background().len()).sum::<usize>(),
    );
    text.metric(
        "idempotency_store_entries",
        "gauge",
        "Claims and records in the store.",
        stats.entries,
    );
    text.metric(
        "idempotency_store_bytes",
        "gauge",
        "Bytes that claims and records take.",
        stats.bytes,
    );
    text.metric(
        "idempotency_store_evicted_total",
        "counter",
        "Records that were evicted before they expired.",
        stats.evicted,
    );
    text.metric(
        "identity_provider_calls_total",
        "counter",
        "Calls of the identity provider.",
        state.provider.calls(),
    );
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
