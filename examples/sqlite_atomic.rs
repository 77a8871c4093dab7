//! Writes a charge and the record of its response in one SQLite transaction. After any crash,
//! either both exist or neither does.
//!
//! ```text
//! cargo run --example sqlite_atomic     # serves http://127.0.0.1:3000, stores data in charges.db
//! curl -i http://127.0.0.1:3000/charges -H 'Idempotency-Key: order-17' -d 1000
//! ```

use std::time::Duration;

use axum::{Router, http::StatusCode, routing::post};
use sqlx::{Sqlite, SqliteConnection};
use tower_idempotency::store::sql::{SqliteStore, Transaction, TransactionError};
use tower_idempotency::{ConfigError, IdempotencyLayer};

/// The maximum total of all charges, in cents.
const LIMIT: i64 = 10_000;

async fn charge(transaction: Transaction<Sqlite>, cents: String) -> Result<(StatusCode, String), TransactionError> {
    let Ok(cents) = cents.trim().parse() else {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, "send the number of cents\n".into()));
    };
    // Call slow services here. The transaction does not begin until the next line.
    let mut work = transaction.begin().await?;
    let (number, total) = insert(&mut work, cents).await?;
    if total > LIMIT {
        // A failure rolls the transaction back and frees the key.
        return Ok((StatusCode::PAYMENT_REQUIRED, "over the limit\n".into()));
    }
    // Do not commit: the layer commits the charge together with the record of this response.
    Ok((StatusCode::CREATED, format!("charge {number}\n")))
}

/// Your existing functions can use the transaction's connection.
async fn insert(connection: &mut SqliteConnection, cents: i64) -> sqlx::Result<(i64, i64)> {
    let insert = "INSERT INTO charges (cents) VALUES (?) RETURNING number";
    let number = sqlx::query_scalar(insert)
        .bind(cents)
        .fetch_one(&mut *connection)
        .await?;
    let total = sqlx::query_scalar("SELECT sum(cents) FROM charges")
        .fetch_one(connection)
        .await?;
    Ok((number, total))
}

/// Opens the database and creates the tables of this application and of the store.
async fn open(path: &str) -> Result<SqliteStore, Box<dyn std::error::Error>> {
    let store = SqliteStore::open(path).await?;
    store.migrate().await?;
    let charges = "CREATE TABLE IF NOT EXISTS charges (number INTEGER PRIMARY KEY, cents INTEGER NOT NULL)";
    sqlx::raw_sql(charges).execute(store.pool()).await?;
    Ok(store)
}

fn app(store: SqliteStore) -> Result<Router, ConfigError> {
    // A request without a key has no transaction to extract.
    let idempotency = IdempotencyLayer::builder(store).require_key(true).build()?;
    Ok(Router::new().route("/charges", post(charge)).layer(idempotency))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = open("charges.db").await?;
    // The sweeper removes expired rows until it is dropped.
    let _sweeper = store.sweep_every(Duration::from_secs(60))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app(store)?).await?)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_charge_over_the_limit_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("sqlite-atomic-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let store = open(directory.join("charges.db").to_str().unwrap()).await.unwrap();
        let app = app(store.clone()).unwrap();
        let send = async |key: &str, cents: &'static str| {
            let request = Request::post("/charges").header("Idempotency-Key", key);
            let response = app
                .clone()
                .oneshot(request.body(Body::from(cents)).unwrap())
                .await
                .unwrap();
            response.status().as_u16()
        };
        assert_eq!(send("order-1", "9000").await, 201);
        assert_eq!(send("order-1", "9000").await, 201, "a replay");
        assert_eq!(send("order-2", "9000").await, 402, "rolled back");
        assert_eq!(send("order-2", "500").await, 201, "its key is free again");
        let charges: Vec<i64> = sqlx::query_scalar("SELECT cents FROM charges")
            .fetch_all(store.pool())
            .await
            .unwrap();
        assert_eq!(charges, [9000, 500]);
        store.pool().close().await;
        std::fs::remove_dir_all(directory).unwrap();
    }
}
