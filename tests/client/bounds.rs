//! What `ClientLayer` adds: whole responses within a time and a size, and errors that tell.

use std::error::Error;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_idempotency::client::{CallError, ClientLayer, ClientService, Operation, RetryPolicy, Stopped};

use super::script::{Script, Sent, Step, answer, answer_with, post};

const SECOND: Duration = Duration::from_secs(1);

fn layer() -> ClientLayer {
    let policy = RetryPolicy::builder()
        .attempts(3)
        .total_time(60 * SECOND)
        .backoff(Duration::from_millis(10), SECOND)
        .without_budget()
        .build()
        .unwrap();
    ClientLayer::builder(policy)
        .attempt_time(5 * SECOND)
        .max_response_body(64)
        .build()
        .unwrap()
}

async fn call(script: &Script) -> Result<http::Response<http_body_util::Full<bytes::Bytes>>, CallError> {
    ServiceBuilder::new()
        .layer(layer())
        .service(script.service())
        .oneshot(post("the body"))
        .await
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_fails_on_the_way_is_made_again() {
    for first in [
        Step::Lost,
        Step::Silence,
        Step::BrokenOff(200, vec![]),
        Step::Endless(200),
    ] {
        let script = Script::new([first.clone(), answer(201)]);
        let response = call(&script).await.unwrap();
        assert_eq!(response.status(), 201, "{first:?}");
        let seen = script.seen();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].key(), seen[1].key());
        assert_eq!((&seen[0].body, &seen[1].body), (&"the body".into(), &"the body".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_tells_what_the_last_attempt_came_to() {
    for (step, said, timeout, has_source) in [
        (Step::Lost, "the request failed", false, true),
        (Step::Silence, "no response within 5s", true, false),
        (
            Step::BrokenOff(200, vec![]),
            "the body of the response (200 OK) broke off",
            false,
            true,
        ),
        (
            Step::Endless(200),
            "the body of the response (200 OK) did not end within 5s",
            true,
            false,
        ),
    ] {
        let script = Script::new([step.clone()]);
        let began = Instant::now();
        let error = call(&script).await.unwrap_err();
        assert_eq!(error.attempts(), 3);
        assert_eq!(error.elapsed(), began.elapsed());
        assert!(error.elapsed() < 20 * SECOND, "{:?}", error.elapsed());
        assert_eq!(error.stopped(), Some(Stopped::Attempts));
        assert_eq!(error.is_timeout(), timeout, "{step:?}");
        assert_eq!(error.source().is_some(), has_source, "{step:?}");
        assert!(error.last_response().is_none());
        let text = error.to_string();
        assert!(text.contains(said), "{text}");
        assert!(text.starts_with("no final answer after 3 attempts in "), "{text}");
        assert!(text.contains("all attempts are used up"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_keeps_the_last_response_there_was() {
    // The last attempt's own.
    let busy = Step::Answer(409, vec![("retry-after", "1".into())], "{\"code\":\"in-flight\"}");
    let error = call(&Script::new([busy.clone()])).await.unwrap_err();
    let response = error.last_response().unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (409, &"1".parse().unwrap())
    );
    assert!(error.to_string().contains("last response: 409 Conflict"), "{error}");
    let response = error.into_last_response().unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(body, "{\"code\":\"in-flight\"}");

    // One from before, when the last attempts had none.
    let error = call(&Script::new([answer(429), answer(503), Step::Silence]))
        .await
        .unwrap_err();
    assert_eq!(error.last_response().unwrap().status(), 503);
    let text = error.to_string();
    assert!(text.contains("no response within 5s; last response: 503"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_response_without_its_body_is_judged_by_its_head() {
    const LARGE: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";
    let later = vec![("retry-after", "7".to_owned())];
    let no = vec![("x-should-retry", "false".to_owned())];
    for (first, attempts, waited) in [
        // Refusals are final, whatever became of their bodies.
        (Step::BrokenOff(422, vec![]), 1, 0),
        (Step::BrokenOff(404, later.clone()), 1, 0),
        (Step::Endless(400), 1, 0),
        (Step::Endless(307), 1, 0),
        (Step::BrokenOff(503, no), 1, 0),
        (Step::Answer(201, vec![], LARGE), 1, 0),
        (Step::Answer(404, vec![], LARGE), 1, 0),
        // What is tried again is so without a body too, and when the server says.
        (Step::BrokenOff(503, later.clone()), 2, 7),
        (Step::BrokenOff(409, later.clone()), 2, 7),
        (Step::Answer(502, vec![], LARGE), 2, 0),
        (Step::Endless(500), 2, 5),
        (Step::BrokenOff(201, vec![]), 2, 0),
        (Step::Endless(201), 2, 5),
    ] {
        let script = Script::new([first.clone(), answer(200)]);
        let began = Instant::now();
        let result = call(&script).await;
        assert_eq!(script.seen().len(), attempts, "{first:?}");
        assert!(began.elapsed() >= waited * SECOND, "{first:?}: {:?}", began.elapsed());
        match result {
            Ok(response) => assert_eq!((attempts, response.status().as_u16()), (2, 200)),
            Err(error) => {
                assert_eq!((attempts, error.stopped()), (1, None), "{first:?}");
                let (Step::BrokenOff(status, _) | Step::Endless(status) | Step::Answer(status, ..)) = first else {
                    panic!("{first:?} has no head")
                };
                assert_eq!(error.last_status().unwrap(), status);
                assert!(error.last_response().is_none() && error.last_headers().is_some());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_year_is_told_and_not_waited_for() {
    let began = Instant::now();
    let error = call(&Script::new([answer_with(503, &[("retry-after", "31536000")])]))
        .await
        .unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(
        error.stopped(),
        Some(Stopped::RetryAfter(Duration::from_secs(31_536_000)))
    );
    assert_eq!(error.last_response().unwrap().status(), 503);
    assert!(
        error
            .to_string()
            .contains("the server asked the client to wait 31536000 s"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_large_is_an_error_at_once() {
    const LARGE: &str = "0123456789012345678901234567890123456789012345678901234567890123456789";
    let script = Script::new([Step::Answer(200, vec![], LARGE)]);
    let error = call(&script).await.unwrap_err();
    assert_eq!(
        (script.seen().len(), error.stopped()),
        (1, None),
        "it would be as large the next time"
    );
    assert!(
        error.to_string().contains("larger than `max_response_body` (64 bytes)"),
        "{error}"
    );
    assert!(
        call(&Script::new([Step::Answer(200, vec![], &LARGE[..64])]))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn the_total_time_ends_an_attempt_that_runs() {
    let policy = RetryPolicy::builder().total_time(8 * SECOND).build().unwrap();
    let layer = ClientLayer::builder(policy).attempt_time(60 * SECOND).build().unwrap();
    for (first, last) in [(answer(503), Some(503)), (Step::Lost, None)] {
        let script = Script::new([first, Step::Silence]);
        let client = ServiceBuilder::new().layer(layer.clone()).service(script.service());
        let began = Instant::now();
        let error = client.oneshot(post("")).await.unwrap_err();
        // Tokio's clock ticks each millisecond.
        assert!(
            began.elapsed() <= 8 * SECOND + Duration::from_millis(2),
            "{:?}",
            began.elapsed()
        );
        assert_eq!((error.stopped(), error.attempts()), (Some(Stopped::TotalTime), 2));
        assert!(error.is_timeout());
        assert_eq!(error.last_response().map(|response| response.status().as_u16()), last);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_the_callers() {
    let script = Script::new([answer_with(307, &[("location", "/elsewhere")])]);
    let response = call(&script).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (307, &"/elsewhere".parse().unwrap())
    );
    assert_eq!(script.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_is_not_tried_again() {
    let script = Script::new([answer(503)]);
    let operation = Operation::new();
    let mut request = post("");
    request.extensions_mut().insert(operation.clone());
    {
        let client = ServiceBuilder::new().layer(layer()).service(script.service());
        let mut call = pin!(client.oneshot(request));
        // The first attempt, up to the pause.
        poll_fn(|cx| {
            assert!(call.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((script.seen().len(), operation.attempts()), (1, 1));
    assert!(operation.key().is_some(), "it can be asked again");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_not_ready_is_waited_for_and_its_error_told() {
    // One request at a time: each attempt takes the permit and gives it back.
    let script = Script::new([answer(503), answer(503), answer(201)]);
    let mut client = ServiceBuilder::new()
        .layer(layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(script.service());
    for _ in 0..2 {
        let response = client.ready().await.unwrap().call(post("")).await.unwrap();
        assert_eq!(response.status(), 201);
    }

    #[derive(Clone, Debug)]
    struct Broken;
    impl Service<http::Request<Sent>> for Broken {
        type Response = http::Response<Sent>;
        type Error = std::io::Error;
        type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Err(std::io::Error::other("out of order")))
        }
        fn call(&mut self, _: http::Request<Sent>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let error = ServiceBuilder::new()
        .layer(layer())
        .service(Broken)
        .ready()
        .await
        .unwrap_err();
    assert_eq!((error.attempts(), error.stopped()), (0, None));
    assert_eq!(error.source().unwrap().to_string(), "out of order");
}

#[tokio::test(start_paused = true)]
async fn neither_keys_nor_bodies_are_shown() {
    let secret = Step::Answer(503, vec![("x-token", "s3cret-header".into())], "s3cret-body");
    let script = Script::new([secret]);
    let mut request = post("s3cret-request");
    request
        .extensions_mut()
        .insert(Operation::with_key("s3cret-key").unwrap());
    let client = ServiceBuilder::new().layer(layer()).service(script.service());
    let error = client.oneshot(request).await.unwrap_err();
    let shown = format!("{error} {error:?} {:#?} {:?}", error.operation(), layer());
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn the_defaults_outlast_the_lease_of_a_server_that_crashed() {
    for _ in 0..50 {
        // In flight until the lease of 30 s has lapsed.
        let began = Instant::now();
        let service = tower::service_fn(move |_: http::Request<Sent>| async move {
            let mut response = http::Response::new(http_body_util::Full::<bytes::Bytes>::default());
            if began.elapsed() < 30 * SECOND {
                *response.status_mut() = http::StatusCode::CONFLICT;
                response.headers_mut().insert("retry-after", "1".parse().unwrap());
            }
            Ok::<_, std::io::Error>(response)
        });
        let client = ServiceBuilder::new().layer(ClientLayer::new()).service(service);
        let response = client.oneshot(post("")).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn times_that_no_clock_holds_are_no_panic() {
    let policy = RetryPolicy::builder()
        .attempts(3)
        .total_time(Duration::MAX)
        .backoff(SECOND, Duration::MAX)
        .build()
        .unwrap();
    let layer = ClientLayer::builder(policy)
        .attempt_time(Duration::MAX)
        .build()
        .unwrap();
    let endless = answer_with(503, &[("retry-after", "18446744073709551615")]);
    let script = Script::new([endless]);
    let client = ServiceBuilder::new().layer(layer).service(script.service());
    let mut call = pin!(client.oneshot(post("")));
    let waits = tokio::time::timeout(SECOND, call.as_mut()).await;
    assert!(waits.is_err() || waits.unwrap().is_err(), "it waits, or says why not");
    assert_eq!(script.seen().len(), 1);
}

#[test]
fn everything_can_be_shown_whatever_the_closures() {
    let policy = RetryPolicy::builder()
        .retry_if(|_: &std::io::Error| true)
        .retry_response_if(|_, _| None)
        .build()
        .unwrap();
    let builder = ClientLayer::builder(policy);
    assert!(format!("{builder:?}").contains("attempts: 16"));
    let layer = builder.build().unwrap();
    assert!(format!("{layer:?} {:?}", tower::Layer::layer(&layer, "inner")).contains("\"inner\""));
}

#[test]
fn the_public_types_can_cross_threads() {
    fn send_sync<T: Send + Sync>() {}
    fn send<T: Send>() {}
    send_sync::<CallError>();
    send_sync::<ClientLayer>();
    send_sync::<ClientService<Script>>();
    send_sync::<RetryPolicy>();
    send_sync::<Operation>();
    send::<tower_idempotency::client::ClientFuture>();
}

/// The clock jumps during the pause, so the time is up without another attempt.
#[tokio::test(start_paused = true)]
async fn an_error_after_an_overlong_pause_still_tells_how_the_last_attempt_failed() {
    for step in [Step::Lost, Step::Silence] {
        let script = Script::new([step.clone()]);
        let inner = script.service();
        let jumping = tower::service_fn(move |request| {
            let answer = inner.clone().oneshot(request);
            async move {
                // An attempt that is silent ends by itself after five seconds.
                let jump = async {
                    tokio::time::sleep(5 * SECOND).await;
                    tokio::time::advance(120 * SECOND).await;
                };
                let jump_at_once = tokio::time::advance(120 * SECOND);
                match answer.now_or_never() {
                    Some(answer) => {
                        tokio::spawn(jump_at_once);
                        answer
                    }
                    None => {
                        tokio::spawn(jump);
                        std::future::pending().await
                    }
                }
            }
        });
        let operation = Operation::new();
        let mut request = post("the body");
        request.extensions_mut().insert(operation.clone());
        let service = ServiceBuilder::new().layer(layer()).service(jumping);
        let error = service.oneshot(request).await.unwrap_err();
        assert_eq!(
            (error.attempts(), error.stopped()),
            (1, Some(Stopped::TotalTime)),
            "{step:?}"
        );
        assert_eq!(error.is_timeout(), matches!(step, Step::Silence), "{step:?}");
        assert_eq!(error.source().is_some(), matches!(step, Step::Lost), "{step:?}");
        assert!(error.to_string().contains("last attempt: "), "{error}");
    }
}
