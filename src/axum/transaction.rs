//! The extractors for the operation's transaction, and the response to an error in the transaction.

use std::convert::Infallible;
use std::fmt;

use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use sqlx::Pool;

use crate::answer::Verdict;
use crate::request::IdempotencyKey;
use crate::store::sql::{AtomicDatabase, Transaction, TransactionError, TransactionOrOwn};

/// The rejection of the [`Transaction`] extractor: the request has no transaction.
///
/// The response is `500`, because this is a server error. The response text gives the client no
/// further details. The reason is in the log and in the `Display` output.
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
                "no `IdempotencyLayer` has checked the request's key; put the layer around this route, and make sure \
                 that it guards the method"
            }
            Why::Unprotected => {
                "the request runs unprotected because the store failed; take an `Option<Transaction>` and refuse the \
                 request, or remove `run_unprotected_when_store_fails`"
            }
            Why::NoAtomicMode => {
                "the layer's store has no atomic mode for this database; use `PostgresStore` with \
                 `Transaction<Postgres>`, or `SqliteStore` with `Transaction<Sqlite>`"
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
            let text = "The database is not available. The operation was rolled back; retry later.";
            (StatusCode::SERVICE_UNAVAILABLE, retry, text).into_response()
        } else if self.may_be_committed() {
            let text = "The outcome of the operation is unknown.";
            (StatusCode::INTERNAL_SERVER_ERROR, Verdict::Reopen, text).into_response()
        } else {
            let text = "The operation failed and was rolled back.";
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
