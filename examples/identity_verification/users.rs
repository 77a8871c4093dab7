//! Decisions about users.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::app::AppState;
use super::data::Data;
use super::error::ApiError;
use super::events::Draft;
use super::json::{JsonBody, NonEmpty};

/// A user with the account's latest decision.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct User {
    pub(crate) user_id: String,
    pub(crate) status: UserStatus,
    /// The number of decisions so far. A replay is not a decision.
    pub(crate) version: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UserStatus {
    Approved,
    Declined,
}

impl UserStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Declined => "declined",
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Decision {
    status: UserStatus,
}

pub(crate) async fn set_status(
    State(state): State<AppState>,
    data: Data,
    Extension(account): Extension<Account>,
    Path(user_id): Path<String>,
    JsonBody(decision): JsonBody<Decision>,
) -> Result<Json<User>, ApiError> {
    let invalid = |reason| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, reason);
    let user_id = NonEmpty::try_from(user_id).map_err(invalid)?.into_inner();
    let status = decision.status;
    let event = state
        .sends_events
        .then(|| Draft::of_decision(account, &user_id, status));
    Ok(Json(data.set_user_status(account, user_id, status, event).await?))
}
