//! Checks of claims that have not lapsed: which calls get the claim, and how the claim ends.

use std::time::Duration;

use super::harness::Harness;
use super::probe::{IN_FLIGHT, Probe, random_token};
use crate::request::Fingerprint;
use crate::request::Slot;
use crate::store::Store;
use crate::store::{ClaimOutcome, ClaimRequest, Held, Token};

const FIRST: ClaimOutcome = ClaimOutcome::Started { attempt: 1 };

pub(super) async fn the_first_begin_starts_attempt_1<H: Harness>(slot: Probe<'_, H>) {
    slot.begin("the first claim", &slot.claim(), &FIRST).await;
}

pub(super) async fn a_duplicate_is_in_flight<H: Harness>(slot: Probe<'_, H>) {
    slot.begin("the first claim", &slot.claim(), &FIRST).await;
    let step = "begin, the same fingerprint under another token";
    let long = slot.long;
    match slot.answered(step, slot.store.begin(&slot.claim()).await) {
        // The remaining time is used only for `Retry-After`, so an approximate value is enough.
        ClaimOutcome::InFlight { lease_left } if lease_left >= long / 2 && lease_left <= long + slot.units(1) => {}
        ClaimOutcome::InFlight { lease_left } => slot.broken(
            step,
            format_args!("a lease of {long:?} has just begun, but the store reports {lease_left:?} left"),
        ),
        other => slot.broken(step, format_args!("expected InFlight, got {other:?}")),
    }
    slot.begin("a third time", &slot.claim(), &IN_FLIGHT).await;
}

pub(super) async fn another_fingerprint_is_a_mismatch<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.begin(
        "another fingerprint, in flight",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.begin("the right fingerprint, after the mismatch", &slot.claim(), &IN_FLIGHT)
        .await;
    let record = slot.response(b"answer");
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    slot.begin(
        "another fingerprint, done",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.begin(
        "the right fingerprint, done",
        &slot.claim(),
        &ClaimOutcome::Done(record),
    )
    .await;
}

pub(super) async fn fingerprints_count_to_the_last_bit<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    differ_in_each_bit(&slot, "in flight", &IN_FLIGHT).await;
    let record = slot.response(b"answer");
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    differ_in_each_bit(&slot, "done", &ClaimOutcome::Done(record)).await;
}

/// Calls `begin` with fingerprints that each differ from the slot's fingerprint in one bit. If the
/// bit is in the digest, the result is a mismatch. If the bit is in the rule, the result is the
/// same as for an equal fingerprint.
async fn differ_in_each_bit<H: Harness>(slot: &Probe<'_, H>, state: &str, same: &ClaimOutcome) {
    for bit in 0..Fingerprint::LEN * 8 {
        let mut bytes = *slot.fingerprint.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let begin = ClaimRequest {
            fingerprint: Fingerprint::from_bytes(bytes),
            ..slot.claim()
        };
        let (part, expected) = match bit / 8 {
            0 | 1 => ("rule", same),
            _ => ("digest", &ClaimOutcome::Mismatch),
        };
        let step = format!("a fingerprint whose {part} differs in bit {bit}, {state}");
        slot.begin(&step, &begin, expected).await;
    }
}

pub(super) async fn a_fingerprint_of_another_rule_is_not_a_mismatch<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.begin("another rule, in flight", &slot.claim_under_another_rule(), &IN_FLIGHT)
        .await;
    slot.begin(
        "a different fingerprint under the same rule, in flight",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    let record = slot.response(b"answer");
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    let done = ClaimOutcome::Done(record);
    slot.begin("another rule, done", &slot.claim_under_another_rule(), &done)
        .await;
    slot.begin("the same fingerprint, after the other rule", &slot.claim(), &done)
        .await;
    slot.begin(
        "a different fingerprint under the same rule, after completion",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
}

pub(super) async fn slots_count_to_the_last_bit<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.complete(
        "by the holder",
        claim.token,
        &slot.response(b"its own"),
        slot.long,
        Held::Yes,
    )
    .await;
    for bit in 0..Slot::LEN * 8 {
        let mut bytes = *slot.slot.as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let neighbor = slot.at(Slot::from_bytes(bytes));
        let claim = neighbor.claim();
        let step = format!("a slot that differs in bit {bit}");
        neighbor.begin(&step, &claim, &FIRST).await;
        neighbor.release(&step, claim.token, Held::Yes).await;
    }
    slot.begin(
        "after its neighbors were released",
        &slot.claim(),
        &ClaimOutcome::Done(slot.response(b"its own")),
    )
    .await;
}

pub(super) async fn tokens_count_to_the_last_bit<H: Harness>(slot: Probe<'_, H>) {
    // Values that would be indistinguishable as a double, a signed integer or a 32-bit integer, and
    // both ends of the range.
    for token in [0, 1, u64::MAX, 1 << 63, (1 << 53) + 1, random_token().0 | 1 << 62] {
        let slot = slot.elsewhere();
        let claim = slot.claim().with_token(Token(token));
        slot.begin(&format!("token {token}"), &claim, &FIRST).await;
        for bit in 0..u64::BITS {
            let step = format!("under a token that differs from {token} in bit {bit}");
            slot.renew(&step, Token(token ^ (1 << bit)), slot.long, Held::Lost)
                .await;
        }
        let step = format!("under token {token}, which holds the claim");
        slot.renew(&step, claim.token, slot.long, Held::Yes).await;
        slot.release(&step, claim.token, Held::Yes).await;
    }
}

pub(super) async fn begin_can_be_repeated_with_its_token<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.begin("again with the same token", &claim, &FIRST).await;
    slot.begin("another token after that", &slot.claim(), &IN_FLIGHT).await;
    slot.begin("a third time with the first token", &claim, &FIRST).await;
    slot.release("by the token that began three times", claim.token, Held::Yes)
        .await;

    let lapsing = slot.claim_for(1);
    slot.begin("a claim that lapses", &lapsing, &FIRST).await;
    slot.pass(2).await;
    let second = slot.claim();
    let started = ClaimOutcome::Started { attempt: 2 };
    slot.begin("taking it over", &second, &started).await;
    slot.begin("taking it over, again with the same token", &second, &started)
        .await;
}

pub(super) async fn a_foreign_token_is_lost_and_changes_nothing<H: Harness>(slot: Probe<'_, H>) {
    let record = slot.response(b"not the holder's");
    let stranger = random_token();
    slot.renew("of a vacant slot", stranger, slot.long, Held::Lost).await;
    slot.complete("of a vacant slot", stranger, &record, slot.long, Held::Lost)
        .await;
    slot.release("of a vacant slot", stranger, Held::Lost).await;

    let claim = slot.claim();
    slot.begin("after foreign calls on the vacant slot", &claim, &FIRST)
        .await;
    slot.renew("under a foreign token", stranger, slot.long, Held::Lost)
        .await;
    slot.complete("under a foreign token", stranger, &record, slot.long, Held::Lost)
        .await;
    slot.begin("after a foreign complete", &slot.claim(), &IN_FLIGHT).await;
    slot.release("under a foreign token", stranger, Held::Lost).await;
    slot.begin("after a foreign release", &slot.claim(), &IN_FLIGHT).await;

    let own = slot.response(b"the holder's");
    slot.complete("by the holder, after all that", claim.token, &own, slot.long, Held::Yes)
        .await;
    slot.renew("of a slot that is done", stranger, slot.long, Held::Lost)
        .await;
    slot.complete("of a slot that is done", stranger, &record, slot.long, Held::Lost)
        .await;
    slot.release("of a slot that is done", stranger, Held::Lost).await;
    slot.begin(
        "after foreign calls on the done slot",
        &slot.claim(),
        &ClaimOutcome::Done(own),
    )
    .await;
}

pub(super) async fn release_frees_the_slot_for_any_fingerprint<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.release("by the holder", claim.token, Held::Yes).await;
    let other = slot.other_claim();
    slot.begin("another fingerprint, after the release", &other, &FIRST)
        .await;
    slot.release("by the second holder", other.token, Held::Yes).await;

    // The attempt number also starts again from 1.
    slot.begin("a claim that lapses", &slot.claim_for(1), &FIRST).await;
    slot.pass(2).await;
    let second = slot.claim();
    slot.begin("taking it over", &second, &ClaimOutcome::Started { attempt: 2 })
        .await;
    slot.release("by the holder of attempt 2", second.token, Held::Yes)
        .await;
    slot.begin("after attempt 2 was released", &slot.claim(), &FIRST).await;
}

pub(super) async fn a_claim_ends_once<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    let record = slot.response(b"the first");
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    let other = slot.response(b"the second");
    slot.complete("a second time", claim.token, &other, slot.long, Held::Lost)
        .await;
    slot.renew("after complete", claim.token, slot.long, Held::Lost).await;
    slot.release("after complete", claim.token, Held::Lost).await;
    slot.begin("after all that", &slot.claim(), &ClaimOutcome::Done(record))
        .await;

    let slot = slot.elsewhere();
    let claim = slot.claim();
    slot.begin("the first claim on another slot", &claim, &FIRST).await;
    slot.release("by the holder", claim.token, Held::Yes).await;
    slot.release("a second time", claim.token, Held::Lost).await;
    slot.renew("after release", claim.token, slot.long, Held::Lost).await;
    slot.complete("after release", claim.token, &other, slot.long, Held::Lost)
        .await;
    slot.begin("after all that", &slot.claim(), &FIRST).await;
}

pub(super) async fn very_long_times_do_not_overflow<H: Harness>(slot: Probe<'_, H>) {
    for time in [Duration::from_secs(1000 * 365 * 86_400), Duration::MAX] {
        let slot = slot.elsewhere();
        let claim = slot.claim().with_lease(time).with_ttl(time);
        let step = format!("lease and ttl of {time:?}");
        slot.begin(&step, &claim, &FIRST).await;
        slot.begin(&format!("a duplicate under {step}"), &slot.claim(), &IN_FLIGHT)
            .await;
        slot.renew(&step, claim.token, time, Held::Yes).await;
        slot.begin(&format!("a duplicate under {step}, renewed"), &slot.claim(), &IN_FLIGHT)
            .await;
        let record = slot.response(b"forever");
        slot.complete(&step, claim.token, &record, time, Held::Yes).await;
        slot.begin(
            &format!("after complete with {step}"),
            &slot.claim(),
            &ClaimOutcome::Done(record),
        )
        .await;
    }
}
