//! Checks of concurrent calls, and of calls that are dropped before they return.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::harness::Harness;
use super::probe::Probe;
use crate::store::Record;
use crate::store::Store;
use crate::store::{ClaimOutcome, ClaimRequest, Held};

/// The number of calls that try to claim one slot at the same time.
const CROWD: usize = 64;
/// The number of handles that the calls use.
const HANDLES: usize = 4;
/// The number of times that each race is run.
const RACES: usize = 4;

fn handles<H: Harness>(harness: &H) -> Vec<Arc<H::Store>> {
    (0..HANDLES).map(|_| Arc::new(harness.store())).collect()
}

pub(super) async fn one_of_many_begins_starts<H: Harness>(slot: Probe<'_, H>) {
    for _ in 0..RACES {
        crowd(&slot.elsewhere(), 1).await;
    }
}

pub(super) async fn one_of_many_takes_a_lapsed_claim_over<H: Harness>(slot: Probe<'_, H>) {
    let slots: Vec<_> = (0..RACES).map(|_| slot.elsewhere()).collect();
    for slot in &slots {
        slot.begin(
            "a claim that lapses",
            &slot.claim_for(1),
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
    }
    slot.pass(2).await;
    for slot in &slots {
        crowd(slot, 2).await;
    }
}

/// Checks that exactly one of many concurrent calls returns `Started` with the given attempt
/// number, and that all others return `InFlight`.
async fn crowd<H: Harness>(slot: &Probe<'_, H>, attempt: u32) {
    let handles = handles(slot.harness);
    let claims: Vec<ClaimRequest> = (0..CROWD).map(|_| slot.claim()).collect();
    let answers = slot
        .together(claims.iter().zip(handles.iter().cycle()).map(|(&claim, store)| {
            let store = Arc::clone(store);
            async move { store.begin(&claim).await }
        }))
        .await;
    let step = format!("begin, {CROWD} at the same time");
    let mut started = Vec::new();
    for (claim, answer) in claims.iter().zip(answers) {
        match slot.answered(&step, answer) {
            ClaimOutcome::Started { attempt: got } if got == attempt => started.push(claim.token),
            ClaimOutcome::InFlight { .. } => {}
            other => slot.broken(
                &step,
                format_args!("expected one call to start as attempt {attempt} and the others in flight, got {other:?}"),
            ),
        }
    }
    let [winner] = started[..] else {
        slot.broken(
            &step,
            format_args!(
                "{} calls started as attempt {attempt}, expected exactly 1",
                started.len()
            ),
        )
    };
    slot.renew("by the call that started", winner, slot.long, Held::Yes)
        .await;
    for loser in claims.iter().map(|claim| claim.token).filter(|&token| token != winner) {
        slot.release("by a call that did not start", loser, Held::Lost).await;
    }
}

pub(super) async fn one_of_many_completes_counts<H: Harness>(slot: Probe<'_, H>) {
    for _ in 0..RACES {
        let slot = slot.elsewhere();
        let handles = handles(slot.harness);
        let claim = slot.claim();
        slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
            .await;
        let records: Vec<Record> = (0..16).map(|n| slot.response(&[n; 100])).collect();
        let answers = slot
            .together(records.iter().zip(handles.iter().cycle()).map(|(record, store)| {
                let (store, record, ClaimRequest { slot, token, ttl, .. }) = (Arc::clone(store), record.clone(), claim);
                async move { store.complete(&slot, token, &record, ttl).await }
            }))
            .await;
        let step = "complete, 16 times at the same time";
        let kept: Vec<&Record> = records
            .iter()
            .zip(answers)
            .filter_map(|(record, answer)| (slot.answered(step, answer) == Held::Yes).then_some(record))
            .collect();
        let [kept] = kept[..] else {
            slot.broken(
                step,
                format_args!("{} calls returned Yes, expected exactly 1", kept.len()),
            )
        };
        slot.begin(
            "after the call that returned Yes",
            &slot.claim(),
            &ClaimOutcome::Done(kept.clone()),
        )
        .await;
    }
}

pub(super) async fn the_present_holder_wins_against_the_fenced_one<H: Harness>(slot: Probe<'_, H>) {
    let slots: Vec<_> = (0..RACES).map(|_| slot.elsewhere()).collect();
    let former: Vec<_> = slots.iter().map(|slot| slot.claim_for(1)).collect();
    for (slot, claim) in slots.iter().zip(&former) {
        slot.begin("a claim that lapses", claim, &ClaimOutcome::Started { attempt: 1 })
            .await;
    }
    slot.pass(2).await;
    for (slot, former) in slots.iter().zip(former) {
        let present = slot.claim();
        slot.begin("taking it over", &present, &ClaimOutcome::Started { attempt: 2 })
            .await;
        let (late, record) = (slot.response(b"the former holder's"), slot.response(b"the present's"));
        let handles = handles(slot.harness);
        let answers = slot
            .together((0..16).zip(handles.iter().cycle()).map(|(n, store)| {
                let (store, slot, long) = (Arc::clone(store), slot.slot, slot.long);
                let (late, record) = (late.clone(), record.clone());
                async move {
                    match n % 4 {
                        _ if n == 7 => store.complete(&slot, present.token, &record, long).await,
                        0 => store.renew(&slot, former.token, long).await,
                        1 => store.release(&slot, former.token).await,
                        _ => store.complete(&slot, former.token, &late, long).await,
                    }
                }
            }))
            .await;
        for (n, answer) in answers.into_iter().enumerate() {
            let (who, expected) = match n {
                7 => ("the present holder, during the former holder's calls", Held::Yes),
                _ => ("the former holder, while the present holder completes", Held::Lost),
            };
            slot.expect_held(who, answer, expected);
        }
        slot.begin("after both holders' calls", &slot.claim(), &ClaimOutcome::Done(record))
            .await;
    }
}

/// How many times a call is polled before it is dropped.
const POLLS: std::ops::Range<u32> = 0..6;

/// Polls a future up to the given number of times. If the future is still not ready, drops it and
/// returns `None`.
async fn polled<F: Future>(future: F, mut times: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        match future.as_mut().poll(cx) {
            Poll::Pending if times == 0 => Poll::Ready(None),
            poll => poll.map(Some),
        }
    })
    .await
}

pub(super) async fn a_dropped_begin_can_be_given_back<H: Harness>(slot: Probe<'_, H>) {
    let dropped: Vec<_> = POLLS.map(|times| (times, slot.elsewhere())).collect();
    let mut claims = Vec::new();
    for (times, slot) in &dropped {
        let claim = slot.claim();
        claims.push(claim);
        if let Some(answer) = polled(slot.store.begin(&claim), *times).await {
            slot.expect_begun("begin, not dropped", answer, &ClaimOutcome::Started { attempt: 1 });
        }
    }
    // A request that was sent may not have reached the store yet.
    slot.pass(1).await;
    for ((times, slot), claim) in dropped.iter().zip(claims) {
        let step = format!("after a begin that was dropped when polled {times} times");
        let found = slot.store.release(&slot.slot, claim.token).await;
        slot.answered(&format!("release, {step}"), found);
        slot.begin(
            &format!("{step} and given back under its token"),
            &slot.claim(),
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
    }
}

pub(super) async fn a_dropped_complete_is_done_or_not<H: Harness>(slot: Probe<'_, H>) {
    let dropped: Vec<_> = POLLS.map(|times| (times, slot.elsewhere())).collect();
    let mut claims = Vec::new();
    for (times, slot) in &dropped {
        let claim = slot.claim();
        slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
            .await;
        let record = slot.response(b"perhaps");
        let complete = slot.store.complete(&slot.slot, claim.token, &record, slot.long);
        if let Some(answer) = polled(complete, *times).await {
            slot.expect_held("complete, not dropped", answer, Held::Yes);
        }
        claims.push(claim);
    }
    slot.pass(1).await;
    for ((times, slot), claim) in dropped.iter().zip(claims) {
        let step = format!("begin, after a complete that was dropped when polled {times} times");
        let record = slot.response(b"perhaps");
        match slot.answered(&step, slot.store.begin(&slot.claim()).await) {
            ClaimOutcome::InFlight { .. } => {
                slot.begin(
                    "the holder's begin, repeated",
                    &claim,
                    &ClaimOutcome::Started { attempt: 1 },
                )
                .await;
                slot.complete("repeated by the holder", claim.token, &record, slot.long, Held::Yes)
                    .await;
                slot.begin("a duplicate, after that", &slot.claim(), &ClaimOutcome::Done(record))
                    .await;
            }
            answer @ ClaimOutcome::Done(_) => slot.expect_begun(&step, Ok(answer), &ClaimOutcome::Done(record)),
            other => slot.broken(&step, format_args!("expected InFlight or Done, got {other:?}")),
        }
        slot.begin("another fingerprint", &slot.other_claim(), &ClaimOutcome::Mismatch)
            .await;
    }
}
