//! The table, and which databases can have it.

use super::*;

#[tokio::test]
async fn a_missing_table_and_a_wrong_layout_are_told() {
    let directory = Directory::new();
    let bare = with(options(&directory).create_if_missing(true)).await;
    let slot = claim(1).slot;
    for error in [
        bare.begin(&claim(1).token(1)).await.unwrap_err(),
        bare.renew(&slot, Token(1), HOUR).await.unwrap_err(),
        bare.complete(&slot, Token(1), &record(), HOUR).await.unwrap_err(),
        bare.release(&slot, Token(1)).await.unwrap_err(),
        bare.look_up(&slot).await.unwrap_err(),
        bare.forget(&slot).await.unwrap_err(),
        bare.count().await.unwrap_err(),
        bare.sweep(1).await.unwrap_err(),
    ] {
        assert_told(
            &error,
            StoreErrorKind::Unavailable,
            &["the table is missing", "migrate"],
        );
    }
    let full = "slot BLOB PRIMARY KEY, scope BLOB, fingerprint BLOB, token INTEGER, attempt INTEGER, lease_until INTEGER, \
                forget_at INTEGER, sweep_at INTEGER, record BLOB";
    for (what, columns) in [
        ("another's", "id INTEGER".to_owned()),
        ("no sweep_at", full.replace("sweep_at INTEGER, ", "")),
        ("no scope", full.replace("scope BLOB, ", "")),
        ("no token", full.replace("token INTEGER, ", "")),
        ("no record", full.replace(", record BLOB", "")),
        ("no primary key", full.replace("PRIMARY KEY", "NOT NULL")),
        (
            "a column more that must be given",
            format!("{full}, more INTEGER NOT NULL"),
        ),
    ] {
        for sql in [
            "DROP TABLE IF EXISTS idempotency_keys".to_owned(),
            format!("CREATE TABLE idempotency_keys ({columns})"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .execute(bare.pool())
                .await
                .unwrap();
        }
        let error = bare.migrate().await.expect_err(what);
        assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "layout"]);
    }
    for sql in [
        "DROP TABLE idempotency_keys".to_owned(),
        format!("CREATE TABLE idempotency_keys ({full}, note TEXT)"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(bare.pool())
            .await
            .unwrap();
    }
    bare.migrate().await.expect("a column more does no harm");
    assert_eq!(
        bare.count().await.unwrap(),
        Default::default(),
        "and leaves nothing behind"
    );
    for bad in ["", "a b", "a\"b", "1a"] {
        assert!(bare.clone().table(bad).is_err());
    }
    let other = bare.clone().table("Other").unwrap();
    other.migrate().await.unwrap();
    assert_eq!(other.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
    assert_eq!(bare.count().await.unwrap().running, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_migrate_at_once() {
    let directory = Arc::new(Directory::new());
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let directory = Arc::clone(&directory);
            tokio::spawn(async move { open(&directory).await.begin(&claim(1).token(1)).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), ClaimOutcome::started(1));
    }
}

#[tokio::test]
async fn a_database_in_memory_is_refused() {
    let url = |url: &str| url.parse::<SqliteConnectOptions>().unwrap();
    for options in [
        SqliteConnectOptions::new(),
        SqliteConnectOptions::new().filename(""),
        SqliteConnectOptions::new().in_memory(true).filename("private"),
        url("sqlite::memory:"),
        url("sqlite:shared?mode=memory&cache=shared"),
        SqliteConnectOptions::new().filename("file:named?mode=memory&cache=shared"),
    ] {
        let store = with(options).await;
        for error in [
            store.migrate().await.unwrap_err(),
            store.begin(&claim(1).token(1)).await.unwrap_err(),
        ] {
            assert_told(
                &error,
                StoreErrorKind::Unavailable,
                &["in memory", "open a file", "MemoryStore"],
            );
        }
    }
}

/// The store has connections of its own, so that a handler's transaction may hold the only one of the pool.
#[tokio::test]
async fn a_pool_of_one_connection_is_enough() {
    let directory = Directory::new();
    drop(open(&directory).await);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options(&directory));
    let store = SqliteStore::new(pool.await.unwrap());
    store.migrate().await.unwrap();
    done(&store, &claim(1)).await;
    let handler = Handler::of(&store, &claim(2)).await;
    let work = handler.begin().await;
    assert_eq!(store.pool().num_idle(), 0);
    let replay = watched(PATIENCE, store.begin(&claim(1))).await;
    assert_eq!(replay.unwrap(), ClaimOutcome::Done(record()));
    let duplicate = watched(PATIENCE, store.begin(&claim(2))).await.unwrap();
    assert!(matches!(duplicate, ClaimOutcome::InFlight { .. }), "{duplicate:?}");
    drop(work);
    assert!(matches!(handler.commit().await, Commit::Done));
    assert_eq!(store.begin(&claim(2)).await.unwrap(), ClaimOutcome::Done(record()));
}

#[tokio::test]
async fn a_table_that_was_renamed_has_its_indexes_and_the_next_one_too() {
    let directory = Directory::new();
    let store = open(&directory).await;
    execute(&store, "ALTER TABLE idempotency_keys RENAME TO renamed").await;
    // The indexes of the renamed table have the names that those of the new one would have.
    for store in [store.clone().table("renamed").unwrap(), store.clone()] {
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
    }
    for table in ["renamed", "idempotency_keys"] {
        let indexed: Vec<String> = sqlx::query_scalar(
            "SELECT part.name FROM pragma_index_list(?1) AS list, pragma_index_info(list.name) AS part ORDER BY 1",
        )
        .bind(table)
        .fetch_all(store.pool())
        .await
        .unwrap();
        assert_eq!(indexed, ["scope", "slot", "sweep_at"], "{table}");
    }
}

#[tokio::test]
async fn the_layout_of_an_earlier_state_is_migrated_by_the_sql_of_the_changelog() {
    let directory = Directory::new();
    let store = open(&directory).await;
    // One connection, because SQLite does not look for changes of others before it refuses a column.
    let mut connection = store.pool().acquire().await.unwrap();
    for sql in [
        "DROP INDEX idempotency_keys_scope",
        "ALTER TABLE idempotency_keys DROP COLUMN scope",
    ] {
        sqlx::query(sql).execute(&mut *connection).await.unwrap();
    }
    let error = store.migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "layout"]);
    let changelog = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/CHANGELOG.md")).unwrap();
    let sql = "ALTER TABLE idempotency_keys ADD COLUMN scope BLOB NOT NULL DEFAULT x'';";
    assert!(changelog.contains(sql));
    sqlx::query(sql).execute(&mut *connection).await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(store.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
}

#[tokio::test]
async fn the_table_may_be_in_an_attached_database() {
    let directory = Directory::new();
    let attach = format!("ATTACH '{}' AS other", directory.path("other.db").display());
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .after_connect(move |connection, _| {
            let attach = attach.clone();
            Box::pin(async move {
                let attach = sqlx::query(sqlx::AssertSqlSafe(attach));
                attach.execute(connection).await.map(drop)
            })
        });
    let pool = pool
        .connect_with(options(&directory).create_if_missing(true))
        .await
        .unwrap();
    // An unqualified name would mean this table.
    SqliteStore::new(pool.clone()).migrate().await.unwrap();
    let store = SqliteStore::new(pool).schema("Other").unwrap();
    store.migrate().await.unwrap();
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM other.sqlite_schema WHERE name = 'idempotency_keys'")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(tables, 1);
    done(&store, &claim(1)).await;
    assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(record()));
    let handler = Handler::of(&store, &claim(2)).await;
    drop(handler.begin().await);
    assert!(matches!(handler.commit().await, Commit::Done));
    assert_eq!(store.begin(&claim(2)).await.unwrap(), ClaimOutcome::Done(record()));
    assert_eq!(store.count().await.unwrap().done, 2);
    let nowhere = SqliteStore::new(store.pool().clone()).schema("nowhere").unwrap();
    let error = nowhere.begin(&claim(3)).await.unwrap_err();
    assert_told(
        &error,
        StoreErrorKind::Unavailable,
        &["attached as `nowhere`", "after_connect"],
    );
}
