//! What is tried again, when, and how often; the same by `ClientLayer` and by `tower::retry`.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::{Either, Full};
use tower::BoxError;
use tower::retry::budget::{Budget, TpsBudget};
use tower_idempotency::client::{IdempotencyKeyLayer, Once, Operation, RetryPolicy, Stopped};

use super::script::{STACKS, Script, Step, answer, answer_with, patient, post, with_method};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn the_status_and_what_the_server_says_decide() {
    let now = &[("retry-after", "0")][..];
    let yes = &[("x-should-retry", "true")][..];
    let no = &[("x-should-retry", "false")][..];
    for (status, headers, again) in [
        (200, &[][..], false),
        (201, yes, false),
        (301, &[], false),
        (307, now, false),
        (400, &[], false),
        (400, now, false),
        (400, yes, true),
        (402, &[], false),
        (404, &[], false),
        (408, &[], true),
        // A conflict of the application's own, or a tombstone.
        (409, &[], false),
        // In flight.
        (409, now, true),
        (409, yes, true),
        (409, &[("stripe-should-retry", "true")], true),
        (409, &[("retry-after", "0"), ("x-should-retry", "false")], false),
        (409, &[("x-should-retry", "perhaps")], false),
        (
            409,
            &[("x-should-retry", "perhaps"), ("stripe-should-retry", "true")],
            true,
        ),
        // Kept, and so the same the next time.
        (500, &[("idempotency-replayed", "true")], false),
        (503, &[("idempotent-replayed", "true"), ("retry-after", "0")], false),
        (422, &[], false),
        (422, now, false),
        (422, yes, false),
        (425, &[], true),
        (429, &[], true),
        (429, no, false),
        (500, &[], true),
        (500, no, false),
        (500, &[("stripe-should-retry", "false")], false),
        (502, &[], true),
        (503, now, true),
        (504, &[], true),
    ] {
        for stack in STACKS {
            let script = Script::new([answer_with(status, headers), answer(200)]);
            let came = stack.run(&script, post("")).await;
            let expected = if again { (2, Some(200)) } else { (1, Some(status)) };
            assert_eq!(
                (script.seen().len(), came.status),
                expected,
                "{stack:?} {status} {headers:?}"
            );
            assert_eq!(came.operation.stopped(), None, "the answer was final");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_conflict_is_tried_again_on_request() {
    for stack in STACKS {
        let script = Script::new([answer(409), answer_with(409, &[("x-should-retry", "false")])]);
        let policy = RetryPolicy::builder().retry_every_conflict().build().unwrap();
        let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
        assert_eq!(
            (script.seen().len(), came.status),
            (2, Some(409)),
            "unless the server says no"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_key_only_idempotent_methods_are_repeated() {
    for (method, again) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::OPTIONS, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::from_bytes(b"PURCHASE").unwrap(), false),
    ] {
        for first in [Step::Lost, answer(503)] {
            for stack in STACKS {
                let script = Script::new([first.clone(), answer(200)]);
                let no_keys = IdempotencyKeyLayer::new().methods([]);
                let came = stack
                    .send(no_keys, patient(), &script, with_method(method.clone()))
                    .await;
                assert_eq!(script.seen().len(), if again { 2 } else { 1 }, "{stack:?} {method}");
                assert!(script.keys().iter().all(Option::is_none));
                let stopped = (!again).then_some(Stopped::NoKey);
                assert_eq!(came.operation.stopped(), stopped, "{stack:?} {method}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_header_is_a_key_whoever_set_it() {
    for (name, again) in [
        ("idempotency-key", true),
        ("paypal-request-id", true),
        ("x-other", false),
    ] {
        let script = Script::new([Step::Lost, answer(200)]);
        let policy = RetryPolicy::builder();
        let policy = match name {
            "paypal-request-id" => policy.key_header(name.parse().unwrap()),
            _ => policy,
        };
        let mut request = post("");
        request.headers_mut().insert(name, "mine".parse().unwrap());
        let client = tower::retry::Retry::new(policy.build().unwrap(), script.service());
        let _ = tower::ServiceExt::oneshot(client, request).await;
        assert_eq!(script.seen().len(), if again { 2 } else { 1 }, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_on_the_wire_is_none() {
    // An operation that no layer has written down, and a header without a key.
    let script = Script::new([Step::Lost, answer(200)]);
    let mut unwritten = post("");
    unwritten.extensions_mut().insert(Operation::with_key("meant").unwrap());
    let client = tower::retry::Retry::new(patient(), script.service());
    assert!(tower::ServiceExt::oneshot(client, unwritten).await.is_err());
    assert_eq!(script.seen().len(), 1);

    for stack in STACKS {
        let script = Script::new([Step::Lost, answer(200)]);
        let mut empty = post("");
        empty.headers_mut().insert("idempotency-key", " ".parse().unwrap());
        let came = stack.run(&script, empty).await;
        assert_eq!(
            (script.seen().len(), came.operation.stopped()),
            (1, Some(Stopped::NoKey))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_caller_may_know_better_of_responses() {
    for (status, headers, again) in [
        (501, &[][..], false),
        (404, &[], true),
        (404, &[("x-should-retry", "false")], true),
        (500, &[], true),
        (422, &[], false),
        (200, &[], false),
        (404, &[("idempotency-replayed", "true")], false),
    ] {
        for stack in STACKS {
            let script = Script::new([answer_with(status, headers), answer(204)]);
            let policy = RetryPolicy::builder()
                .retry_response_if(|status, _| match status.as_u16() {
                    501 => Some(false),
                    404 | 422 | 200 => Some(true),
                    _ => None,
                })
                .build()
                .unwrap();
            let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
            let expected = if again { (2, Some(204)) } else { (1, Some(status)) };
            assert_eq!((script.seen().len(), came.status), expected, "{stack:?} {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_can_be_sent_once_is_sent_once_and_that_is_said() {
    for stack in STACKS {
        for first in [Step::Lost, answer(503)] {
            let script = Script::new([first, answer(200)]);
            let mut request = post("");
            *request.body_mut() = Either::Right(Once::new(Full::from("a stream")));
            let came = stack.run(&script, request).await;
            assert_eq!(script.seen().len(), 1);
            assert_eq!(script.seen()[0].body, "a stream");
            assert_eq!(came.operation.stopped(), Some(Stopped::BodyNotReplayable), "{stack:?}");
            assert_eq!(came.operation.attempts(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_pauses_are_within_their_bounds() {
    for stack in STACKS {
        for failure in [Step::Lost, answer(500)] {
            let script = Script::new([failure.clone()]);
            let policy = RetryPolicy::builder()
                .attempts(6)
                .backoff(Duration::from_millis(100), Duration::from_millis(400))
                .build()
                .unwrap();
            let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
            assert_eq!(came.operation.stopped(), Some(Stopped::Attempts));
            let seen = script.seen();
            assert_eq!((seen.len(), came.operation.attempts()), (6, 6));
            for (pair, bound) in seen.windows(2).zip([100, 200, 400, 400, 400]) {
                let pause = pair[1].at - pair[0].at;
                // Tokio's clock ticks each millisecond.
                assert!(pause <= Duration::from_millis(bound + 1), "{pause:?} of {bound} ms");
            }
            // On average 775 ms; the chance of as little as this is less than one in a billion.
            assert!(came.took > Duration::from_millis(10), "it does pause: {:?}", came.took);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_attempt_is_no_retry() {
    for stack in STACKS {
        let script = Script::new([answer(503), answer(200)]);
        let policy = RetryPolicy::builder().attempts(1).build().unwrap();
        let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
        assert_eq!((script.seen().len(), came.status), (1, Some(503)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_total_time_is_bounded_whatever_the_attempts() {
    for stack in STACKS {
        let script = Script::new([answer_with(409, &[("retry-after", "1")])]);
        let policy = RetryPolicy::builder()
            .attempts(u32::MAX)
            .total_time(20 * SECOND)
            .without_budget()
            .build()
            .unwrap();
        let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
        assert!(matches!(
            came.operation.stopped(),
            Some(Stopped::TotalTime | Stopped::RetryAfter(_))
        ));
        assert!(came.took <= 20 * SECOND, "{:?}", came.took);
        assert_eq!(came.status, Some(409), "the last response is the caller's");
        let attempts = script.seen().len();
        assert!(
            (3..=20).contains(&attempts),
            "each pause is a second at least: {attempts}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_waited_out() {
    let date = "Tue, 24 Nov 2026 12:00:00 GMT";
    let seven_later = "Tue, 24 Nov 2026 12:00:07 GMT";
    for (headers, least) in [
        (&[("retry-after", "7")][..], 7),
        (&[("retry-after", seven_later), ("date", date)], 7),
        (&[("retry-after", date), ("date", seven_later)], 0),
        (&[("retry-after", "-7")], 0),
        (&[("retry-after", "7.5")], 0),
        (&[("retry-after", "soon")], 0),
        (&[("retry-after", "")], 0),
    ] {
        for status in [409, 429, 503] {
            for stack in STACKS {
                let script = Script::new([answer_with(status, headers), answer(200)]);
                let policy = RetryPolicy::builder()
                    .backoff(Duration::from_millis(100), SECOND)
                    .build()
                    .unwrap();
                let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
                let waited = came.took;
                assert_eq!(came.status, Some(200), "{headers:?}");
                assert!(
                    waited >= least * SECOND && waited < least * SECOND + Duration::from_millis(102),
                    "{headers:?}: {waited:?}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_that_is_too_long_ends_the_call_at_once() {
    for stack in STACKS {
        for (value, said) in [
            ("31536000", Duration::from_secs(31_536_000)),
            ("60", Duration::from_secs(60)),
            ("99999999999999999999999999", Duration::from_secs(u64::MAX)),
        ] {
            let script = Script::new([answer_with(503, &[("retry-after", value)])]);
            let came = stack.run(&script, post("")).await;
            assert_eq!(came.operation.stopped(), Some(Stopped::RetryAfter(said)));
            assert_eq!((came.took, came.status), (Duration::ZERO, Some(503)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_one_for_all_calls_and_clones() {
    for stack in STACKS {
        // A retry for each five calls, none besides.
        let budget = Arc::new(TpsBudget::new(10 * SECOND, 0, 0.2));
        let policy = RetryPolicy::builder().budget(budget).build().unwrap();
        let script = Script::new([answer(503)]);
        let mut stopped = Vec::new();
        for _ in 0..10 {
            let came = stack
                .send(IdempotencyKeyLayer::new(), policy.clone(), &script, post(""))
                .await;
            stopped.push(came.operation.stopped());
        }
        assert_eq!(script.seen().len(), 10 + 2, "ten calls, two retries");
        assert!(
            stopped.iter().all(|reason| *reason == Some(Stopped::Budget)),
            "{stopped:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_from_the_budget_for_a_retry_that_is_not_made() {
    #[derive(Default)]
    struct Counting(std::sync::atomic::AtomicI32);
    impl Budget for Counting {
        fn deposit(&self) {
            self.0.fetch_add(1000, std::sync::atomic::Ordering::Relaxed);
        }
        fn withdraw(&self) -> bool {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            true
        }
    }
    for (steps, sent_with_key, balance) in [
        (vec![answer(200)], true, 1000),
        (vec![answer(422)], true, 1000),
        (vec![Step::Lost], false, 1000),
        (vec![answer_with(503, &[("retry-after", "3600")])], true, 1000),
        (vec![answer(503), answer(503), answer(200)], true, 998),
        // Two attempts are all there are.
        (vec![answer(503), answer(503), answer(503)], true, 998),
    ] {
        for stack in STACKS {
            let budget = Arc::new(Counting::default());
            let policy = RetryPolicy::builder()
                .attempts(3)
                .budget(Arc::clone(&budget))
                .build()
                .unwrap();
            let keys = IdempotencyKeyLayer::new();
            let keys = if sent_with_key { keys } else { keys.methods([]) };
            stack.send(keys, policy, &Script::new(steps.clone()), post("")).await;
            let left = budget.0.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(left, balance, "{stack:?} {steps:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_that_cannot_pass_are_not_tried_again() {
    for (needle, attempts) in [("lost", 3), ("certificate", 1)] {
        for stack in STACKS {
            let script = Script::new([Step::Lost]);
            let policy = RetryPolicy::builder()
                .attempts(3)
                .retry_if(move |error: &BoxError| error.to_string().contains(needle))
                .build()
                .unwrap();
            let came = stack.send(IdempotencyKeyLayer::new(), policy, &script, post("")).await;
            assert_eq!(script.seen().len(), attempts, "{stack:?}");
            assert_eq!(came.operation.stopped(), (attempts > 1).then_some(Stopped::Attempts));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_policy_serves_many_calls_each_with_its_own_bounds() {
    // Of the policy in `tower::retry`, whose clones carry the state of a call.
    let script = Script::new([answer(503)]);
    let policy = RetryPolicy::builder()
        .attempts(3)
        .total_time(10 * SECOND)
        .without_budget()
        .build()
        .unwrap();
    let mut client = tower::retry::Retry::new(policy, script.service());
    for call in 1..=3 {
        let mut request = post("");
        let operation = Operation::new();
        request.extensions_mut().insert(operation.clone());
        let key = format!("order-{call}").parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        let response = tower::Service::call(&mut client, request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(operation.attempts(), 3);
        assert_eq!(operation.stopped(), Some(Stopped::Attempts));
        tokio::time::sleep(20 * SECOND).await;
    }
}

#[test]
fn settings_that_cannot_work_are_errors() {
    use tower_idempotency::client::ClientLayer;
    let policy = RetryPolicy::builder;
    let ms = Duration::from_millis;
    for (result, option) in [
        (policy().attempts(0).build(), "attempts"),
        (policy().total_time(Duration::ZERO).build(), "total_time"),
        (policy().backoff(Duration::ZERO, SECOND).build(), "backoff"),
        (policy().backoff(ms(2), ms(1)).build(), "backoff"),
    ] {
        assert_eq!(result.unwrap_err().option(), option);
    }
    let layer = ClientLayer::builder(RetryPolicy::new())
        .attempt_time(Duration::ZERO)
        .build();
    assert_eq!(layer.unwrap_err().option(), "attempt_time");
    policy()
        .total_time(Duration::MAX)
        .backoff(ms(1), Duration::MAX)
        .build()
        .unwrap();
}
