//! Screenings against the watch list.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use tower_idempotency::IdempotencyKey;
use uuid::Uuid;

use super::accounts::Account;
use super::app::AppState;
use super::billing::Charge;
use super::data::{Data, DataError};
use super::json::{JsonBody, NonEmpty};

const PRICE_CENTS: u64 = 35;

#[derive(Deserialize)]
pub(crate) struct NewScreening {
    full_name: NonEmpty,
}

#[derive(Serialize)]
pub(crate) struct Screening {
    screening_id: String,
    full_name: String,
    hits: Vec<&'static str>,
}

pub(crate) async fn create(
    State(state): State<AppState>,
    data: Data,
    Extension(account): Extension<Account>,
    operation: Option<IdempotencyKey>,
    JsonBody(new): JsonBody<NewScreening>,
) -> Result<(StatusCode, Json<Screening>), DataError> {
    let full_name = new.full_name.into_inner();
    let provider_key = operation.map_or_else(Uuid::new_v4, |operation| operation.derive("screen"));
    let hits = state.provider.screen(&full_name, provider_key).await;

    let screening_id = format!("scr_{}", Uuid::new_v4().simple());
    let charge = Charge {
        operation: "aml_screening".into(),
        reference: screening_id.clone(),
        amount_cents: PRICE_CENTS,
    };
    data.add_charge(account, &charge).await?;
    let screening = Screening {
        screening_id,
        full_name,
        hits,
    };
    Ok((StatusCode::CREATED, Json(screening)))
}
