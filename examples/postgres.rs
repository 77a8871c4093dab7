//! Stores charges in PostgreSQL in atomic mode. The application's own migrations create the store's
//! table.
//!
//! ```text
//! export DATABASE_URL=postgres://postgres@127.0.0.1/postgres
//! cargo run --example postgres --features migrations     # serves http://127.0.0.1:3000
//! curl -i http://127.0.0.1:3000/charges -H 'Idempotency-Key: order-17' -d 1000
//! ```
//!
//! `migrations/2_idempotency_keys.sql` is a copy of this crate's
//! `src/store/sql/postgres/table.sql`. If you do not use `sqlx::migrate!`, call
//! `PostgresStore::migrate` instead.

use std::time::Duration;

use axum::{Router, http::StatusCode, routing::post};
use sqlx::Postgres;
use sqlx::postgres::PgPoolOptions;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::sql::{PostgresStore, Transaction, TransactionError};

async fn charge(transaction: Transaction<Postgres>, cents: String) -> Result<(StatusCode, String), TransactionError> {
    let Ok(cents) = cents.trim().parse::<i64>() else {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, "send the number of cents\n".into()));
    };
    let mut work = transaction.begin().await?;
    let number: i64 = sqlx::query_scalar("INSERT INTO charges (cents) VALUES ($1) RETURNING number")
        .bind(cents)
        .fetch_one(&mut *work)
        .await?;
    Ok((StatusCode::CREATED, format!("charge {number}\n")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "set DATABASE_URL, such as postgres://user@host/database")?;
    let pool = PgPoolOptions::new().max_connections(10).connect(&url).await?;
    sqlx::migrate!().run(&pool).await?;

    let store = PostgresStore::new(pool);
    // The sweeper removes expired rows until it is dropped.
    let _sweeper = store.sweep_every(Duration::from_secs(60))?;
    let idempotency = IdempotencyLayer::builder(store).require_key(true).build()?;
    let app = Router::new().route("/charges", post(charge)).layer(idempotency);

    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
