//! The statements of the store in PostgreSQL.

use crate::store::sql::statements::{self, Dialect, Statement};
use crate::store::sql::table::Table;

const DIALECT: Dialect = Dialect {
    now: "statement_timestamp()",
    from_now: "{now} + ? * interval '1 millisecond'",
    lease_left: "(extract(epoch FROM lease_until - {now}) * 1000)::bigint",
    forgotten_in: "(extract(epoch FROM forget_at - {now}) * 1000)::bigint",
    record_length: "length(record)::bigint",
    for_update: "FOR UPDATE",
    skip_locked: "FOR UPDATE SKIP LOCKED",
    numbers_parameters: true,
};

/// Answers what is in the slot, and claims it if nothing is. If it did neither, the row is not swept
/// yet, or another statement came in between. The record is left out if its fingerprint conflicts: it
/// is of the same rule, which the first two bytes name, and another digest.
///
/// `$1` slot, `$2` fingerprint, `$3` token, `$4` lease, `$5` ttl.
const BEGIN: &str = "\
WITH seen AS MATERIALIZED (
    SELECT fingerprint, token, attempt, record, {lease_left} AS lease_left
    FROM idempotency_keys WHERE slot = $1 AND forget_at > {now}
), inserted AS (
    INSERT INTO idempotency_keys (slot, fingerprint, token, attempt, lease_until, forget_at, sweep_at)
    SELECT $1, $2, $3, 1,
           {now} + $4 * interval '1 millisecond',
           {now} + ($4 + $5) * interval '1 millisecond',
           {now} + ($4 + $5) * interval '1 millisecond'
    WHERE NOT EXISTS (SELECT FROM seen)
    ON CONFLICT (slot) DO NOTHING
    RETURNING attempt
)
SELECT (SELECT attempt FROM inserted) AS started,
       seen.fingerprint, seen.token, seen.attempt, seen.lease_left,
       seen.record IS NOT NULL AS done,
       CASE WHEN seen.fingerprint = $2 OR substr(seen.fingerprint, 1, 2) <> substr($2, 1, 2)
            THEN seen.record END AS record
FROM (SELECT 1) AS one LEFT JOIN seen ON true";

/// Claims a row that is forgotten, or whose lease has lapsed and whose fingerprint does not conflict.
/// It is separate from [`BEGIN`] because it is rare, and would make every `begin` slower. A row that is
/// being written is skipped, not waited for.
///
/// `$1` to `$5` as in [`BEGIN`], `$6` whether a lapsed claim is refused.
const TAKE_OVER: &str = "\
UPDATE idempotency_keys AS claimed SET
    attempt = CASE WHEN claimed.forget_at <= {now} THEN 1
                   ELSE LEAST(claimed.attempt, 2147483646) + 1 END,
    fingerprint = $2, token = $3, record = NULL,
    lease_until = {now} + $4 * interval '1 millisecond',
    forget_at = {now} + ($4 + $5) * interval '1 millisecond',
    sweep_at = {now} + ($4 + $5) * interval '1 millisecond'
WHERE claimed.slot IN (
    SELECT slot FROM idempotency_keys
    WHERE slot = $1
      AND (forget_at <= {now}
        OR (record IS NULL AND token <> $3
            AND (fingerprint = $2 OR substr(fingerprint, 1, 2) <> substr($2, 1, 2))
            AND lease_until <= {now} AND NOT $6))
    {skip_locked})
RETURNING attempt AS started";

/// Around `COMPLETE` in a handler's transaction, which must still be open: the setting that marks it is
/// local to it. Resets what guarded the session (`guarded.rs`) as of the commit.
///
/// From here to the commit the row is locked: a client that falls silent is cut off, because its key
/// would otherwise be stuck for as long as its connection lives.
///
/// Parameters: those of `COMPLETE`, the mark, the mark again, and how long a client may be silent, in
/// milliseconds, as text.
const COMPLETE_IN: [&str; 2] = [
    "WITH completed AS (",
    " AND current_setting('tower_idempotency.open', true) = ? RETURNING true)
SELECT EXISTS (SELECT FROM completed) AS is_completed,
       coalesce(current_setting('tower_idempotency.open', true) = ?, false) AS is_open,
       set_config('idle_in_transaction_session_timeout', ?, true),
       set_config('default_transaction_read_only', NULL, false)",
];

/// The statements for one table.
pub(super) struct Statements {
    pub(super) begin: Statement,
    pub(super) take_over: Statement,
    pub(super) renew: Statement,
    pub(super) complete: Statement,
    pub(super) complete_in: Statement,
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
            begin: statement(BEGIN),
            take_over: statement(TAKE_OVER),
            renew: statement(statements::RENEW),
            complete: statement(statements::COMPLETE),
            complete_in: statement(&COMPLETE_IN.join(statements::COMPLETE)),
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
