//! The PostgreSQL store's statements.

use crate::store::sql::statements::{self, Dialect, Statement};
use crate::store::sql::table::Table;

const DIALECT: Dialect = Dialect {
    now: "statement_timestamp()",
    from_now: "{now} + ? * interval '1 millisecond'",
    lease_left: "(extract(epoch FROM lease_until - {now}) * 1000)::bigint",
    forgotten_in: "(extract(epoch FROM forget_at - {now}) * 1000)::bigint",
    record_length: "length(record)::bigint",
    skip_locked: "FOR UPDATE SKIP LOCKED",
    numbers_parameters: true,
};

/// Reads the slot, and claims it if it has no row. If the statement does neither, the row was
/// forgotten or another statement interfered. The statement does not try to insert a row if one
/// exists, because the insert would wait for a transaction that is deleting the existing row. The
/// record is left out if its fingerprint conflicts with `$2`: the rule, which the first two bytes
/// identify, is the same, but the digest is different.
///
/// `$1` slot, `$2` fingerprint, `$3` token, `$4` lease, `$5` ttl, `$6` scope.
const CLAIM: &str = "\
WITH seen AS MATERIALIZED (
    SELECT fingerprint, token, attempt, record, {lease_left} AS lease_left, forget_at > {now} AS counts
    FROM idempotency_keys WHERE slot = $1
), inserted AS (
    INSERT INTO idempotency_keys (slot, scope, fingerprint, token, attempt, lease_until, forget_at, sweep_at)
    SELECT $1, $6, $2, $3, 1,
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
FROM (SELECT 1) AS one LEFT JOIN seen ON seen.counts";

/// [`CLAIM`] for several claims. Each parameter is an array sorted by slot, so that two such
/// statements cannot deadlock. A result row with `n` describes the existing row for claim number
/// `n`. A result row without `n` describes a claim that started.
const CLAIM_MANY: &str = "\
WITH seen AS MATERIALIZED (
    SELECT asked.*, held.slot IS NOT NULL AS is_there, held.forget_at > {now} AS counts,
           held.fingerprint AS held_fingerprint, held.token AS held_token, held.attempt,
           {lease_left} AS lease_left, held.record IS NOT NULL AS done,
           CASE WHEN held.fingerprint = asked.fingerprint
                  OR substr(held.fingerprint, 1, 2) <> substr(asked.fingerprint, 1, 2)
                THEN held.record END AS record
    FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::float8[], $5::float8[], $6::bytea[])
         WITH ORDINALITY AS asked (slot, fingerprint, token, lease, ttl, scope, n)
         LEFT JOIN idempotency_keys AS held ON held.slot = asked.slot
), inserted AS (
    INSERT INTO idempotency_keys AS new (slot, scope, fingerprint, token, attempt, lease_until, forget_at, sweep_at)
    SELECT slot, scope, fingerprint, token, 1,
           {now} + lease * interval '1 millisecond',
           {now} + (lease + ttl) * interval '1 millisecond',
           {now} + (lease + ttl) * interval '1 millisecond'
    FROM seen WHERE NOT is_there
    ON CONFLICT (slot) DO NOTHING
    RETURNING new.slot, new.token
)
SELECT n, NULL::bytea AS slot, held_token AS token, held_fingerprint AS fingerprint, attempt, lease_left, done, record
FROM seen WHERE counts
UNION ALL
SELECT NULL, slot, token, NULL, NULL, NULL, NULL, NULL FROM inserted";

/// Claims rows that are forgotten, and rows whose lease has lapsed and whose fingerprint does not
/// conflict. This statement is separate from [`CLAIM`] because takeovers are rare, and including
/// them would make every claim slower. The statement skips rows that are being written instead of
/// waiting for them. It returns the claimed slots and their attempt numbers.
///
/// `$1` to `$6` are as in [`CLAIM_MANY`], and `$7` is whether a lapsed claim is refused.
const TAKE_OVER: &str = "\
UPDATE idempotency_keys AS claimed SET
    attempt = CASE WHEN claimed.forget_at <= {now} THEN 1
                   ELSE LEAST(claimed.attempt, 2147483646) + 1 END,
    scope = CASE WHEN claimed.forget_at <= {now} THEN asked.scope ELSE claimed.scope END,
    fingerprint = asked.fingerprint, token = asked.token, record = NULL,
    lease_until = {now} + asked.lease * interval '1 millisecond',
    forget_at = {now} + (asked.lease + asked.ttl) * interval '1 millisecond',
    sweep_at = {now} + (asked.lease + asked.ttl) * interval '1 millisecond'
FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::float8[], $5::float8[], $6::bytea[], $7::bool[])
     AS asked (slot, fingerprint, token, lease, ttl, scope, refuses)
     CROSS JOIN LATERAL (
        SELECT held.slot FROM idempotency_keys AS held
        WHERE held.slot = asked.slot
          AND (held.forget_at <= {now}
            OR (held.record IS NULL AND held.token <> asked.token
                AND (held.fingerprint = asked.fingerprint
                  OR substr(held.fingerprint, 1, 2) <> substr(asked.fingerprint, 1, 2))
                AND held.lease_until <= {now} AND NOT asked.refuses))
        {skip_locked}
     ) AS free
WHERE claimed.slot = free.slot
RETURNING claimed.slot, claimed.attempt";

/// The last part of a statement that changes held claims. This part skips claims whose rows are
/// locked.
macro_rules! of_unlocked {
    () => {
        "     CROSS JOIN LATERAL (
        SELECT held.slot FROM idempotency_keys AS held
        WHERE held.slot = asked.slot AND held.token = asked.token
          AND held.record IS NULL AND held.forget_at > {now}
        {skip_locked}
     ) AS free
WHERE claimed.slot = free.slot
RETURNING asked.n"
    };
}

/// Renews leases. A row that a transaction is writing is skipped, because the transaction may be
/// the operation's own transaction, which can stay open for any amount of time. Returns the numbers
/// of the renewed claims.
///
/// `$1` slots, `$2` tokens, `$3` leases.
const RENEW_MANY: &str = concat!(
    "\
UPDATE idempotency_keys AS claimed SET
    forget_at = {now} + asked.lease * interval '1 millisecond' + (claimed.forget_at - claimed.lease_until),
    lease_until = {now} + asked.lease * interval '1 millisecond'
FROM unnest($1::bytea[], $2::bigint[], $3::float8[]) WITH ORDINALITY AS asked (slot, token, lease, n)
",
    of_unlocked!()
);

/// `COMPLETE` for several claims: `$1` slots, `$2` tokens, `$3` records, `$4` ttls.
const COMPLETE_MANY: &str = "\
UPDATE idempotency_keys AS claimed SET
    record = asked.record, forget_at = {now} + asked.ttl * interval '1 millisecond'
FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::float8[]) WITH ORDINALITY AS asked (slot, token, record, ttl, n)
WHERE claimed.slot = asked.slot AND claimed.token = asked.token
  AND claimed.record IS NULL AND claimed.forget_at > {now}
RETURNING asked.n";

/// [`COMPLETE_MANY`] without the claims whose rows are locked. This statement is separate, because
/// taking the lock first would slow down every record.
const COMPLETE_UNLOCKED: &str = concat!(
    "\
UPDATE idempotency_keys AS claimed SET
    record = asked.record, forget_at = {now} + asked.ttl * interval '1 millisecond'
FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::float8[]) WITH ORDINALITY AS asked (slot, token, record, ttl, n)
",
    of_unlocked!()
);

/// `RELEASE` for several claims: `$1` slots, `$2` tokens.
const RELEASE_MANY: &str = "\
DELETE FROM idempotency_keys AS claimed
USING unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS asked (slot, token, n)
WHERE claimed.slot = asked.slot AND claimed.token = asked.token
  AND claimed.record IS NULL AND claimed.forget_at > {now}
RETURNING asked.n";

/// [`RELEASE_MANY`] without the claims whose rows are locked.
const RELEASE_UNLOCKED: &str = concat!(
    "\
DELETE FROM idempotency_keys AS claimed
USING unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS asked (slot, token, n)
",
    of_unlocked!()
);

/// Reads the rows of these slots: the slot, the token, whether a record exists, and whether the row
/// is still valid.
const CHECK: &str =
    "SELECT slot, token, record IS NOT NULL, forget_at > {now} FROM idempotency_keys WHERE slot = ANY ($1)";

/// Processes one window of the sweeper in one round trip and one transaction. The statement reads
/// the index on `sweep_at` in order, whatever the planner's estimates for the table are, and finds
/// the rows by their physical location. `{from}` is the earliest due time, and `{rows}` is the
/// maximum number of rows. Returns the number of rows removed, the number of due rows processed,
/// the due time of the last row in microseconds since 1970, and the milliseconds since that due
/// time.
const SWEEP: &str = "\
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_sort = off;
SET LOCAL jit = off;
WITH due AS MATERIALIZED (
    SELECT ctid AS place, sweep_at, forget_at <= {now} AS is_over FROM idempotency_keys
    WHERE sweep_at <= {now} AND sweep_at >= {from}
    ORDER BY sweep_at LIMIT {rows} {skip_locked}
), removed AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT place FROM due WHERE is_over)) RETURNING 1
), put_off AS (
    UPDATE idempotency_keys SET sweep_at = forget_at
    WHERE ctid = ANY (ARRAY(SELECT place FROM due WHERE NOT is_over)) RETURNING 1
)
SELECT (SELECT count(*) FROM removed), count(*),
       (extract(epoch FROM max(sweep_at)) * 1000000)::bigint,
       (extract(epoch FROM {now} - max(sweep_at)) * 1000)::bigint
FROM due";

/// Removes some of a scope's records. Returns how many rows were found, and how many of the removed
/// rows had not expired. If another transaction is changing a row, the statement waits for that
/// transaction, and the next statement finds the row again.
///
/// `$1` scope.
const FORGET_SCOPE: &str = "\
WITH found AS MATERIALIZED (
    SELECT ctid AS place FROM idempotency_keys WHERE scope = $1 AND record IS NOT NULL LIMIT 1000 FOR UPDATE
), removed AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(SELECT place FROM found)) RETURNING forget_at > {now} AS counts
)
SELECT (SELECT count(*) FROM found), (SELECT count(*) FROM removed WHERE counts)";

/// The text before and after `COMPLETE` when the record is written in a handler's transaction. A
/// setting that is local to the transaction tells the statement whether the transaction is still
/// open. At commit, the settings that guarded the session (`guarded.rs`) are reset.
///
/// From this statement until commit, the row is locked. A client that stops responding is
/// disconnected, because its key would otherwise be stuck for as long as its connection exists.
///
/// The handler's role is then restored, so that work deferred until commit runs with that role.
///
/// Parameters: those of `COMPLETE`, the mark, the mark again, how long a client can be silent (in
/// milliseconds, as text), and the handler's role twice, or NULL.
const COMPLETE_IN: [&str; 2] = [
    "WITH completed AS (",
    " AND current_setting('tower_idempotency.open', true) = ? RETURNING true)
SELECT EXISTS (SELECT FROM completed) AS is_completed,
       coalesce(current_setting('tower_idempotency.open', true) = ?, false) AS is_open,
       set_config('idle_in_transaction_session_timeout', ?, true),
       set_config('default_transaction_read_only', NULL, false),
       CASE WHEN ?::text IS NOT NULL THEN set_config('role', ?, true) END",
];

/// Sets a role for the rest of a transaction, and returns the previous role if it was different. A
/// statement has the permissions of the role with which it begins, so this statement cannot be part
/// of [`COMPLETE_IN`].
///
/// `$1` role.
pub(super) const TAKE_ROLE: &str = "\
SELECT before, set_config('role', $1, true)
FROM (SELECT current_setting('role') AS before OFFSET 0) AS found WHERE before <> $1";

/// The statements for one table.
pub(super) struct Statements {
    pub(super) claim: Statement,
    pub(super) claim_many: Statement,
    pub(super) take_over: Statement,
    pub(super) renew_many: Statement,
    pub(super) complete: Statement,
    pub(super) complete_many: Statement,
    pub(super) complete_unlocked: Statement,
    pub(super) complete_in: Statement,
    pub(super) release: Statement,
    pub(super) release_many: Statement,
    pub(super) release_unlocked: Statement,
    pub(super) check: Statement,
    pub(super) is_done: Statement,
    pub(super) look_up: Statement,
    pub(super) forget: Statement,
    pub(super) forget_scope: Statement,
    pub(super) count: Statement,
    pub(super) sweep: Statement,
}

impl Statements {
    pub(super) fn new(table: &Table) -> Self {
        let statement = |template: &str| DIALECT.statement(table, template);
        Self {
            claim: statement(CLAIM),
            claim_many: statement(CLAIM_MANY),
            take_over: statement(TAKE_OVER),
            renew_many: statement(RENEW_MANY),
            complete: statement(statements::COMPLETE),
            complete_many: statement(COMPLETE_MANY),
            complete_unlocked: statement(COMPLETE_UNLOCKED),
            complete_in: statement(&COMPLETE_IN.join(statements::COMPLETE)),
            release: statement(statements::RELEASE),
            release_many: statement(RELEASE_MANY),
            release_unlocked: statement(RELEASE_UNLOCKED),
            check: statement(CHECK),
            is_done: statement(statements::IS_DONE),
            look_up: statement(statements::LOOK_UP),
            forget: statement(statements::FORGET),
            forget_scope: statement(FORGET_SCOPE),
            count: statement(statements::COUNT),
            sweep: statement(SWEEP),
        }
    }
}
