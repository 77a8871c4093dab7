//! Which statuses are tried again by themselves.

use crate::client::script::{STACKS, Script, answer, answer_with, post};

/// Of every error status, those that are tried again. Unknown ones are as 400 or 500 (RFC 9110, section 15).
fn is_tried_again(status: u16) -> bool {
    match status {
        // Too slow, too early, too many.
        408 | 425 | 429 => true,
        400..500 => false,
        // Not implemented, HTTP version, variant also negotiates, insufficient storage (of which RFC 4918
        // says that only a user may repeat the request), loop, not extended, log in to the network.
        501 | 505 | 506 | 507 | 508 | 510 | 511 => false,
        500..600 => true,
        _ => unreachable!("no error"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_error_status_is_final_or_tried_again() {
    for status in 400..600 {
        for stack in STACKS {
            let script = Script::new([answer(status), answer(200)]);
            let came = stack.run(&script, post("")).await;
            let expected = if is_tried_again(status) {
                (2, Some(200))
            } else {
                (1, Some(status))
            };
            assert_eq!((script.seen().len(), came.status), expected, "{stack:?} {status}");
            assert_eq!(came.operation.stopped(), None, "the answer was final");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_may_say_that_a_permanent_status_passes() {
    for status in [501, 505, 506, 507, 508, 510, 511] {
        for (headers, again) in [
            (&[("retry-after", "0")][..], false),
            (&[("x-should-retry", "true")], true),
            (&[("stripe-should-retry", "true")], true),
        ] {
            for stack in STACKS {
                let script = Script::new([answer_with(status, headers), answer(200)]);
                let came = stack.run(&script, post("")).await;
                let attempts = if again { 2 } else { 1 };
                assert_eq!(script.seen().len(), attempts, "{stack:?} {status} {headers:?}");
                assert_eq!(came.operation.stopped(), None);
            }
        }
    }
}
