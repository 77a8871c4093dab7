//! Lets an account delete its idempotency records, for a person's right to erasure.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::{Value, json};
use tower_idempotency::store::{DynStore, Inspect, ScopeTag};
use tower_idempotency::{IdempotencyLayer, SlotError};

use super::accounts::Account;
use super::app::AppState;
use super::data::Causes;
use super::error::ApiError;

/// The store of the records, and a function that returns the tag of an account's records.
#[derive(Clone)]
pub(crate) struct Records {
    store: DynStore,
    tag_of: Arc<dyn Fn(Account) -> Result<ScopeTag, SlotError> + Send + Sync>,
}

impl Records {
    /// `layer` is the layer on `store` that guards the accounts' operations.
    pub(crate) fn new<S: Inspect>(store: S, layer: IdempotencyLayer<S>) -> Self {
        Self {
            store: DynStore::new(store),
            tag_of: Arc::new(move |account| layer.scope_tag(Some(account.id()))),
        }
    }
}

/// Forgets finished operations, but not running operations. A retry of a forgotten operation would
/// run again.
pub(crate) async fn forget(
    State(state): State<AppState>,
    Extension(account): Extension<Account>,
) -> Result<Json<Value>, ApiError> {
    let Records { store, tag_of } = &state.records;
    let tag = tag_of(account).map_err(|error| {
        tracing::error!(%error, "the scope of an account has no tag");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    })?;
    let forgotten = store.forget_scope(&tag).await.map_err(|error| {
        tracing::error!(error = %Causes(&error), "idempotency records could not be forgotten");
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "some records could not be forgotten; send the request again",
        )
    })?;
    Ok(Json(json!({ "forgotten": forgotten })))
}
