//! The servers and the proxy that the tests of stores use do as they say.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::servers::postgres::{PASSWORD, Postgres};
use crate::support::servers::process;
use crate::support::servers::proxy::Proxy;
use crate::support::servers::redis::Redis;

/// Long enough for what should not come to come.
const SHORT: Duration = Duration::from_millis(150);

// --- PostgreSQL

/// What a client says first, for the user and database `postgres`.
fn startup() -> Vec<u8> {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let mut message = u32::try_from(8 + parameters.len()).unwrap().to_be_bytes().to_vec();
    message.extend(0x0003_0000_u32.to_be_bytes());
    message.extend(parameters);
    message
}

/// The start of the answer to it.
async fn answer(connection: &mut TcpStream) -> [u8; 9] {
    let mut answer = [0; 9];
    connection.read_exact(&mut answer).await.unwrap();
    answer
}

/// Authentication by SASL.
fn asks_for_the_password(answer: [u8; 9]) -> bool {
    answer[0] == b'R' && answer[5..] == 10_u32.to_be_bytes()
}

async fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await
}

#[test]
fn postgres_gives_each_test_a_database_of_its_own() {
    let Some(postgres) = Postgres::shared() else { return };
    let urls: Vec<String> = std::thread::scope(|scope| {
        let tests: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Postgres::shared().unwrap().create_database()))
            .collect();
        tests.into_iter().map(|test| test.join().unwrap()).collect()
    });
    assert_eq!(urls.iter().collect::<HashSet<_>>().len(), 4);
    for url in urls {
        let (server, database) = url.rsplit_once('/').unwrap();
        assert_eq!(
            server,
            format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}", postgres.port())
        );
        assert_eq!(postgres.sql(database, "CREATE TABLE t (i INT)"), "");
        postgres.sql(database, "INSERT INTO t VALUES (1), (2)");
        assert_eq!(postgres.sql(database, "SELECT i, i + 1 FROM t ORDER BY i"), "1|2\n2|3");
    }
}

#[tokio::test]
async fn postgres_asks_for_the_password() {
    let Some(postgres) = Postgres::shared() else { return };
    let mut connection = connect(postgres.port()).await.unwrap();
    connection.write_all(&startup()).await.unwrap();
    assert!(asks_for_the_password(answer(&mut connection).await));
    assert!(!format!("{postgres:?}").contains(PASSWORD));
}

#[test]
fn postgres_takes_settings_and_can_be_durable() {
    let Some(postgres) = Postgres::start_with(&[("max_connections", "7")]) else {
        return;
    };
    assert_eq!(postgres.sql("postgres", "SHOW max_connections"), "7");
    assert_eq!(postgres.sql("postgres", "SHOW fsync"), "off");
    let durable = Postgres::start_durable().unwrap();
    assert_eq!(durable.sql("postgres", "SHOW fsync"), "on");
}

#[tokio::test]
async fn postgres_comes_back_where_it_was_killed_with_what_was_committed() {
    let Some(postgres) = Postgres::start() else { return };
    postgres.create_database();
    let mut connection = connect(postgres.port()).await.unwrap();
    connection.write_all(&startup()).await.unwrap();
    answer(&mut connection).await;
    for round in 0..3 {
        let table = format!("CREATE TABLE t{round} AS SELECT {round} AS i");
        postgres.sql("test_0", &table);
        if round == 1 {
            postgres.pause();
        }
        let process = postgres.process().unwrap();
        postgres.kill();
        assert!(!process::alive(process));
        assert_eq!(postgres.process(), None);
        let refused = connect(postgres.port()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        postgres.restart();
        assert_eq!(
            postgres.sql("test_0", &format!("SELECT i FROM t{round}")),
            round.to_string()
        );
    }
    postgres.restart();
    assert_eq!(postgres.sql("test_0", "SELECT i FROM t2"), "2");
    assert!(
        postgres
            .log()
            .contains("database system is ready to accept connections")
    );
    // The connection of the first server has ended with it.
    let rest = connection.read_to_end(&mut Vec::new()).await;
    assert!(rest.is_ok() || rest.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn postgres_does_nothing_while_paused() {
    let Some(postgres) = Postgres::start() else { return };
    let mut old = connect(postgres.port()).await.unwrap();
    old.write_all(&startup()).await.unwrap();
    answer(&mut old).await;
    postgres.pause();
    let mut new = connect(postgres.port()).await.unwrap();
    new.write_all(&startup()).await.unwrap();
    // Another authentication message than it expects: it will say so, and hang up.
    old.write_all(&startup()).await.unwrap();
    assert!(timeout(SHORT, answer(&mut new)).await.is_err());
    // The rest of its list of methods may have been on its way.
    let rest = timeout(SHORT, old.read_to_end(&mut Vec::new())).await;
    assert!(rest.is_err());
    postgres.resume();
    assert!(asks_for_the_password(answer(&mut new).await));
    let rest = old.read_to_end(&mut Vec::new()).await;
    assert!(rest.is_ok() || rest.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

#[test]
fn postgres_leaves_nothing_when_dropped() {
    for paused in [false, true] {
        let Some(postgres) = Postgres::start() else { return };
        let process = postgres.process().unwrap();
        let directory = postgres.directory().to_owned();
        assert!(process::alive(process) && directory.exists());
        if paused {
            postgres.pause();
        }
        drop(postgres);
        assert!(!process::alive(process));
        assert!(!directory.exists());
    }
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "holds two servers until it is killed"]
fn holds_postgres() {
    if Postgres::shared().is_none() {
        return;
    }
    let paused = Postgres::start().unwrap();
    paused.pause();
    hold([Postgres::shared().unwrap(), &paused].map(|postgres| (postgres.process(), postgres.directory())));
}

fn hold(servers: [(Option<u32>, &Path); 2]) {
    for (process, directory) in servers {
        println!("\nserver {} {}", process.unwrap(), directory.display());
    }
    // Until the test kills this process.
    std::thread::sleep(10 * process::PATIENCE);
}

#[test]
fn postgres_leaves_nothing_when_the_test_process_is_killed() {
    if Postgres::shared().is_some() {
        leaves_nothing_when_killed("holds_postgres");
    }
}

/// A test of this module under the name that its binary knows it by.
fn test_path(test: &str) -> String {
    let (_binary, module) = module_path!().split_once("::").unwrap();
    format!("{module}::{test}")
}

fn leaves_nothing_when_killed(test: &str) {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test_path(test), "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let servers: Vec<(u32, String)> = BufReader::new(holder.stdout.take().unwrap())
        .lines()
        .filter_map(|line| {
            let line = line.unwrap();
            let (process, directory) = line.strip_prefix("server ")?.split_once(' ')?;
            Some((process.parse().unwrap(), directory.to_owned()))
        })
        .take(2)
        .collect();
    assert_eq!(servers.len(), 2);
    assert!(servers.iter().all(|(process, _)| process::alive(*process)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    for (process, directory) in servers {
        process::wait_until("the server ends", || !process::alive(process));
        process::wait_until("its directory is gone", || !Path::new(&directory).exists());
    }
}

// --- Redis

#[test]
fn redis_leaves_nothing_when_dropped() {
    for paused in [false, true] {
        let Some(redis) = Redis::start() else { return };
        let process = redis.process().unwrap();
        let directory = redis.directory().to_owned();
        assert!(process::alive(process) && directory.exists());
        if paused {
            redis.pause();
        }
        drop(redis);
        assert!(!process::alive(process));
        assert!(!directory.exists());
    }
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "holds two servers until it is killed"]
fn holds_redis() {
    let Some(running) = Redis::start() else { return };
    let paused = Redis::start().unwrap();
    paused.pause();
    hold([&running, &paused].map(|redis| (redis.process(), redis.directory())));
}

#[test]
fn redis_leaves_nothing_when_the_test_process_is_killed() {
    if Redis::start().is_some() {
        leaves_nothing_when_killed("holds_redis");
    }
}

// --- The proxy

/// A server that answers each line with itself, and tells what it heard.
async fn echo() -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, lines) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let heard = heard.clone();
            tokio::spawn(async move {
                let (reads, mut writes) = connection.split();
                let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(reads));
                while let Ok(Some(line)) = lines.next_line().await {
                    // The test may have heard enough.
                    let _ = heard.send(line.clone());
                    if writes.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (port, lines)
}

/// Sends a line and reads the answer.
async fn ask(connection: &mut TcpStream, line: &str) -> Result<(), ErrorKind> {
    let line = format!("{line}\n");
    connection
        .write_all(line.as_bytes())
        .await
        .map_err(|error| error.kind())?;
    let mut answer = vec![0; line.len()];
    connection.read_exact(&mut answer).await.map_err(|error| error.kind())?;
    assert_eq!(answer, line.as_bytes());
    Ok(())
}

#[tokio::test]
async fn proxy_counts_what_goes_through() {
    let (port, _lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut first = connect(proxy.port()).await.unwrap();
    let mut second = connect(proxy.port()).await.unwrap();
    for line in ["one", "two"] {
        ask(&mut first, line).await.unwrap();
        ask(&mut second, line).await.unwrap();
    }
    // A request in pieces, which the server answers at its end.
    first.write_all(b"th").await.unwrap();
    while proxy.counts().bytes_up < 18 {
        tokio::task::yield_now().await;
    }
    first.write_all(b"ree\n").await.unwrap();
    first.read_exact(&mut [0; 6]).await.unwrap();
    let counts = proxy.counts();
    assert_eq!(counts.connections, 2);
    assert_eq!(counts.requests, 5);
    assert_eq!((counts.chunks_up, counts.bytes_up), (6, 22));
    assert_eq!(counts.cuts, 0);
    assert_eq!(proxy.round_trips(), 5);
}

#[tokio::test]
async fn proxy_lets_much_through_both_ways_at_once_and_orderly_ends() {
    let (port, _lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let (mut reads, mut writes) = connect(proxy.port()).await.unwrap().into_split();
    let lines = format!("{}\n", "x".repeat(999)).repeat(5000);
    let sent = lines.clone();
    let sending = tokio::spawn(async move {
        writes.write_all(sent.as_bytes()).await.unwrap();
        writes.shutdown().await.unwrap();
    });
    let mut answer = String::new();
    reads.read_to_string(&mut answer).await.unwrap();
    sending.await.unwrap();
    assert!(answer == lines);
    let counts = proxy.counts();
    assert_eq!((counts.bytes_up, counts.bytes_down), (5_000_000, 5_000_000));
}

#[tokio::test]
async fn proxy_loses_an_answer() {
    let (port, mut lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut connection = connect(proxy.port()).await.unwrap();
    ask(&mut connection, "one").await.unwrap();
    proxy.cut_after_requests(2);
    ask(&mut connection, "two").await.unwrap();
    assert_eq!(ask(&mut connection, "three").await, Err(ErrorKind::ConnectionReset));
    for line in ["one", "two", "three"] {
        assert_eq!(lines.recv().await.unwrap(), line);
    }
    assert_eq!(proxy.counts().cuts, 1);
    // Once only.
    let mut connection = connect(proxy.port()).await.unwrap();
    ask(&mut connection, "four").await.unwrap();
}

#[tokio::test]
async fn proxy_loses_a_request() {
    let (port, mut lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut connection = connect(proxy.port()).await.unwrap();
    proxy.cut_before_request(2);
    ask(&mut connection, "one").await.unwrap();
    assert_eq!(ask(&mut connection, "two").await, Err(ErrorKind::ConnectionReset));
    assert_eq!(proxy.counts().cuts, 1);
    let mut connection = connect(proxy.port()).await.unwrap();
    ask(&mut connection, "three").await.unwrap();
    assert_eq!(lines.recv().await.unwrap(), "one");
    assert_eq!(lines.recv().await.unwrap(), "three");
}

#[tokio::test]
async fn proxy_holds_back_delays_and_lets_go() {
    let (port, mut lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut old = connect(proxy.port()).await.unwrap();
    ask(&mut old, "one").await.unwrap();
    assert_eq!(lines.recv().await.unwrap(), "one");
    proxy.black_hole(true);
    let mut new = connect(proxy.port()).await.unwrap();
    new.write_all(b"new\n").await.unwrap();
    old.write_all(b"old\n").await.unwrap();
    assert!(timeout(SHORT, lines.recv()).await.is_err());
    proxy.heal().await;
    let mut answer = [0; 4];
    new.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"new\n");
    old.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"old\n");

    proxy.delay(Duration::from_millis(50));
    let asked = Instant::now();
    ask(&mut old, "late").await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn proxy_cuts_all_even_in_a_black_hole() {
    let (port, _lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut first = connect(proxy.port()).await.unwrap();
    ask(&mut first, "one").await.unwrap();
    proxy.black_hole(true);
    let mut second = connect(proxy.port()).await.unwrap();
    while proxy.counts().connections < 2 {
        tokio::task::yield_now().await;
    }
    proxy.cut_all().await;
    for connection in [&mut first, &mut second] {
        let end = connection.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    proxy.heal().await;
    let mut third = connect(proxy.port()).await.unwrap();
    ask(&mut third, "three").await.unwrap();
}

#[tokio::test]
async fn proxy_refuses_and_its_clones_are_one() {
    let (port, _lines) = echo().await;
    let proxy = Proxy::start(port).await;
    let mut old = connect(proxy.port()).await.unwrap();
    ask(&mut old, "one").await.unwrap();
    for _ in 0..2 {
        proxy.refuse(true).await;
        let refused = connect(proxy.port()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        ask(&mut old, "still").await.unwrap();
        let clone = proxy.clone();
        clone.heal().await;
        let mut new = connect(proxy.port()).await.unwrap();
        ask(&mut new, "again").await.unwrap();
    }
    let port = proxy.port();
    drop(proxy);
    assert_ne!(old.read(&mut [0]).await.ok(), Some(1));
    let refused = connect(port).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn proxy_resets_where_no_server_is() {
    let proxy = Proxy::start(process::free_port()).await;
    let mut connection = connect(proxy.port()).await.unwrap();
    let end = connection.read(&mut [0]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn proxy_stands_before_postgres() {
    let Some(postgres) = Postgres::shared() else { return };
    let proxy = Proxy::start(postgres.port()).await;
    let through = postgres.url_through(proxy.port(), "postgres");
    assert!(through.contains(&format!(":{}/", proxy.port())));
    proxy.cut_after_requests(2);
    let mut connection = connect(proxy.port()).await.unwrap();
    connection.write_all(&startup()).await.unwrap();
    assert!(asks_for_the_password(answer(&mut connection).await));
    assert_eq!(proxy.round_trips(), 1);
    connection.write_all(&startup()).await.unwrap();
    let end = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.round_trips(), 2);
}
