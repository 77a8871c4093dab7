//! Creates the table, and checks its layout.

use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::SqliteStore;
use super::error::failed;
use super::execute::{claims, complete};
use super::statements::{BEGIN, Ends};
use crate::store::StoreError;
use crate::store::sql::claim::trial;

/// The SQL that [`SqliteStore::migrate`] runs, which defines the table and its indexes.
const LAYOUT: &str = include_str!("table.sql");
const TABLE_END: &str = "\n);\n";
/// The columns by which rows are looked up, in addition to the primary key.
const INDEXED: [&str; 2] = ["sweep_at", "scope"];

impl SqliteStore {
    /// Creates the table if it is missing, and checks its layout. Many processes can safely call
    /// this method at the same time. The same SQL is in `src/store/sql/sqlite/table.sql`.
    ///
    /// # Errors
    ///
    /// Returns an error if the database cannot be opened or written, the database is in memory, or
    /// a table with this name has a different layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.make_and_check().await.map_err(|error| failed("migrate", error))
    }

    async fn make_and_check(&self) -> Result<(), sqlx::Error> {
        let mut connection = self.own.file.connect().await?;
        let turn = match self.own.file.turns() {
            Some(turns) => Some(turns.next().await),
            None => None,
        };
        let made = self.make_and_check_on(&mut connection).await;
        let closed = connection.close().await;
        drop(turn);
        made.and(closed)
    }

    async fn make_and_check_on(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        // The transaction takes the writer's lock from the start, so that concurrent migrations
        // take turns.
        let mut transaction = connection.begin_with(BEGIN).await?;
        let table = LAYOUT.split_once(TABLE_END).map_or(LAYOUT, |(table, _)| table);
        let table = self.own.table.sql(&format!("{table}{TABLE_END}"));
        sqlx::raw_sql(AssertSqlSafe(table)).execute(&mut *transaction).await?;
        self.make_indexes(&mut transaction).await?;
        transaction.commit().await?;
        // Detects a table that has this name but a different purpose.
        let mut transaction = connection.begin_with(BEGIN).await?;
        self.try_out(&mut transaction).await?;
        transaction.rollback().await
    }

    /// Creates the missing indexes. A renamed table keeps its index names, which contain its former
    /// name, so the next table with that name needs different index names.
    async fn make_indexes(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let name = &*self.own.table.name;
        for column in INDEXED {
            let is_indexed: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) AS list, pragma_index_info(list.name) AS part \
                 WHERE part.seqno = 0 AND part.name = ?2 AND list.partial = 0)",
            )
            .bind(name)
            .bind(column)
            .fetch_one(&mut *connection)
            .await?;
            if !is_indexed {
                let index = self.free_name(connection, column).await?;
                let make = format!("CREATE INDEX \"{index}\" ON \"{name}\" ({column})");
                sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *connection).await?;
            }
        }
        Ok(())
    }

    async fn free_name(&self, connection: &mut SqliteConnection, column: &str) -> Result<String, sqlx::Error> {
        let mut index = format!("{}_{column}", self.own.table.name);
        for number in 2.. {
            let is_taken: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)")
                .bind(&index)
                .fetch_one(&mut *connection)
                .await?;
            if !is_taken {
                break;
            }
            index = format!("{}_{column}_{number}", self.own.table.name);
        }
        Ok(index)
    }

    /// Runs a trial claim through its whole life cycle. The caller rolls the claim back.
    async fn try_out(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let (begin, sql) = (trial(), &self.own.sql);
        claims(connection, sql, &[&begin], Ends::default()).await?;
        complete(sql, &begin.slot, begin.token, &[], begin.ttl)
            .execute(&mut *connection)
            .await?;
        for statement in [&sql.look_up, &sql.forget] {
            sqlx::query(statement.text())
                .bind(begin.slot.as_bytes().as_slice())
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }
}
