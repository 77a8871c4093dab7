//! Sends traces to an OpenTelemetry collector, serves metrics to Prometheus, and shuts down without
//! losing work.
//!
//! ```text
//! cargo run --manifest-path examples/opentelemetry/Cargo.toml     # serves http://127.0.0.1:3000
//! curl -i http://127.0.0.1:3000/payments -H 'Idempotency-Key: order-17' -d 'EUR 10'
//! curl http://127.0.0.1:3000/metrics
//! ```
//!
//! Spans are sent to the collector at `OTEL_EXPORTER_OTLP_ENDPOINT`. The default is
//! `http://localhost:4318`.

use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_idempotency::{Background, IdempotencyLayer, MemoryStore};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// The bounds of the buckets, in seconds. The alert rules in docs/operating need a histogram, not a
/// summary.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

fn prometheus() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
}

/// Selects the events that are logged to standard error and added to spans.
fn targets() -> Targets {
    Targets::new()
        .with_default(LevelFilter::INFO)
        // This target has the span of each request.
        .with_target("tower_http", LevelFilter::DEBUG)
        // The outcome of a request is a `DEBUG` event.
        .with_target("tower_idempotency", LevelFilter::DEBUG)
}

fn subscriber(provider: &SdkTracerProvider) -> impl tracing::Subscriber + Send + Sync {
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("payments"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(traces.with_filter(targets()))
        .with(lines.with_filter(targets()))
}

fn app() -> (Router, Background) {
    let idempotency = IdempotencyLayer::new(MemoryStore::new());
    let background = idempotency.background();
    let router = Router::new()
        .route("/payments", post(|| async { "paid" }))
        .layer(idempotency)
        // This layer is outside the idempotency layer, so that a request's span contains its
        // outcome.
        .layer(TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO)));
    (router, background)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let metrics = prometheus()?.install_recorder()?;
    let exporter = SpanExporter::builder().with_http().build()?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
    subscriber(&provider).init();

    let (app, background) = app();
    let render = metrics.clone();
    let app = app.route("/metrics", get(async move || render.render()));
    let upkeep = tokio::spawn(async move {
        // Summarizes the values that were recorded since the last run.
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metrics.run_upkeep();
        }
    });

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    // On Kubernetes, the signal is SIGTERM.
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    // Waits for operations whose clients disconnected.
    if tokio::time::timeout(Duration::from_secs(10), background.wait())
        .await
        .is_err()
    {
        tracing::error!("{} operations were abandoned", background.len());
    }
    upkeep.abort();
    provider.shutdown()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use opentelemetry_sdk::trace::InMemorySpanExporter;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn the_outcome_is_in_the_span_and_in_the_metrics() {
        let spans = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        let _guard = subscriber(&provider).set_default();
        let recorder = prometheus().unwrap().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let (app, background) = app();
                for _ in 0..2 {
                    let request = Request::post("/payments").header("Idempotency-Key", "order-17");
                    let response = app.clone().oneshot(request.body(Body::from("EUR 10")).unwrap()).await;
                    assert_eq!(response.unwrap().status(), 200);
                }
                background.wait().await;
            });
        });

        let spans = spans.get_finished_spans().unwrap();
        let outcomes: Vec<_> = spans
            .iter()
            .flat_map(|span| span.events.iter())
            .flat_map(|event| event.attributes.iter())
            .filter(|attribute| attribute.key.as_str() == "outcome")
            .map(|attribute| attribute.value.to_string())
            .collect();
        assert_eq!(outcomes, ["executed", "replayed"], "{spans:?}");

        let metrics = recorder.handle().render();
        for line in [
            "idempotency_requests_total{outcome=\"executed\"} 1",
            "idempotency_requests_total{outcome=\"replayed\"} 1",
            "idempotency_store_seconds_bucket{operation=\"begin\",le=\"+Inf\"} 2",
            "idempotency_store_entries{store=\"memory\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} in\n{metrics}");
        }
    }
}
