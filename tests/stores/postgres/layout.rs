//! Tables, schemas and rights.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_migrate_at_once() {
    let Some((server, url)) = database().await else { return };
    for schema in [None, Some("idempotency")] {
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let store = PostgresStore::new(pool(&url, 1).await);
                    let store = match schema {
                        Some(schema) => store.schema(schema).unwrap().table("Keys").unwrap(),
                        None => store,
                    };
                    store.migrate().await
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let tables = blocking(move || {
        server.sql(
            &name,
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'idempotency') ORDER BY 1",
        )
    });
    assert_eq!(tables.await, "idempotency|Keys\npublic|idempotency_keys");
}

#[tokio::test]
async fn names_of_table_and_schema_are_apart() {
    let Some((_, url)) = database().await else { return };
    let plain = open(&url, 2).await;
    let other = plain.clone().table("other").unwrap();
    let schema = plain.clone().schema("App").unwrap();
    for store in [&other, &schema] {
        let error = store.begin(&claim(1).token(1)).await.unwrap_err();
        assert_told(&error, StoreErrorKind::Unavailable, &["begin", "missing", "migrate"]);
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
    }
    for store in [&plain, &other, &schema] {
        assert_eq!(store.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
        assert_eq!(store.count().await.unwrap().running, 1);
    }
    for bad in ["", "a b", "a\"b", "ä", "1a", "a;b", &"x".repeat(49)] {
        assert!(plain.clone().table(bad).is_err());
        assert!(plain.clone().schema(bad).is_err());
    }
}

#[tokio::test]
async fn a_missing_table_and_a_wrong_layout_are_told() {
    let Some((server, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let bare = PostgresStore::new(pool(&url, 2).await);
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
    let full = "slot bytea PRIMARY KEY, scope bytea NOT NULL, fingerprint bytea NOT NULL, token bigint NOT NULL, attempt integer NOT NULL, \
                lease_until timestamptz NOT NULL, forget_at timestamptz NOT NULL, sweep_at timestamptz NOT NULL, \
                record bytea";
    for (what, columns) in [
        ("another's", "id bigint".to_owned()),
        ("no token", full.replace("token bigint NOT NULL, ", "")),
        ("no sweep_at", full.replace("sweep_at timestamptz NOT NULL, ", "")),
        ("no scope", full.replace("scope bytea NOT NULL, ", "")),
        ("no record", full.replace(", record bytea", "")),
        ("a text slot", full.replace("slot bytea", "slot text")),
        ("no primary key", full.replace("PRIMARY KEY", "NOT NULL")),
        ("integers for times", full.replace("timestamptz", "bigint")),
        ("a text record", full.replace("record bytea", "record text")),
        (
            "a column more that must be given",
            format!("{full}, more integer NOT NULL"),
        ),
    ] {
        let create = format!("DROP TABLE IF EXISTS idempotency_keys; CREATE TABLE idempotency_keys ({columns})");
        let name = name.clone();
        blocking(move || server.sql(&name, &create)).await;
        let store = PostgresStore::new(pool(&url, 1).await);
        let error = store.migrate().await.expect_err(what);
        assert_told(&error, error.kind(), &["migrate", "layout"]);
    }
    let create = format!("DROP TABLE idempotency_keys; CREATE TABLE idempotency_keys ({full}, note text)");
    blocking(move || server.sql(&name, &create)).await;
    let store = PostgresStore::new(pool(&url, 1).await);
    store.migrate().await.expect("a column more does no harm");
    assert_eq!(
        store.count().await.unwrap(),
        Default::default(),
        "and leaves nothing behind"
    );
}

#[tokio::test]
async fn permissions_and_passwords_are_told() {
    let Some((server, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let role = format!("guest_{name}");
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'");
    let (database, owner) = (name.clone(), open(&url, 1).await);
    blocking(move || server.sql(&database, &create)).await;
    let at = url.split_once('@').unwrap().1.to_owned();
    let guest = PostgresStore::new(pool(&format!("postgres://{role}:{PASSWORD}@{at}"), 1).await);
    let error = guest.begin(&claim(1).token(1)).await.unwrap_err();
    assert_told(
        &error,
        StoreErrorKind::Unavailable,
        &["begin", "permission", "SELECT, INSERT, UPDATE and DELETE"],
    );
    // May not create.
    let error = guest.clone().table("mine").unwrap().migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "permission"]);
    let error = guest.clone().schema("mine").unwrap().migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "permission"]);
    // But can migrate what is there, with the four rights.
    let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO {role}");
    let database = name.clone();
    blocking(move || server.sql(&database, &grant)).await;
    guest.migrate().await.unwrap();
    assert_eq!(guest.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
    assert_eq!(guest.release(&claim(1).slot, Token(1)).await.unwrap(), Held::Yes);
    assert!(!format!("{owner:?} {guest:?}").contains(PASSWORD));

    let lazy = |url: &str| {
        let options = PgPoolOptions::new().acquire_timeout(Duration::from_secs(2));
        PostgresStore::new(options.connect_lazy(url).unwrap())
    };
    let wrong = lazy(&format!("postgres://{role}:wrong-pa55@{at}"));
    let error = wrong.begin(&claim(1).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "password"]);
    let nowhere = lazy(&url.replace(&name, "no_such_database"));
    let error = nowhere.migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "no such database"]);
    let closed = lazy(&format!("postgres://postgres:{PASSWORD}@127.0.0.1:1/{name}"));
    let error = closed.begin(&claim(1).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin"]);
    let name = lazy(&format!("postgres://postgres:{PASSWORD}@no-such-host.invalid/{name}"));
    let error = name.begin(&claim(1).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin"]);
    owner.pool().close().await;
    let error = owner.begin(&claim(1).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "the pool is closed"]);
}

#[tokio::test]
async fn a_read_only_database_is_told() {
    let Some((server, url)) = database().await else { return };
    let writable = open(&url, 1).await;
    writable.begin(&claim(1).token(1)).await.unwrap();
    writable
        .complete(&claim(1).slot, Token(1), &record(), HOUR)
        .await
        .unwrap();
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let alter = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    blocking(move || server.sql("postgres", &alter)).await;
    let store = PostgresStore::new(pool(&url, 2).await);
    let error = store.begin(&claim(2).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "read-only"]);
    let layer = IdempotencyLayer::new(store);
    let service = layer.layer(inner(|_| async { ok("ran") }));
    send(&service, post("/", "k", "{}"))
        .await
        .assert_problem(503, "store-unavailable");
}

#[tokio::test]
async fn a_table_that_was_renamed_leaves_its_index_names_to_nobody() {
    let Some((_, url)) = database().await else { return };
    let indexes = async |store: &PostgresStore| -> Vec<String> {
        sqlx::query_scalar("SELECT indexdef FROM pg_indexes WHERE tablename = 'idempotency_keys' ORDER BY indexdef")
            .fetch_all(store.pool())
            .await
            .unwrap()
    };
    let store = open(&url, 1).await;
    let before = indexes(&store).await;
    assert!(before.len() == 3, "{before:?}");
    let rename = "ALTER TABLE idempotency_keys RENAME TO before";
    sqlx::query(rename).execute(store.pool()).await.unwrap();
    store.migrate().await.unwrap();
    let after = indexes(&store).await;
    let columns = |indexes: &[String]| -> Vec<String> {
        let mut columns: Vec<_> = indexes
            .iter()
            .map(|index| index.split_once(" USING ").unwrap().1.to_owned())
            .collect();
        columns.sort();
        columns
    };
    assert_eq!(columns(&after), columns(&before));
    // An index that is missing is made.
    for index in &after {
        let name = index
            .split_whitespace()
            .skip_while(|word| *word != "INDEX")
            .nth(1)
            .unwrap();
        if !name.contains("pkey") {
            sqlx::query(sqlx::AssertSqlSafe(format!("DROP INDEX {name}")))
                .execute(store.pool())
                .await
                .unwrap();
        }
    }
    store.migrate().await.unwrap();
    assert_eq!(columns(&indexes(&store).await), columns(&before));
}
