//! The SQLite store's statements.

use sqlx::AssertSqlSafe;

use crate::store::sql::statements::{self, Dialect, Statement};
use crate::store::sql::table::Table;

const DIALECT: Dialect = Dialect {
    now: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    from_now: "{now} + ?",
    lease_left: "lease_until - {now}",
    forgotten_in: "forget_at - {now}",
    record_length: "length(record)",
    // SQLite allows one writer, whose transaction locks the whole database.
    skip_locked: "",
    numbers_parameters: false,
};

/// The statement that begins a transaction and takes the writer's lock immediately. Without the
/// lock, a transaction that reads and then writes would fail if another transaction had written in
/// the meantime.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";
/// Ends a transaction that [`BEGIN`] began.
pub(super) const COMMIT: &str = "COMMIT";

/// Reads the slot. The record is left out if its fingerprint conflicts with the parameter: the
/// rule, which the first two bytes identify, is the same, but the digest is different. Parameters:
/// fingerprint, fingerprint again, slot.
const READ: &str = "SELECT fingerprint, token, attempt, {lease_left} AS lease_left, \
     record IS NOT NULL AS done, \
     CASE WHEN fingerprint = ? OR substr(fingerprint, 1, 2) <> substr(?, 1, 2) THEN record END AS record \
     FROM idempotency_keys WHERE slot = ? AND forget_at > {now}";

/// Claims a slot if it has no row, if its row is forgotten, or if its lease has lapsed and its
/// fingerprint does not conflict.
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

/// Reads the rows that the sweeper processes next. For each row, returns its handle, whether it is
/// forgotten, its record's length, and how long it has been due. The statement reads one index
/// entry for each row that it returns, however many rows are due. Parameter: the maximum number of
/// rows.
const DUE: &str = "SELECT rowid, forget_at <= {now}, coalesce(length(record), 0), {now} - sweep_at FROM idempotency_keys \
     WHERE sweep_at <= {now} ORDER BY sweep_at LIMIT ?";

/// Removes the given rows if they are forgotten. Parameter: the rows, as a JSON array.
const REMOVE: &str =
    "DELETE FROM idempotency_keys WHERE rowid IN (SELECT value FROM json_each(?)) AND forget_at <= {now}";

/// Postpones the given rows if they live longer than planned, so that the sweeper processes them
/// later. Parameter: the rows, as a JSON array.
const PUT_OFF: &str = "UPDATE idempotency_keys SET sweep_at = forget_at \
     WHERE rowid IN (SELECT value FROM json_each(?)) AND forget_at > {now}";

/// Parameters: scope, maximum number of rows.
const FORGET_SCOPE: &str = "DELETE FROM idempotency_keys WHERE rowid IN \
     (SELECT rowid FROM idempotency_keys WHERE scope = ? AND record IS NOT NULL LIMIT ?) \
     RETURNING forget_at > {now}";

/// A statement that is sent several times in one text.
///
/// Each connection of `sqlx` runs SQLite in its own thread. Sending a text to that thread and
/// waiting for its result takes longer than running most statements, so a batch combines its
/// statements into a few texts.
pub(super) struct Repeated(Statement);

/// Which ends of its transaction a text contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) begins: bool,
    pub(super) commits: bool,
}

impl Repeated {
    /// The largest number of repetitions. A connection keeps each text that it has run as prepared
    /// statements, which is why the numbers of repetitions are limited.
    const MOST: usize = 16;
    /// The largest number up to which a text may repeat the statement any number of times.
    const ANY: usize = 8;
    /// The number of different texts, with and without the ends of the transaction.
    pub(super) const TEXTS: usize = (Self::ANY + 1) * 4;

    pub(super) fn once(&self) -> &Statement {
        &self.0
    }

    /// Splits jobs into groups, each of which is sent as one text. The first text begins the
    /// transaction and the last text commits it, if `ends` says so.
    pub(super) fn groups<'j, T>(&self, mut jobs: &'j [T], ends: Ends) -> impl Iterator<Item = Group<'j, T>> {
        let all = jobs.len();
        std::iter::from_fn(move || {
            let size = match jobs.len() {
                0 => return None,
                few @ ..=Self::ANY => few,
                Self::MOST.. => Self::MOST,
                _ => Self::ANY,
            };
            let begins = ends.begins && jobs.len() == all;
            let (jobs_of_group, rest) = jobs.split_at(size);
            jobs = rest;
            let ends = Ends {
                begins,
                commits: ends.commits && jobs.is_empty(),
            };
            Some(Group {
                text: self.text(size, ends),
                ends,
                jobs: jobs_of_group,
            })
        })
    }

    fn text(&self, size: usize, ends: Ends) -> AssertSqlSafe<String> {
        let mut texts = vec![self.0.as_str(); size];
        if ends.begins {
            texts.insert(0, BEGIN);
        }
        if ends.commits {
            texts.push(COMMIT);
        }
        AssertSqlSafe(texts.join("; "))
    }
}

/// Jobs that are sent as one text.
pub(super) struct Group<'j, T> {
    pub(super) text: AssertSqlSafe<String>,
    pub(super) ends: Ends,
    pub(super) jobs: &'j [T],
}

/// The statements for one table.
pub(super) struct Statements {
    pub(super) read: Statement,
    pub(super) claim: Repeated,
    pub(super) renew: Statement,
    pub(super) complete: Repeated,
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
            claim: Repeated(statement(CLAIM)),
            renew: statement(statements::RENEW),
            complete: Repeated(statement(statements::COMPLETE)),
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
    use std::collections::HashSet;

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

    /// Whatever the table contains, each statement reads only the rows that it applies to.
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
            sql.complete.once(),
            &sql.release,
            &sql.is_done,
            &sql.look_up,
            &sql.forget,
        ] {
            assert_eq!(plan(&mut connection, statement).await, by_slot);
        }
        // The rows are in the order of the index, so that the statement ends with the last row that
        // it returns.
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

    #[test]
    fn the_groups_of_a_batch_are_one_transaction() {
        let sql = Statements::new(&Table::default());
        let jobs: Vec<usize> = (0..2 * Repeated::MOST + 7).collect();
        for (length, begins, commits) in lengths_and_ends(jobs.len()) {
            let (mut split, mut texts) = (Vec::new(), Vec::new());
            for group in sql.complete.groups(&jobs[..length], Ends { begins, commits }) {
                assert_eq!(group.text.0.matches("UPDATE").count(), group.jobs.len());
                split.extend_from_slice(group.jobs);
                texts.push(group.text.0);
            }
            assert_eq!(split, jobs[..length], "{length}");
            let sent = texts.join("; ");
            let count = |word| sent.matches(word).count();
            assert_eq!(count(BEGIN), usize::from(begins && length > 0));
            assert_eq!(count(COMMIT), usize::from(commits && length > 0));
            assert!(!begins || length == 0 || sent.starts_with(BEGIN), "{sent}");
            assert!(!commits || length == 0 || sent.ends_with(COMMIT), "{sent}");
        }
        assert_eq!(sql.complete.groups(&jobs[..Repeated::MOST], Ends::default()).count(), 1);
    }

    #[test]
    fn a_connection_caches_every_text() {
        let sql = Statements::new(&Table::default());
        let jobs = [(); 2 * Repeated::MOST];
        let mut texts = HashSet::new();
        for (length, begins, commits) in lengths_and_ends(jobs.len()) {
            texts.extend(
                sql.claim
                    .groups(&jobs[..length], Ends { begins, commits })
                    .map(|group| group.text.0),
            );
        }
        assert_eq!(texts.len(), Repeated::TEXTS);
    }

    fn lengths_and_ends(most: usize) -> impl Iterator<Item = (usize, bool, bool)> {
        let bools = [(false, false), (false, true), (true, false), (true, true)];
        (0..=most).flat_map(move |length| bools.map(|(begins, commits)| (length, begins, commits)))
    }
}
