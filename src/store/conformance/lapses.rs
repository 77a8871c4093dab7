//! Checks that depend on time: leases lapse, claims are taken over and forgotten, and records
//! expire.
//!
//! Times in comments are in units since the slot's first `begin`. Each check of the store is at
//! least one unit away from the nearest boundary.

use super::harness::Harness;
use super::probe::{IN_FLIGHT, Probe, response};
use crate::store::{ClaimOutcome, ClaimRequest, Held, OnLapse};

const FIRST: ClaimOutcome = ClaimOutcome::Started { attempt: 1 };

pub(super) async fn a_lapsed_claim_is_taken_over_as_the_next_attempt<H: Harness>(slot: Probe<'_, H>) {
    slot.begin("the first claim", &slot.claim_for(1), &FIRST).await;
    for attempt in 2..=4 {
        slot.pass(2).await;
        let step = format!("after attempt {} lapsed", attempt - 1);
        slot.begin(&step, &slot.claim_for(1), &ClaimOutcome::Started { attempt })
            .await;
    }
    slot.pass(2).await;
    let last = slot.claim();
    slot.begin("after attempt 4 lapsed", &last, &ClaimOutcome::Started { attempt: 5 })
        .await;
    slot.begin("while attempt 5 runs", &slot.claim(), &IN_FLIGHT).await;
    let record = slot.response(b"at last");
    slot.complete("by the holder of attempt 5", last.token, &record, slot.long, Held::Yes)
        .await;
    slot.begin("after attempt 5 completed", &slot.claim(), &ClaimOutcome::Done(record))
        .await;
}

pub(super) async fn a_takeover_under_another_rule_brings_its_fingerprint<H: Harness>(slot: Probe<'_, H>) {
    let former = slot.claim_for(1);
    slot.begin("the first claim", &former, &FIRST).await;
    slot.pass(2).await;
    let present = slot.claim_under_another_rule();
    let other = slot.claim_under_another_rule();
    let started = ClaimOutcome::Started { attempt: 2 };
    slot.begin("taking it over under another rule", &present, &started)
        .await;
    slot.begin("the takeover, again with the same token", &present, &started)
        .await;
    slot.begin("the new rule, another digest", &other, &ClaimOutcome::Mismatch)
        .await;
    slot.begin("the former rule", &slot.claim(), &IN_FLIGHT).await;
    slot.begin("the former rule, another digest", &slot.other_claim(), &IN_FLIGHT)
        .await;
    let record = response(present.fingerprint, b"answer");
    slot.complete("by the new holder", present.token, &record, slot.long, Held::Yes)
        .await;
    slot.begin("the new rule, another digest, done", &other, &ClaimOutcome::Mismatch)
        .await;
    slot.begin("the former rule, done", &slot.claim(), &ClaimOutcome::Done(record))
        .await;
}

pub(super) async fn a_former_holder_is_fenced_off<H: Harness>(slot: Probe<'_, H>) {
    let former = slot.claim_for(1);
    let late = slot.response(b"the former holder's");
    slot.begin("the first claim", &former, &FIRST).await;
    slot.pass(2).await;
    let present = slot.claim();
    slot.begin("taking it over", &present, &ClaimOutcome::Started { attempt: 2 })
        .await;
    slot.renew("by the former holder", former.token, slot.long, Held::Lost)
        .await;
    slot.complete("by the former holder", former.token, &late, slot.long, Held::Lost)
        .await;
    slot.release("by the former holder", former.token, Held::Lost).await;
    slot.begin("by the former holder, repeated", &former, &IN_FLIGHT).await;
    slot.begin("after the former holder's calls", &slot.claim(), &IN_FLIGHT)
        .await;
    let record = slot.response(b"the present holder's");
    slot.complete("by the present holder", present.token, &record, slot.long, Held::Yes)
        .await;
    slot.complete(
        "by the former holder, after the end",
        former.token,
        &late,
        slot.long,
        Held::Lost,
    )
    .await;
    slot.release("by the former holder, after the end", former.token, Held::Lost)
        .await;
    slot.begin("after all that", &slot.claim(), &ClaimOutcome::Done(record))
        .await;
}

pub(super) async fn a_lease_of_zero_lapses_at_once_and_is_remembered<H: Harness>(slot: Probe<'_, H>) {
    let given_back = slot.claim();
    slot.begin("the first claim", &given_back, &FIRST).await;
    slot.renew("by a lease of zero", given_back.token, slot.units(0), Held::Yes)
        .await;
    slot.begin("with another fingerprint", &slot.other_claim(), &ClaimOutcome::Mismatch)
        .await;
    slot.begin(
        "with the same fingerprint",
        &slot.claim(),
        &ClaimOutcome::Started { attempt: 2 },
    )
    .await;
    slot.release("by the holder that gave it back", given_back.token, Held::Lost)
        .await;
}

pub(super) async fn a_lapsed_claim_that_nobody_took_over_is_still_held<H: Harness>(slot: Probe<'_, H>) {
    let completing = slot.elsewhere();
    let record = completing.response(b"late, but first");
    let releasing = slot.elsewhere();
    let (renewed, completed, released) = (slot.claim_for(1), completing.claim_for(1), releasing.claim_for(1));
    slot.begin("a claim that lapses", &renewed, &FIRST).await;
    completing.begin("a claim that lapses", &completed, &FIRST).await;
    releasing.begin("a claim that lapses", &released, &FIRST).await;
    slot.pass(2).await;

    slot.renew("of a claim that lapsed", renewed.token, slot.long, Held::Yes)
        .await;
    slot.begin("after the late renewal", &slot.claim(), &IN_FLIGHT).await;
    completing
        .complete("of a claim that lapsed", completed.token, &record, slot.long, Held::Yes)
        .await;
    completing
        .begin(
            "after the late completion",
            &completing.claim(),
            &ClaimOutcome::Done(record),
        )
        .await;
    releasing
        .release("of a claim that lapsed", released.token, Held::Yes)
        .await;
    releasing
        .begin("after the late release", &releasing.other_claim(), &FIRST)
        .await;
}

pub(super) async fn a_lapsed_claim_is_remembered_for_its_ttl<H: Harness>(slot: Probe<'_, H>) {
    // The claim lapses at 1 and is forgotten at 6.
    let dead = slot.claim_for(1).with_ttl(slot.units(5));
    slot.begin("a claim that lapses", &dead, &FIRST).await;
    slot.pass(3).await;
    slot.begin(
        "another fingerprint, after the lapse and within the ttl",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.pass(4).await;
    let next = slot.other_claim().with_lease(slot.units(1)).with_ttl(slot.units(1));
    slot.begin("another fingerprint, after lease and ttl", &next, &FIRST)
        .await;

    // A takeover has its own TTL: attempt 2 begins at 2, lapses at 3 and is forgotten at 11. With
    // attempt 1's TTL, attempt 2 would have been forgotten at 7.
    let slot = slot.elsewhere();
    let first = slot.claim_for(1).with_ttl(slot.units(4));
    slot.begin("a claim that lapses", &first, &FIRST).await;
    slot.pass(2).await;
    let second = slot.claim_for(1).with_ttl(slot.units(8));
    slot.begin("taking it over", &second, &ClaimOutcome::Started { attempt: 2 })
        .await;
    slot.pass(7).await;
    slot.begin(
        "another fingerprint, within the ttl of attempt 2",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.pass(4).await;
    slot.begin("the same fingerprint, after that ttl", &slot.claim(), &FIRST)
        .await;
}

pub(super) async fn a_lapsed_claim_can_be_refused<H: Harness>(slot: Probe<'_, H>) {
    let refusing = |begin: ClaimRequest| begin.with_on_lapse(OnLapse::Refuse);
    let dead = refusing(slot.claim_for(1));
    slot.begin("the first claim", &dead, &FIRST).await;
    slot.pass(2).await;
    slot.begin(
        "refusing a lapsed claim",
        &refusing(slot.claim()),
        &ClaimOutcome::OutcomeUnknown,
    )
    .await;
    slot.begin(
        "refusing a lapsed claim, a second time",
        &refusing(slot.claim()),
        &ClaimOutcome::OutcomeUnknown,
    )
    .await;
    slot.begin(
        "another fingerprint on a lapsed claim",
        &refusing(slot.other_claim()),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.begin(
        "refusing a lapsed claim of another rule",
        &refusing(slot.claim_under_another_rule()),
        &ClaimOutcome::OutcomeUnknown,
    )
    .await;
    slot.renew("by the holder, which is still alive", dead.token, slot.long, Held::Yes)
        .await;
    slot.begin("after the renewal", &refusing(slot.claim()), &IN_FLIGHT)
        .await;
    slot.renew("by the holder, which then dies", dead.token, slot.units(1), Held::Yes)
        .await;
    slot.pass(2).await;
    slot.begin(
        "running a lapsed claim again",
        &slot.claim(),
        &ClaimOutcome::Started { attempt: 2 },
    )
    .await;
}

pub(super) async fn renew_moves_the_lease<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim_for(3);
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.pass(1).await;
    // This renewal moves the end of the lease from 3 to 6.
    slot.renew("by the holder", claim.token, slot.units(5), Held::Yes).await;
    slot.pass(3).await;
    slot.begin(
        "after the first lease, within the renewed lease",
        &slot.claim(),
        &IN_FLIGHT,
    )
    .await;
    slot.pass(4).await;
    slot.begin(
        "after the renewed lease",
        &slot.claim(),
        &ClaimOutcome::Started { attempt: 2 },
    )
    .await;

    // The new lease starts now and is not added to the remaining time.
    let slot = slot.elsewhere();
    let claim = slot.claim();
    slot.begin("with a long lease", &claim, &FIRST).await;
    slot.renew("to a short lease", claim.token, slot.units(1), Held::Yes)
        .await;
    slot.pass(2).await;
    slot.begin(
        "after the lease was renewed to a shorter one",
        &slot.claim(),
        &ClaimOutcome::Started { attempt: 2 },
    )
    .await;
}

pub(super) async fn a_foreign_renew_does_not_move_the_lease<H: Harness>(slot: Probe<'_, H>) {
    slot.begin("the first claim", &slot.claim_for(1), &FIRST).await;
    slot.renew("under a foreign token", slot.claim().token, slot.long, Held::Lost)
        .await;
    slot.begin("another fingerprint", &slot.other_claim(), &ClaimOutcome::Mismatch)
        .await;
    slot.pass(2).await;
    slot.begin(
        "after the holder's lease",
        &slot.claim(),
        &ClaimOutcome::Started { attempt: 2 },
    )
    .await;
}

pub(super) async fn a_record_lives_for_its_ttl_from_completion<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim().with_ttl(slot.units(1));
    let record = slot.response(b"for a while");
    slot.begin("the first claim", &claim, &FIRST).await;
    slot.pass(4).await;
    // The record is kept until 9, regardless of how long the operation ran or how often the record
    // is read.
    slot.complete("by the holder", claim.token, &record, slot.units(5), Held::Yes)
        .await;
    slot.pass(3).await;
    slot.begin("within the ttl", &slot.claim(), &ClaimOutcome::Done(record.clone()))
        .await;
    slot.begin(
        "another fingerprint, within the ttl",
        &slot.other_claim(),
        &ClaimOutcome::Mismatch,
    )
    .await;
    slot.begin("within the ttl, again", &slot.claim(), &ClaimOutcome::Done(record))
        .await;
    slot.pass(4).await;
    slot.begin("another fingerprint, after the ttl", &slot.other_claim(), &FIRST)
        .await;
}

pub(super) async fn nobody_holds_what_is_forgotten<H: Harness>(slot: Probe<'_, H>) {
    let dead = slot.claim_for(1).with_ttl(slot.units(1));
    let record = slot.response(b"too late");
    slot.begin("a claim that lapses", &dead, &FIRST).await;
    slot.pass(4).await;
    slot.renew("after lease and ttl", dead.token, slot.long, Held::Lost)
        .await;
    slot.complete("after lease and ttl", dead.token, &record, slot.long, Held::Lost)
        .await;
    slot.release("after lease and ttl", dead.token, Held::Lost).await;
    slot.begin("another fingerprint, after that", &slot.other_claim(), &FIRST)
        .await;
}
