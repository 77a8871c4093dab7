//! Why a handler's transaction could not begin, or failed.

use std::error::Error as StdError;
use std::fmt;

/// Why a [`Transaction`](super::Transaction) could not begin, or a statement in it failed.
///
/// In Axum it is a `503` response, which rolls the transaction back and frees the key.
#[derive(Debug)]
pub struct TransactionError {
    kind: TransactionErrorKind,
    source: Option<sqlx::Error>,
}

/// What sort of failure a [`TransactionError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionErrorKind {
    /// The database failed, or refused the statement.
    Database,
    /// The [`Work`](super::Work) of an earlier [`Transaction::begin`](super::Transaction::begin) is
    /// still there.
    InUse,
    /// The response has been given already.
    Over,
}

impl TransactionError {
    pub(super) fn of(kind: TransactionErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> TransactionErrorKind {
        self.kind
    }
}

/// For `?` on statements in a handler.
impl From<sqlx::Error> for TransactionError {
    fn from(error: sqlx::Error) -> Self {
        Self {
            kind: TransactionErrorKind::Database,
            source: Some(error),
        }
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            TransactionErrorKind::Database => "the database failed in the operation's transaction",
            TransactionErrorKind::InUse => {
                "the operation's transaction is in use: drop the `Work` of the earlier `begin`, or hand it on"
            }
            TransactionErrorKind::Over => {
                "the operation's transaction is over: the response was given before this work began"
            }
        })
    }
}

impl StdError for TransactionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
