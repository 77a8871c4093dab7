//! The charges of an account.

use std::borrow::Cow;

use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::data::{Data, DataError};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) operation: Cow<'static, str>,
    /// The id of the session, screening or document.
    pub(crate) reference: String,
    pub(crate) amount_cents: u64,
}

#[derive(Serialize)]
pub(crate) struct Bill {
    charges: Vec<Charge>,
    total_cents: u64,
}

pub(crate) async fn show(data: Data, Extension(account): Extension<Account>) -> Result<Json<Bill>, DataError> {
    let charges = data.charges(account).await?;
    let total_cents = charges.iter().map(|charge| charge.amount_cents).sum();
    Ok(Json(Bill { charges, total_cents }))
}
