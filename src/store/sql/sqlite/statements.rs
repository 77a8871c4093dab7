//! The statements of the store in SQLite.

use crate::store::sql::statements::{self, Dialect, Statement};
use crate::store::sql::table::Table;

const DIALECT: Dialect = Dialect {
    now: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    from_now: "{now} + ?",
    lease_left: "lease_until - {now}",
    forgotten_in: "forget_at - {now}",
    record_length: "length(record)",
    // There is one writer, whose transaction holds the lock for the whole database.
    skip_locked: "",
    numbers_parameters: false,
};

/// What is in the slot. The record is left out if its fingerprint conflicts: it is of the same rule,
/// which the first two bytes name, and another digest.
///
/// `?1` slot, `?2` fingerprint.
const READ: &str = "SELECT fingerprint, token, attempt, {lease_left} AS lease_left, \
     record IS NOT NULL AS done, \
     CASE WHEN fingerprint = ?2 OR substr(fingerprint, 1, 2) <> substr(?2, 1, 2) THEN record END AS record \
     FROM idempotency_keys WHERE slot = ?1 AND forget_at > {now}";

/// Claims a slot that is free, forgotten, or whose lease has lapsed and whose fingerprint does not
/// conflict.
///
/// `?1` slot, `?2` fingerprint, `?3` token, `?4` lease, `?5` ttl, `?6` whether a lapsed claim is
/// refused.
const CLAIM: &str = "INSERT INTO idempotency_keys AS held (slot, fingerprint, token, attempt, lease_until, forget_at, sweep_at) \
     VALUES (?1, ?2, ?3, 1, {now} + ?4, {now} + ?4 + ?5, {now} + ?4 + ?5) \
     ON CONFLICT (slot) DO UPDATE SET \
     attempt = CASE WHEN held.forget_at <= {now} THEN 1 ELSE min(held.attempt, 2147483646) + 1 END, \
     fingerprint = excluded.fingerprint, token = excluded.token, record = NULL, \
     lease_until = excluded.lease_until, forget_at = excluded.forget_at, sweep_at = excluded.sweep_at \
     WHERE held.forget_at <= {now} OR (held.record IS NULL AND (held.fingerprint = excluded.fingerprint \
     OR substr(held.fingerprint, 1, 2) <> substr(excluded.fingerprint, 1, 2)) \
     AND held.token <> excluded.token AND held.lease_until <= {now} AND NOT ?6) \
     RETURNING attempt";

/// The statements for one table.
pub(super) struct Statements {
    pub(super) read: Statement,
    pub(super) claim: Statement,
    pub(super) renew: Statement,
    pub(super) complete: Statement,
    pub(super) release: Statement,
    pub(super) is_done: Statement,
    pub(super) look_up: Statement,
    pub(super) forget: Statement,
    pub(super) count: Statement,
    pub(super) sweep: Statement,
    pub(super) put_off: Statement,
}

impl Statements {
    pub(super) fn new(table: &Table) -> Self {
        let statement = |template: &str| DIALECT.statement(table, template);
        Self {
            read: statement(READ),
            claim: statement(CLAIM),
            renew: statement(statements::RENEW),
            complete: statement(statements::COMPLETE),
            release: statement(statements::RELEASE),
            is_done: statement(statements::IS_DONE),
            look_up: statement(statements::LOOK_UP),
            forget: statement(statements::FORGET),
            count: statement(statements::COUNT),
            sweep: statement(statements::SWEEP),
            put_off: statement(statements::PUT_OFF),
        }
    }
}
