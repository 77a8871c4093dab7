//! The PostgreSQL store, on servers of the tests' own.
#![cfg(target_os = "linux")]

mod common;
mod conforming;
mod servers {
    pub mod postgres;
    pub mod process;
    pub mod proxy;
}

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{eventually, inner, ok, post, send, spawn};
use conforming::{InTurn, all_checks, conforms};
use http::Response;
use servers::postgres::{PASSWORD, Postgres};
use servers::proxy::Proxy;
use sqlx::postgres::PgPoolOptions;
use tower::Layer;
use tower_idempotency::store::sql::PostgresStore;
use tower_idempotency::store::{
    Begin, Begun, Held, Inspect, OnLapse, Phase, Record, ScopeTag, Slot, StoreError, StoreErrorKind, Token,
};
use tower_idempotency::{Fingerprint, IdempotencyLayer, Store};

const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(3600);

/// A new database on the shared server.
async fn database() -> Option<(&'static Postgres, String)> {
    tokio::task::spawn_blocking(|| {
        let server = Postgres::shared()?;
        Some((server, server.create_database()))
    })
    .await
    .unwrap()
}

async fn pool(url: &str, connections: u32) -> sqlx::PgPool {
    let options = PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false);
    options.connect(url).await.unwrap()
}

async fn open(url: &str, connections: u32) -> PostgresStore {
    let store = PostgresStore::new(pool(url, connections).await);
    store.migrate().await.unwrap();
    store
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn idle(store: &PostgresStore) {
    let pool = store.pool();
    eventually("all connections are idle", async || {
        pool.num_idle() == pool.size() as usize
    })
    .await;
}

fn begin(slot: u8, token: u64) -> Begin {
    Begin {
        slot: Slot::from_bytes([slot; 32]),
        scope: ScopeTag::default(),
        fingerprint: Fingerprint::from_bytes([7; 16]),
        token: Token(token),
        lease: LEASE,
        ttl: TTL,
        on_lapse: OnLapse::RunAgain,
    }
}

fn record() -> Record {
    Record::outcome_unknown(Fingerprint::from_bytes([7; 16]))
}

/// An error, whole: each of its causes, as shown and as debugged. No credentials are in it.
#[track_caller]
fn told(error: &StoreError) -> String {
    let mut told = format!("{error} / {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        told += &format!(" / {cause} / {cause:?}");
        source = cause.source();
    }
    assert!(!told.contains(PASSWORD), "{told}");
    assert!(!told.contains("wrong-pa55"), "{told}");
    assert!(!told.contains("postgres://"), "{told}");
    assert!(error.to_string().starts_with("postgres: "), "{told}");
    told
}

#[track_caller]
fn assert_told(error: &StoreError, kind: StoreErrorKind, parts: &[&str]) {
    let whole = told(error);
    assert_eq!(error.kind(), kind, "{whole}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    let Some((_, url)) = database().await else { return };
    let mut pools = Vec::new();
    for _ in 0..3 {
        pools.push(open(&url, 8).await);
    }
    let harness = InTurn::new(pools, Duration::from_millis(500));
    conforms(harness, all_checks(), []).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn histories_are_answered_as_by_the_machine() {
    let Some((_, url)) = database().await else { return };
    let pools = vec![open(&url, 4).await, open(&url, 4).await];
    // Many histories at once, and the other tests besides: a unit that bears a busy machine.
    let harness = InTurn::new(pools, Duration::from_secs(1));
    conforms(harness, vec![], 0..6).await;
}

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
        let error = store.begin(&begin(1, 1)).await.unwrap_err();
        assert_told(&error, StoreErrorKind::Unavailable, &["begin", "missing", "migrate"]);
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
    }
    for store in [&plain, &other, &schema] {
        assert_eq!(store.begin(&begin(1, 1)).await.unwrap(), Begun::Started { attempt: 1 });
        assert_eq!(store.count().await.unwrap().running, 1);
    }
    for bad in ["", "a b", "a\"b", "ä", "1a", "a;b", &"x".repeat(49)] {
        assert!(plain.clone().table(bad).is_err());
        assert!(plain.clone().schema(bad).is_err());
    }
}

#[tokio::test]
async fn one_round_trip_each() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1), 1).await;
    // Every statement is prepared.
    store.begin(&begin(9, 9)).await.unwrap();
    store.renew(&begin(9, 9).slot, Token(9), LEASE).await.unwrap();
    store
        .complete(&begin(9, 9).slot, Token(9), &record(), TTL)
        .await
        .unwrap();
    store.release(&begin(9, 9).slot, Token(9)).await.unwrap();
    idle(&store).await;
    // sqlx asks a connection once more when it goes back to the pool, which nobody waits for.
    const CHECK: u64 = 1;
    let trips = async |name: &str, expected: u64| {
        idle(&store).await;
        static BEFORE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let now = proxy.round_trips();
        let before = BEFORE.swap(now, Ordering::Relaxed);
        assert_eq!(now - before, expected, "{name}");
    };
    let start = proxy.round_trips();
    trips("so far", start).await;
    assert_eq!(store.begin(&begin(1, 1)).await.unwrap(), Begun::Started { attempt: 1 });
    trips("claim", 1 + CHECK).await;
    assert!(matches!(
        store.begin(&begin(1, 2)).await.unwrap(),
        Begun::InFlight { .. }
    ));
    trips("in flight", 1 + CHECK).await;
    let other = Begin {
        fingerprint: Fingerprint::from_bytes([8; 16]),
        ..begin(1, 2)
    };
    assert_eq!(store.begin(&other).await.unwrap(), Begun::Mismatch);
    trips("mismatch", 1 + CHECK).await;
    assert_eq!(store.renew(&other.slot, Token(1), LEASE).await.unwrap(), Held::Yes);
    trips("renew", 1 + CHECK).await;
    assert_eq!(
        store.complete(&other.slot, Token(1), &record(), TTL).await.unwrap(),
        Held::Yes
    );
    trips("complete", 1 + CHECK).await;
    assert_eq!(store.begin(&begin(1, 3)).await.unwrap(), Begun::Done(record()));
    trips("replay", 1 + CHECK).await;
    store.begin(&begin(2, 1)).await.unwrap();
    trips("claim", 1 + CHECK).await;
    assert_eq!(store.release(&begin(2, 1).slot, Token(1)).await.unwrap(), Held::Yes);
    trips("release", 1 + CHECK).await;
}

#[tokio::test]
async fn a_row_that_is_locked_is_in_flight_at_once() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let other = open(&url, 1).await;
    for (slot, lapse) in [(1, false), (2, true)] {
        store.begin(&begin(slot, 1)).await.unwrap();
        if lapse {
            store
                .renew(&begin(slot, 1).slot, Token(1), Duration::ZERO)
                .await
                .unwrap();
        }
        let mut lock = other.pool().begin().await.unwrap();
        sqlx::query("UPDATE idempotency_keys SET attempt = attempt WHERE slot = $1")
            .bind(begin(slot, 1).slot.as_bytes().as_slice())
            .execute(&mut *lock)
            .await
            .unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(10), store.begin(&begin(slot, 2))).await;
        assert!(matches!(
            asked.expect("it does not wait").unwrap(),
            Begun::InFlight { .. }
        ));
        let print = Begin {
            fingerprint: Fingerprint::from_bytes([8; 16]),
            ..begin(slot, 3)
        };
        assert_eq!(store.begin(&print).await.unwrap(), Begun::Mismatch);
        // The sweeper passes it by.
        sqlx::query(
            "UPDATE idempotency_keys SET forget_at = now() - interval '1 day', sweep_at = now() - interval '1 day'",
        )
        .execute(&mut *lock)
        .await
        .unwrap();
        assert_eq!(store.sweep(10).await.unwrap(), 0);
        lock.rollback().await.unwrap();
        let again = store.begin(&begin(slot, 2)).await.unwrap();
        assert_eq!(again == Begun::Started { attempt: 2 }, lapse, "{again:?}");
    }
    // Forgotten and locked.
    let brief = Begin {
        lease: Duration::ZERO,
        ttl: Duration::ZERO,
        ..begin(3, 1)
    };
    store.begin(&brief).await.unwrap();
    let mut lock = other.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM idempotency_keys FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(10), store.begin(&begin(3, 2))).await;
    assert!(matches!(
        asked.expect("it does not wait").unwrap(),
        Begun::InFlight { .. }
    ));
    lock.rollback().await.unwrap();
    assert_eq!(store.begin(&begin(3, 2)).await.unwrap(), Begun::Started { attempt: 1 });
}

#[tokio::test]
async fn a_missing_table_and_a_wrong_layout_are_told() {
    let Some((server, url)) = database().await else { return };
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let bare = PostgresStore::new(pool(&url, 2).await);
    let slot = begin(1, 1).slot;
    for error in [
        bare.begin(&begin(1, 1)).await.unwrap_err(),
        bare.renew(&slot, Token(1), LEASE).await.unwrap_err(),
        bare.complete(&slot, Token(1), &record(), TTL).await.unwrap_err(),
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
    let full = "slot bytea PRIMARY KEY, fingerprint bytea NOT NULL, token bigint NOT NULL, attempt integer NOT NULL, \
                lease_until timestamptz NOT NULL, forget_at timestamptz NOT NULL, sweep_at timestamptz NOT NULL, \
                record bytea";
    for (what, columns) in [
        ("another's", "id bigint".to_owned()),
        ("no token", full.replace("token bigint NOT NULL, ", "")),
        ("no sweep_at", full.replace("sweep_at timestamptz NOT NULL, ", "")),
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
    let error = guest.begin(&begin(1, 1)).await.unwrap_err();
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
    assert_eq!(guest.begin(&begin(1, 1)).await.unwrap(), Begun::Started { attempt: 1 });
    assert_eq!(guest.release(&begin(1, 1).slot, Token(1)).await.unwrap(), Held::Yes);
    assert!(!format!("{owner:?} {guest:?}").contains(PASSWORD));

    let lazy = |url: &str| {
        let options = PgPoolOptions::new().acquire_timeout(Duration::from_secs(2));
        PostgresStore::new(options.connect_lazy(url).unwrap())
    };
    let wrong = lazy(&format!("postgres://{role}:wrong-pa55@{at}"));
    let error = wrong.begin(&begin(1, 1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "password"]);
    let nowhere = lazy(&url.replace(&name, "no_such_database"));
    let error = nowhere.migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "no such database"]);
    let closed = lazy(&format!("postgres://postgres:{PASSWORD}@127.0.0.1:1/{name}"));
    let error = closed.begin(&begin(1, 1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin"]);
    let name = lazy(&format!("postgres://postgres:{PASSWORD}@no-such-host.invalid/{name}"));
    let error = name.begin(&begin(1, 1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin"]);
    owner.pool().close().await;
    let error = owner.begin(&begin(1, 1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "the pool is closed"]);
}

#[tokio::test]
async fn a_read_only_database_is_told() {
    let Some((server, url)) = database().await else { return };
    let writable = open(&url, 1).await;
    writable.begin(&begin(1, 1)).await.unwrap();
    writable
        .complete(&begin(1, 1).slot, Token(1), &record(), TTL)
        .await
        .unwrap();
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let alter = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    blocking(move || server.sql("postgres", &alter)).await;
    let store = PostgresStore::new(pool(&url, 2).await);
    let error = store.begin(&begin(2, 1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "read-only"]);
    let layer = IdempotencyLayer::new(store);
    let service = layer.layer(inner(|_| async { ok("ran") }));
    send(&service, post("/", "k", "{}"))
        .await
        .assert_problem(503, "store-unavailable");
}

#[tokio::test]
async fn what_is_in_a_slot_is_told_and_settled() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let slot = begin(1, 1).slot;
    assert_eq!(store.look_up(&slot).await.unwrap(), None);
    assert!(!store.forget(&slot).await.unwrap());
    store.begin(&begin(1, 1)).await.unwrap();
    let entry = store.look_up(&slot).await.unwrap().unwrap();
    let Phase::Running { attempt: 1, lease_left } = entry.phase else {
        panic!("{entry}")
    };
    assert!(lease_left <= LEASE && lease_left > LEASE / 2, "{entry}");
    assert!(entry.forgotten_in > TTL && entry.forgotten_in <= TTL + LEASE);
    assert_eq!(entry.fingerprint, begin(1, 1).fingerprint);
    let answer = Response::builder().status(201).body(Bytes::from("by hand")).unwrap();
    assert!(!store.settle(&slot, &answer, TTL).await.unwrap(), "it runs");
    store.renew(&slot, Token(1), Duration::ZERO).await.unwrap();
    let census = store.count().await.unwrap();
    assert_eq!((census.running, census.lapsed, census.done), (0, 1, 0));
    let refuse = Begin {
        on_lapse: OnLapse::Refuse,
        ..begin(1, 2)
    };
    assert_eq!(store.begin(&refuse).await.unwrap(), Begun::OutcomeUnknown);
    assert!(store.settle(&slot, &answer, TTL).await.unwrap());
    assert!(!store.settle(&slot, &answer, TTL).await.unwrap());
    assert!(matches!(store.begin(&refuse).await.unwrap(), Begun::Done(_)));
    let entry = store.look_up(&slot).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { bytes } if bytes > 7), "{entry}");
    store.begin(&begin(2, 1)).await.unwrap();
    let brief = Begin {
        lease: Duration::ZERO,
        ttl: Duration::ZERO,
        ..begin(3, 1)
    };
    store.begin(&brief).await.unwrap();
    let census = store.count().await.unwrap();
    assert_eq!((census.running, census.lapsed, census.done), (1, 0, 1));
    assert_eq!(store.look_up(&brief.slot).await.unwrap(), None);
    assert!(!store.forget(&brief.slot).await.unwrap(), "it was forgotten already");
    assert!(store.forget(&slot).await.unwrap());
    let other = Begin {
        fingerprint: Fingerprint::from_bytes([8; 16]),
        ..begin(1, 5)
    };
    assert_eq!(store.begin(&other).await.unwrap(), Begun::Started { attempt: 1 });
}

/// The index that the sweeper reads is written by claims alone: what became of a row since is not in it.
#[tokio::test]
async fn what_lives_longer_than_its_claim_said_is_put_off_and_swept_in_its_time() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    for (slot, ttl) in [(1, TTL), (2, Duration::ZERO), (3, Duration::ZERO)] {
        let claim = begin(slot, 1);
        store.begin(&claim).await.unwrap();
        let held = store.complete(&claim.slot, Token(1), &record(), ttl).await.unwrap();
        assert_eq!(held, Held::Yes);
    }
    sqlx::query("UPDATE idempotency_keys SET sweep_at = now() - interval '1 hour'")
        .execute(store.pool())
        .await
        .unwrap();
    let mut swept = Vec::new();
    for _ in 0..3 {
        swept.push(store.sweep(1).await.unwrap());
    }
    assert_eq!(swept, [1, 1, 0], "what has expired, one by one");
    let due: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys WHERE sweep_at < forget_at")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(due, 0, "the sweeper does not look at the one that lives each time");
    assert_eq!(store.begin(&begin(1, 2)).await.unwrap(), Begun::Done(record()));
    assert_eq!(store.sweep(10).await.unwrap(), 0);
}

#[tokio::test]
async fn the_sweeper_removes_in_batches_and_survives() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let fill = "INSERT INTO idempotency_keys SELECT sha256(i::text::bytea), '', 1, 1, now(), now() - interval '1 s', now() \
                FROM generate_series(1, 1200) AS i";
    let rows = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM idempotency_keys")
            .fetch_one(store.pool())
            .await
            .unwrap()
    };
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    store.begin(&begin(1, 1)).await.unwrap();
    assert_eq!(store.sweep(7).await.unwrap(), 7);
    let sweeper = store.sweep_every(Duration::from_millis(20));
    eventually("all is swept", async || sweeper.removed() == 1193).await;
    assert_eq!((rows().await, sweeper.errors()), (1, 0));
    sqlx::query("DROP TABLE idempotency_keys")
        .execute(store.pool())
        .await
        .unwrap();
    eventually("errors are counted", async || sweeper.errors() >= 2).await;
    store.migrate().await.unwrap();
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    eventually("it goes on", async || sweeper.removed() == 2393).await;
    assert_eq!(rows().await, 0);
    drop(sweeper);
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rows().await, 1200, "it stops when it is dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_restarted_is_found_again_at_once() {
    let Some(server) = blocking(Postgres::start).await else {
        return;
    };
    let server = Arc::new(server);
    let url = server.url("postgres");
    let store = open(&url, 6).await;
    // Six connections, all idle.
    let held = futures_of(6, || store.pool().acquire()).await;
    drop(held);
    idle(&store).await;
    assert_eq!(store.pool().size(), 6);
    store.begin(&begin(1, 1)).await.unwrap();
    idle(&store).await;
    let restarting = Arc::clone(&server);
    blocking(move || restarting.restart()).await;
    // All six are dead, and the first claim gets through.
    assert_eq!(store.begin(&begin(2, 1)).await.unwrap(), Begun::Started { attempt: 1 });
    assert!(matches!(
        store.begin(&begin(1, 2)).await.unwrap(),
        Begun::InFlight { .. }
    ));

    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async { ok("ran") }));
    assert_eq!(send(&service, post("/", "before", "{}")).await.text(), "ran");
    let killing = Arc::clone(&server);
    blocking(move || killing.kill()).await;
    send(&service, post("/", "k", "{}"))
        .await
        .assert_problem(503, "store-unavailable");
    let _server = blocking(move || {
        server.restart();
        server
    })
    .await;
    eventually("it is back", async || {
        send(&service, post("/", "before", "{}")).await.is_replay()
    })
    .await;
}

async fn futures_of<T, E: std::fmt::Debug>(n: usize, make: impl Fn() -> T) -> Vec<T::Output>
where
    T: std::future::Future<Output = Result<sqlx::pool::PoolConnection<sqlx::Postgres>, E>>,
{
    let mut held = Vec::new();
    for _ in 0..n {
        held.push(make().await);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_costs_no_connection() {
    let Some(server) = blocking(Postgres::start).await else {
        return;
    };
    let server = Arc::new(server);
    let store = open(&server.url("postgres"), 2).await;
    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async { ok("ran") }));
    assert_eq!(send(&service, post("/", "before", "{}")).await.text(), "ran");
    let pausing = Arc::clone(&server);
    blocking(move || pausing.pause()).await;
    for round in 0..3 {
        let started = Instant::now();
        let asked: Vec<_> = (0..4)
            .map(|i| spawn(&service, post("/", &format!("k{round}{i}"), "{}")))
            .collect();
        for asked in asked {
            asked.await.unwrap().assert_problem(503, "store-unavailable");
        }
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    // What looks into the store is given up by its caller.
    for _ in 0..2 {
        let slot = layer.slot(None, "before").unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(200), store.look_up(&slot)).await;
        let _ = tokio::time::timeout(Duration::from_millis(200), store.count()).await;
    }
    let _server = blocking(move || {
        server.resume();
        server
    })
    .await;
    eventually("it is back", async || {
        send(&service, post("/", "before", "{}")).await.is_replay()
    })
    .await;
    // Keys of claims that may have been heard are free again.
    for round in 0..3 {
        for i in 0..4 {
            let key = format!("k{round}{i}");
            eventually("the key is free", async || {
                send(&service, post("/", &key, "{}")).await.text() == "ran"
            })
            .await;
        }
    }
    eventually("no connection is kept", async || {
        store.pool().num_idle() == store.pool().size() as usize
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_nobody_answers_on_leave_the_pool() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1), 3).await;
    let held = futures_of(3, || store.pool().acquire()).await;
    drop(held);
    idle(&store).await;
    assert_eq!(store.pool().size(), 3);
    proxy.black_hole(true);
    let slot = begin(1, 1).slot;
    let soon = Duration::from_millis(200);
    let asked = begin(1, 1);
    let (a, b, c) = tokio::join!(
        tokio::time::timeout(soon, store.begin(&asked)),
        tokio::time::timeout(soon, store.look_up(&slot)),
        tokio::time::timeout(soon, store.sweep(1)),
    );
    assert!(a.is_err() && b.is_err() && c.is_err());
    // The network is never healed.
    eventually("their places are free", async || store.pool().size() == 0).await;
}

/// A lease of a second and a half lets a claim take half a second. Making a connection may take longer.
#[tokio::test]
async fn a_connection_is_made_although_no_caller_waits_for_it() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let name = url.rsplit('/').next().unwrap();
    let store = open(&server.url_through(proxy.port(), name), 2).await;
    // A round trip takes 100 ms: making a connection some 500, a claim on it some 200.
    proxy.delay(Duration::from_millis(50));
    proxy.cut_all();
    eventually("a claim is made", async || {
        let patience = Duration::from_millis(350);
        let claimed = tokio::time::timeout(patience, store.begin(&begin(1, 1))).await;
        matches!(claimed, Ok(Ok(Begun::Started { attempt: 1 })))
    })
    .await;
}
