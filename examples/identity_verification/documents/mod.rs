//! Documents of a session: pictures and scans, which are streamed to a file and never held in memory.

pub(crate) mod files;
mod receive;

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::accounts::Account;
use super::app::AppState;
use super::billing::Charge;
use super::data::Data;
use super::error::ApiError;
use receive::receive;

const PRICE_CENTS: u64 = 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) document_id: String,
    pub(crate) session_id: String,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) file_name: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What a document can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Kind(&'static str);

impl Kind {
    fn parse(text: &str) -> Result<Self, ApiError> {
        const KINDS: [&str; 3] = ["passport", "id_card", "selfie"];
        let known = KINDS.into_iter().find(|kind| *kind == text).map(Self);
        known.ok_or_else(|| unprocessable("`kind` must be `passport`, `id_card` or `selfie`"))
    }
}

fn unprocessable(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
}

/// The kind that the query names.
fn kind_in(query: Option<&str>) -> Option<String> {
    let mut parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let (_, kind) = parameters.find(|(name, _)| name == "kind")?;
    Some(kind.into_owned())
}

pub(crate) async fn create(
    State(state): State<AppState>,
    data: Data,
    Extension(account): Extension<Account>,
    Path(session_id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    find_session(&data, account, &session_id).await?;
    let document_id = format!("doc_{}", Uuid::new_v4().simple());
    // Written aside. Dropped before it is placed, the file is removed.
    let kind = kind_in(query.as_deref());
    let received = receive(&state.files, &document_id, &headers, kind.as_deref(), body).await?;
    let document = Document {
        document_id: document_id.clone(),
        session_id: session_id.clone(),
        kind: received.kind.0.into(),
        file_name: received.file_name,
        bytes: received.file.bytes,
        sha256: received.file.sha256.clone(),
    };
    let charge = Charge {
        operation: "document".into(),
        reference: document_id.clone(),
        amount_cents: PRICE_CENTS,
    };
    // The file first: a document without its file must never be seen. A file whose document is then not
    // committed is found and removed.
    received.file.place().await?;
    data.add_document(account, &document, &charge).await?;
    let location = format!("/v1/verification/sessions/{session_id}/documents/{document_id}");
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(document)))
}

pub(crate) async fn show(
    data: Data,
    Extension(account): Extension<Account>,
    Path((session_id, document_id)): Path<(String, String)>,
) -> Result<Json<Document>, ApiError> {
    let documents = data.documents(account, &session_id).await?;
    let found = documents
        .into_iter()
        .find(|document| document.document_id == document_id);
    found
        .map(Json)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such document"))
}

/// The session's documents, oldest first.
pub(crate) async fn list(
    data: Data,
    Extension(account): Extension<Account>,
    Path(session_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    find_session(&data, account, &session_id).await?;
    Ok(Json(
        json!({ "documents": data.documents(account, &session_id).await? }),
    ))
}

async fn find_session(data: &Data, account: Account, session_id: &str) -> Result<(), ApiError> {
    match data.session(account, session_id).await? {
        Some(_) => Ok(()),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, "there is no such session")),
    }
}
