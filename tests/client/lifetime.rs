//! A key is not sent after its server may have forgotten it.

use std::time::{Duration, SystemTime};

use http::Method;
use tokio::time::{Instant, advance};
use tower::{ServiceBuilder, ServiceExt};
use tower_idempotency::client::{
    ClientLayer, IdempotencyKeyLayer, Operation, RetryPolicy, RetryPolicyBuilder, Stopped,
};

use crate::client::script::{STACKS, Script, Step, answer, answer_with, post, with_method};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const NOON: &str = "Tue, 24 Nov 2026 12:00:00 GMT";

/// A policy that would go on for days.
fn endless() -> RetryPolicyBuilder {
    RetryPolicy::builder()
        .attempts(u32::MAX)
        .total_time(30 * 24 * HOUR)
        .backoff(HOUR / 4, HOUR)
        .without_budget()
}

fn of(operation: &Operation) -> http::Request<crate::client::script::Sent> {
    let mut request = post("");
    request.extensions_mut().insert(operation.clone());
    request
}

/// A call with all defaults.
async fn call(script: &Script, operation: &Operation) -> Result<u16, tower_idempotency::client::CallError> {
    let client = ServiceBuilder::new()
        .layer(ClientLayer::new())
        .service(script.service());
    client
        .oneshot(of(operation))
        .await
        .map(|response| response.status().as_u16())
}

#[tokio::test(start_paused = true)]
async fn a_key_is_sent_for_23_hours_by_default() {
    for stack in STACKS {
        for failure in [Step::Lost, answer(503)] {
            let script = Script::new([failure]);
            let policy = endless().build().unwrap();
            let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
            assert_eq!(came.operation.stopped(), Some(Stopped::KeyExpired), "{stack:?}");
            let seen = script.seen();
            let last = seen[seen.len() - 1].at - seen[0].at;
            assert!(last < 23 * HOUR && last > 21 * HOUR, "{stack:?}: {last:?}");
            // It is known at once that the next attempt would be too late.
            assert!(came.took < 23 * HOUR, "{stack:?}: {:?}", came.took);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_is_the_policys_or_the_operations_own() {
    for (policys, own, expected) in [
        (2 * HOUR, None, 2 * HOUR),
        (2 * HOUR, Some(HOUR), HOUR),
        (HOUR, Some(2 * HOUR), 2 * HOUR),
    ] {
        for stack in STACKS {
            let operation = match own {
                Some(own) => Operation::new().with_lifetime(own).unwrap(),
                None => Operation::new(),
            };
            let script = Script::new([answer(503)]);
            let policy = endless()
                .key_lifetime(policys)
                .backoff(SECOND, 10 * SECOND)
                .build()
                .unwrap();
            let came = stack
                .send(IdempotencyKeyLayer::new(), policy, &script, of(&operation))
                .await;
            assert_eq!(came.operation.stopped(), Some(Stopped::KeyExpired));
            assert!(
                came.took <= expected && came.took + 20 * SECOND > expected,
                "{stack:?} {:?}",
                came.took
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_too_old_is_not_sent_at_all() {
    let operation = Operation::with_key("s3cret").unwrap();
    let script = Script::new([answer(201)]);
    advance(23 * HOUR - SECOND).await;
    assert_eq!(call(&script, &operation).await.unwrap(), 201, "a second is left");
    advance(SECOND).await;
    let error = call(&script, &operation).await.unwrap_err();
    assert_eq!((script.seen().len(), operation.attempts()), (1, 1));
    assert_eq!((error.stopped(), error.attempts()), (Some(Stopped::KeyExpired), 0));
    assert_eq!(operation.stopped(), Some(Stopped::KeyExpired));
    assert_eq!(
        error.to_string(),
        "no final answer after 0 attempts in 0.0 s: the key's lifetime is over, and another attempt could run \
         the operation a second time; find out whether the operation was done before you begin a new one"
    );
    assert!(!format!("{error:?} {operation:?}").contains("s3cret"));
}

#[tokio::test(start_paused = true)]
async fn the_clones_of_an_operation_have_one_lifetime() {
    let operation = Operation::new();
    let clone = operation.clone().with_lifetime(HOUR).unwrap();
    advance(HOUR).await;
    let script = Script::new([answer(201)]);
    for operation in [operation, clone] {
        let error = call(&script, &operation).await.unwrap_err();
        assert_eq!(error.stopped(), Some(Stopped::KeyExpired));
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_of_an_earlier_process_has_what_is_left() {
    for (ago, sent) in [(22 * HOUR, true), (23 * HOUR, false), (10_000 * HOUR, false)] {
        let operation = Operation::with_key("order-17")
            .unwrap()
            .begun_at(SystemTime::now() - ago);
        let script = Script::new([answer(201)]);
        assert_eq!(call(&script, &operation).await.is_ok(), sent, "{ago:?}");
    }
    // The clock was set back since.
    let operation = Operation::new().begun_at(SystemTime::now() + 48 * HOUR);
    let script = Script::new([answer(201)]);
    assert!(call(&script, &operation).await.is_ok());
    advance(23 * HOUR).await;
    assert!(call(&script, &operation).await.is_err(), "and it does not live longer");
}

#[tokio::test(start_paused = true)]
async fn without_a_key_there_is_no_lifetime() {
    for stack in STACKS {
        let script = Script::new([answer(503)]);
        let policy = endless().total_time(40 * HOUR).build().unwrap();
        let came = stack
            .send(IdempotencyKeyLayer::new(), policy, &script, with_method(Method::GET))
            .await;
        assert_ne!(came.operation.stopped(), Some(Stopped::KeyExpired));
        assert!(came.took > 30 * HOUR, "{stack:?}: {:?}", came.took);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_can_shorten_the_lifetime_and_not_extend_it() {
    for (headers, expected) in [
        // A part of 24 is spared.
        (
            &[("idempotency-expires", "Tue, 24 Nov 2026 14:00:00 GMT"), ("date", NOON)][..],
            HOUR * 2 / 24 * 23,
        ),
        (
            &[("idempotency-expires", "Sat, 28 Nov 2026 12:00:00 GMT"), ("date", NOON)],
            23 * HOUR,
        ),
        (&[("idempotency-expires", "soon"), ("date", NOON)], 23 * HOUR),
        (&[("idempotency-expires", "7200"), ("date", NOON)], 23 * HOUR),
    ] {
        // In a response, and in one whose body is lost.
        let whole = answer_with(503, headers);
        let broken = Step::BrokenOff(
            503,
            headers.iter().map(|(name, value)| (*name, (*value).into())).collect(),
        );
        for first in [whole, broken] {
            for stack in STACKS {
                let script = Script::new([first.clone(), Step::Lost]);
                let policy = endless().backoff(SECOND, 60 * SECOND).build().unwrap();
                let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
                if came.status == Some(503) && script.seen().len() == 1 {
                    // `tower::retry` knows no body.
                    continue;
                }
                assert_eq!(
                    came.operation.stopped(),
                    Some(Stopped::KeyExpired),
                    "{stack:?} {headers:?}"
                );
                assert!(
                    came.took <= expected + 20 * SECOND && came.took + 150 * SECOND > expected,
                    "{stack:?} {headers:?}: {:?}",
                    came.took
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_server_has_forgotten_is_not_sent_again() {
    let gone = &[("idempotency-expires", NOON), ("date", NOON), ("retry-after", "0")];
    for stack in STACKS {
        let script = Script::new([answer_with(503, gone), answer(201)]);
        let policy = RetryPolicy::builder().build().unwrap();
        let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
        assert_eq!((script.seen().len(), came.status), (1, Some(503)), "{stack:?}");
        assert_eq!(came.operation.stopped(), Some(Stopped::KeyExpired));
        assert_eq!(came.took, Duration::ZERO);
    }
    // A later call of the same operation knows it too.
    let operation = Operation::new();
    let script = Script::new([answer_with(201, gone)]);
    assert_eq!(call(&script, &operation).await.unwrap(), 201);
    assert!(call(&script, &operation).await.is_err());
    assert_eq!(script.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_outlast_the_key_is_not_waited() {
    let began = Instant::now();
    let operation = Operation::new().with_lifetime(10 * SECOND).unwrap();
    let script = Script::new([answer_with(409, &[("retry-after", "10")]), answer(201)]);
    let error = call(&script, &operation).await.unwrap_err();
    assert_eq!(
        (error.stopped(), began.elapsed()),
        (Some(Stopped::KeyExpired), Duration::ZERO)
    );
    assert_eq!(error.last_response().unwrap().status(), 409);
}

#[test]
fn a_lifetime_of_nothing_is_an_error() {
    let error = RetryPolicy::builder().key_lifetime(Duration::ZERO).build().unwrap_err();
    assert_eq!(error.option(), "key_lifetime");
    let error = Operation::new().with_lifetime(Duration::ZERO).unwrap_err();
    assert_eq!(error.option(), "lifetime");
    RetryPolicy::builder().key_lifetime(Duration::MAX).build().unwrap();
    Operation::new().with_lifetime(Duration::MAX).unwrap();
}
