//! The statements that the databases have in common, and the parts that differ between dialects.
//!
//! A template contains the default table name, marks in braces that a [`Dialect`] fills in, and one
//! `?` for each parameter. Parameters are bound in the order in which they appear, so that a
//! template also works for a database without numbered parameters. If a database needs an entirely
//! different statement, its own module contains that statement.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use super::table::Table;

/// A database's syntax for the clock, time arithmetic, locks and parameters.
pub(super) struct Dialect {
    /// `{now}`: the current time, which is the same throughout a statement.
    pub(super) now: &'static str,
    /// `{from_now}`: the current time plus the number of milliseconds in the parameter.
    pub(super) from_now: &'static str,
    /// `{lease_left}`: the number of milliseconds from now until `lease_until`, which is negative
    /// if that time has passed.
    pub(super) lease_left: &'static str,
    /// `{forgotten_in}`: the number of milliseconds from now until `forget_at`.
    pub(super) forgotten_in: &'static str,
    /// `{record_length}`: the record's length in bytes, as a 64-bit integer.
    pub(super) record_length: &'static str,
    /// `{skip_locked}`: locks the rows that a `SELECT` reads, and skips rows that are already
    /// locked.
    pub(super) skip_locked: &'static str,
    /// Whether the database numbers its parameters: `$1`, `$2` and so on.
    pub(super) numbers_parameters: bool,
}

/// A statement for one table.
pub(super) struct Statement(Arc<str>);

impl Statement {
    /// Returns the text, which consists only of the templates, numbers, and names that are
    /// validated or escaped.
    pub(super) fn text(&self) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.0))
    }

    /// Returns the text, for a text that contains several statements.
    #[cfg(feature = "_sqlite")]
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the statement with one more mark replaced by a number, or by text that contains a
    /// number.
    #[cfg(feature = "postgres")]
    pub(super) fn with(&self, mark: &str, number: &str) -> Self {
        Self(self.0.replace(mark, number).into())
    }
}

/// `{held}`: matches the row of a claim that is still held. Parameters: slot, token.
const HELD: &str = "slot = ? AND token = ? AND record IS NULL AND forget_at > {now}";

/// Parameters: lease, lease again, slot, token.
///
/// `forget_at` is assigned first, because a database that evaluates assignments from left to right,
/// such as MySQL, would otherwise subtract the new `lease_until`.
#[cfg_attr(not(feature = "_sqlite"), allow(dead_code, reason = "PostgreSQL has its own"))]
pub(super) const RENEW: &str = "UPDATE idempotency_keys SET \
     forget_at = {from_now} + (forget_at - lease_until), lease_until = {from_now} WHERE {held}";

/// Parameters: record, ttl, slot, token.
pub(super) const COMPLETE: &str = "UPDATE idempotency_keys SET record = ?, forget_at = {from_now} WHERE {held}";

/// Parameters: slot, token.
pub(super) const RELEASE: &str = "DELETE FROM idempotency_keys WHERE {held}";

/// Reads whether the claim with this token has a record. Returns no row if the slot is empty, or if
/// a transaction is writing the row. Parameters: token, slot.
pub(super) const IS_DONE: &str =
    "SELECT token = ? AND record IS NOT NULL FROM idempotency_keys WHERE slot = ? {skip_locked}";

/// Parameter: slot.
pub(super) const LOOK_UP: &str = "SELECT fingerprint, attempt, {record_length}, {lease_left}, {forgotten_in} \
     FROM idempotency_keys WHERE slot = ? AND forget_at > {now}";

/// Removes the row, and returns whether the row had not yet expired. Parameter: slot.
pub(super) const FORGET: &str = "DELETE FROM idempotency_keys WHERE slot = ? RETURNING forget_at > {now}";

/// Counts held claims, lapsed claims and records.
pub(super) const COUNT: &str = "SELECT \
     count(CASE WHEN record IS NULL AND lease_until > {now} THEN 1 END), \
     count(CASE WHEN record IS NULL AND lease_until <= {now} THEN 1 END), \
     count(record) FROM idempotency_keys WHERE forget_at > {now}";

impl Dialect {
    /// Returns the statement that a template describes, for this table.
    pub(super) fn statement(&self, table: &Table, template: &str) -> Statement {
        let text = template
            .replace("{held}", HELD)
            .replace("{from_now}", self.from_now)
            .replace("{lease_left}", self.lease_left)
            .replace("{forgotten_in}", self.forgotten_in)
            .replace("{record_length}", self.record_length)
            .replace("{skip_locked}", self.skip_locked)
            // `{now}` is replaced last, because the other replacements contain `{now}`.
            .replace("{now}", self.now);
        Statement(table.sql(&if self.numbers_parameters { numbered(&text) } else { text }))
    }
}

fn numbered(text: &str) -> String {
    let mut parts = text.split('?');
    let first = parts.next().unwrap_or_default().to_owned();
    parts
        .zip(1..)
        .fold(first, |text, (part, number)| format!("{text}${number}{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        now: "now()",
        from_now: "{now} + ?",
        lease_left: "lease_until - {now}",
        forgotten_in: "forget_at - {now}",
        record_length: "length(record)",
        skip_locked: "FOR UPDATE SKIP LOCKED",
        numbers_parameters: false,
    };

    fn text(dialect: &Dialect, template: &str) -> String {
        dialect.statement(&Table::default(), template).0.to_string()
    }

    #[test]
    fn a_dialect_fills_in_every_mark_of_every_template() {
        for template in [RENEW, COMPLETE, RELEASE, IS_DONE, LOOK_UP, FORGET, COUNT] {
            let text = text(&DIALECT, template);
            assert!(!text.contains(['{', '}']), "{text}");
            assert!(text.contains("\"idempotency_keys\""), "{text}");
        }
    }

    #[test]
    fn parameters_are_in_the_order_in_which_they_appear() {
        let renew = "UPDATE \"idempotency_keys\" SET forget_at = now() + ? + (forget_at - lease_until), \
                     lease_until = now() + ? WHERE slot = ? AND token = ? AND record IS NULL AND forget_at > now()";
        assert_eq!(text(&DIALECT, RENEW), renew);
        let numbering = Dialect {
            numbers_parameters: true,
            ..DIALECT
        };
        let renew = "UPDATE \"idempotency_keys\" SET forget_at = now() + $1 + (forget_at - lease_until), \
                     lease_until = now() + $2 WHERE slot = $3 AND token = $4 AND record IS NULL AND forget_at > now()";
        assert_eq!(text(&numbering, RENEW), renew);
    }
}
