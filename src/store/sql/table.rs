//! The table name, which is configurable, validated and quoted.

use std::sync::Arc;

use crate::error::ConfigError;

/// The default table name, as in the SQL files. The configured name replaces this name.
pub(super) const DEFAULT: &str = "idempotency_keys";
/// The maximum length of a table name. PostgreSQL truncates long names, and an index name also
/// contains a suffix.
const LONGEST: usize = 48;

/// The name and the schema of the table.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) schema: Option<Arc<str>>,
    pub(super) name: Arc<str>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            schema: None,
            name: DEFAULT.into(),
        }
    }
}

impl Table {
    pub(super) fn named(&self, name: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            schema: self.schema.clone(),
            name: valid("table", name)?,
        })
    }

    pub(super) fn in_schema(&self, schema: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            schema: Some(valid("schema", schema)?),
            name: Arc::clone(&self.name),
        })
    }

    /// Returns the same table in the schema in which the database found it. The schema can have any
    /// name.
    #[cfg(feature = "postgres")]
    pub(super) fn pinned_to(&self, schema: &str) -> Self {
        Self {
            schema: Some(schema.replace('"', "\"\"").into()),
            name: Arc::clone(&self.name),
        }
    }

    /// Returns the statement with the name of this table in place of the default name.
    pub(super) fn sql(&self, template: &str) -> Arc<str> {
        let table = match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{}\"", self.name),
            None => format!("\"{}\"", self.name),
        };
        // Index names begin with the table name, and are not qualified with a schema.
        let mut text = template.replace(DEFAULT, "\u{0}");
        for column in ["sweep_at", "scope"] {
            text = text.replace(&format!("\u{0}_{column}"), &format!("\"{}_{column}\"", self.name));
        }
        text.replace('\u{0}', &table).into()
    }
}

/// Accepts only letters, digits and underscores, so that no tool has problems with quoting.
fn valid(option: &'static str, name: &str) -> Result<Arc<str>, ConfigError> {
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let goes_on_well = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins_well && goes_on_well && name.len() <= LONGEST {
        return Ok(name.into());
    }
    Err(ConfigError::new(
        option,
        format!(
            "{name:?} is not valid; use 1 to {LONGEST} ASCII letters, digits and underscores, and begin with a letter \
             or an underscore"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_validated_and_quoted() {
        let table = Table::default();
        for bad in [
            "",
            "1a",
            "a b",
            "a\"; DROP TABLE x; --",
            "ä",
            "a.b",
            &"a".repeat(LONGEST + 1),
        ] {
            assert_eq!(table.named(bad).unwrap_err().option(), "table", "{bad:?}");
            assert_eq!(table.in_schema(bad).unwrap_err().option(), "schema", "{bad:?}");
        }
        let table = table.named("Keys").unwrap().in_schema("app").unwrap();
        assert_eq!(
            &*table.sql("CREATE INDEX idempotency_keys_sweep_at ON idempotency_keys"),
            "CREATE INDEX \"Keys_sweep_at\" ON \"app\".\"Keys\""
        );
        assert_eq!(
            &*table.sql("CREATE INDEX idempotency_keys_scope ON idempotency_keys"),
            "CREATE INDEX \"Keys_scope\" ON \"app\".\"Keys\""
        );
    }
}
