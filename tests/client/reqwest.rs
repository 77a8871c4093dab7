//! The middleware for `reqwest`, against the same server.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Body;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};
use tower_idempotency::client::reqwest::IdempotencyMiddleware;
use tower_idempotency::client::{CallError, ClientLayer, IdempotencyKeyLayer, Operation, RetryPolicy, Stopped};

use super::net::{Fate, Server};

const BODY: &str = "{\"cents\":1000}";

fn client() -> ClientWithMiddleware {
    let policy = RetryPolicy::builder()
        .attempts(5)
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
        .build()
        .unwrap();
    let settings = ClientLayer::builder(policy)
        .attempt_time(Duration::from_secs(2))
        .max_response_body(64 * 1024)
        .build()
        .unwrap();
    ClientBuilder::new(reqwest::Client::new())
        .with(IdempotencyMiddleware::new(settings))
        .build()
}

fn call_error(error: &Error) -> &CallError {
    match error {
        Error::Middleware(error) => error.downcast_ref().unwrap(),
        Error::Reqwest(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn whatever_gets_lost_the_operation_runs_once() {
    use Fate::{CutResponse, LoseRequest, LoseResponse, Stall, Through};
    for (fates, attempts, replayed) in [
        (&[Through][..], 1, false),
        (&[LoseRequest], 2, false),
        (&[LoseResponse], 2, true),
        (&[CutResponse], 2, true),
        (&[Stall, LoseRequest, CutResponse, LoseResponse], 5, true),
    ] {
        let server = Server::start(fates.iter().copied()).await;
        let operation = Operation::new();
        let response = client()
            .post(server.url())
            .with_extension(operation.clone())
            .body(BODY)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 201);
        assert_eq!(response.url().as_str(), server.url());
        let told = response
            .extensions()
            .get::<Operation>()
            .unwrap()
            .key()
            .map(str::to_owned);
        assert_eq!(told.as_deref(), operation.key());
        assert_eq!(response.text().await.unwrap(), "charged: 1000 cents");
        assert_eq!(server.runs(), 1, "{fates:?}");
        assert_eq!(
            (operation.attempts(), operation.replayed()),
            (attempts, replayed),
            "{fates:?}"
        );
        server.assert_same_attempts(attempts as usize, BODY);
    }
}

#[tokio::test]
async fn each_request_is_an_operation_of_its_own() {
    let server = Server::start([]).await;
    let client = client();
    for _ in 0..3 {
        client.post(server.url()).body(BODY).send().await.unwrap();
    }
    assert_eq!(server.runs(), 3);
}

#[tokio::test]
async fn a_stream_is_sent_once_and_that_is_said() {
    let server = Server::start([Fate::LoseRequest]).await;
    let stream = Body::wrap(tower_idempotency::client::Once::new(http_body_util::Full::new(
        Bytes::from_static(b"a stream"),
    )));
    let error = client().post(server.url()).body(stream).send().await.unwrap_err();
    let error = call_error(&error);
    assert_eq!(
        (error.attempts(), error.stopped()),
        (1, Some(Stopped::BodyNotReplayable))
    );
    assert_eq!(server.runs(), 0);
}

#[tokio::test]
async fn without_a_key_a_post_is_sent_once() {
    let server = Server::start([Fate::LoseRequest]).await;
    let settings = ClientLayer::builder(RetryPolicy::new())
        .keys(IdempotencyKeyLayer::new().methods([]))
        .build()
        .unwrap();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(IdempotencyMiddleware::new(settings))
        .build();
    let error = client.post(server.url()).body(BODY).send().await.unwrap_err();
    assert_eq!(call_error(&error).stopped(), Some(Stopped::NoKey));
}

#[tokio::test]
async fn redirects_carry_the_key_and_endless_ones_are_not_tried_again() {
    let server = Server::start([Fate::Redirect]).await;
    let response = client().post(server.url()).body(BODY).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.runs()), (201, 1));
    server.assert_same_attempts(2, BODY);

    let server = Server::start([Fate::Redirect; 100]).await;
    let error = client().post(server.url()).body(BODY).send().await.unwrap_err();
    let error = call_error(&error);
    assert_eq!((error.attempts(), error.stopped()), (1, None), "{error}");
}

#[tokio::test]
async fn a_response_without_an_end_is_bounded_and_a_bad_request_is_told_at_once() {
    let server = Server::start([Fate::Endless]).await;
    let error = client().post(server.url()).body(BODY).send().await.unwrap_err();
    let text = call_error(&error).to_string();
    assert!(text.contains("larger than `max_response_body` (65536 bytes)"), "{text}");

    let error = client()
        .post("ftp://127.0.0.1/charges")
        .body(BODY)
        .send()
        .await
        .unwrap_err();
    assert_eq!(call_error(&error).attempts(), 1, "{error}");
}

#[tokio::test]
async fn extensions_that_serve_two_requests_make_two_operations() {
    let server = Server::start([]).await;
    let client = client();
    let mut extensions = http::Extensions::new();
    for body in ["one", "two"] {
        let request = reqwest::Client::new().post(server.url()).body(body).build().unwrap();
        let response = client.execute_with_extensions(request, &mut extensions).await.unwrap();
        assert_eq!(response.status(), 201);
    }
    assert_eq!(server.runs(), 2);

    // But the caller's own stays.
    let operation = Operation::new();
    extensions.insert(operation.clone());
    for _ in 0..2 {
        let request = reqwest::Client::new().post(server.url()).body("three").build().unwrap();
        client.execute_with_extensions(request, &mut extensions).await.unwrap();
    }
    assert_eq!(
        (server.runs(), operation.attempts(), operation.replayed()),
        (3, 2, true)
    );
}

#[tokio::test]
async fn an_error_does_not_show_the_query() {
    let server = Server::start([]).await;
    let url = format!("{}?api_key=s3cret", server.url());
    drop(server);
    let error = client().post(url).body(BODY).send().await.unwrap_err();
    let shown = format!("{error} {error:?} {:?}", call_error(&error));
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(format!("{:?}", IdempotencyMiddleware::default()).contains("IdempotencyMiddleware"));
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_operation_in_the_callers_extensions() {
    let server = Server::start([Fate::Stall]).await;
    let client = client();
    let request = || client.post(server.url()).body(BODY).build().unwrap();
    let mut extensions = http::Extensions::new();
    let call = client.execute_with_extensions(request(), &mut extensions);
    tokio::time::timeout(Duration::from_millis(100), call)
        .await
        .unwrap_err();
    assert!(extensions.get::<Operation>().is_none());
    // The caller's own operation stays.
    let operation = Operation::derived(["order-17"]);
    extensions.insert(operation.clone());
    let response = client.execute_with_extensions(request(), &mut extensions).await;
    assert_eq!(response.unwrap().status(), 201);
    assert_eq!(extensions.get::<Operation>().unwrap().key(), operation.key());
}
