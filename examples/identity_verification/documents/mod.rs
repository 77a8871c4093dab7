//! Documents: pictures of passports and faces that are streamed to files and never held in memory.
//!
//! The idempotency layer claims the key when the head of the request has arrived, and digests the
//! body on its way to the file. `receive.rs` reads the body, and `files.rs` stores the files.

pub(crate) mod files;
mod receive;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::accounts::Account;
use super::app::AppState;
use super::billing::Charge;
use super::data::Data;
use super::error::ApiError;
use receive::receive;

const PRICE_CENTS: u64 = 20;

/// The kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Passport,
    IdCard,
    Selfie,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Passport => "passport",
            Self::IdCard => "id_card",
            Self::Selfie => "selfie",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Passport, Self::IdCard, Self::Selfie]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) document_id: String,
    pub(crate) session_id: String,
    pub(crate) kind: Kind,
    /// The file name that the client sent. `None` if the body is the document itself.
    pub(crate) file_name: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

pub(crate) async fn create(
    State(state): State<AppState>,
    data: Data,
    Extension(account): Extension<Account>,
    Path(session_id): Path<String>,
    request: Request,
) -> Result<impl IntoResponse, ApiError> {
    if data.session(account, &session_id).await?.is_none() {
        return Err(no_such_session());
    }
    let received = receive(request, &state.files).await?;
    // From here on, this is an operation, and the server does not stop while it is running. Until
    // now, the client was sending, which can take forever.
    let _running = state.operations.token();
    let file = received.file.finish().await?;
    let document = Document {
        document_id: file.name().to_owned(),
        session_id,
        kind: received.kind,
        file_name: received.file_name,
        bytes: file.bytes(),
        sha256: file.sha256().to_owned(),
    };
    let charge = Charge {
        operation: "document".into(),
        reference: document.document_id.clone(),
        amount_cents: PRICE_CENTS,
    };
    // The file is moved to its place when the row is committed. If the row is not committed, the
    // file is removed.
    let kept = file.pending(state.data.clone());
    data.add_document(account, &document, &charge, kept.keep()).await?;
    let location = format!(
        "/v1/verification/sessions/{}/documents/{}",
        document.session_id, document.document_id
    );
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(document)))
}

pub(crate) async fn list(
    data: Data,
    Extension(account): Extension<Account>,
    Path(session_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let documents = documents_of(&data, account, &session_id).await?;
    Ok(Json(json!({ "documents": documents })))
}

pub(crate) async fn show(
    data: Data,
    Extension(account): Extension<Account>,
    Path((session_id, document_id)): Path<(String, String)>,
) -> Result<Json<Document>, ApiError> {
    let documents = documents_of(&data, account, &session_id).await?;
    documents
        .into_iter()
        .find(|document| document.document_id == document_id)
        .map(Json)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such document"))
}

/// Returns the documents of one of the account's sessions, oldest first.
async fn documents_of(data: &Data, account: Account, session_id: &str) -> Result<Vec<Document>, ApiError> {
    if data.session(account, session_id).await?.is_none() {
        return Err(no_such_session());
    }
    Ok(data.documents(account, session_id).await?)
}

fn no_such_session() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such session")
}
