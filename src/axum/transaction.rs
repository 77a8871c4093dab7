//! The extractors of the operation's transaction, and the response of what fails in it.

use std::convert::Infallible;
use std::fmt;

use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use sqlx::Pool;

use crate::request::IdempotencyKey;
use crate::store::sql::{AtomicDatabase, Transaction, TransactionError, TransactionOrOwn};

/// The rejection of the extractor [`Transaction`]: the request has no transaction.
///
/// It is `500`, because it is a mistake of the server, and its text tells the client nothing else. The
/// reason is in the log, and in `Display`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingTransaction {
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    NoKey,
    NoLayer,
    Unprotected,
    NoAtomicMode,
}

impl MissingTransaction {
    fn of(parts: &Parts) -> Self {
        let why = match parts.extensions.get::<IdempotencyKey>() {
            Some(key) if key.is_claimed() => Why::NoAtomicMode,
            Some(_) => Why::Unprotected,
            None if parts.headers.contains_key("idempotency-key") => Why::NoLayer,
            None => Why::NoKey,
        };
        Self { why }
    }
}

impl fmt::Display for MissingTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler takes a `Transaction`, but ")?;
        f.write_str(match self.why {
            Why::NoKey => {
                "the request has no idempotency key, or no `IdempotencyLayer` is around this route; require keys with \
                 `require_key(true)`, or take a `TransactionOrOwn` or an `Option<Transaction>`"
            }
            Why::NoLayer => {
                "no `IdempotencyLayer` has looked at the request's key; put the layer around this route, and check that it \
                 guards the method"
            }
            Why::Unprotected => {
                "the request runs unprotected because the store failed; refuse it with `Option<Transaction>`, or do without \
                 `run_unprotected_when_store_fails`"
            }
            Why::NoAtomicMode => {
                "the layer's store has no atomic mode in this database; use `PostgresStore` with `Transaction<Postgres>`, or \
                 `SqliteStore` with `Transaction<Sqlite>`"
            }
        })
    }
}

impl std::error::Error for MissingTransaction {}

impl IntoResponse for MissingTransaction {
    fn into_response(self) -> Response {
        super::not_set_up(&self)
    }
}

impl<S, DB> FromRequestParts<S> for Transaction<DB>
where
    S: Send + Sync,
    DB: AtomicDatabase,
{
    type Rejection = MissingTransaction;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let transaction = parts.extensions.get::<Self>().cloned();
        transaction.ok_or_else(|| MissingTransaction::of(parts))
    }
}

impl<S, DB> OptionalFromRequestParts<S> for Transaction<DB>
where
    S: Send + Sync,
    DB: AtomicDatabase,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

impl<S, DB> FromRequestParts<S> for TransactionOrOwn<DB>
where
    S: Send + Sync,
    DB: AtomicDatabase,
    Pool<DB>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let transaction = parts.extensions.get::<Transaction<DB>>().cloned();
        Ok(Self(
            transaction.unwrap_or_else(|| Transaction::own(Pool::from_ref(state))),
        ))
    }
}

impl IntoResponse for TransactionError {
    fn into_response(self) -> Response {
        let transient = self.is_transient();
        tracing::error!(
            target: "tower_idempotency",
            error = &self as &(dyn std::error::Error + 'static),
            transient,
            "the handler's transaction failed"
        );
        if transient {
            let retry = [(header::RETRY_AFTER, "1")];
            let text = "The database is not available. The operation is rolled back; retry later.";
            (StatusCode::SERVICE_UNAVAILABLE, retry, text).into_response()
        } else {
            let text = "The operation failed and is rolled back.";
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
