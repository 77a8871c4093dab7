//! `hyper_util`'s client with the layers, against a guarded server on a real socket.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{ServiceBuilder, ServiceExt};
use tower_idempotency::client::{CallError, ClientLayer, Operation, RetryPolicy};

use super::net::{Fate, Server};

const BODY: &str = "{\"cents\":1000}";

fn layer() -> ClientLayer {
    let policy = RetryPolicy::builder()
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
        .build()
        .unwrap();
    ClientLayer::builder(policy)
        .attempt_time(Duration::from_secs(2))
        .max_response_body(64 * 1024)
        .build()
        .unwrap()
}

async fn charge(server: &Server, http2: bool) -> (Result<String, CallError>, Operation) {
    let hyper = Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build_http::<Full<Bytes>>();
    let client = ServiceBuilder::new().layer(layer()).service(hyper);
    let operation = Operation::new();
    let request = Request::post(server.url())
        .extension(operation.clone())
        .body(Full::from(BODY))
        .unwrap();
    let answer = match client.oneshot(request).await {
        Ok(response) => {
            assert_eq!(response.status(), 201);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Ok(String::from_utf8(body.to_vec()).unwrap())
        }
        Err(error) => Err(error),
    };
    (answer, operation)
}

#[tokio::test]
async fn whatever_gets_lost_the_operation_runs_once() {
    use Fate::{CutResponse, LoseRequest, LoseResponse, Stall, Through};
    for (fates, attempts, replayed) in [
        (&[Through][..], 1, false),
        (&[LoseRequest], 2, false),
        (&[LoseResponse], 2, true),
        (&[CutResponse], 2, true),
        (&[Stall, LoseRequest], 3, false),
        (&[LoseRequest, LoseResponse, CutResponse, LoseRequest], 5, true),
    ] {
        for http2 in [false, true] {
            let server = Server::start(fates.iter().copied()).await;
            let (answer, operation) = charge(&server, http2).await;
            assert_eq!(answer.unwrap(), "charged: 1000 cents", "{fates:?}");
            assert_eq!(server.runs(), 1, "{fates:?}");
            assert_eq!(
                (operation.attempts(), operation.replayed()),
                (attempts, replayed),
                "{fates:?}"
            );
            server.assert_same_attempts(attempts as usize, BODY);
        }
    }
}

#[tokio::test]
async fn a_response_without_an_end_is_bounded_by_its_size() {
    let server = Server::start([Fate::Endless]).await;
    let (answer, operation) = charge(&server, false).await;
    let error = answer.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("larger than `max_response_body` (65536 bytes)"),
        "{error}"
    );
    assert_eq!(operation.attempts(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_with_its_cause() {
    let server = Server::start([]).await;
    let address = server.url();
    drop(server);
    let policy = RetryPolicy::builder()
        .attempts(3)
        .backoff(Duration::from_millis(1), Duration::from_millis(2))
        .build()
        .unwrap();
    let client = ServiceBuilder::new()
        .layer(ClientLayer::builder(policy).build().unwrap())
        .service(Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());
    let error = client
        .oneshot(Request::post(address).body(Full::from(BODY)).unwrap())
        .await
        .unwrap_err();
    assert_eq!((error.attempts(), error.operation().attempts()), (3, 3));
    let cause = std::error::Error::source(&error).unwrap();
    let cause = cause.downcast_ref::<hyper_util::client::legacy::Error>().unwrap();
    assert!(cause.is_connect(), "{cause:?}");
}
