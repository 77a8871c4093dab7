//! The stores next to the bare commands that they cannot do without, on the same pool or connection
//! in the same run. `cargo bench --bench stores` prints tables in Markdown. It starts its own
//! PostgreSQL and Redis if they are installed.

#[path = "../tests/support/directory.rs"]
mod directory;
#[path = "support/median.rs"]
mod median;
#[path = "../tests/support/servers/postgres.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod postgres_server;
#[path = "../tests/support/servers/process.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod process;
#[path = "support/redis.rs"]
mod redis_lines;
#[path = "../tests/support/servers/redis.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod redis_server;
#[path = "support/rows.rs"]
mod rows;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use directory::Directory;
use http::{Request, Response};
use median::median;
use postgres_server::Postgres;
use redis_server::Redis;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::SqlitePool;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::sql::{PostgresStore, SqliteStore};
use tower_idempotency::store::{ClaimOutcome, ClaimRequest, Token};
use tower_idempotency::{Fingerprint, IdempotencyLayer, Slot, Store};
use uuid::Uuid;

const ROUNDS: usize = 41;
const CALLS: usize = 50;
/// How many turns each case gets when many calls run at once, and how long a turn takes.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_millis(500);
/// The response of the guarded service, and the value that the bare commands write last.
const ANSWER: &[u8] = &[b'x'; 200];
/// The value that the bare commands write first. It differs from the response, because SQLite does
/// not write a page again if its bytes stay the same.
const CLAIM: &[u8] = &[b'c'; 200];

type Call = Box<dyn Fn(u64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

struct Case {
    name: &'static str,
    call: Call,
    micros: Vec<f64>,
}

impl Case {
    fn new<F, Fut>(name: &'static str, call: F) -> Self
    where
        F: Fn(u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self {
            name,
            call: Box::new(move |n| Box::pin(call(n))),
            micros: Vec::new(),
        }
    }

    fn median(&mut self) -> f64 {
        median(&mut self.micros)
    }
}

fn fresh() -> Slot {
    let mut bytes = [0; Slot::LEN];
    bytes[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(Uuid::new_v4().as_bytes());
    Slot::from_bytes(bytes)
}

fn begin(slot: Slot) -> ClaimRequest {
    ClaimRequest::new(slot, Fingerprint::from_bytes([7; 16])).with_ttl(Duration::from_secs(3600))
}

fn request(key: &str) -> Request<Body> {
    Request::post("/charges")
        .header("idempotency-key", key)
        .header("authorization", "Bearer sk_test")
        .body(Body::from("{\"amount\":1000}"))
        .expect("a valid request")
}

/// The store's own calls, and the layer's requests on that store.
async fn cases<S: Store + Clone>(store: S) -> Vec<Case> {
    let layer = IdempotencyLayer::new(store.clone());
    let answer = || async { Ok::<_, std::convert::Infallible>(Response::new(Body::from(ANSWER))) };
    let service = layer.layer(service_fn(move |_: Request<Body>| answer()));
    let send = move |request: Request<Body>| {
        let service = service.clone();
        async move {
            let Ok(response) = service.oneshot(request).await;
            assert!(response.status().is_success(), "{}", response.status());
        }
    };

    let done = begin(fresh());
    assert!(matches!(store.begin(&done).await, Ok(ClaimOutcome::Started { .. })));
    let record =
        tower_idempotency::store::Record::of_response(done.fingerprint, &Response::new(Bytes::from_static(ANSWER)));
    store
        .complete(&done.slot, done.token, &record, done.ttl)
        .await
        .expect("a record");
    let known = Uuid::new_v4().to_string();
    send(request(&known)).await;

    let (first, replay) = (store.clone(), store);
    let (send_first, send_again) = (send.clone(), send);
    vec![
        Case::new("store: claim and record", move |_| {
            let (store, record) = (first.clone(), record.clone());
            async move {
                let begin = begin(fresh());
                store.begin(&begin).await.expect("a claim");
                store
                    .complete(&begin.slot, begin.token, &record, begin.ttl)
                    .await
                    .expect("a record");
            }
        }),
        Case::new("store: replay", move |_| {
            let store = replay.clone();
            async move {
                let again = done.with_token(Token::random());
                assert!(matches!(store.begin(&again).await, Ok(ClaimOutcome::Done(_))));
            }
        }),
        Case::new("layer: first request", move |_| {
            send_first(request(&Uuid::new_v4().to_string()))
        }),
        Case::new("layer: replay", move |_| send_again(request(&known))),
    ]
}

/// Interleaved rounds of cases. The first two cases are bare: two writes, and one read.
async fn compare(title: &str, mut cases: Vec<Case>) {
    let mut n = 0;
    for round in 0..=ROUNDS {
        for case in &mut cases {
            let start = Instant::now();
            for _ in 0..CALLS {
                n += 1;
                (case.call)(n).await;
            }
            // The first round is a warm-up.
            if round > 0 {
                case.micros.push(start.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
            }
        }
    }
    println!("\n### {title}\n\n| | µs | multiple |\n|---|---|---|");
    let (writes, read) = (cases[0].median(), cases[1].median());
    for (index, case) in cases.iter_mut().enumerate() {
        let base = if index % 2 == 0 { writes } else { read };
        let median = case.median();
        println!("| {} | {median:.0} | {:.2} |", case.name, median / base);
    }
}

/// How many calls of each case are done in a second, by how many run at once. The cases take turns.
async fn throughput(title: &str, widths: &[usize], make: impl AsyncFn(usize) -> Vec<Case>) {
    println!(
        "\n| {title} at once | bare writes/s | store | layer: first requests | bare reads/s | store | layer: replays |"
    );
    println!("|---|---|---|---|---|---|---|");
    for &width in widths {
        let cases = Arc::new(make(width).await);
        let mut rates = vec![Vec::new(); cases.len()];
        for turn in 0..=TURNS {
            for (index, rates) in rates.iter_mut().enumerate() {
                let rate = rate(&cases, index, width).await;
                // The first turn is a warm-up.
                if turn > 0 {
                    rates.push(rate);
                }
            }
        }
        let [writes, read, claim, replay, first, again] = &mut rates[..] else {
            unreachable!("two bare cases and four")
        };
        let shown = |rates: &mut Vec<f64>, bare: f64| {
            let rate = median(rates);
            format!("{rate:.0} ({:.2})", bare / rate)
        };
        let (writes, read) = (median(writes), median(read));
        println!(
            "| {width} | {writes:.0} | {} | {} | {read:.0} | {} | {} |",
            shown(claim, writes),
            shown(first, writes),
            shown(replay, read),
            shown(again, read)
        );
    }
}

/// Calls per second, with this many at once.
async fn rate(cases: &Arc<Vec<Case>>, index: usize, width: usize) -> f64 {
    times(cases, index, width).await.0
}

/// Calls per second, with this many at once, and the milliseconds that each call took.
async fn times(cases: &Arc<Vec<Case>>, index: usize, width: usize) -> (f64, Vec<f64>) {
    let start = Instant::now();
    let tasks: Vec<_> = (0..width)
        .map(|_| {
            let cases = Arc::clone(cases);
            tokio::spawn(async move {
                let mut millis = Vec::new();
                while start.elapsed() < TURN {
                    let asked = Instant::now();
                    (cases[index].call)(0).await;
                    millis.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                millis
            })
        })
        .collect();
    let mut millis = Vec::new();
    for task in tasks {
        millis.extend(task.await.expect("no request fails"));
    }
    (millis.len() as f64 / start.elapsed().as_secs_f64(), millis)
}

/// The value that 99 of 100 values do not exceed.
fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}

/// The bare cases, then the guarded ones.
fn both(mut bare: Vec<Case>, guarded: Vec<Case>) -> Vec<Case> {
    bare.extend(guarded);
    bare
}

/// The bare statements, which are the same on both databases: two writes, and one read, of a table
/// `bare`. A function would have to list everything that `sqlx` implements for both.
macro_rules! bare {
    ($pool:expr) => {{
        let (writer, reader) = ($pool.clone(), $pool);
        vec![
            Case::new("bare: INSERT and UPDATE", move |_| {
                let pool = writer.clone();
                async move {
                    let key = fresh();
                    for (sql, value) in [
                        ("INSERT INTO bare VALUES ($1, $2)", CLAIM),
                        ("UPDATE bare SET v = $2 WHERE k = $1", ANSWER),
                    ] {
                        let query = sqlx::query(sql).bind(key.as_bytes().as_slice()).bind(value);
                        query.execute(&pool).await.expect("a write");
                    }
                }
            }),
            Case::new("bare: SELECT", move |_| {
                let pool = reader.clone();
                async move {
                    let query = sqlx::query_scalar::<_, Vec<u8>>("SELECT v FROM bare WHERE k = $1");
                    query.bind(&[0_u8][..]).fetch_one(&pool).await.expect("a row");
                }
            }),
        ]
    }};
}

async fn postgres(server: &Postgres) {
    let url = server.create_database();
    let connect = async |width: usize| -> PgPool {
        PgPoolOptions::new()
            .min_connections(width as u32)
            .max_connections(width as u32)
            .test_before_acquire(false)
            .connect(&url)
            .await
            .expect("the database")
    };
    let pool = connect(1).await;
    sqlx::raw_sql("CREATE TABLE bare (k bytea PRIMARY KEY, v bytea); INSERT INTO bare VALUES ('\\x00', decode(repeat('78', 200), 'hex'))")
        .execute(&pool)
        .await
        .expect("a table");
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("a table");
    compare("PostgreSQL", both(bare!(pool), cases(store).await)).await;
    throughput("PostgreSQL: connections", &[1, 2, 4, 8], async |width| {
        let pool = connect(width).await;
        both(bare!(pool.clone()), cases(PostgresStore::new(pool)).await)
    })
    .await;
}

/// The numbers of concurrent callers, on a pool of eight connections.
const CALLERS: [usize; 4] = [1, 8, 32, 128];

/// The bare statements with this many concurrent callers, and the store with as many.
async fn postgres_by_callers(title: &str, server: &Postgres) {
    let url = server.create_database();
    let pool = PgPoolOptions::new()
        .min_connections(8)
        .max_connections(8)
        .test_before_acquire(false)
        .connect(&url)
        .await
        .expect("the database");
    sqlx::raw_sql("CREATE TABLE bare (k bytea PRIMARY KEY, v bytea); INSERT INTO bare VALUES ('\\x00', decode(repeat('78', 200), 'hex'))")
        .execute(&pool)
        .await
        .expect("a table");
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("a table");
    by_callers(title, both(bare!(pool), cases(store).await)).await;
}

/// How many calls of each case are done in a second by this many concurrent callers, compared with
/// the bare statements. The cases take turns.
async fn by_callers(title: &str, mut cases: Vec<Case>) {
    cases.truncate(4);
    let cases = Arc::new(cases);
    println!(
        "\n### {title}\n\n| callers | INSERT and UPDATE/s | claim and record/s | of bare | p99, ms | p99, ms | SELECT/s | replay/s | of bare |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for callers in CALLERS {
        let mut rates = vec![Vec::new(); cases.len()];
        let mut millis = vec![Vec::new(); cases.len()];
        for turn in 0..=TURNS {
            for index in 0..cases.len() {
                let (rate, took) = times(&cases, index, callers).await;
                // The first turn is a warm-up.
                if turn > 0 {
                    rates[index].push(rate);
                    millis[index].extend(took);
                }
            }
        }
        let [bare, ours] = [0, 2].map(|case| p99(&mut millis[case]));
        let [writes, read, claim, replay] = [0, 1, 2, 3].map(|case| median(&mut rates[case]));
        println!(
            "| {callers} | {writes:.0} | {claim:.0} | {:.2} | {bare:.1} | {ours:.1} | {read:.0} | {replay:.0} | {:.2} |",
            claim / writes,
            replay / read
        );
    }
}

async fn sqlite() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.path("bench.db")).await.expect("a database");
    store.migrate().await.expect("a table");
    let pool: SqlitePool = store.pool().clone();
    sqlx::raw_sql("CREATE TABLE bare (k BLOB PRIMARY KEY, v BLOB); INSERT INTO bare VALUES (x'00', zeroblob(200))")
        .execute(&pool)
        .await
        .expect("a table");
    compare("SQLite", both(bare!(pool.clone()), cases(store.clone()).await)).await;
    throughput("SQLite: calls", &[1, 2, 4], async |_| {
        both(bare!(pool.clone()), cases(store.clone()).await)
    })
    .await;
    let title = "SQLite by callers, `synchronous = FULL`";
    by_callers(title, both(bare!(pool), cases(store).await)).await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo test --benches` and `cargo nextest` only check that it starts.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    // Only the named ones, if any are named.
    let asked: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let runs = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    if runs("sqlite") {
        sqlite().await;
    }
    if runs("redis") {
        match Redis::start() {
            Some(server) => redis_lines::redis(&server).await,
            None => println!("\nRedis is not installed."),
        }
    }
    // Ten million rows take 15 GB of disk space and some minutes, so they are made only on request.
    let names = |name: &str| asked.iter().any(|asked| asked == name);
    if names("sqlite-rows") {
        rows::sqlite().await;
    }
    if names("postgres-rows") {
        match Postgres::start_durable() {
            Some(server) => rows::postgres(&server).await,
            None => println!("\nPostgreSQL is not installed."),
        }
    }
    if runs("postgres") {
        match Postgres::start() {
            Some(server) => {
                postgres(&server).await;
                postgres_by_callers("PostgreSQL by callers, fsync off", &server).await;
            }
            None => println!("\nPostgreSQL is not installed."),
        }
        if let Some(server) = Postgres::start_durable() {
            postgres_by_callers("PostgreSQL by callers, fsync on", &server).await;
        }
    }
}
