//! The Redis store on real servers: its rules, its round trips, and what it says when they fail.
#![cfg(unix)]

mod common;
mod conforming;
mod servers {
    pub mod process;
    pub mod redis;
}

use std::error::Error as _;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use common::{Count, capture, inner, ok, post, send};
use conforming::{InTurn, all_checks, conforms};
use http::{Request, Response, StatusCode};
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, cmd};
use servers::process::free_port;
use servers::redis::Redis;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tower::Layer;
use tower_idempotency::store::conformance;
use tower_idempotency::store::{
    Begin, Begun, Census, Held, Inspect, OnLapse, Phase, Record, RedisStore, ScopeTag, Slot, Store, StoreError,
    StoreErrorKind, Token,
};
use tower_idempotency::{Fingerprint, IdempotencyLayer};

const HOUR: Duration = Duration::from_secs(3600);
const PRINT: Fingerprint = Fingerprint::from_bytes([0xAB; 16]);
/// Of the conformance suite. A call has to take less than a third of it, and other tests share the
/// machine.
const UNIT: Duration = Duration::from_millis(600);
const PASSWORD: &str = "HUSH-password";

fn slot(n: u8) -> Slot {
    Slot::from_bytes([n; Slot::LEN])
}

fn claim(n: u8) -> Begin {
    Begin {
        slot: slot(n),
        scope: ScopeTag::default(),
        fingerprint: PRINT,
        token: Token::random(),
        lease: HOUR,
        ttl: HOUR,
        on_lapse: OnLapse::RunAgain,
    }
}

fn record(body: &'static [u8]) -> Record {
    Record::of_response(PRINT, &Response::new(Bytes::from_static(body)))
}

const STARTED: Begun = Begun::Started { attempt: 1 };

async fn store(server: &Redis) -> RedisStore {
    RedisStore::connect(&server.url()).await.unwrap()
}

/// A connection of the test's own.
async fn raw(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).unwrap();
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

async fn query<T: FromRedisValue>(connection: &mut MultiplexedConnection, command: &str) -> T {
    command_of(command).query_async(connection).await.unwrap()
}

fn command_of(text: &str) -> Cmd {
    let mut words = text.split(' ');
    let mut command = cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command
}

async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The error with all its sources, in both spellings.
fn chain(error: &StoreError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(" | {error:?} {error}");
        source = error.source();
    }
    text
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: Result<T, StoreError>, kind: StoreErrorKind, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", chain(&error));
    assert!(error.to_string().starts_with("redis: "), "{error}");
    assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    assert!(!chain(&error).contains("HUSH"), "{}", chain(&error));
}

// The rules.

async fn handles(url: &str) -> Arc<InTurn<RedisStore>> {
    let mut handles = Vec::new();
    for _ in 0..4 {
        handles.push(RedisStore::connect(url).await.unwrap());
    }
    InTurn::new(handles, UNIT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms() {
    let Some(server) = Redis::start() else { return };
    conforms(handles(&server.url()).await, all_checks(), []).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_resp3_and_a_numbered_database() {
    let Some(server) = Redis::start() else { return };
    let harness = handles(&format!("{}/3?protocol=resp3", server.url())).await;
    conforms(harness, conformance::checks(), []).await;
    let mut connection = raw(&server.url()).await;
    let keyspace: String = query(&mut connection, "INFO keyspace").await;
    assert!(keyspace.contains("db3:") && !keyspace.contains("db0:"), "{keyspace}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_follow_the_machine() {
    let Some(server) = Redis::start() else { return };
    let random = Token::random().0;
    println!("the random seeds begin at {random:#x}");
    let seeds = (0..8).chain(random..random.saturating_add(8));
    conforms(handles(&server.url()).await, vec![], seeds).await;
}

/// What others read: a change of it needs a new word than `claim`, or a new version of the record.
#[tokio::test]
async fn golden_form_of_what_is_stored() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = Begin {
        token: Token(0xA1),
        lease: Duration::from_nanos(1_000_001),
        ttl: HOUR,
        ..claim(7)
    };
    store.begin(&begin).await.unwrap();
    let key = format!("idempotency:{}", "07".repeat(32));
    assert_eq!(store.key(&begin.slot), key);
    let held: String = query(&mut raw, &format!("GET {key}")).await;
    assert_eq!(
        held,
        "claim 00000000000000a1 abababababababababababababababab 1 3600000"
    );
    let left: u64 = query(&mut raw, &format!("PTTL {key}")).await;
    assert!((3_590_000..=3_600_002).contains(&left), "{left}");

    let record = record(b"answer");
    let minute = Duration::from_secs(60);
    assert_eq!(
        store.complete(&begin.slot, begin.token, &record, minute).await.unwrap(),
        Held::Yes
    );
    let held: Vec<u8> = query(&mut raw, &format!("GET {key}")).await;
    assert_eq!(held, record.to_bytes());
    let left: u64 = query(&mut raw, &format!("PTTL {key}")).await;
    assert!((50_000..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn times_without_end_and_without_length() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let forever = Begin {
        lease: Duration::MAX,
        ttl: Duration::MAX,
        ..claim(1)
    };
    assert_eq!(store.begin(&forever).await.unwrap(), STARTED);
    let Begun::InFlight { lease_left } = store.begin(&claim(1)).await.unwrap() else {
        panic!("it runs")
    };
    assert!(lease_left > Duration::from_millis(99_999_999_000_000), "{lease_left:?}");
    assert_eq!(
        store.renew(&slot(1), forever.token, Duration::MAX).await.unwrap(),
        Held::Yes
    );
    let held = store
        .complete(&slot(1), forever.token, &record(b""), Duration::MAX)
        .await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(record(b"")));

    let nothing = Begin {
        lease: Duration::ZERO,
        ttl: Duration::ZERO,
        ..claim(2)
    };
    assert_eq!(store.begin(&nothing).await.unwrap(), STARTED);
    assert_eq!(store.renew(&slot(2), nothing.token, HOUR).await.unwrap(), Held::Lost);
    let short = claim(2);
    assert_eq!(store.begin(&short).await.unwrap(), STARTED);
    let held = store
        .complete(&slot(2), short.token, &record(b""), Duration::ZERO)
        .await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(
        query::<u32>(&mut raw, "DBSIZE").await,
        1,
        "that record was forgotten at once"
    );
}

#[tokio::test]
async fn attempts_do_not_overflow() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let text = format!("claim {:016x} {} {} 3600000", 9, "ab".repeat(16), u32::MAX - 1);
    let set = cmd("SET")
        .arg(store.key(&slot(1)))
        .arg(text)
        .arg("PX")
        .arg(1000)
        .to_owned();
    let () = set.query_async(&mut raw).await.unwrap();
    for _ in 0..2 {
        let begin = Begin {
            lease: Duration::ZERO,
            ..claim(1)
        };
        assert_eq!(store.begin(&begin).await.unwrap(), Begun::Started { attempt: u32::MAX });
    }
    let held: String = query(&mut raw, &format!("GET {}", store.key(&slot(1)))).await;
    assert!(held.contains(&format!(" {} ", u32::MAX)), "{held}");
}

#[tokio::test]
async fn prefixes_do_not_meet() {
    let Some(server) = Redis::start() else { return };
    let one = store(&server).await.prefix("a:").unwrap();
    let two = store(&server).await.prefix("a:b:").unwrap();
    let odd = store(&server).await.prefix("{a*?[b]\\:").unwrap();
    for store in [&one, &two, &odd] {
        assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    }
    assert_eq!(two.begin(&claim(2)).await.unwrap(), STARTED);
    for (store, running) in [(&one, 1), (&two, 2), (&odd, 1)] {
        assert_eq!(store.count().await.unwrap(), Census::new(running, 0, 0), "{store:?}");
    }
    assert!(one.forget(&slot(1)).await.unwrap());
    assert_eq!(two.count().await.unwrap(), Census::new(2, 0, 0));
    for refused in ["", "a b", "a\n", "a\0", &"x".repeat(65)] {
        let error = one.clone().prefix(refused).unwrap_err();
        assert_eq!(error.option(), "prefix", "{refused:?}");
    }
    assert!(one.prefix(&"x".repeat(64)).is_ok());
}

// Looking in.

#[tokio::test]
async fn looking_up_and_counting_and_forgetting() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    assert_eq!(store.look_up(&slot(1)).await.unwrap(), None);
    assert!(!store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.count().await.unwrap(), Census::default());

    let running = claim(1);
    store.begin(&running).await.unwrap();
    let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
    assert_eq!(entry.fingerprint, PRINT);
    let Phase::Running { attempt: 1, lease_left } = entry.phase else {
        panic!("{entry}")
    };
    assert!(
        lease_left <= HOUR && lease_left > HOUR - Duration::from_secs(60),
        "{entry}"
    );
    assert!(entry.forgotten_in <= 2 * HOUR && entry.forgotten_in > 2 * HOUR - Duration::from_secs(60));

    let lapsed = claim(2);
    store.begin(&lapsed).await.unwrap();
    store.renew(&slot(2), lapsed.token, Duration::ZERO).await.unwrap();
    let entry = store.look_up(&slot(2)).await.unwrap().unwrap();
    assert_eq!(
        entry.phase,
        Phase::Running {
            attempt: 1,
            lease_left: Duration::ZERO
        }
    );

    let done = claim(3);
    store.begin(&done).await.unwrap();
    store
        .complete(&slot(3), done.token, &record(b"answer"), HOUR)
        .await
        .unwrap();
    let entry = store.look_up(&slot(3)).await.unwrap().unwrap();
    assert_eq!(entry.fingerprint, PRINT);
    assert_eq!(
        entry.phase,
        Phase::Done {
            bytes: record(b"answer").len()
        }
    );
    assert!(entry.forgotten_in <= HOUR && entry.forgotten_in > HOUR - Duration::from_secs(60));

    // More than one batch, and keys that are none of ours.
    let mut raw = raw(&server.url()).await;
    for n in 0..1500_u32 {
        let mut bytes = [9; Slot::LEN];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        store
            .begin(&Begin {
                slot: Slot::from_bytes(bytes),
                ..claim(0)
            })
            .await
            .unwrap();
        let () = query(&mut raw, &format!("SET other:{n} 1")).await;
    }
    let () = query(&mut raw, &format!("HSET {} a 1", store.key(&slot(200)))).await;
    let () = query(&mut raw, "SET idempotency:short 1").await;
    assert_eq!(store.count().await.unwrap(), Census::new(1501, 1, 1));

    assert!(store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.look_up(&slot(1)).await.unwrap(), None);
    let held = store
        .complete(&slot(1), running.token, &record(b""), HOUR)
        .await
        .unwrap();
    assert_eq!(held, Held::Lost, "the holder is fenced off");
    let other = Begin {
        fingerprint: Fingerprint::from_bytes([1; 16]),
        ..claim(1)
    };
    assert_eq!(store.begin(&other).await.unwrap(), STARTED);
}

#[tokio::test]
async fn what_nobody_knows_is_settled() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    let lapsed = claim(1);
    let answer = Response::new(Bytes::from_static(b"charged"));
    assert!(!store.settle(&slot(1), &answer, HOUR).await.unwrap(), "vacant");
    store.begin(&lapsed).await.unwrap();
    assert!(!store.settle(&slot(1), &answer, HOUR).await.unwrap(), "running");
    store.renew(&slot(1), lapsed.token, Duration::ZERO).await.unwrap();
    assert!(store.settle(&slot(1), &answer, HOUR).await.unwrap());
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(record(b"charged")));
}

// Round trips.

/// Counts on their way to a server how often the direction turned to it, and the bytes back.
#[derive(Default)]
struct Tally {
    to_server: AtomicBool,
    turns: AtomicUsize,
    back: AtomicUsize,
    /// Loses the next answer, and the connection with it.
    cut: AtomicBool,
}

impl Tally {
    fn take(&self) -> (usize, usize) {
        (
            self.turns.swap(0, Ordering::SeqCst),
            self.back.swap(0, Ordering::SeqCst),
        )
    }
}

async fn proxy(server: u16) -> (String, Arc<Tally>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let tally = Arc::new(Tally::default());
    let shared = Arc::clone(&tally);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.unwrap();
            let (client, upstream) = (client.into_split(), upstream.into_split());
            tokio::spawn(pump(client.0, upstream.1, Arc::clone(&shared), true));
            tokio::spawn(pump(upstream.0, client.1, Arc::clone(&shared), false));
        }
    });
    (url, tally)
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    tally: Arc<Tally>,
    to_server: bool,
) {
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let before = tally.to_server.swap(to_server, Ordering::SeqCst);
        if to_server && !before {
            tally.turns.fetch_add(1, Ordering::SeqCst);
        }
        if !to_server {
            tally.back.fetch_add(length, Ordering::SeqCst);
            if tally.cut.swap(false, Ordering::SeqCst) {
                // Dropping this half ends what goes back; the other half goes when the client does.
                break;
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn a_replay_is_one_round_trip_and_a_first_request_two() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(server.port()).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let layer = IdempotencyLayer::new(store.clone());
    let runs = Count::default();
    let counted = runs.clone();
    let service = layer.layer(inner(move |_: Request<Body>| {
        counted.up();
        async { ok("answer") }
    }));
    // The server has no script yet.
    send(&service, post("/", "warm", "{}")).await;
    tally.take();

    let first = send(&service, post("/", "one", "{}")).await;
    assert_eq!((first.status, tally.take().0), (StatusCode::OK, 2));
    let replay = send(&service, post("/", "one", "{}")).await;
    replay.assert_replay_of(&first);
    assert_eq!(tally.take().0, 1);
    let mismatch = send(&service, post("/", "one", "{\"other\":1}")).await;
    assert_eq!((mismatch.status.as_u16(), tally.take().0), (422, 1));
    assert_eq!(runs.get(), 2);

    let running = claim(1);
    store.begin(&running).await.unwrap();
    assert_eq!(tally.take().0, 1);
    store.renew(&slot(1), running.token, HOUR).await.unwrap();
    // That script is new to the server.
    assert_eq!(tally.take().0, 2);
    store.renew(&slot(1), running.token, HOUR).await.unwrap();
    assert_eq!(tally.take().0, 1);
}

#[tokio::test]
async fn a_look_up_transfers_no_body_and_a_refusal_no_record() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(server.port()).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    let large = Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; 1 << 20])));
    assert_eq!(
        store.complete(&slot(1), begin.token, &large, HOUR).await.unwrap(),
        Held::Yes
    );
    tally.take();
    let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
    assert_eq!(entry.phase, Phase::Done { bytes: large.len() });
    assert_eq!(
        store.complete(&slot(1), begin.token, &large, HOUR).await.unwrap(),
        Held::Lost
    );
    assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Lost);
    let (_, bytes) = tally.take();
    assert!(bytes < 1000, "{bytes} bytes");
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(large));
}

// The server's troubles.

#[tokio::test]
async fn answers_that_are_lost_with_their_connection() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(server.port()).await;
    let (store, plain) = (RedisStore::connect(&url).await.unwrap(), store(&server).await);
    // The scripts are known, so that the answer that is lost is that of the operation.
    let known = claim(9);
    plain.begin(&known).await.unwrap();
    plain.renew(&slot(9), known.token, HOUR).await.unwrap();
    plain.complete(&slot(9), known.token, &record(b""), HOUR).await.unwrap();

    let begin = claim(1);
    let lose = || tally.cut.store(true, Ordering::SeqCst);
    lose();
    assert_eq!(
        store.begin(&begin).await.unwrap(),
        STARTED,
        "asked again, with its token"
    );
    lose();
    assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Yes);
    lose();
    // Asked again it would be told that the claim is lost.
    let answer = store.complete(&slot(1), begin.token, &record(b"answer"), HOUR).await;
    assert_fails(answer, StoreErrorKind::Unavailable, "connection failed or broke");
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(record(b"answer")));
}

#[tokio::test]
async fn scripts_that_the_server_forgets_are_sent_again() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = claim(1);
    for round in 0..3 {
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED, "round {round}");
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Yes);
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert!(store.look_up(&slot(1)).await.unwrap().is_some());
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert_eq!(store.count().await.unwrap(), Census::new(1, 0, 0));
        let () = query(&mut raw, "SCRIPT FLUSH").await;
    }
    assert_eq!(
        store.complete(&slot(1), begin.token, &record(b""), HOUR).await.unwrap(),
        Held::Yes
    );
    let () = query(&mut raw, "SCRIPT FLUSH").await;
    assert_eq!(store.release(&slot(1), begin.token).await.unwrap(), Held::Lost);
}

#[tokio::test]
async fn a_restart_with_kept_data_is_not_noticed() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let Some(mut server) = Redis::start_with(&options) else {
        return;
    };
    let store = store(&server).await;
    let (done, running) = (claim(1), claim(2));
    store.begin(&done).await.unwrap();
    store
        .complete(&slot(1), done.token, &record(b"answer"), HOUR)
        .await
        .unwrap();
    store.begin(&running).await.unwrap();
    server.restart();
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(record(b"answer")));
    assert!(matches!(store.begin(&claim(2)).await.unwrap(), Begun::InFlight { .. }));
    server.restart();
    assert_eq!(store.renew(&slot(2), running.token, HOUR).await.unwrap(), Held::Yes);
    let held = store.complete(&slot(2), running.token, &record(b"late"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}

#[tokio::test]
async fn a_server_that_is_gone_and_comes_back() {
    let Some(mut server) = Redis::start() else { return };
    let store = store(&server).await;
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    server.kill();
    assert_fails(
        store.begin(&begin).await,
        StoreErrorKind::Unavailable,
        "nothing listens",
    );
    assert_fails(
        store.complete(&slot(1), begin.token, &record(b""), HOUR).await,
        StoreErrorKind::Unavailable,
        "redis: complete: ",
    );
    server.restart();
    until("the store is back", || async { store.begin(&begin).await.is_ok() }).await;
}

#[tokio::test]
async fn a_server_that_is_paused() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    let begin = claim(1);
    server.pause();
    let asked = Instant::now();
    let answer = store.begin(&begin).await;
    server.resume();
    assert_fails(answer, StoreErrorKind::Timeout, "did not answer in time");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    // Whether the first was done does not matter.
    assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
    assert!(matches!(store.begin(&claim(1)).await.unwrap(), Begun::InFlight { .. }));
}

#[tokio::test]
async fn urls_that_lead_nowhere() {
    for url in [
        "",
        "HUSH",
        "http://u:HUSH@localhost",
        "redis://u:HUSH@localhost:99999",
        "redis://u:HUSH@localhost/x",
    ] {
        assert_fails(
            RedisStore::connect(url).await,
            StoreErrorKind::Unavailable,
            "expected redis://",
        );
    }
    assert_fails(
        RedisStore::connect("rediss://u:HUSH@localhost").await,
        StoreErrorKind::Unavailable,
        "TLS feature",
    );
    let nobody = format!("redis://u:{PASSWORD}@127.0.0.1:{}", free_port());
    assert_fails(
        RedisStore::connect(&nobody).await,
        StoreErrorKind::Unavailable,
        "nothing listens",
    );
}

#[tokio::test]
async fn passwords_and_permissions() {
    let Some(server) = Redis::start_with(&["--requirepass", PASSWORD]) else {
        return;
    };
    let at = format!("127.0.0.1:{}", server.port());
    let connect = async |credentials: &str| RedisStore::connect(&format!("redis://{credentials}@{at}")).await;
    assert_fails(connect(":HUSH-wrong").await, StoreErrorKind::Unavailable, "password");
    assert_fails(
        RedisStore::connect(&server.url()).await,
        StoreErrorKind::Unavailable,
        "give user and password",
    );
    let store = connect(&format!(":{PASSWORD}")).await.unwrap();
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    assert!(!format!("{store:?}").contains("HUSH"), "{store:?}");

    let mut raw = raw(&format!("redis://:{PASSWORD}@{at}")).await;
    let () = query(&mut raw, "ACL SETUSER weak on >HUSH ~* +ping +evalsha +eval").await;
    let weak = connect("weak:HUSH").await.unwrap();
    assert_fails(weak.begin(&claim(2)).await, StoreErrorKind::Unavailable, "ACL");
    assert_fails(weak.forget(&slot(2)).await, StoreErrorKind::Unavailable, "ACL");

    // What the message says is needed is enough.
    let () = query(
        &mut raw,
        "ACL SETUSER strong on >HUSH ~idempotency:* +ping +evalsha +eval +get +getrange +strlen +exists +set +del +pttl +pexpire +unlink +scan +info +wait",
    )
    .await;
    let strong = connect("strong:HUSH").await.unwrap();
    let begin = claim(3);
    assert_eq!(strong.begin(&begin).await.unwrap(), STARTED);
    assert_eq!(strong.renew(&slot(3), begin.token, HOUR).await.unwrap(), Held::Yes);
    assert!(strong.look_up(&slot(3)).await.unwrap().is_some());
    assert_eq!(strong.look_up(&slot(4)).await.unwrap(), None);
    assert_eq!(
        strong
            .complete(&slot(3), begin.token, &record(b""), HOUR)
            .await
            .unwrap(),
        Held::Yes
    );
    assert!(strong.look_up(&slot(3)).await.unwrap().is_some());
    assert_eq!(strong.release(&slot(3), begin.token).await.unwrap(), Held::Lost);
    assert_eq!(strong.count().await.unwrap(), Census::new(1, 0, 1));
    assert!(strong.forget(&slot(3)).await.unwrap());
}

#[tokio::test]
async fn a_password_that_was_changed_for_a_while() {
    let Some(server) = Redis::start_with(&["--requirepass", PASSWORD]) else {
        return;
    };
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let store = RedisStore::connect(&url).await.unwrap();
    let mut raw = raw(&url).await;
    let () = query(&mut raw, "CONFIG SET requirepass HUSH-other").await;
    let () = query(&mut raw, "CLIENT KILL SKIPME yes TYPE normal").await;
    assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Unavailable, "password");
    let () = query(&mut raw, &format!("CONFIG SET requirepass {PASSWORD}")).await;
    until("the store is let in again", || async {
        store.begin(&claim(1)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_full_server_refuses_new_keys_and_replays() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let (done, running) = (claim(1), claim(2));
    store.begin(&done).await.unwrap();
    store
        .complete(&slot(1), done.token, &record(b"answer"), HOUR)
        .await
        .unwrap();
    store.begin(&running).await.unwrap();
    let () = query(&mut raw, "CONFIG SET maxmemory 1").await;
    assert_fails(store.begin(&claim(3)).await, StoreErrorKind::Full, "maxmemory");
    assert_eq!(store.begin(&claim(1)).await.unwrap(), Begun::Done(record(b"answer")));
    assert_eq!(store.renew(&slot(2), running.token, HOUR).await.unwrap(), Held::Yes);
    assert_fails(
        store.complete(&slot(2), running.token, &record(b""), HOUR).await,
        StoreErrorKind::Full,
        "redis: complete: ",
    );
    assert_eq!(store.release(&slot(2), running.token).await.unwrap(), Held::Yes);
}

#[tokio::test]
async fn a_server_that_may_evict_is_warned_of() {
    let options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let Some(server) = Redis::start_with(&options) else {
        return;
    };
    capture::install();
    capture::take();
    store(&server).await;
    let warned = |events: Vec<capture::Captured>| events.iter().any(|event| event.message().contains("noeviction"));
    assert!(warned(capture::take()));
    let Some(server) = Redis::start_with(&["--maxmemory", "100mb"]) else {
        return;
    };
    store(&server).await;
    assert!(!warned(capture::take()));
}

#[tokio::test]
async fn contract_6_5_what_cannot_be_read_is_never_claimed_over() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let key = store.key(&slot(1));
    let good = record(b"answer").to_bytes();
    let mut damaged = good.clone();
    damaged[30] ^= 1;
    let mut print_damaged = good.clone();
    print_damaged[5] ^= 1;
    let newer = [&[2_u8][..], &good[1..]].concat();
    let claimed = format!("claim {:016x} {} 1 1000", 9, "ab".repeat(16));
    let later = claimed.replace("claim", "claim2");
    let short = claimed.replacen("abab", "ab", 1);
    let values: [(&[u8], bool); 9] = [
        (&damaged, true),
        (&print_damaged, true),
        (&good[..10], true),
        (&newer, true),
        (b"", true),
        (b"somebody else's", true),
        (later.as_bytes(), true),
        (short.as_bytes(), true),
        // A claim that never ends is not one of ours.
        (claimed.as_bytes(), false),
    ];
    for (value, ends) in values {
        let mut set = cmd("SET");
        set.arg(&key).arg(value);
        if ends {
            set.arg("PX").arg(3_600_000);
        }
        let () = set.query_async(&mut raw).await.unwrap();
        let name = String::from_utf8_lossy(value);
        for on_lapse in [OnLapse::RunAgain, OnLapse::Refuse] {
            let answer = store.begin(&Begin { on_lapse, ..claim(1) }).await;
            assert_fails(answer, StoreErrorKind::Corrupt, "redis: begin: ");
        }
        let token = Token(9);
        let text = !value.is_empty() && value[0] >= 32;
        for (op, answer) in [
            ("renew", store.renew(&slot(1), token, HOUR).await),
            ("complete", store.complete(&slot(1), token, &record(b""), HOUR).await),
            ("release", store.release(&slot(1), token).await),
        ] {
            match text {
                true => assert_fails(answer, StoreErrorKind::Corrupt, &format!("redis: {op}: ")),
                // Nobody's claim, whatever it is.
                false => assert_eq!(answer.unwrap(), Held::Lost, "{op} of {name}"),
            }
        }
        let held: Vec<u8> = query(&mut raw, &format!("GET {key}")).await;
        assert_eq!(held, value, "nothing was changed");
    }
    let () = query(&mut raw, &format!("SET {key} claim-of-another")).await;
    assert_fails(store.look_up(&slot(1)).await, StoreErrorKind::Corrupt, "prefix");
    let () = cmd("SET").arg(&key).arg(&newer).query_async(&mut raw).await.unwrap();
    assert_fails(store.look_up(&slot(1)).await, StoreErrorKind::Corrupt, "newer release");

    let () = query(&mut raw, &format!("DEL {key}")).await;
    let () = query(&mut raw, &format!("HSET {key} field 1")).await;
    let token = Token(9);
    assert_fails(
        store.begin(&claim(1)).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_fails(
        store.renew(&slot(1), token, HOUR).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    let answer = store.complete(&slot(1), token, &record(b""), HOUR).await;
    assert_fails(answer, StoreErrorKind::Corrupt, "another application");
    assert_fails(
        store.release(&slot(1), token).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_fails(
        store.look_up(&slot(1)).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
    assert_eq!(query::<u32>(&mut raw, &format!("HLEN {key}")).await, 1);
    assert!(store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
}

/// Answers every `EVALSHA` and `EVAL` with that line.
async fn says(line: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut number = async |sign: char| -> Option<(usize, Option<String>)> {
                    let head = lines.next_line().await.ok()??;
                    let number = head.strip_prefix(sign)?.parse().ok()?;
                    let text = if sign == '$' {
                        lines.next_line().await.ok()?
                    } else {
                        None
                    };
                    Some((number, text))
                };
                while let Some((parts, _)) = number('*').await {
                    let mut name = String::new();
                    for part in 0..parts {
                        let (_, text) = number('$').await.unwrap();
                        if part == 0 {
                            name = text.unwrap();
                        }
                    }
                    let answer = if name.starts_with("EVAL") { line } else { "+OK" };
                    write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_a_server_refuses_is_said_with_what_to_do() {
    use StoreErrorKind::{Corrupt, Full, Unavailable};
    for (line, kind, words) in [
        (
            "-LOADING Redis is loading the dataset in memory",
            Unavailable,
            "loading",
        ),
        (
            "-READONLY You can't write against a read only replica.",
            Unavailable,
            "primary",
        ),
        (
            "-MISCONF Redis is configured to save RDB snapshots",
            Unavailable,
            "disk",
        ),
        ("-BUSY Redis is busy running a script.", Unavailable, "SCRIPT KILL"),
        (
            "-CROSSSLOT Keys in request don't hash to the same slot",
            Unavailable,
            "cluster connection",
        ),
        ("-MOVED 3999 127.0.0.1:6381", Unavailable, "cluster connection"),
        ("-CLUSTERDOWN The cluster is down", Unavailable, "CLUSTER INFO"),
        ("-MASTERDOWN Link with MASTER is down", Unavailable, "primary"),
        (
            "-NOREPLICAS Not enough good replicas to write.",
            Unavailable,
            "min-replicas-to-write",
        ),
        ("-NOAUTH Authentication required.", Unavailable, "password"),
        ("-NOPERM this user has no permissions", Unavailable, "ACL"),
        (
            "-OOM command not allowed when used memory > 'maxmemory'.",
            Full,
            "maxmemory",
        ),
        // As servers before version 7 say it.
        (
            "-ERR Error running script (call to f_1): @user_script:3: @user_script: 3: -OOM command not allowed",
            Full,
            "maxmemory",
        ),
        (
            "-ERR Error running script (call to f_1): @user_script:3: WRONGTYPE Operation against a key",
            Corrupt,
            "another application",
        ),
        (
            "-ERR unknown command 'EVALSHA', with args beginning with: 'HUSH'",
            Unavailable,
            "a proxy before it",
        ),
        ("-ERR something new", Unavailable, "the error's source"),
        ("+OK", Unavailable, "form"),
        (":7", Unavailable, "form"),
        ("$-1", Unavailable, "form"),
    ] {
        let store = RedisStore::connect(&says(line).await).await.unwrap();
        assert_fails(store.begin(&claim(1)).await, kind, words);
        if line != ":7" && line != "$-1" {
            assert_fails(store.renew(&slot(1), Token(1), HOUR).await, kind, words);
        }
    }
}

// Replicas.

struct Pair {
    primary: Redis,
    replica: Redis,
}

impl Pair {
    async fn start() -> Option<Self> {
        let primary = Redis::start_with(&["--repl-diskless-sync-delay", "0"])?;
        let port = primary.port().to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port])?;
        let mut raw = raw(&primary.url()).await;
        let raw = &mut raw;
        until("the replica is online", || {
            let mut raw = raw.clone();
            async move {
                query::<String>(&mut raw, "INFO replication")
                    .await
                    .contains("state=online")
            }
        })
        .await;
        Some(Self { primary, replica })
    }
}

const WITHIN: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_replica_is_read_only() {
    let Some(pair) = Pair::start().await else { return };
    let store = store(&pair.replica).await;
    assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Unavailable, "primary");
}

#[tokio::test]
async fn claims_and_records_that_a_replica_has() {
    let Some(pair) = Pair::start().await else { return };
    let (url, tally) = proxy(pair.primary.port()).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let store = store.wait_for_replicas(1, Duration::from_secs(10)).unwrap();
    let mut replica = raw(&pair.replica.url()).await;
    // Enough that each connection is made, and that a flush is met on all of them.
    for n in 0..24 {
        if n == 12 {
            let () = query(&mut raw(&pair.primary.url()).await, "SCRIPT FLUSH").await;
        }
        let begin = claim(n);
        tally.take();
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
        if n > 16 {
            assert_eq!(tally.take().0, 1, "one round trip");
        }
        let key = store.key(&slot(n));
        let held: String = query(&mut replica, &format!("GET {key}")).await;
        assert!(held.starts_with("claim "), "{held}");
        assert_eq!(
            store
                .complete(&slot(n), begin.token, &record(b"answer"), HOUR)
                .await
                .unwrap(),
            Held::Yes
        );
        if n > 16 {
            assert_eq!(tally.take().0, 1, "one round trip");
        }
        let held: Vec<u8> = query(&mut replica, &format!("GET {key}")).await;
        assert_eq!(held, record(b"answer").to_bytes());
        assert_eq!(store.begin(&claim(n)).await.unwrap(), Begun::Done(record(b"answer")));
    }
}

#[tokio::test]
async fn a_claim_that_too_few_replicas_have_is_given_back() {
    let Some(pair) = Pair::start().await else { return };
    let plain = store(&pair.primary).await;
    let store = plain.clone();
    let store = store.wait_for_replicas(1, WITHIN).unwrap();
    // With time enough on a busy machine.
    let patient = plain.clone().wait_for_replicas(1, Duration::from_secs(20)).unwrap();
    let (mid, again) = (claim(2), claim(3));
    assert_eq!(patient.begin(&mid).await.unwrap(), STARTED);
    plain.begin(&again).await.unwrap();
    plain.renew(&slot(3), again.token, Duration::ZERO).await.unwrap();

    pair.replica.pause();
    assert_fails(
        store.begin(&claim(1)).await,
        StoreErrorKind::Unavailable,
        "fewer than 1 replicas",
    );
    assert_eq!(plain.look_up(&slot(1)).await.unwrap(), None, "given back");
    // A takeover stays remembered, with its attempt.
    assert_fails(store.begin(&claim(3)).await, StoreErrorKind::Unavailable, "nothing ran");
    let phase = plain.look_up(&slot(3)).await.unwrap().unwrap().phase;
    assert_eq!(
        phase,
        Phase::Running {
            attempt: 2,
            lease_left: Duration::ZERO
        }
    );

    capture::install();
    capture::take();
    let held = store.complete(&slot(2), mid.token, &record(b"answer"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes, "the operation is done");
    let events = capture::take();
    assert!(
        events
            .iter()
            .any(|event| event.message().contains("fewer than 1 replicas")
                && event.target == "tower_idempotency"
                && event.level == tracing::Level::WARN),
        "{events:?}"
    );
    assert_eq!(store.begin(&claim(2)).await.unwrap(), Begun::Done(record(b"answer")));

    // More are waited for than there are.
    pair.replica.resume();
    let two = plain.clone().wait_for_replicas(2, WITHIN).unwrap();
    assert_fails(
        two.begin(&claim(4)).await,
        StoreErrorKind::Unavailable,
        "fewer than 2 replicas",
    );
    assert_eq!(patient.begin(&claim(5)).await.unwrap(), STARTED);
}

#[tokio::test]
async fn waiting_for_replicas_holds_nobody_else_up() {
    let Some(pair) = Pair::start().await else { return };
    let plain = store(&pair.primary).await;
    let store = plain.clone().wait_for_replicas(1, Duration::from_secs(10)).unwrap();
    let running = claim(1);
    plain.begin(&running).await.unwrap();
    pair.replica.pause();
    let waiter = store.clone();
    let waiting = tokio::spawn(async move { waiter.begin(&claim(2)).await });
    until("the claim waits", || async {
        plain.look_up(&slot(2)).await.unwrap().is_some()
    })
    .await;
    assert_eq!(store.renew(&slot(1), running.token, HOUR).await.unwrap(), Held::Yes);
    assert!(!waiting.is_finished());
    pair.replica.resume();
    assert_eq!(waiting.await.unwrap().unwrap(), STARTED);
}

#[tokio::test]
async fn waits_that_make_no_sense() {
    let Some(server) = Redis::start() else { return };
    let plain = store(&server).await;
    for (count, within) in [(0, WITHIN), (1, Duration::ZERO), (1, HOUR)] {
        let error = plain.clone().wait_for_replicas(count, within).unwrap_err();
        assert_eq!(error.option(), "wait_for_replicas");
    }
    let manager = Client::open(server.url())
        .unwrap()
        .get_connection_manager()
        .await
        .unwrap();
    let error = RedisStore::new(manager).wait_for_replicas(1, WITHIN).unwrap_err();
    assert!(error.to_string().contains("with_client"), "{error}");
}

// Other connections.

#[tokio::test]
async fn any_connection_will_do() {
    let Some(server) = Redis::start() else { return };
    let store = RedisStore::new(raw(&server.url()).await).prefix("mine:").unwrap();
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    assert_eq!(store.count().await.unwrap(), Census::new(1, 0, 0));
}

#[tokio::test]
async fn a_node_of_a_cluster() {
    let Some(server) = Redis::start_with(&["--cluster-enabled", "yes"]) else {
        return;
    };
    let mut raw = raw(&server.url()).await;
    let () = query(&mut raw, "CLUSTER ADDSLOTSRANGE 0 16383").await;
    until("the cluster is up", || {
        let mut raw = raw.clone();
        async move {
            query::<String>(&mut raw, "CLUSTER INFO")
                .await
                .contains("cluster_state:ok")
        }
    })
    .await;
    let store = store(&server).await;
    for n in 0..20 {
        let begin = claim(n);
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
        assert_eq!(store.renew(&slot(n), begin.token, HOUR).await.unwrap(), Held::Yes);
        assert!(store.look_up(&slot(n)).await.unwrap().is_some());
        assert_eq!(
            store.complete(&slot(n), begin.token, &record(b""), HOUR).await.unwrap(),
            Held::Yes
        );
        assert!(store.forget(&slot(n)).await.unwrap());
    }
    assert_fails(store.count().await, StoreErrorKind::Unavailable, "each primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_a_cluster() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let Some(node) = Redis::start_with(&["--cluster-enabled", "yes"]) else {
            return;
        };
        nodes.push(node);
    }
    for (node, range) in nodes.iter().zip(["0 5000", "5001 11000", "11001 16383"]) {
        let mut raw = raw(&node.url()).await;
        let () = query(&mut raw, &format!("CLUSTER ADDSLOTSRANGE {range}")).await;
        for other in &nodes {
            let () = query(&mut raw, &format!("CLUSTER MEET 127.0.0.1 {}", other.port())).await;
        }
    }
    for node in &nodes {
        let raw = raw(&node.url()).await;
        until("the cluster is up", || {
            let mut raw = raw.clone();
            async move {
                let info: String = query(&mut raw, "CLUSTER INFO").await;
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            }
        })
        .await;
    }
    let client = ClusterClient::new(nodes.iter().map(Redis::url)).unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    let harness = InTurn::new(vec![store.clone()], UNIT);
    conforms(harness, conformance::checks(), []).await;
    for node in &nodes {
        let keys: u32 = query(&mut raw(&node.url()).await, "DBSIZE").await;
        assert!(keys > 0, "every node was used");
    }
    store.begin(&claim(1)).await.unwrap();
    assert!(store.look_up(&slot(1)).await.unwrap().is_some());
    assert!(store.forget(&slot(1)).await.unwrap());
    assert_fails(store.count().await, StoreErrorKind::Unavailable, "each primary");
}
