//! Stores in an SQL database that the application has anyway, and the atomic mode on them.
//!
//! Both keep one row for each slot; their tables differ in column types only, and are in
//! `postgres.sql` and `sqlite.sql` beside this file. Every decision is one statement on the
//! database's clock: it says itself what it needs of the row, so that neither the clocks of processes
//! matter nor what happened since an earlier statement. A `begin` may come to several: SQLite reads
//! before it claims, and PostgreSQL takes a row over by a statement of its own. On PostgreSQL that one
//! skips a row that a transaction is writing.

mod error;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "SQLite is in this process"))]
mod open;
mod sweeper;
mod table;
mod transaction;

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::future::Future;
use std::time::Duration;

use sqlx::{Database, Pool};

use super::{Begin, Begun, Census, Entry, Held, Phase, Record, ScopeTag, Slot, StoreError, Token};
use crate::request::Fingerprint;
use crate::store::Millis;

#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use sweeper::Sweeper;
pub use transaction::{Transaction, TransactionError, TransactionErrorKind, Work};

/// What the atomic mode and the sweeper need of a store.
pub(crate) trait SqlStore: Clone + Send + Sync + 'static {
    type Db: Database;

    /// The name in messages.
    const NAME: &'static str;
    /// How a transaction begins.
    const BEGIN: &'static str;

    fn pool(&self) -> &Pool<Self::Db>;

    /// Writes the record in an open transaction, if the token still holds the claim. On PostgreSQL a
    /// client that falls silent then keeps the row locked for the claim's lease at most.
    fn complete_in(
        &self,
        connection: &mut <Self::Db as Database>::Connection,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Whether the record of that claim is there, once no transaction that may still write it is
    /// left.
    fn is_done(&self, claim: &ClaimId) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes some expired rows.
    fn sweep_some(&self, batch: u32) -> impl Future<Output = Result<u64, StoreError>> + Send;

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError;

    /// Whether a commit that failed so may be done all the same.
    fn leaves_in_doubt(error: &sqlx::Error) -> bool;
}

/// The claim that a transaction belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimId {
    pub(crate) slot: Slot,
    pub(crate) token: Token,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "SQLite has no silent clients"))]
    pub(crate) lease: Duration,
}

impl ClaimId {
    fn of(begin: &Begin) -> Self {
        Self {
            slot: begin.slot,
            token: begin.token,
            lease: begin.lease,
        }
    }
}

/// A claim that is undone again, to see whether the table is as it should be.
fn trial() -> Begin {
    let minute = Duration::from_secs(60);
    let mut slot = [0; Slot::LEN];
    slot[..8].copy_from_slice(&Token::random().0.to_ne_bytes());
    slot[8..16].copy_from_slice(&Token::random().0.to_ne_bytes());
    Begin {
        slot: Slot::from_bytes(slot),
        scope: ScopeTag::default(),
        fingerprint: Fingerprint::from_bytes([0; Fingerprint::LEN]),
        token: Token::random(),
        lease: minute,
        ttl: minute,
        on_lapse: super::OnLapse::RunAgain,
    }
}

/// Tokens are unsigned, the databases' integers are not.
fn signed(token: Token) -> i64 {
    i64::from_ne_bytes(token.0.to_ne_bytes())
}

/// A duration for the database: milliseconds, rounded up, ten thousand years at most, which every
/// date type can add.
fn millis(duration: Duration) -> i64 {
    const MOST: i64 = 10_000 * 366 * 24 * 60 * 60 * 1000;
    i64::try_from(Millis(0).after(duration).0).map_or(MOST, |millis| millis.min(MOST))
}

/// Milliseconds of the database that are left, none if they are over.
fn left(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A row as `begin` sees it.
struct Seen {
    fingerprint: Vec<u8>,
    token: i64,
    attempt: i32,
    lease_left: i64,
    done: bool,
    /// There if the row is done and its fingerprint is the one asked for.
    record: Option<Vec<u8>>,
}

impl Seen {
    /// What is answered to a `begin` that did not get the slot. `None`: it could have, but another
    /// statement was in its way.
    fn decide(self, begin: &Begin) -> Result<Option<Begun>, StoreError> {
        let same = self.fingerprint == begin.fingerprint.as_bytes();
        if let Some(record) = self.record {
            return Record::from_bytes(&record).map(|record| Some(Begun::Done(record)));
        }
        Ok(if !self.done && self.token == signed(begin.token) {
            Some(Begun::Started {
                attempt: attempts(self.attempt),
            })
        } else if !same {
            Some(Begun::Mismatch)
        } else if self.lease_left > 0 {
            Some(Begun::InFlight {
                lease_left: left(self.lease_left),
            })
        } else if begin.on_lapse == super::OnLapse::Refuse {
            Some(Begun::OutcomeUnknown)
        } else {
            None
        })
    }
}

fn attempts(attempt: i32) -> u32 {
    u32::try_from(attempt).unwrap_or(1)
}

/// How often a `begin` asks when other statements get in its way, before it says that the slot is
/// in flight, which it then is.
const ROUNDS: u32 = 3;

const BUSY: Begun = Begun::InFlight {
    lease_left: Duration::ZERO,
};

/// Whether a statement that is to change one claim did.
fn held(rows: u64) -> Held {
    if rows == 1 { Held::Yes } else { Held::Lost }
}

/// A row of `look_up`: fingerprint, attempt, length of the record, milliseconds that are left of the
/// lease and of the row.
fn entry(
    (print, attempt, bytes, lease_left, forgotten_in): (Vec<u8>, i32, Option<i64>, i64, i64),
) -> Result<Entry, StoreError> {
    let phase = match bytes {
        Some(bytes) => Phase::Done {
            bytes: usize::try_from(bytes).unwrap_or_default(),
        },
        None => Phase::Running {
            attempt: attempts(attempt),
            lease_left: left(lease_left),
        },
    };
    Ok(Entry::new(fingerprint(&print)?, phase, left(forgotten_in)))
}

/// The row of `count`.
fn census((running, lapsed, done): (i64, i64, i64)) -> Census {
    Census::new(running.unsigned_abs(), lapsed.unsigned_abs(), done.unsigned_abs())
}

/// The fingerprint in a row that is looked up.
fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, StoreError> {
    let bytes = bytes.try_into().map_err(|_| {
        StoreError::new(
            super::StoreErrorKind::Corrupt,
            "a stored fingerprint has the wrong length; is the table written by something else?",
        )
    })?;
    Ok(Fingerprint::from_bytes(bytes))
}
