//! The application: its state, its layers in order, and its routes.

use std::error::Error;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use serde_json::json;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tower_idempotency::store::Inspect;
use tower_idempotency::store::sql::Sweeper;
use tower_idempotency::{
    Background, IdempotencyLayer, IdempotencyLayerBuilder, KeySource, MemoryStore, ScopeSource, Store,
};

use super::accounts::{self, Account};
use super::data::{Data, MemoryData};
use super::documents::{self, files::Files};
use super::error::ApiError;
use super::events::send::{self, HttpClient, Sender};
use super::events::{self, Deliveries};
use super::metrics::Metrics;
use super::options::{Options, StoreKind};
use super::provider::Provider;
use super::records::{self, Records};
use super::{billing, operations, page, screenings, sessions, storage, users, webhooks};

/// The state that the handlers share.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) data: Data,
    pub(crate) provider: Provider,
    /// Whether each decision appends an event to the outbox.
    pub(crate) sends_events: bool,
    pub(crate) records: Records,
    pub(crate) files: Files,
    /// The operations that are running now, whether or not their clients are still connected.
    pub(crate) operations: TaskTracker,
}

/// The application, and the work that must finish before the process exits.
pub(crate) struct App {
    pub(crate) router: Router,
    pub(crate) data: Data,
    /// The operations that are running now, whether or not their clients are still connected.
    pub(crate) operations: TaskTracker,
    /// The operations that the idempotency layers run without a client.
    pub(crate) background: [Background; 3],
    /// Removes expired keys, if the store needs that.
    pub(crate) sweeper: Option<Sweeper>,
    /// The delivery of events, not yet started. `None` if no events are sent.
    pub(crate) deliveries: Option<Deliveries>,
}

impl App {
    /// Opens the application on the store that the options select.
    pub(crate) async fn open(options: &Options) -> Result<Self, Box<dyn Error>> {
        Self::open_with(options, send::http_client()).await
    }

    /// Like [`open`](Self::open), but `client` sends the events to their subscriber.
    pub(crate) async fn open_with(options: &Options, client: HttpClient) -> Result<Self, Box<dyn Error>> {
        let sender = options.events.sender(client)?;
        let shared = match options.store()? {
            StoreKind::Memory => {
                let store = MemoryStore::new();
                let data = Data::Memory(MemoryData::default());
                let files = files(options, &data).await?;
                return Self::new(store.clone(), Some(store), data, files, options, sender);
            }
            StoreKind::Sqlite(path) => storage::sqlite(path, options.sweep_every).await?,
            StoreKind::Postgres(url) => storage::postgres(url, options.sweep_every).await?,
            StoreKind::Redis(url) => storage::redis(url).await?,
        };
        let files = files(options, &shared.data).await?;
        let app = Self::new(shared.keys, None, shared.data, files, options, sender)?;
        Ok(Self {
            sweeper: shared.sweeper,
            ..app
        })
    }

    /// Creates the application. If the store is in memory, `memory` is the same store, because the
    /// size of an in-memory store is always known.
    fn new<S: Inspect + Clone>(
        store: S,
        memory: Option<MemoryStore>,
        data: Data,
        files: Files,
        options: &Options,
        sender: Option<Sender>,
    ) -> Result<Self, Box<dyn Error>> {
        // Three layers share one store: one for the accounts' operations, one for the documents
        // that accounts upload, and one for the events that webhook senders deliver.
        //
        // The scope is the account, not the credential. A client that rotates its API key between
        // two attempts is still the same client.
        let account = || ScopeSource::extension(|account: &Account| account.id().to_owned());
        let accounts_layer = configure(&store, options).scope(account()).build()?;
        let documents_layer = configure(&store, options)
            .scope(account())
            .stream_request_bodies(options.max_upload)
            .build()?;
        let webhooks_layer = configure(&store, options)
            .webhooks("webhooks", KeySource::json_pointer("/event_id"))
            .build()?;

        let provider = Provider::new(options.provider_latency, data.clone());
        let deliveries = sender.map(|sender| Deliveries::new(data.clone(), sender));
        let metrics = Metrics::new(
            [&accounts_layer, &documents_layer, &webhooks_layer],
            memory,
            provider.clone(),
            deliveries.clone(),
        );
        let background = [&accounts_layer, &documents_layer, &webhooks_layer].map(IdempotencyLayer::background);
        let operations = TaskTracker::new();
        let state = AppState {
            provider,
            data: data.clone(),
            sends_events: deliveries.is_some(),
            records: Records::new(store, accounts_layer.clone()),
            files,
            operations: operations.clone(),
        };

        // If a router has several layers, the last layer is the outermost.
        let mut accounts = Router::new()
            .route("/v1/verification/sessions", post(sessions::create).get(sessions::list))
            .route("/v1/verification/sessions/{id}", get(sessions::show))
            .route("/v1/aml/screenings", post(screenings::create))
            .route("/v1/users/{id}/status", patch(users::set_status))
            .route("/v1/billing", get(billing::show))
            // This route is not guarded: the layer guards `POST` and `PATCH`.
            .route("/v1/idempotency-records", delete(records::forget))
            .route_layer(from_fn_with_state(operations.clone(), operations::track))
            .route_layer(accounts_layer)
            .merge(
                // The handler counts a document as an operation, but only once it has received the
                // document.
                Router::new()
                    .route(
                        "/v1/verification/sessions/{id}/documents",
                        post(documents::create).get(documents::list),
                    )
                    .route(
                        "/v1/verification/sessions/{id}/documents/{document}",
                        get(documents::show),
                    )
                    // This limit is for uploads without a key, which the layer lets through.
                    .layer(DefaultBodyLimit::max(options.max_upload))
                    .route_layer(documents_layer),
            );
        if let Some(deliveries) = &deliveries {
            accounts = accounts.route_layer(from_fn_with_state(deliveries.wake.clone(), events::wake_after));
        }
        // Authentication is outside the idempotency layer: the layer needs the account, and only a
        // caller who may see a response may get its replay.
        let accounts = accounts.route_layer(from_fn(accounts::authenticate));

        // A real service verifies the sender's signature in a layer outside this one.
        let webhooks = Router::new()
            .route("/v1/webhooks/events", post(webhooks::receive).get(webhooks::list))
            .route_layer(from_fn_with_state(operations.clone(), operations::track))
            .route_layer(webhooks_layer);

        // Axum's limit is for the requests that the layers let through without a key. It must not
        // be smaller than the layers' limit, or it would refuse requests that the layers allow.
        const AXUM_BODY_LIMIT: usize = 2 * 1024 * 1024;
        let body_limit = DefaultBodyLimit::max(options.max_request_body.max(AXUM_BODY_LIMIT));

        let router = Router::new()
            .merge(accounts)
            .merge(webhooks)
            .route("/", get(page::show))
            .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
            .route("/metrics", get(async move || metrics.show().await))
            .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
            .layer(body_limit)
            .layer(CatchPanicLayer::custom(internal_error))
            .layer(TraceLayer::new_for_http())
            .with_state(state);

        Ok(Self {
            router,
            data,
            operations,
            background,
            sweeper: None,
            deliveries,
        })
    }
}

async fn files(options: &Options, data: &Data) -> Result<Files, String> {
    let files = Files::open(options.data_dir.as_deref(), data).await;
    files.map_err(|error| format!("--data-dir: the directory cannot be used: {error}"))
}

/// Sets the options that all layers share.
///
/// `--require-key` applies to all layers. With this option, the layer refuses an event without an
/// `event_id`, like any other guarded request without a key (`400`). Without it, the application
/// reports that the field is missing (`422`). Nothing is stored in either case.
fn configure<S: Store + Clone>(store: &S, options: &Options) -> IdempotencyLayerBuilder<S> {
    IdempotencyLayer::builder(store.clone())
        // Another service on the same store can receive the same keys from the same callers.
        .namespace(&options.namespace)
        .ttl(options.ttl)
        .lease(options.lease)
        .wait(options.wait)
        .require_key(options.require_key)
        .max_request_body(options.max_request_body)
        .max_response_body(options.max_response_body)
}

/// Returns the response to a request whose handler panicked. The panic message is already on
/// standard error.
fn internal_error(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
}
