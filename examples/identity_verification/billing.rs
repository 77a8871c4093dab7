//! What the account has been charged for.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use super::accounts::Account;
use super::app::AppState;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Charge {
    pub(crate) operation: &'static str,
    /// The id of the session or screening.
    pub(crate) reference: String,
    pub(crate) amount_cents: u64,
}

#[derive(Serialize)]
pub(crate) struct Bill {
    charges: Vec<Charge>,
    total_cents: u64,
}

pub(crate) async fn show(State(state): State<AppState>, Extension(account): Extension<Account>) -> Json<Bill> {
    let charges = state.data.charges(account);
    let total_cents = charges.iter().map(|charge| charge.amount_cents).sum();
    Json(Bill { charges, total_cents })
}
