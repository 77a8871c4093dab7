//! The atomic mode on both databases: effect and record are one, or neither is there.
#![cfg(target_os = "linux")]

mod common;
mod directory;
mod servers {
    pub mod postgres;
    pub mod process;
    pub mod proxy;
}

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use common::{Answer, Count, Gate, ScriptedBody, Step, counted, drain, eventually, post, send, spawn};
use directory::Directory;
use http::{Request, Response, StatusCode};
use servers::postgres::Postgres;
use servers::proxy::Proxy;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Connection, Database};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::sql::{
    PostgresStore, SqliteStore, Transaction, TransactionError, TransactionErrorKind, Work,
};
use tower_idempotency::store::{DynStore, Inspect, Phase};
use tower_idempotency::{Fate, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, Policy, Store, Verdict};

/// One of the databases, empty, with a pool of two connections.
trait Base: Clone + Send + Sync + 'static {
    type Store: Inspect + Clone;
    type Db: Database;

    fn store(&self) -> Self::Store;
    /// The same database through another pool, as another process has.
    fn elsewhere(&self) -> impl Future<Output = Self::Store> + Send;
    fn charge(work: &mut Work<Self::Db>, id: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// As `charge`, in a savepoint, which is rolled back or released.
    fn charge_nested(
        work: &mut Work<Self::Db>,
        id: &str,
        keep: bool,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Refers to a row that is not there, which is found at the commit.
    fn refer(work: &mut Work<Self::Db>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn fail(work: &mut Work<Self::Db>) -> impl Future<Output = ()> + Send;
    fn execute(&self, sql: &'static str) -> impl Future<Output = u64> + Send;
    fn charges(&self, id: &str) -> impl Future<Output = i64> + Send;
    /// Connections that are in use.
    fn busy(&self) -> usize;
}

#[derive(Clone)]
struct Lite(SqliteStore, Arc<Directory>);

fn lite(directory: &Directory) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(directory.path("app.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(5))
}

impl Lite {
    async fn new() -> Self {
        let directory = Arc::new(Directory::new());
        let store = Self::open(&directory).await;
        store.migrate().await.unwrap();
        for sql in [
            "CREATE TABLE charges (id TEXT NOT NULL)",
            "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
            "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        ] {
            sqlx::query(sql).execute(store.pool()).await.unwrap();
        }
        Self(store, directory)
    }

    async fn open(directory: &Directory) -> SqliteStore {
        let pool = SqlitePoolOptions::new().max_connections(2).test_before_acquire(false);
        SqliteStore::new(pool.connect_with(lite(directory)).await.unwrap())
    }
}

impl Base for Lite {
    type Store = SqliteStore;
    type Db = sqlx::Sqlite;

    fn store(&self) -> SqliteStore {
        self.0.clone()
    }
    async fn elsewhere(&self) -> SqliteStore {
        Self::open(&self.1).await
    }
    async fn charge(work: &mut Work<sqlx::Sqlite>, id: &str) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO charges VALUES (?1)").bind(id.to_owned());
        insert.execute(&mut **work).await.map(drop)
    }
    async fn charge_nested(work: &mut Work<sqlx::Sqlite>, id: &str, keep: bool) -> Result<(), sqlx::Error> {
        let mut nested = work.begin().await?;
        let insert = sqlx::query("INSERT INTO charges VALUES (?1)").bind(id.to_owned());
        insert.execute(&mut *nested).await?;
        if keep { nested.commit().await } else { Ok(()) }
    }
    async fn refer(work: &mut Work<sqlx::Sqlite>) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO children VALUES (77)");
        insert.execute(&mut **work).await.map(drop)
    }
    async fn fail(work: &mut Work<sqlx::Sqlite>) {
        let failing = sqlx::query("INSERT INTO nowhere VALUES (1)");
        failing.execute(&mut **work).await.unwrap_err();
    }
    async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(self.0.pool()).await.unwrap().rows_affected()
    }
    async fn charges(&self, id: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM charges WHERE id = ?1").bind(id.to_owned());
        count.fetch_one(self.0.pool()).await.unwrap()
    }
    fn busy(&self) -> usize {
        self.0.pool().size() as usize - self.0.pool().num_idle()
    }
}

#[derive(Clone)]
struct Big {
    store: PostgresStore,
    /// Around the proxy.
    direct: PgPool,
    url: String,
    proxy: Proxy,
}

impl Big {
    async fn new() -> Option<Self> {
        Self::with(2).await
    }

    async fn with(connections: u32) -> Option<Self> {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap()?;
        let url = tokio::task::spawn_blocking(|| server.create_database()).await.unwrap();
        let direct = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        for sql in [
            "CREATE TABLE charges (id TEXT NOT NULL)",
            "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
            "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        ] {
            sqlx::query(sql).execute(&direct).await.unwrap();
        }
        let proxy = Proxy::start(server.port()).await;
        let database = url.rsplit_once('/').unwrap().1;
        let url = server.url_through(proxy.port(), database);
        let store = Self::open(&url, connections).await;
        store.migrate().await.unwrap();
        Some(Self {
            store,
            direct,
            url,
            proxy,
        })
    }

    async fn open(url: &str, connections: u32) -> PostgresStore {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false);
        PostgresStore::new(pool.connect(url).await.unwrap())
    }

    /// Waits until every connection is back in the pool.
    async fn quiet(&self) {
        eventually("all connections are idle", async || self.busy() == 0).await;
    }
}

impl Base for Big {
    type Store = PostgresStore;
    type Db = sqlx::Postgres;

    fn store(&self) -> PostgresStore {
        self.store.clone()
    }
    async fn elsewhere(&self) -> PostgresStore {
        Self::open(&self.url, 2).await
    }
    async fn charge(work: &mut Work<sqlx::Postgres>, id: &str) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO charges VALUES ($1)").bind(id.to_owned());
        insert.execute(&mut **work).await.map(drop)
    }
    async fn charge_nested(work: &mut Work<sqlx::Postgres>, id: &str, keep: bool) -> Result<(), sqlx::Error> {
        let mut nested = work.begin().await?;
        let insert = sqlx::query("INSERT INTO charges VALUES ($1)").bind(id.to_owned());
        insert.execute(&mut *nested).await?;
        if keep { nested.commit().await } else { Ok(()) }
    }
    async fn refer(work: &mut Work<sqlx::Postgres>) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO children VALUES (77)");
        insert.execute(&mut **work).await.map(drop)
    }
    async fn fail(work: &mut Work<sqlx::Postgres>) {
        let failing = sqlx::query("INSERT INTO nowhere VALUES (1)");
        failing.execute(&mut **work).await.unwrap_err();
    }
    async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(&self.direct).await.unwrap().rows_affected()
    }
    async fn charges(&self, id: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM charges WHERE id = $1").bind(id.to_owned());
        count.fetch_one(&self.direct).await.unwrap()
    }
    fn busy(&self) -> usize {
        self.store.pool().size() as usize - self.store.pool().num_idle()
    }
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Lite::new().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(base) = super::Big::new().await {
                    super::$name(base).await;
                }
            })*
        }
    };
}

on_both![
    a_success_commits_effect_and_record,
    every_failure_rolls_back_and_frees_the_key,
    a_client_that_leaves,
    a_slow_call_before_the_transaction_holds_nothing,
    duplicates_are_answered_at_once_while_a_transaction_is_open,
    a_holder_that_lost_its_claim_is_rolled_back,
    a_lapsed_claim_that_nobody_took_commits,
    a_constraint_that_fails_at_the_commit,
    streams_and_lost_bodies_commit_with_a_tombstone,
    seals,
    savepoints,
    a_handler_that_never_begins,
    work_in_use_and_over,
    leaked_work_is_answered_and_rolled_back,
    work_that_ends_late_is_waited_for,
    work_in_a_live_body,
    a_runtime_that_is_dropped,
    through_dyn_store_and_arc,
    a_reconciler_may_use_the_transaction,
    the_extractor,
];

#[derive(Debug)]
struct Broken;
impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as the test wants")
    }
}
impl std::error::Error for Broken {}

type Bank = BoxCloneSyncService<Request<Body>, Response<tower_idempotency::ResponseBody<ScriptedBody>>, Broken>;

struct Shop<St> {
    layer: IdempotencyLayer<St>,
    bank: Bank,
    gate: Gate,
    runs: Count,
    /// What handlers left behind.
    left: Arc<std::sync::Mutex<Vec<Box<dyn std::any::Any + Send>>>>,
}

impl<St: Store> Shop<St> {
    fn slot(&self, key: &str) -> tower_idempotency::Slot {
        self.layer.slot(None, key).unwrap()
    }
    async fn send(&self, path: &str, key: &str) -> Answer {
        send(&self.bank, post(path, key, "{}")).await
    }
    /// Until it is neither in flight nor unavailable.
    async fn retry(&self, path: &str, key: &str) -> Answer {
        self.retry_while(path, key, &[409, 503]).await
    }
    /// Another request with the key, until the key is free.
    async fn retry_anew(&self, key: &str) -> Answer {
        self.retry_while("/ok", key, &[409, 422, 503]).await
    }
    async fn retry_while(&self, path: &str, key: &str, statuses: &[u16]) -> Answer {
        let started = Instant::now();
        loop {
            let answer = self.send(path, key).await;
            if !statuses.contains(&answer.status.as_u16()) {
                return answer;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn shop<B: Base>(base: &B) -> Shop<B::Store> {
    shop_with::<B, _>(base.store(), |builder| builder)
}

/// Handlers by path. All charge under the key, but for `/idle`.
fn shop_with<B: Base, St: Store>(
    store: St,
    configure: impl FnOnce(IdempotencyLayerBuilder<St>) -> IdempotencyLayerBuilder<St>,
) -> Shop<St> {
    let builder = IdempotencyLayer::builder(store)
        .store_timeout(Duration::from_secs(4))
        .max_response_body(1000);
    let layer = configure(builder).build().unwrap();
    let gate = Gate::default();
    let runs = Count::default();
    let left = Arc::<std::sync::Mutex<Vec<_>>>::default();
    let (stop, count, keep) = (gate.clone(), runs.clone(), left.clone());
    let handler =
        service_fn(move |request: Request<Body>| handle::<B>(request, stop.clone(), count.clone(), keep.clone()));
    let bank = BoxCloneSyncService::new(layer.layer(handler));
    Shop {
        layer,
        bank,
        gate,
        runs,
        left,
    }
}

fn answered(status: u16, body: impl Into<ScriptedBody>) -> Result<Response<ScriptedBody>, Broken> {
    Ok(Response::builder().status(status).body(body.into()).unwrap())
}

async fn handle<B: Base>(
    request: Request<Body>,
    gate: Gate,
    runs: Count,
    left: Arc<std::sync::Mutex<Vec<Box<dyn std::any::Any + Send>>>>,
) -> Result<Response<ScriptedBody>, Broken> {
    runs.up();
    let key = request.extensions().get::<IdempotencyKey>().unwrap().clone();
    let transaction = request.extensions().get::<Transaction<B::Db>>().unwrap().clone();
    let path = request.uri().path().to_owned();
    if path == "/slow" {
        gate.pass().await;
    }
    if path == "/idle" {
        return answered(200, "idle");
    }
    let mut work = match transaction.begin().await {
        Ok(work) => work,
        Err(_) => return answered(503, "no transaction"),
    };
    if path == "/in-use" {
        let error = transaction.begin().await.unwrap_err();
        assert_eq!(error.kind(), TransactionErrorKind::InUse);
        drop(work);
        work = transaction.begin().await.expect("it goes on");
    }
    if B::charge(&mut work, key.as_str()).await.is_err() {
        return answered(503, "no charge");
    }
    match path.as_str() {
        "/error" => return Err(Broken),
        "/panic" => panic!("as the test wants"),
        "/open" => gate.pass().await,
        "/refer" => B::refer(&mut work).await.unwrap(),
        "/swallow" => B::fail(&mut work).await,
        "/nested" => {
            B::charge_nested(&mut work, "kept", true).await.unwrap();
            B::charge_nested(&mut work, "undone", false).await.unwrap();
        }
        "/leak" => {
            left.lock().unwrap().push(Box::new((work, transaction)));
            return answered(200, "leaked");
        }
        "/late" => {
            tokio::spawn(async move {
                gate.pass().await;
                B::charge(&mut work, key.as_str()).await.unwrap();
            });
            return answered(200, "late");
        }
        "/hand-on" => left.lock().unwrap().push(Box::new(transaction)),
        "/live" => {
            drop(work);
            let work = Arc::new(tokio::sync::Mutex::new(Some(transaction.begin().await.unwrap())));
            let mut response = answered(200, ScriptedBody::new([Step::Data("event".into()), Step::Hang])).unwrap();
            response
                .headers_mut()
                .insert("content-type", "text/event-stream".parse().unwrap());
            left.lock().unwrap().push(Box::new(work));
            return Ok(response);
        }
        "/stream" => {
            let mut response = answered(200, "data: 1\n\n").unwrap();
            response
                .headers_mut()
                .insert("content-type", "text/event-stream".parse().unwrap());
            return Ok(response);
        }
        "/large" => return answered(200, bytes::Bytes::from(vec![b'x'; 5000])),
        "/grows" => {
            let steps = (0..5).map(|_| Step::Data(vec![b'x'; 1000].into()));
            return answered(200, ScriptedBody::new(steps));
        }
        "/breaks" => return answered(200, ScriptedBody::new([Step::Data("half".into()), Step::Fail])),
        "/body-stops" => {
            return answered(200, ScriptedBody::new([Step::Data("half".into()), Step::Stop(gate)]));
        }
        path => {
            if let Some(status) = path.strip_prefix("/status/") {
                return answered(status.parse().unwrap(), "refused");
            }
        }
    }
    answered(
        200,
        ScriptedBody::from(bytes::Bytes::from(format!("charged in attempt {}", key.attempt()))),
    )
}

async fn a_success_commits_effect_and_record<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = shop.send("/ok", "k").await;
    assert_eq!((first.status.as_u16(), first.text()), (200, "charged in attempt 1"));
    assert_eq!(first.outcome(), "executed");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/ok", "k").await.assert_replay_of(&first);
    // Another process replays it, too.
    let other = shop_with::<B, _>(base.elsewhere().await, |builder| builder);
    other.send("/ok", "k").await.assert_replay_of(&first);
    assert_eq!(other.runs.get(), 0);
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.runs.get(), 1);
    assert_eq!(counted(&shop.layer, "executed"), 1);
    assert_eq!(counted(&shop.layer, "replayed"), 1);
    let entry = base.store().look_up(&shop.slot("k")).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { .. }), "{entry}");
}

/// Nothing is there, and a retry is attempt 1, with whatever fingerprint.
async fn assert_undone<B: Base, St: Store>(base: &B, shop: &Shop<St>, key: &str) {
    assert_eq!(base.charges(key).await, 0, "{key}");
    assert_eq!(base.store().look_up(&shop.slot(key)).await.unwrap(), None, "{key}");
    let again = shop.send("/ok", key).await;
    assert_eq!(
        (again.status.as_u16(), again.text()),
        (200, "charged in attempt 1"),
        "{key}"
    );
    assert_eq!(base.charges(key).await, 1, "{key}");
}

async fn every_failure_rolls_back_and_frees_the_key<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    for status in [302, 400, 402, 404, 409, 422, 500, 503] {
        let path = format!("/status/{status}");
        let key = format!("s{status}");
        let answer = shop.send(&path, &key).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, "refused"));
        assert_eq!(answer.outcome(), "released");
        assert_undone(&base, &shop, &key).await;
    }
    let error = shop.bank.clone().oneshot(post("/error", "error", "{}")).await;
    error.expect_err("the service's own");
    assert_undone(&base, &shop, "error").await;
    let panicking = shop.bank.clone().oneshot(post("/panic", "panic", "{}"));
    assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
    assert_undone(&base, &shop, "panic").await;
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_client_that_leaves<B: Base>(base: B) {
    // The handler goes on, and commits.
    let shop = shop::<B>(&base);
    let asked = spawn(&shop.bank, post("/open", "goes-on", "{}"));
    shop.gate.arrival().await;
    asked.abort();
    asked.await.unwrap_err();
    shop.gate.open_once();
    drain(&shop.layer).await;
    assert_eq!(base.charges("goes-on").await, 1);
    assert!(shop.send("/open", "goes-on").await.is_replay());

    for (fate, key) in [(Fate::Release, "released"), (Fate::Seal, "sealed")] {
        let shop = shop_with::<B, _>(base.store(), |builder| builder.cancel_on_disconnect(fate));
        let asked = spawn(&shop.bank, post("/open", key, "{}"));
        shop.gate.arrival().await;
        asked.abort();
        asked.await.unwrap_err();
        drain(&shop.layer).await;
        assert_eq!(base.charges(key).await, 0, "{fate:?}");
        if fate == Fate::Seal {
            shop.send("/open", key).await.assert_problem(409, "outcome-unknown");
        } else {
            let other = shop_with::<B, _>(base.store(), |builder| builder);
            assert_undone(&base, &other, key).await;
        }
    }
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_slow_call_before_the_transaction_holds_nothing<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let keys: Vec<String> = (0..12).map(|i| format!("slow{i}")).collect();
    let asked: Vec<_> = keys
        .iter()
        .map(|key| spawn(&shop.bank, post("/slow", key, "{}")))
        .collect();
    for _ in &keys {
        shop.gate.arrival().await;
    }
    // Twelve handlers at work over a pool of two.
    eventually("no connection is in use", async || base.busy() == 0).await;
    assert_eq!(shop.send("/ok", "quick").await.status, 200);
    // No lock either: another connection writes.
    base.execute("INSERT INTO charges VALUES ('outside')").await;
    shop.gate.open();
    for asked in asked {
        let answer = asked.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.outcome()), (200, "executed"));
    }
    for key in &keys {
        assert_eq!(base.charges(key).await, 1);
    }
}

async fn duplicates_are_answered_at_once_while_a_transaction_is_open<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let other = shop_with::<B, _>(base.elsewhere().await, |builder| builder);
    let waiting = shop_with::<B, _>(base.elsewhere().await, |builder| builder.wait(Duration::from_secs(60)));
    let first = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    let waiters: Vec<_> = (0..10)
        .map(|_| spawn(&waiting.bank, post("/open", "k", "{}")))
        .collect();
    let started = Instant::now();
    let duplicates: Vec<_> = (0..20)
        .map(|i| {
            spawn(
                if i % 2 == 0 { &shop.bank } else { &other.bank },
                post("/open", "k", "{}"),
            )
        })
        .collect();
    for duplicate in duplicates {
        duplicate.await.unwrap().assert_problem(409, "in-flight");
    }
    send(&shop.bank, post("/open", "k", "{\"other\":1}"))
        .await
        .assert_problem(422, "key-reused");
    assert!(started.elapsed() < Duration::from_secs(4), "they waited");
    shop.gate.open();
    let first = first.await.unwrap();
    assert_eq!(first.status, 200);
    for waiter in waiters {
        waiter.await.unwrap().assert_replay_of(&first);
    }
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.runs.get() + other.runs.get() + waiting.runs.get(), 1);
}

async fn a_holder_that_lost_its_claim_is_rolled_back<B: Base>(base: B) {
    // Forgotten, and nobody has it.
    let shop = shop::<B>(&base);
    // SQLite has one writer: what takes the claim away must come before the transaction.
    for (key, takeover) in [("forgotten", false), ("taken", true)] {
        let first = spawn(&shop.bank, post("/slow", key, "{}"));
        shop.gate.arrival().await;
        assert!(base.store().forget(&shop.slot(key)).await.unwrap());
        let second = takeover.then(|| spawn(&shop.bank, post("/slow", key, "{}")));
        if takeover {
            shop.gate.arrival().await;
        }
        shop.gate.open_once();
        let answer = first.await.unwrap();
        answer.assert_problem(409, "in-flight");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(base.charges(key).await, 0, "{key}");
        if let Some(second) = second {
            shop.gate.open_once();
            assert_eq!(second.await.unwrap().status, 200);
            assert_eq!(base.charges(key).await, 1);
        } else {
            assert_undone(&base, &shop, key).await;
        }
    }
    assert_eq!(counted(&shop.layer, "in-flight"), 2);
    // The token alone.
    let first = spawn(&shop.bank, post("/slow", "token", "{}"));
    shop.gate.arrival().await;
    base.execute("UPDATE idempotency_keys SET token = token / 2 WHERE record IS NULL")
        .await;
    shop.gate.open_once();
    first.await.unwrap().assert_problem(409, "in-flight");
    assert_eq!(base.charges("token").await, 0);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_lapsed_claim_that_nobody_took_commits<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = spawn(&shop.bank, post("/slow", "k", "{}"));
    shop.gate.arrival().await;
    base.execute("UPDATE idempotency_keys SET lease_until = lease_until - (forget_at - lease_until)")
        .await;
    shop.gate.open_once();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(base.charges("k").await, 1);
}

async fn a_constraint_that_fails_at_the_commit<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let answer = shop.send("/refer", "k").await;
    answer.assert_problem(503, "store-unavailable");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.outcome(), "store-unavailable");
    assert_undone(&base, &shop, "k").await;
    assert_eq!(counted(&shop.layer, "store-unavailable"), 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn streams_and_lost_bodies_commit_with_a_tombstone<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    for path in ["/stream", "/large", "/grows", "/breaks"] {
        let first = common::respond(&shop.bank, post(path, path, "{}")).await;
        assert_eq!(first.status(), 200);
        let outcome = first.extensions().get::<tower_idempotency::Outcome>().copied();
        assert_eq!(outcome.map(|outcome| outcome.as_str()), Some("sealed"), "{path}");
        let body = http_body_util::BodyExt::collect(first.into_body()).await;
        assert_eq!(body.is_err(), path == "/breaks");
        assert_eq!(base.charges(path).await, 1, "{path}");
        let again = shop.send(path, path).await;
        again.assert_problem(409, "response-not-retained");
        assert_eq!(again.json()["original_status"], 200);
    }
    let free = shop_with::<B, _>(base.store(), |builder| {
        builder.policy(Policy::success().on_lost_body(Fate::Release))
    });
    let first = free.send("/large", "free").await;
    assert_eq!(first.body.len(), 5000);
    assert_undone(&base, &free, "free").await;
}

async fn seals<B: Base>(base: B) {
    let sealing = shop_with::<B, _>(base.store(), |builder| {
        let policy = Policy::from_fn(|_, _| Verdict::Seal);
        builder.policy(policy.on_panic(Fate::Seal).on_error(Fate::Seal))
    });
    assert_eq!(sealing.send("/status/402", "seal").await.outcome(), "sealed");
    assert_eq!(base.charges("seal").await, 1, "what is sealed is done");
    sealing
        .send("/status/402", "seal")
        .await
        .assert_problem(409, "response-not-retained");

    let panicking = sealing.bank.clone().oneshot(post("/panic", "panic", "{}"));
    assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
    assert_eq!(base.charges("panic").await, 0);
    sealing
        .send("/panic", "panic")
        .await
        .assert_problem(409, "outcome-unknown");
    sealing
        .bank
        .clone()
        .oneshot(post("/error", "error", "{}"))
        .await
        .unwrap_err();
    assert_eq!(base.charges("error").await, 0);
    sealing
        .send("/error", "error")
        .await
        .assert_problem(409, "outcome-unknown");
}

async fn savepoints<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    assert_eq!(shop.send("/nested", "k").await.status, 200);
    for (id, charges) in [("k", 1), ("kept", 1), ("undone", 0)] {
        assert_eq!(base.charges(id).await, charges, "{id}");
    }
}

async fn a_handler_that_never_begins<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = shop.send("/idle", "k").await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    shop.send("/idle", "k").await.assert_replay_of(&first);
}

async fn work_in_use_and_over<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    assert_eq!(shop.send("/in-use", "k").await.status, 200);
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.send("/hand-on", "h").await.status, 200);
    let left = shop.left.lock().unwrap().pop().unwrap();
    let transaction = left.downcast::<Transaction<B::Db>>().unwrap();
    let error = transaction.begin().await.unwrap_err();
    assert_eq!(error.kind(), TransactionErrorKind::Over);
    assert_eq!(base.charges("h").await, 1);
}

async fn leaked_work_is_answered_and_rolled_back<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(1)));
    let started = Instant::now();
    let answer = shop.send("/leak", "k").await;
    answer.assert_problem(503, "store-unavailable");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(base.charges("k").await, 0);
    let left = shop.left.lock().unwrap().pop().unwrap();
    let (work, transaction) = *left.downcast::<(Work<B::Db>, Transaction<B::Db>)>().unwrap();
    drop(work);
    // Too late to go on.
    let error = transaction.begin().await.map(drop).unwrap_err();
    assert_eq!(error.kind(), TransactionErrorKind::Over);
    // The transaction has ended although its handle is kept.
    let ended = Instant::now();
    let again = shop.retry_anew("k").await;
    assert_eq!((again.status.as_u16(), again.text()), (200, "charged in attempt 1"));
    assert!(ended.elapsed() < Duration::from_secs(15), "{:?}", ended.elapsed());
    assert_eq!(base.charges("k").await, 1);
    drop(transaction);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn work_that_ends_late_is_waited_for<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let asked = spawn(&shop.bank, post("/late", "k", "{}"));
    shop.gate.arrival().await;
    shop.gate.open_once();
    assert_eq!(asked.await.unwrap().text(), "late");
    assert_eq!(base.charges("k").await, 2);
}

async fn work_in_a_live_body<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(1)));
    let response = common::respond(&shop.bank, post("/live", "k", "{}")).await;
    assert_eq!(response.status(), 503);
    drop(response);
    assert_eq!(base.charges("k").await, 0);
    shop.left.lock().unwrap().clear();
    let again = shop.retry_anew("k").await;
    assert_eq!(again.text(), "charged in attempt 1");
}

async fn a_runtime_that_is_dropped<B: Base>(base: B) {
    // Its own pool: connections belong to the runtime that made them.
    let elsewhere = base.clone();
    let (shop, asked) = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (shop, asked) = runtime.block_on(async {
            let shop = shop_with::<B, _>(elsewhere.elsewhere().await, |builder| {
                builder.lease(Duration::from_millis(600))
            });
            let asked = spawn(&shop.bank, post("/open", "k", "{}"));
            shop.gate.arrival().await;
            (shop, asked)
        });
        drop(runtime);
        (shop, asked)
    })
    .await
    .unwrap();
    assert!(asked.await.unwrap_err().is_cancelled());
    assert_eq!(base.charges("k").await, 0);
    drop(shop);
    let here = shop_with::<B, _>(base.store(), |builder| builder.lease(Duration::from_millis(600)));
    here.gate.open();
    let again = here.retry("/open", "k").await;
    assert_eq!(again.text(), "charged in attempt 2");
    assert_eq!(base.charges("k").await, 1);
}

async fn through_dyn_store_and_arc<B: Base>(base: B) {
    let erased = shop_with::<B, _>(DynStore::new(Arc::new(base.store())), |builder| builder);
    assert_eq!(erased.send("/ok", "dyn").await.status, 200);
    assert_eq!(base.charges("dyn").await, 1);
    let failed = erased.send("/status/500", "dyn2").await;
    assert_eq!(failed.status, 500);
    assert_eq!(base.charges("dyn2").await, 0);
    let shared = shop_with::<B, _>(Arc::new(base.store()), |builder| builder);
    assert!(shared.send("/ok", "dyn").await.is_replay());
    assert_eq!(shared.send("/status/500", "arc").await.status, 500);
    assert_undone(&base, &shared, "arc").await;
}

async fn a_reconciler_may_use_the_transaction<B: Base>(base: B) {
    let answer = Arc::new(std::sync::Mutex::new("fail"));
    let say = Arc::clone(&answer);
    let shop = shop_with::<B, _>(base.store(), |builder| {
        builder.policy(Policy::success().reconcile(move |lapsed| {
            let say = Arc::clone(&say);
            async move {
                let transaction = lapsed.request.extensions.get::<Transaction<B::Db>>().unwrap().clone();
                let mut work = transaction.begin().await?;
                B::charge(&mut work, "reconciler").await?;
                drop(work);
                let say = *say.lock().unwrap();
                match say {
                    "run" => Ok(tower_idempotency::Reconciled::Run),
                    "done" => Ok(tower_idempotency::Reconciled::Done(Response::new("was done".into()))),
                    _ => Err("cannot tell".into()),
                }
            }
        }))
    });
    let lapse = async |key: &str| {
        let asked = spawn(&shop.bank, post("/slow", key, "{}"));
        shop.gate.arrival().await;
        asked.abort();
        asked.await.unwrap_err();
        // The claim of a process that died: another token, lapsed.
        base.execute("UPDATE idempotency_keys SET token = token / 2, lease_until = lease_until - (forget_at - lease_until) WHERE record IS NULL").await;
        shop.gate.open_once();
        drain(&shop.layer).await;
    };
    lapse("k").await;
    let started = Instant::now();
    shop.send("/slow", "k").await.assert_problem(409, "outcome-unknown");
    assert!(started.elapsed() < Duration::from_secs(3), "it waited for its own lock");
    assert_eq!(base.charges("reconciler").await, 0);
    // It asks again, and gives the answer.
    *answer.lock().unwrap() = "done";
    let done = shop.send("/slow", "k").await;
    assert_eq!(
        (done.status.as_u16(), done.text(), done.is_replay()),
        (200, "was done", true)
    );
    assert_eq!(base.charges("k").await, 0);
    *answer.lock().unwrap() = "run";
    lapse("r").await;
    shop.gate.open_once();
    let ran = shop.send("/slow", "r").await;
    assert_eq!((ran.status.as_u16(), ran.text()), (200, "charged in attempt 2"));
    assert_eq!(base.charges("r").await, 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn the_extractor<B: Base>(base: B) {
    async fn charge<B: Base>(
        key: IdempotencyKey,
        transaction: Transaction<B::Db>,
    ) -> Result<(StatusCode, &'static str), TransactionError> {
        let mut work = transaction.begin().await?;
        B::charge(&mut work, key.as_str()).await?;
        // Fails as a statement does.
        if key.as_str() == "in-use" {
            transaction.begin().await?;
        }
        Ok((StatusCode::CREATED, "charged"))
    }
    async fn optional<B: Base>(transaction: Option<Transaction<B::Db>>) -> &'static str {
        if transaction.is_some() { "there" } else { "not there" }
    }
    let routes = || {
        axum::Router::new()
            .route("/charge", axum::routing::post(charge::<B>))
            .route("/optional", axum::routing::post(optional::<B>))
    };
    let layer = IdempotencyLayer::new(base.store());
    let app = routes().layer(layer.clone());
    let first = send(&app, post("/charge", "k", "")).await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "charged"));
    send(&app, post("/charge", "k", "")).await.assert_replay_of(&first);
    assert_eq!(base.charges("k").await, 1);
    let refused = send(&app, post("/charge", "in-use", "")).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.outcome(), "released");
    assert_eq!(base.charges("in-use").await, 0);
    assert_eq!(
        base.store()
            .look_up(&layer.slot(None, "in-use").unwrap())
            .await
            .unwrap(),
        None
    );
    assert_eq!(send(&app, post("/optional", "o", "")).await.text(), "there");
    // Without the layer.
    let bare = routes();
    assert_eq!(send(&bare, post("/charge", "k", "")).await.status, 500);
    assert_eq!(send(&bare, post("/optional", "k", "")).await.text(), "not there");
}

// --- PostgreSQL alone

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_statement_that_the_handler_swallowed_is_no_success() {
    let Some(base) = Big::new().await else { return };
    let shop = shop::<Big>(&base);
    shop.send("/swallow", "k")
        .await
        .assert_problem(503, "store-unavailable");
    assert_undone(&base, &shop, "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_taken_while_the_transaction_is_open_rolls_it_back() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.lease(Duration::from_millis(300)));
    let first = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.store().forget(&shop.slot("k")).await.unwrap();
    let other = shop_with::<Big, _>(base.elsewhere().await, |builder| builder);
    let second = other.send("/ok", "k").await;
    assert_eq!(second.text(), "charged in attempt 1");
    shop.gate.open_once();
    first.await.unwrap().assert_problem(409, "in-flight");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/ok", "k").await;
    assert_eq!(base.charges("k").await, 1);
}

/// Cuts the connection at each request that a charge makes, before and after it is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_anywhere_leaves_effect_and_record_or_neither() {
    let Some(base) = Big::with(1).await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(10)));
    for key in ["warm", "warmer"] {
        assert_eq!(shop.send("/ok", key).await.status, 200);
        base.quiet().await;
    }
    // Claim, check at release, BEGIN, INSERT, record, COMMIT, check at release.
    let before = base.proxy.round_trips();
    assert_eq!(shop.send("/ok", "counted").await.status, 200);
    base.quiet().await;
    let requests = base.proxy.round_trips() - before;
    assert_eq!(requests, 7, "one round trip each");
    let commit = requests - 1;
    let (mut answers_before, mut answers_after) = (Vec::new(), Vec::new());
    for n in 1..=requests {
        for heard in [false, true] {
            let key = format!("{n}-{heard}");
            if heard {
                base.proxy.cut_after_requests(n);
            } else {
                base.proxy.cut_before_request(n);
            }
            let first = shop.send("/ok", &key).await;
            base.proxy.heal().await;
            drain(&shop.layer).await;
            let charged = base.charges(&key).await;
            let entry = base.store().look_up(&shop.slot(&key)).await.unwrap();
            let done = entry.is_some_and(|entry| matches!(entry.phase, Phase::Done { .. }));
            assert_eq!(
                charged == 1,
                done,
                "{key}: effect and record are one: {entry:?}, {first:?}"
            );
            if first.status == 200 {
                assert_eq!(charged, 1, "{key}: the answer is true");
            }
            match heard {
                false => answers_before.push((first.status.as_u16(), charged)),
                true => answers_after.push((first.status.as_u16(), charged)),
            }
            let again = shop.retry("/ok", &key).await;
            assert_eq!(again.status, 200, "{key}");
            assert_eq!(again.is_replay(), charged == 1, "{key}");
            assert_eq!(base.charges(&key).await, 1, "{key}");
            // All statements are prepared again on the new connection.
            for key in 0..2 {
                let key = format!("warm-{n}-{heard}-{key}");
                assert_eq!(shop.retry("/ok", &key).await.status, 200);
                base.quiet().await;
            }
        }
    }
    let commit = commit as usize - 1;
    assert_eq!(
        answers_before[commit],
        (503, 0),
        "COMMIT was not heard: {answers_before:?}"
    );
    assert_eq!(answers_after[commit], (200, 1), "COMMIT was heard: {answers_after:?}");
}

/// As above, with the database out of reach for a while after the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_commit_is_resolved_when_the_database_is_back() {
    for heard in [false, true] {
        let Some(base) = Big::new().await else { return };
        let shop = shop_with::<Big, _>(base.store(), |builder| {
            builder.store_timeout(Duration::from_millis(700))
        });
        for key in ["warm", "warmer", "warmest"] {
            assert_eq!(shop.send("/ok", key).await.status, 200);
            base.quiet().await;
        }
        let asked = spawn(&shop.bank, post("/open", "k", "{}"));
        shop.gate.arrival().await;
        base.quiet_but(1).await;
        base.proxy.refuse(true).await;
        // The record, then COMMIT.
        if heard {
            base.proxy.cut_after_requests(2);
        } else {
            base.proxy.cut_before_request(2);
        }
        // No other connection is left to read back on.
        shop.gate.open_once();
        eventually("the commit met with the cut", async || base.proxy.counts().cuts == 1).await;
        base.proxy.cut_all();
        let answer = asked.await.unwrap();
        if answer.status != 200 {
            answer.assert_problem(503, "store-unavailable");
        }
        base.proxy.heal().await;
        eventually("it is resolved", async || shop.layer.background().is_empty()).await;
        assert_eq!(base.charges("k").await, i64::from(heard));
        shop.gate.open();
        let again = shop.retry("/open", "k").await;
        assert_eq!((again.text(), again.is_replay()), ("charged in attempt 1", heard));
        assert_eq!(base.charges("k").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_before_the_record_is_resolved() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| {
        builder
            .store_timeout(Duration::from_millis(500))
            .lease(Duration::from_secs(2))
            .settle_within(Duration::from_secs(1))
    });
    for key in ["warm", "warmer", "warmest"] {
        assert_eq!(shop.send("/ok", key).await.status, 200);
    }
    let asked = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.quiet_but(1).await;
    base.proxy.black_hole(true);
    shop.gate.open();
    asked.await.unwrap().assert_problem(503, "store-unavailable");
    // Connections that nobody answers on do not keep their places in the pool, once nobody tries.
    eventually("it is given up", async || shop.layer.background().is_empty()).await;
    eventually("the pool has let go of them", async || base.store.pool().size() == 0).await;
    base.proxy.heal().await;
    let again = shop.retry("/open", "k").await;
    assert!(again.text().starts_with("charged in attempt"), "{again:?}");
    assert!(!again.is_replay());
    assert_eq!(base.charges("k").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_after_the_commit_is_resolved() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(3)));
    for key in ["warm", "warmer", "warmest"] {
        assert_eq!(shop.send("/ok", key).await.status, 200);
        base.quiet().await;
    }
    let asked = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.quiet_but(1).await;
    let before = base.proxy.round_trips();
    base.proxy.delay(Duration::from_millis(400));
    shop.gate.open_once();
    eventually("COMMIT is heard", async || base.charges("k").await == 1).await;
    assert_eq!(base.proxy.round_trips() - before, 2);
    base.proxy.black_hole(true);
    asked.await.unwrap().assert_problem(503, "store-unavailable");
    eventually("the pool has let go of them", async || base.store.pool().size() == 0).await;
    base.proxy.heal().await;
    let again = shop.retry("/open", "k").await;
    assert!(again.is_replay(), "{again:?}");
    assert_eq!(again.text(), "charged in attempt 1");
    assert_eq!(base.charges("k").await, 1);
}

impl Big {
    async fn quiet_but(&self, busy: usize) {
        eventually("the others are idle", async || self.busy() == busy).await;
    }
}

/// The connection is lost while the server is at work on COMMIT: reading back waits until it is
/// decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_still_being_made_is_waited_for() {
    let Some(base) = Big::new().await else { return };
    for sql in [
        "INSERT INTO parents VALUES (77)",
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER dawdles AFTER INSERT ON children DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION dawdle()",
    ] {
        base.execute(sql).await;
    }
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(20)));
    let asked = spawn(&shop.bank, post("/refer", "k", "{}"));
    let committing = "SELECT count(*) FROM pg_stat_activity \
                      WHERE datname = current_database() AND query = 'COMMIT' AND state = 'active'";
    eventually("COMMIT is heard", async || {
        let count: i64 = sqlx::query_scalar(committing).fetch_one(&base.direct).await.unwrap();
        count == 1
    })
    .await;
    base.proxy.cut_all();
    let first = asked.await.unwrap();
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"), "{first:?}");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/refer", "k").await.assert_replay_of(&first);
}
