//! The statements of the store in SQLite.

use crate::store::sql::statements::{self, Dialect, Statement};
use crate::store::sql::table::Table;

const DIALECT: Dialect = Dialect {
    now: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    from_now: "{now} + ?",
    lease_left: "lease_until - {now}",
    forgotten_in: "forget_at - {now}",
    record_length: "length(record)",
    // There is one writer, whose transaction locks the whole database.
    skip_locked: "",
    numbers_parameters: false,
};

/// Reads the slot. The record is left out if its fingerprint conflicts: the rule, which the first
/// two bytes name, is the same, but the digest is different. Parameters: fingerprint, fingerprint
/// again, slot.
const READ: &str = "SELECT fingerprint, token, attempt, {lease_left} AS lease_left, \
     record IS NOT NULL AS done, \
     CASE WHEN fingerprint = ? OR substr(fingerprint, 1, 2) <> substr(?, 1, 2) THEN record END AS record \
     FROM idempotency_keys WHERE slot = ? AND forget_at > {now}";

/// Claims a slot that is free, that is forgotten, or whose lease has lapsed and whose fingerprint
/// does not conflict.
///
/// Parameters: slot, scope, fingerprint, token, lease, lease plus ttl, lease plus ttl again,
/// whether a lapsed claim is refused.
const CLAIM: &str = "INSERT INTO idempotency_keys AS held \
     (slot, scope, fingerprint, token, attempt, lease_until, forget_at, sweep_at) \
     VALUES (?, ?, ?, ?, 1, {from_now}, {from_now}, {from_now}) \
     ON CONFLICT (slot) DO UPDATE SET \
     attempt = CASE WHEN held.forget_at <= {now} THEN 1 ELSE min(held.attempt, 2147483646) + 1 END, \
     scope = CASE WHEN held.forget_at <= {now} THEN excluded.scope ELSE held.scope END, \
     fingerprint = excluded.fingerprint, token = excluded.token, record = NULL, \
     lease_until = excluded.lease_until, forget_at = excluded.forget_at, sweep_at = excluded.sweep_at \
     WHERE held.forget_at <= {now} OR (held.record IS NULL AND (held.fingerprint = excluded.fingerprint \
     OR substr(held.fingerprint, 1, 2) <> substr(excluded.fingerprint, 1, 2)) \
     AND held.token <> excluded.token AND held.lease_until <= {now} AND NOT ?) \
     RETURNING attempt";

/// Reads the rows that the sweeper looks at next: their handles, whether they are forgotten, their
/// records' lengths, and how long they have been due. It reads as many index entries as rows,
/// however many are due. Parameter: the maximum number of rows.
const DUE: &str = "SELECT rowid, forget_at <= {now}, coalesce(length(record), 0), {now} - sweep_at FROM idempotency_keys \
     WHERE sweep_at <= {now} ORDER BY sweep_at LIMIT ?";

/// Removes those of the rows that are forgotten. Parameter: the rows, as a JSON array.
const REMOVE: &str =
    "DELETE FROM idempotency_keys WHERE rowid IN (SELECT value FROM json_each(?)) AND forget_at <= {now}";

/// Puts off those of the rows that live longer than planned, so that the sweeper comes back to them
/// later. Parameter: the rows, as a JSON array.
const PUT_OFF: &str = "UPDATE idempotency_keys SET sweep_at = forget_at \
     WHERE rowid IN (SELECT value FROM json_each(?)) AND forget_at > {now}";

/// Parameters: scope, maximum number of rows.
const FORGET_SCOPE: &str = "DELETE FROM idempotency_keys WHERE rowid IN \
     (SELECT rowid FROM idempotency_keys WHERE scope = ? AND record IS NOT NULL LIMIT ?) \
     RETURNING forget_at > {now}";

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
    pub(super) due: Statement,
    pub(super) remove: Statement,
    pub(super) put_off: Statement,
    pub(super) forget_scope: Statement,
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
            due: statement(DUE),
            remove: statement(REMOVE),
            put_off: statement(PUT_OFF),
            forget_scope: statement(FORGET_SCOPE),
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, SqliteConnection};

    use super::*;

    async fn plan(connection: &mut SqliteConnection, statement: &Statement) -> String {
        let explain = format!("EXPLAIN QUERY PLAN {}", statement.text().0);
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(explain))
            .fetch_all(connection)
            .await
            .unwrap();
        steps.into_iter().map(|(.., step)| step).collect::<Vec<_>>().join("; ")
    }

    /// Whatever is in the table, each statement looks only at the rows that it is about.
    #[tokio::test]
    async fn no_statement_scans_the_table() {
        let table = Table::default();
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let layout = table.sql(include_str!("table.sql"));
        sqlx::raw_sql(sqlx::AssertSqlSafe(layout))
            .execute(&mut connection)
            .await
            .unwrap();
        let sql = Statements::new(&table);
        let by_slot = "SEARCH idempotency_keys USING INDEX sqlite_autoindex_idempotency_keys_1 (slot=?)";
        for statement in [
            &sql.read,
            &sql.renew,
            &sql.complete,
            &sql.release,
            &sql.is_done,
            &sql.look_up,
            &sql.forget,
        ] {
            assert_eq!(plan(&mut connection, statement).await, by_slot);
        }
        // In the order of the index, so that the statement ends with the last row that it returns.
        assert_eq!(
            plan(&mut connection, &sql.due).await,
            "SEARCH idempotency_keys USING INDEX idempotency_keys_sweep_at (sweep_at<?)"
        );
        for statement in [&sql.remove, &sql.put_off] {
            let plan = plan(&mut connection, statement).await;
            assert!(
                plan.starts_with("SEARCH idempotency_keys USING INTEGER PRIMARY KEY (rowid=?); "),
                "{plan}"
            );
        }
        let plan = plan(&mut connection, &sql.forget_scope).await;
        assert!(plan.contains("USING INDEX idempotency_keys_scope (scope=?)"), "{plan}");
    }
}
