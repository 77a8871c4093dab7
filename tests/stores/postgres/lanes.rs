//! The connections that the store has for itself.

use std::future::Future;

use super::*;
use crate::support::{Gate, inner};
use axum::body::Body;
use http::Request;
use sqlx::{Executor, PgPool, Postgres as Db};
use tower_idempotency::Policy;
use tower_idempotency::store::sql::Transaction;

/// What takes a lock of somebody else's, or a connection of the pool, never comes.
async fn in_time<T>(asked: impl Future<Output = T>) -> T {
    let asked = tokio::time::timeout(Duration::from_secs(60), asked).await;
    asked.expect("it does not wait")
}

/// Ends the store's own connections, as a failover does. They are those that are not the pool's.
async fn end_lanes(direct: &PgPool) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%idempotency_keys%'";
    sqlx::query(end).execute(direct).await.unwrap();
}

#[tokio::test]
async fn transactions_of_handlers_keep_nobody_waiting() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 4).await;
    let done = claim(1).token(1);
    store.begin(&done).await.unwrap();
    store.complete(&done.slot, Token(1), &record(), HOUR).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(store.pool().begin().await.unwrap());
    }
    let replay = in_time(store.begin(&claim(1).token(2))).await.unwrap();
    assert_eq!(replay, ClaimOutcome::Done(record()));
    let slot = claim(2).slot;
    let first = in_time(store.begin(&claim(2).token(1))).await.unwrap();
    assert_eq!(first, ClaimOutcome::started(1));
    assert_eq!(in_time(store.renew(&slot, Token(1), HOUR)).await.unwrap(), Held::Yes);
    assert!(in_time(store.look_up(&slot)).await.unwrap().is_some());
    let completed = in_time(store.complete(&slot, Token(1), &record(), HOUR)).await;
    assert_eq!(completed.unwrap(), Held::Yes);
    in_time(store.begin(&claim(3).token(1))).await.unwrap();
    let released = in_time(store.release(&claim(3).slot, Token(1))).await;
    assert_eq!(released.unwrap(), Held::Yes);
    assert!(in_time(store.forget(&slot)).await.unwrap());
}

/// Each handler has a connection of the pool, for longer than its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_renewed_while_every_connection_of_the_pool_has_a_transaction() {
    const LEASE: Duration = Duration::from_secs(6);
    let Some((_, url)) = database().await else { return };
    let direct = pool(&url, 1).await;
    direct.execute("CREATE TABLE charges (id text)").await.unwrap();
    let store = open(&url, 4).await;
    // A claim may take a third of the lease. The connections are made before.
    tokio::join!(call(store.clone(), "begin", 1), call(store.clone(), "begin", 2));
    let layer = IdempotencyLayer::builder(store).lease(LEASE).build().unwrap();
    let gate = Gate::default();
    let stop = gate.clone();
    let service = layer.layer(inner(move |request: Request<Body>| {
        let stop = stop.clone();
        async move {
            let transaction = request.extensions().get::<Transaction<Db>>().unwrap().clone();
            let mut work = transaction.begin().await.unwrap();
            work.execute("INSERT INTO charges VALUES ('one')").await.unwrap();
            stop.pass().await;
            ok("charged")
        }
    }));
    let keys = ["a", "b", "c", "d"];
    let first: Vec<_> = keys.iter().map(|key| spawn(&service, post("/", key, "{}"))).collect();
    for _ in keys {
        gate.arrival().await;
    }
    let now = async || -> f64 {
        let now = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8");
        now.fetch_one(&direct).await.unwrap()
    };
    let began = now().await;
    eventually("two leases are over", async || {
        now().await > began + 2.0 * LEASE.as_secs_f64()
    })
    .await;
    for key in keys {
        send(&service, post("/", key, "{}"))
            .await
            .assert_problem(409, "in-flight");
    }
    gate.open();
    for (first, key) in first.into_iter().zip(keys) {
        let first = first.await.unwrap();
        assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"), "{key}");
        send(&service, post("/", key, "{}")).await.assert_replay_of(&first);
    }
    let charges: Result<i64, _> = sqlx::query_scalar("SELECT count(*) FROM charges")
        .fetch_one(&direct)
        .await;
    assert_eq!(charges.unwrap(), 4);
}

#[tokio::test]
async fn what_a_handler_did_to_a_connection_reaches_no_claim() {
    let Some((_, url)) = database().await else { return };
    let other = open(&url, 1).await;
    other.pool().execute("CREATE SCHEMA elsewhere").await.unwrap();
    let role = format!("powerless_{}", url.rsplit_once('/').unwrap().1);
    let create = sqlx::AssertSqlSafe(format!("CREATE ROLE {role}"));
    sqlx::query(create).execute(other.pool()).await.unwrap();
    for (number, dirty) in [
        "SET search_path TO elsewhere".to_owned(),
        format!("SET ROLE {role}"),
        "SET default_transaction_read_only TO on".to_owned(),
        "BEGIN".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let store = PostgresStore::new(pool(&url, 1).await);
        let mut connection = store.pool().acquire().await.unwrap();
        connection.execute(sqlx::AssertSqlSafe(dirty.clone())).await.unwrap();
        drop(connection);
        idle(&store).await;
        let claimed = claim(number as u64).token(1);
        assert_eq!(
            store.begin(&claimed).await.unwrap(),
            ClaimOutcome::started(1),
            "{dirty}"
        );
        let duplicate = other.begin(&claim(number as u64).token(2)).await.unwrap();
        assert!(
            matches!(duplicate, ClaimOutcome::InFlight { .. }),
            "{dirty}: {duplicate:?}"
        );
        let completed = store.complete(&claimed.slot, Token(1), &record(), HOUR).await;
        assert_eq!(completed.unwrap(), Held::Yes, "{dirty}");
        let replay = other.begin(&claim(number as u64).token(2)).await.unwrap();
        assert_eq!(replay, ClaimOutcome::Done(record()), "{dirty}");
    }
}

#[tokio::test]
async fn a_handlers_search_path_does_not_lose_its_record() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    store.pool().execute("CREATE SCHEMA elsewhere").await.unwrap();
    let layer = IdempotencyLayer::new(store);
    let service = layer.layer(inner(|request: Request<Body>| async move {
        let transaction = request.extensions().get::<Transaction<Db>>().unwrap().clone();
        let mut work = transaction.begin().await.unwrap();
        work.execute("SET LOCAL search_path TO elsewhere").await.unwrap();
        work.execute("CREATE TABLE effects ()").await.unwrap();
        ok("done")
    }));
    let first = send(&service, post("/", "k", "{}")).await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    send(&service, post("/", "k", "{}")).await.assert_replay_of(&first);
}

/// Its role has no right to the table of records. What is deferred to the commit runs with it all the same.
#[tokio::test]
async fn a_handlers_role_does_not_lose_its_record() {
    let Some((_, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1;
    let (member, limited) = (format!("member_{name}"), format!("limited_{name}"));
    let direct = pool(&url, 1).await;
    let prepare = format!(
        "CREATE TABLE charges (id int); CREATE TABLE audit (who text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO audit VALUES (current_user); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER noted AFTER INSERT ON charges DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION note();
         CREATE ROLE {limited}; GRANT INSERT ON charges, audit TO {limited};
         CREATE ROLE {member} LOGIN PASSWORD '{PASSWORD}'; GRANT CREATE ON SCHEMA public TO {member}"
    );
    direct.execute(sqlx::AssertSqlSafe(prepare)).await.unwrap();
    let as_member = (*direct.connect_options()).clone().username(&member);
    let store = PostgresStore::new(PgPoolOptions::new().connect_with(as_member).await.unwrap());
    // The session may not set a role yet when the store looks.
    store.migrate().await.unwrap();
    let grant = format!("GRANT {limited} TO {member}");
    direct.execute(sqlx::AssertSqlSafe(grant)).await.unwrap();
    let layer = IdempotencyLayer::new(store.clone());
    let set_role = format!("SET LOCAL ROLE {limited}");
    let handler = inner(move |request: Request<Body>| {
        let set_role = set_role.clone();
        async move {
            let transaction = request.extensions().get::<Transaction<Db>>().unwrap().clone();
            let mut work = transaction.begin().await.unwrap();
            work.execute(sqlx::AssertSqlSafe(set_role)).await.unwrap();
            work.execute("INSERT INTO charges VALUES (1)").await.unwrap();
            ok("charged")
        }
    });
    let service = layer.layer(handler.clone());
    // Roles are looked for as soon as a permission is missing.
    send(&service, post("/", "k", "{}"))
        .await
        .assert_problem(503, "store-unavailable");
    let first = send(&service, post("/", "k", "{}")).await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    send(&service, post("/", "k", "{}")).await.assert_replay_of(&first);
    // Who finds the membership misses nothing.
    let layer = IdempotencyLayer::new(PostgresStore::new(store.pool().clone()));
    let service = layer.layer(handler);
    for key in ["a", "b"] {
        let first = send(&service, post("/", key, "{}")).await;
        assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
        send(&service, post("/", key, "{}")).await.assert_replay_of(&first);
    }
    let audit: Vec<String> = sqlx::query_scalar("SELECT who FROM audit")
        .fetch_all(&direct)
        .await
        .unwrap();
    assert_eq!(audit, [&*limited, &*limited, &*limited]);
    let current: String = sqlx::query_scalar("SELECT current_user")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(current, member);
}

#[tokio::test]
async fn a_session_that_became_read_only_is_replaced_at_once() {
    let Some((server, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let store = open(&url, 2).await;
    store.begin(&claim(1).token(1)).await.unwrap();
    let demote = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    blocking(move || server.sql("postgres", &demote)).await;
    end_lanes(&pool(&url, 1).await).await;
    let error = store.begin(&claim(2).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "read-only"]);
    let promote = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
    blocking(move || server.sql("postgres", &promote)).await;
    // The connections still live, and stay as they are.
    assert_eq!(store.begin(&claim(2).token(1)).await.unwrap(), ClaimOutcome::started(1));
    let renewed = store.renew(&claim(1).slot, Token(1), HOUR).await.unwrap();
    assert_eq!(renewed, Held::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unrelated_claims_do_not_disturb_each_other_where_serializable_is_the_default() {
    let Some((server, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let alter = format!("ALTER DATABASE {name} SET default_transaction_isolation = serializable");
    blocking(move || server.sql("postgres", &alter)).await;
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(open(&url, 8).await);
    }
    let tasks: Vec<_> = (0..24_u64)
        .map(|task| {
            let store = stores[task as usize % 3].clone();
            tokio::spawn(async move {
                for i in 0..40 {
                    let claimed = claim(task * 1000 + i).token(1);
                    assert_eq!(store.begin(&claimed).await.unwrap(), ClaimOutcome::started(1));
                    let completed = store.complete(&claimed.slot, Token(1), &record(), HOUR).await;
                    assert_eq!(completed.unwrap(), Held::Yes);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// One call of the life of a claim.
async fn call(store: PostgresStore, call: &str, number: u64) {
    let claimed = claim(number).token(number);
    let slot = &claimed.slot;
    match call {
        "begin" => assert_eq!(store.begin(&claimed).await.unwrap(), ClaimOutcome::started(1)),
        "renew" => assert_eq!(store.renew(slot, Token(number), HOUR).await.unwrap(), Held::Yes),
        "complete" => {
            let completed = store.complete(slot, Token(number), &record(), HOUR).await;
            assert_eq!(completed.unwrap(), Held::Yes);
        }
        _ => {
            let replay = store.begin(&claim(number).token(999)).await.unwrap();
            assert_eq!(replay, ClaimOutcome::Done(record()));
        }
    }
}

#[tokio::test]
async fn what_waits_is_one_statement() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let name = url.rsplit_once('/').unwrap().1;
    let store = open(&server.url_through(proxy.port(), name), 1).await;
    let store = store.connections(1).unwrap();
    for round in 0..2 {
        for step in ["begin", "renew", "complete", "replay"] {
            proxy.black_hole(true);
            let tasks: Vec<_> = (0..60)
                .map(|number| tokio::spawn(call(store.clone(), step, number)))
                .collect();
            // All of them are asked while the first waits for its answer.
            crate::support::settle().await;
            let before = proxy.round_trips();
            proxy.black_hole(false);
            for task in tasks {
                task.await.unwrap();
            }
            // In the first round the connection is made, and statements are prepared.
            let trips = proxy.round_trips() - before;
            assert!(
                trips <= 10 + 20 * (1 - round),
                "{trips} round trips for 60 times `{step}`"
            );
        }
        store.pool().execute("DELETE FROM idempotency_keys").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_row_is_found_by_its_index_however_new_the_table_is() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let claims = 2000_u64;
    let tasks: Vec<_> = (0..40)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..claims / 40 {
                    let number = task * 1000 + i;
                    store.begin(&claim(number).token(number)).await.unwrap();
                    let slot = claim(number).slot;
                    store.renew(&slot, Token(number), HOUR).await.unwrap();
                    store.complete(&slot, Token(number), &record(), HOUR).await.unwrap();
                    store.begin(&claim(number).token(1)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    drop(store);
    let direct = pool(&url, 1).await;
    let counted = eventually("the counts are there", async || {
        let counts: (i64, i64, i64) = sqlx::query_as(
            "SELECT seq_tup_read, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'",
        )
        .fetch_one(&direct)
        .await
        .unwrap();
        (counts.1 as u64 >= 2 * claims).then_some(counts)
    })
    .await;
    let (read_without_index, updates, hot) = counted;
    assert!(
        read_without_index < 100,
        "{read_without_index} rows were read without the index"
    );
    assert!(
        hot * 10 >= updates * 9,
        "{hot} of {updates} updates did without the indexes"
    );
    let reads: i64 = sqlx::query_scalar(
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'idempotency_keys' AND indexrelname LIKE '%pkey'",
    )
    .fetch_one(&direct)
    .await
    .unwrap();
    assert!(
        reads as u64 <= 10 * claims,
        "{reads} rows were read for {claims} claims"
    );
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let name = url.rsplit_once('/').unwrap().1;
    let store = open(&server.url_through(proxy.port(), name), 1).await;
    store.begin(&claim(0).token(1)).await.unwrap();
    store.renew(&claim(0).slot, Token(1), HOUR).await.unwrap();
    store.release(&claim(0).slot, Token(1)).await.unwrap();
    for number in 1..3 {
        let claimed = claim(number).token(1);
        // Heard, but the answer is lost.
        proxy.cut_after_requests(1);
        assert_eq!(store.begin(&claimed).await.unwrap(), ClaimOutcome::started(1));
        proxy.cut_after_requests(1);
        assert_eq!(store.renew(&claimed.slot, Token(1), HOUR).await.unwrap(), Held::Yes);
        proxy.cut_after_requests(1);
        let ended = match number {
            1 => store.complete(&claimed.slot, Token(1), &record(), HOUR).await,
            _ => store.release(&claimed.slot, Token(1)).await,
        };
        assert_eq!(ended.unwrap(), Held::Yes);
    }
    // But a second one is lost, as ever.
    let again = store.complete(&claim(1).slot, Token(1), &record(), HOUR).await;
    assert_eq!(again.unwrap(), Held::Lost);
}

#[tokio::test]
async fn what_waits_for_a_locked_row_keeps_no_connection() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await.connections(1).unwrap();
    store.begin(&claim(1).token(1)).await.unwrap();
    let other = pool(&url, 1).await;
    for change in ["renew", "complete", "forget"] {
        let mut lock = other.begin().await.unwrap();
        lock.execute("SELECT FROM idempotency_keys FOR UPDATE").await.unwrap();
        let changing = store.clone();
        let slot = claim(1).slot;
        let waiting = tokio::spawn(async move {
            match change {
                "renew" => changing.renew(&slot, Token(1), HOUR).await.unwrap() == Held::Yes,
                "complete" => changing.complete(&slot, Token(1), &record(), HOUR).await.unwrap() == Held::Yes,
                _ => changing.forget(&slot).await.unwrap(),
            }
        });
        for number in 2..30 {
            let begun = in_time(store.begin(&claim(number).token(1))).await.unwrap();
            assert_eq!(begun, ClaimOutcome::started(1));
            store.release(&claim(number).slot, Token(1)).await.unwrap();
        }
        assert!(!waiting.is_finished(), "{change}");
        lock.rollback().await.unwrap();
        assert!(waiting.await.unwrap(), "{change}");
    }
}

#[tokio::test]
async fn an_expired_row_that_a_transaction_deletes_is_in_flight_at_once() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let brief = claim(1).token(1).lease(Duration::ZERO).ttl(Duration::ZERO);
    store.begin(&brief).await.unwrap();
    let other = pool(&url, 1).await;
    let mut sweep = other.begin().await.unwrap();
    sweep.execute("DELETE FROM idempotency_keys").await.unwrap();
    let begun = in_time(store.begin(&claim(1).token(2))).await.unwrap();
    assert!(matches!(begun, ClaimOutcome::InFlight { .. }), "{begun:?}");
    sweep.commit().await.unwrap();
    assert_eq!(store.begin(&claim(1).token(2)).await.unwrap(), ClaimOutcome::started(1));
}

#[tokio::test]
async fn the_table_is_found_once_and_again_if_it_is_moved() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    store.begin(&claim(1).token(1)).await.unwrap();
    let direct = pool(&url, 1).await;
    // Comes before `public` in the search path.
    direct.execute("CREATE SCHEMA postgres").await.unwrap();
    let newer = PostgresStore::new(pool(&url, 1).await).schema("postgres").unwrap();
    newer.migrate().await.unwrap();
    end_lanes(&direct).await;
    let duplicate = store.begin(&claim(1).token(2)).await.unwrap();
    assert!(matches!(duplicate, ClaimOutcome::InFlight { .. }), "{duplicate:?}");
    direct
        .execute("DROP TABLE postgres.idempotency_keys; ALTER TABLE public.idempotency_keys SET SCHEMA postgres")
        .await
        .unwrap();
    let duplicate = store.begin(&claim(1).token(2)).await.unwrap();
    assert!(matches!(duplicate, ClaimOutcome::InFlight { .. }), "{duplicate:?}");
    direct
        .execute("ALTER SCHEMA postgres RENAME TO \"a \"\"quoted\"\" schema\"; SET search_path = public")
        .await
        .unwrap();
    let error = store.begin(&claim(1).token(2)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["the table is missing"]);
}

#[test]
fn a_store_outlives_the_runtimes_that_use_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let Some((store, server)) = first.block_on(async {
        let (server, url) = database().await?;
        let store = open(&url, 2).await;
        store.begin(&claim(1).token(1)).await.unwrap();
        Some((store, server))
    }) else {
        return;
    };
    let name = |store: &PostgresStore| store.pool().connect_options().get_database().unwrap().to_owned();
    let second = runtime();
    for _ in 0..2 {
        let begun = second.block_on(store.begin(&claim(1).token(2))).unwrap();
        assert!(matches!(begun, ClaimOutcome::InFlight { .. }));
        // In the middle of a claim, with one on the way.
        let calls = store.clone();
        first.block_on(async move {
            tokio::spawn(async move { calls.begin(&claim(2).token(2)).await });
            tokio::task::yield_now().await;
        });
    }
    drop(first);
    let begun = second.block_on(store.begin(&claim(3).token(3))).unwrap();
    assert_eq!(begun, ClaimOutcome::started(1));
    let database = name(&store);
    second.block_on(async move {
        drop(store);
        eventually("the store's connections are closed", async || {
            let database = database.clone();
            let left = blocking(move || {
                server.sql(
                    "postgres",
                    &format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"),
                )
            });
            left.await == "0"
        })
        .await;
    });
}

#[tokio::test]
async fn a_closed_pool_is_told() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    store.begin(&claim(1).token(1)).await.unwrap();
    store.pool().close().await;
    let error = store.begin(&claim(2).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "the pool is closed"]);
}

#[tokio::test]
async fn connections_are_made_as_those_of_the_pool() {
    let Some((_, url)) = database().await else { return };
    let direct = pool(&url, 1).await;
    direct.execute("CREATE SCHEMA tenant").await.unwrap();
    let options = PgPoolOptions::new().max_connections(1).after_connect(|connection, _| {
        Box::pin(async move {
            connection.execute("SET search_path TO tenant").await?;
            Ok(())
        })
    });
    let store = PostgresStore::new(options.connect(&url).await.unwrap());
    store.migrate().await.unwrap();
    store.begin(&claim(1).token(1)).await.unwrap();
    let rows: Result<i64, _> = sqlx::query_scalar("SELECT count(*) FROM tenant.idempotency_keys")
        .fetch_one(&direct)
        .await;
    assert_eq!(rows.unwrap(), 1);
    for bad in [0, 65] {
        let error = store.clone().connections(bad).unwrap_err();
        assert_eq!(error.option(), "connections");
    }
}

#[tokio::test]
async fn a_duplicate_that_waits_for_a_locked_row_asks_seldom() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let through = server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1);
    let layer = IdempotencyLayer::builder(open(&through, 1).await)
        .policy(Policy::cautious())
        .wait(Duration::from_secs(1))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async {
        let mut response = ok("no gateway");
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    }));
    assert_eq!(send(&service, post("/", "k", "b")).await.outcome(), "reopened");
    let direct = pool(&url, 1).await;
    let mut lock = direct.begin().await.unwrap();
    lock.execute("SELECT FROM idempotency_keys FOR UPDATE").await.unwrap();
    let before = proxy.round_trips();
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    // Two round trips each time, and a few until the statements are prepared.
    let trips = proxy.round_trips() - before;
    assert!(trips <= 60, "{trips} round trips within a second");
}
