//! Verification sessions.

use std::borrow::Cow;
use std::time::SystemTime;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{LOCATION, SET_COOKIE};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_idempotency::IdempotencyKey;
use uuid::Uuid;

use super::accounts::Account;
use super::app::AppState;
use super::billing::Charge;
use super::data::{Data, DataError};
use super::error::ApiError;
use super::json::{JsonBody, NonEmpty};

const PRICE_CENTS: u64 = 150;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) session_id: String,
    pub(crate) user_id: String,
    pub(crate) workflow_id: String,
    pub(crate) status: Cow<'static, str>,
    pub(crate) attempt: u32,
    pub(crate) created_at: String,
}

#[derive(Deserialize)]
pub(crate) struct NewSession {
    user_id: NonEmpty,
    workflow_id: NonEmpty,
}

/// A session as it is returned to its creator.
#[derive(Serialize)]
struct Created {
    #[serde(flatten)]
    session: Session,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<String>,
}

pub(crate) async fn create(
    State(state): State<AppState>,
    data: Data,
    Extension(account): Extension<Account>,
    // `None` if the client sent no key. In this case, nothing prevents a second run.
    operation: Option<IdempotencyKey>,
    JsonBody(new): JsonBody<NewSession>,
) -> Result<impl IntoResponse, ApiError> {
    let (user_id, workflow_id) = (new.user_id.into_inner(), new.workflow_id.into_inner());
    // This key is the same for each attempt of this operation, so that the provider can also
    // recognize a retry.
    let provider_key = operation
        .as_ref()
        .map_or_else(Uuid::new_v4, |operation| operation.derive("verify"));
    let verification = state
        .provider
        .verify(account, &user_id, &workflow_id, provider_key)
        .await?;

    let session_id = format!("vs_{}", Uuid::new_v4().simple());
    let session = Session {
        session_id: session_id.clone(),
        user_id,
        workflow_id,
        status: "in_review".into(),
        attempt: operation.map_or(1, |operation| operation.attempt()),
        created_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
    };
    let charge = Charge {
        operation: "verification_session".into(),
        reference: session_id.clone(),
        amount_cents: PRICE_CENTS,
    };
    // The transaction begins only here, after the provider has responded, so that it is not open
    // during the call to the provider.
    data.add_session(account, &session, &charge).await?;
    if verification.crash_after_writing {
        tracing::error!("aborting, because the sandbox workflow `wkf_crash` asks for it");
        std::process::abort();
    }

    let headers = [
        (LOCATION, format!("/v1/verification/sessions/{session_id}")),
        (SET_COOKIE, format!("idv_last_session={session_id}; HttpOnly; Path=/")),
    ];
    let created = Created {
        session,
        report: verification.report,
    };
    Ok((StatusCode::CREATED, headers, Json(created)))
}

pub(crate) async fn show(
    data: Data,
    Extension(account): Extension<Account>,
    Path(id): Path<String>,
) -> Result<Json<Session>, ApiError> {
    let session = data.session(account, &id).await?;
    session
        .map(Json)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such session"))
}

pub(crate) async fn list(data: Data, Extension(account): Extension<Account>) -> Result<Json<Value>, DataError> {
    Ok(Json(json!({ "sessions": data.sessions(account).await? })))
}
