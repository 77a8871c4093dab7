//! The built program, over real connections.
#![cfg(unix)]

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::process::{Server, program};
use super::request::{Answer, Call, EVENTS, SESSIONS, sample};
use crate::support::eventually;

fn slow() -> Call {
    Call::session("usr_1", "wkf_slow").key("k-1")
}

async fn provider_was_called(server: &Server) {
    eventually("the operation runs", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        (sample(&metrics, "identity_provider_calls_total") > 0).then_some(())
    })
    .await;
}

async fn has_background_work(server: &Server) {
    eventually("the server has noticed that the client left", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        (sample(&metrics, "idempotency_background_operations") > 0).then_some(())
    })
    .await;
}

/// Everything that still comes on a connection until the server closes it.
async fn rest_of(mut connection: TcpStream) -> String {
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = connection.read_to_end(&mut rest).await;
    String::from_utf8_lossy(&rest).into_owned()
}

#[tokio::test]
async fn it_listens_where_it_says() {
    let server = Server::start(&[]);
    assert!(server.origin.starts_with("http://127.0.0.1:"), "{}", server.origin);
    server.send(&Call::get("/healthz")).await.expect(200);
}

#[tokio::test]
async fn a_client_that_hangs_up_and_retries_is_charged_once() {
    let server = Server::start(&[]);
    let connection = server.connect(&slow().on_the_wire()).await;
    provider_was_called(&server).await;
    drop(connection);
    has_background_work(&server).await;
    server.send(&slow()).await.expect_problem(409, "in-flight");
    let replay = eventually("the outcome is there", async || {
        let answer = server.send(&slow()).await;
        (answer.status != 409).then_some(answer)
    })
    .await;
    assert!(replay.expect(201).is_replay());
    assert_eq!(server.charges().await, 1);
}

#[tokio::test]
async fn of_fifty_duplicates_at_once_one_runs() {
    for (wait, duplicates_get) in [("0s", 409), ("30s", 201)] {
        let server = std::sync::Arc::new(Server::start(&["--wait", wait, "--provider-latency", "1s"]));
        let mut clients = JoinSet::new();
        for _ in 0..50 {
            let server = std::sync::Arc::clone(&server);
            clients.spawn(async move { server.send(&Call::session("usr_1", "any").key("k-1")).await });
        }
        let answers = clients.join_all().await;
        let ran: Vec<&Answer> = answers
            .iter()
            .filter(|answer| answer.status == 201 && !answer.is_replay())
            .collect();
        assert_eq!(ran.len(), 1);
        for answer in answers.iter().filter(|answer| answer.is_replay()) {
            assert_eq!(answer.body, ran[0].body);
        }
        let refused = answers.iter().filter(|answer| answer.status == 409).count();
        assert!(
            duplicates_get == 409 || refused == 0,
            "those who may wait are not refused: {refused}"
        );
        assert_eq!(server.charges().await, 1);
    }
}

#[tokio::test]
async fn a_panic_is_500_and_the_connection_goes_on() {
    let server = Server::start(&["--provider-latency", "1ms"]);
    let request = Call::session("usr_1", "wkf_panic").key("k-1").on_the_wire();
    let last = Call::get("/healthz").header("connection", "close").on_the_wire();
    let connection = server.connect(&format!("{request}{last}")).await;
    let answers = rest_of(connection).await;
    assert!(answers.starts_with("HTTP/1.1 500 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
}

#[tokio::test]
async fn a_refusal_before_the_body_is_read_leaves_the_connection_usable() {
    let server = Server::start(&[]);
    let large = "u".repeat(3_000_000);
    for (call, status) in [
        (Call::session("usr_1", "any").from("sk_test_nobody"), "401"),
        (Call::session("usr_1", "any").key("a,b"), "400"),
        (Call::session(&large, "any").key("k-1"), "413"),
    ] {
        let wire = call.on_the_wire();
        let (head, body) = wire.split_at(wire.find("\r\n\r\n").unwrap() + 4);
        let mut connection = server.connect(head).await;
        // The server refuses before a byte of the body has been sent.
        connection.readable().await.unwrap();
        let last = Call::get("/healthz").header("connection", "close").on_the_wire();
        connection.write_all(body.as_bytes()).await.unwrap();
        connection.write_all(last.as_bytes()).await.unwrap();
        let answers = rest_of(connection).await;
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
    }
}

#[tokio::test]
async fn the_crash_workflow_aborts_the_process() {
    let server = Server::start(&["--provider-latency", "1ms"]);
    let crash = Call::session("usr_1", "wkf_crash").key("k-1");
    assert!(server.try_send(&crash).await.is_err());
    let (status, _) = server.ended().await;
    assert_eq!(status.signal(), Some(6), "SIGABRT: {status}");
}

#[tokio::test]
async fn it_stops_at_once_when_nothing_runs() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[]);
        // One connection that was used and is kept alive, one that never was used.
        server.send(&Call::get("/healthz")).await.expect(200);
        let unused = server.connect("").await;
        let kept = server.connect(&Call::get("/healthz").on_the_wire()).await;
        kept.readable().await.unwrap();
        server.signal(signal);
        let (status, log) = server.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(
            !log.contains("slow clients"),
            "idle connections are closed at once: {log}"
        );
        assert!(rest_of(kept).await.starts_with("HTTP/1.1 200 OK"));
        assert_eq!(rest_of(unused).await, "");
    }
}

#[tokio::test]
async fn slow_clients_do_not_keep_it_from_stopping() {
    let server = Server::start(&[]);
    let head = server.connect("GET /healthz HTT").await;
    let mut bodies = Vec::new();
    for call in [Call::session("usr_1", "any").key("k-1"), Call::session("usr_1", "any")] {
        let wire = call.header("expect", "100-continue").on_the_wire();
        let connection = server.connect(&wire[..wire.len() - 5]).await;
        // The server says `100 Continue` once it waits for the body.
        connection.readable().await.unwrap();
        bodies.push(connection);
    }
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("slow clients"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    drop((head, bodies));
}

#[tokio::test]
async fn it_waits_for_an_operation_whose_client_has_left() {
    let server = Server::start(&[]);
    let connection = server.connect(&slow().on_the_wire()).await;
    provider_was_called(&server).await;
    drop(connection);
    has_background_work(&server).await;
    server.signal("TERM");
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        log.contains("outcome=\"executed\""),
        "the operation came to its end: {log}"
    );
}

#[tokio::test]
async fn it_answers_what_it_has_begun_and_takes_nothing_new() {
    let server = Server::start(&[]);
    let guarded = server.connect(&slow().on_the_wire()).await;
    let without_key = server.connect(&Call::session("usr_2", "wkf_slow").on_the_wire()).await;
    eventually("both run", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        (sample(&metrics, "identity_provider_calls_total") == 2).then_some(())
    })
    .await;
    server.signal("TERM");
    let address = server.origin.strip_prefix("http://").unwrap().to_owned();
    eventually("new connections are refused", async || {
        TcpStream::connect(&address).await.is_err().then_some(())
    })
    .await;
    for connection in [guarded, without_key] {
        // To its end: the server closes the connection after the answer.
        let answer = rest_of(connection).await;
        assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn work_that_outlasts_ten_seconds_is_abandoned() {
    let server = Server::start(&["--provider-latency", "10m"]);
    let left = server
        .connect(&Call::session("usr_1", "any").key("k-1").on_the_wire())
        .await;
    provider_was_called(&server).await;
    drop(left);
    has_background_work(&server).await;
    let waiting = server
        .connect(&Call::session("usr_2", "any").key("k-2").on_the_wire())
        .await;
    let without_key = server.connect(&Call::session("usr_3", "any").on_the_wire()).await;
    eventually("all three run", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        (sample(&metrics, "identity_provider_calls_total") == 3).then_some(())
    })
    .await;
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.ended().await;
    let took = began.elapsed();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("abandoned=3"), "{log}");
    assert!(took >= Duration::from_secs(10), "{took:?}");
    assert!(took < Duration::from_secs(19), "one deadline for all: {took:?}");
    drop((waiting, without_key));
}

#[tokio::test]
async fn options_can_be_variables() {
    let mut command = program();
    command.env("IDV_REQUIRE_KEY", "true").env("IDV_STORE", "memory");
    command
        .env("IDV_TTL", "1h")
        .env("IDV_LEASE", "1500ms")
        .env("IDV_WAIT", "1s");
    command.env("IDV_PROVIDER_LATENCY", "1ms");
    command
        .env("IDV_MAX_REQUEST_BODY", "90")
        .env("IDV_MAX_RESPONSE_BODY", "10");
    let server = Server::spawn(command);
    server
        .send(&Call::session("usr_1", "any"))
        .await
        .expect_problem(400, "missing-key");
    let call = Call::session("usr_1", "any").key("k-1");
    server.send(&call).await.expect(201);
    server.send(&call).await.expect_problem(409, "response-not-retained");
    let long = Call::session(&"u".repeat(90), "any").key("k-2");
    server.send(&long).await.expect_problem(413, "body-too-large");

    let mut command = program();
    command.env("IDV_REQUIRE_KEY", "false").arg("--require-key");
    let server = Server::spawn(command);
    server
        .send(&Call::session("usr_1", "any"))
        .await
        .expect_problem(400, "missing-key");

    let mut command = program();
    command.env("IDV_REQUIRE_KEY", "true").arg("--require-key=false");
    let server = Server::spawn(command);
    server.send(&Call::session("usr_1", "any")).await.expect(201);
}

#[test]
fn bad_options_end_it_with_an_error() {
    for (options, says) in [
        (
            &["--store", "postgres://user:secret@127.0.0.1:1/db"][..],
            "cannot connect to PostgreSQL",
        ),
        (&["--store", "postgres://user:secret@a b/db"], "the URL is not valid"),
        (
            &["--store", "redis://user:secret@127.0.0.1:1"],
            "cannot connect to Redis",
        ),
        (&["--store", "redis://user:secret@a:b"], "the URL"),
        (
            &["--store", "sqlite:/nowhere/secret.db"],
            "the SQLite database cannot be used",
        ),
        (&["--store", "sqlite:/"], "the SQLite database cannot be used"),
        (&["--store", "mysql://user:secret@host/db"], "unknown store"),
        (&["--store", "secret"], "unknown store"),
        (&["--ttl", "0s"], "ttl"),
        (&["--ttl", "soon"], "--ttl"),
        (&["--lease", "-1s"], "error"),
        (&["--max-request-body", "many"], "--max-request-body"),
        (&["--require-key=perhaps"], "--require-key"),
        (&["--listen", "nowhere"], "nowhere"),
        (&["--listen", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (&["--namespace", ""], "namespace"),
        (&["--what"], "--what"),
        (&["--help", "--store", "secret"], ""),
    ] {
        let output = program().args(options).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if options[0] != "--help" {
            assert_eq!(output.status.code(), Some(2), "{options:?}: {}", output.status);
            assert!(output.stdout.is_empty(), "{options:?}");
        }
        assert!(stderr.contains(says), "{options:?}: {stderr}");
        assert!(
            !stderr.contains("secret") && !stderr.contains("panicked"),
            "{options:?}: {stderr}"
        );
    }
    let help = program()
        .env("IDV_STORE", "postgres://user:hidden@host/db")
        .arg("--help")
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hidden"));
    let bad_variable = program().env("IDV_REQUIRE_KEY", "perhaps").output().unwrap();
    assert_eq!(bad_variable.status.code(), Some(2));
}

#[tokio::test]
async fn webhooks_over_the_wire_need_no_authentication_and_no_content_type() {
    let server = Server::start(&[]);
    let event = Call::post(EVENTS, r#"{"event_id":"evt_1","type":"paid","data":{}}"#);
    assert!(!server.send(&event).await.expect(200).is_replay());
    assert!(server.send(&event).await.expect(200).is_replay());
    server.send(&Call::get(SESSIONS)).await.expect_error(401);
}
