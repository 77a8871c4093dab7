//! Checks of inspecting a store and settling operations manually.

use std::time::Duration;

use bytes::Bytes;
use http::Response;

use super::harness::Harness;
use super::probe::{IN_FLIGHT, Probe, random_token};
use crate::store::{ClaimOutcome, Held, OnLapse};
use crate::store::{Entry, Inspect, Phase, ScopeTag, StoreError};

impl<H: Harness<Store: Inspect>> Probe<'_, H> {
    async fn look_up(&self, step: &str) -> Option<Entry> {
        let answer = self.store.look_up(&self.slot).await;
        self.answered(&format!("look_up, {step}"), answer)
    }

    async fn forget(&self, step: &str, expected: bool) {
        let answer = self.store.forget(&self.slot).await;
        self.expect_bool(&format!("forget, {step}"), answer, expected);
    }

    fn expect_bool(&self, step: &str, answer: Result<bool, StoreError>, expected: bool) {
        let answer = self.answered(step, answer);
        if answer != expected {
            self.broken(step, format_args!("expected {expected}, got {answer}"));
        }
    }
}

pub(super) async fn look_up_tells_how_far_an_operation_is<H: Harness<Store: Inspect>>(probe: Probe<'_, H>) {
    if let Some(entry) = probe.look_up("of a vacant slot").await {
        probe.broken(
            "look_up, of a vacant slot",
            format_args!("expected None, got {entry:?}"),
        );
    }
    let claim = probe.claim();
    probe
        .begin("of a vacant slot", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let alike = |entry: Option<Entry>, right: fn(Phase, Duration) -> bool, long: Duration| {
        entry.is_some_and(|entry| entry.fingerprint == claim.fingerprint && right(entry.phase, long))
    };
    let step = "look_up, of a claim";
    let entry = probe.look_up("of a claim").await;
    let running = |phase, long| matches!(phase, Phase::Running { attempt: 1, lease_left } if !lease_left.is_zero() && lease_left <= long);
    if !alike(entry, running, probe.long) {
        probe.broken(step, format_args!("expected attempt 1 and a lease, got {entry:?}"));
    }
    probe.renew("to zero", claim.token, Duration::ZERO, Held::Yes).await;
    let step = "look_up, of a lapsed claim";
    let entry = probe.look_up("of a lapsed claim").await;
    let lapsed = |phase, _| matches!(phase, Phase::Running { attempt: 1, lease_left } if lease_left.is_zero());
    if !alike(entry, lapsed, probe.long) || entry.is_some_and(|entry| entry.forgotten_in > probe.long) {
        probe.broken(step, format_args!("expected attempt 1 without a lease, got {entry:?}"));
    }
    let second = claim.with_token(random_token());
    probe
        .begin("taking it over", &second, &ClaimOutcome::Started { attempt: 2 })
        .await;
    let record = probe.response(b"a body of 24 bytes, about");
    probe
        .complete("by its holder", second.token, &record, probe.long, Held::Yes)
        .await;
    let step = "look_up, of a record";
    let entry = probe.look_up("of a record").await;
    // The reported size may include bytes that the store adds to the record.
    let done = |phase, _| matches!(phase, Phase::Done { bytes } if bytes >= 24);
    if !alike(entry, done, probe.long) || entry.is_some_and(|entry| entry.forgotten_in > probe.long) {
        probe.broken(
            step,
            format_args!("expected a record of 24 bytes or more, got {entry:?}"),
        );
    }
}

pub(super) async fn forget_empties_the_slot<H: Harness<Store: Inspect>>(probe: Probe<'_, H>) {
    probe.forget("of a vacant slot", false).await;
    let claim = probe.claim();
    probe
        .begin("of a vacant slot", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    probe.forget("of a claim", true).await;
    let record = probe.response(b"late");
    probe
        .complete("by the forgotten holder", claim.token, &record, probe.long, Held::Lost)
        .await;
    let other = probe.other_claim();
    probe
        .begin(
            "with another fingerprint",
            &other,
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
    let record = super::probe::response(other.fingerprint, b"kept");
    probe
        .complete("by its holder", other.token, &record, probe.long, Held::Yes)
        .await;
    probe.forget("of a record", true).await;
    probe.forget("of a slot that was forgotten", false).await;
    probe
        .begin(
            "of a slot that was forgotten",
            &probe.claim(),
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
}

pub(super) async fn forget_scope_forgets_what_is_finished_in_one_scope<H: Harness<Store: Inspect>>(
    probe: Probe<'_, H>,
) {
    let [mine, others] = [(); 2].map(|()| ScopeTag::from_bytes(*uuid::Uuid::new_v4().as_bytes()));
    let forget = async |step: &str, expected: u64| {
        let forgotten = probe.answered(step, probe.store.forget_scope(&mine).await);
        if forgotten != expected {
            probe.broken(step, format_args!("expected {expected}, got {forgotten}"));
        }
    };
    forget("forget_scope, of a scope without operations", 0).await;
    let (running, lapsed, theirs) = (probe.elsewhere(), probe.elsewhere(), probe.elsewhere());
    let begin = async |at: &Probe<'_, H>, scope: ScopeTag| {
        let claim = at.claim().with_scope(scope);
        at.begin("of a vacant slot", &claim, &ClaimOutcome::Started { attempt: 1 })
            .await;
        claim
    };
    let mut records = Vec::new();
    for (at, scope) in [(&probe, mine), (&probe.elsewhere(), mine), (&theirs, others)] {
        let claim = begin(at, scope).await;
        let record = at.response(b"done");
        at.complete("by its holder", claim.token, &record, at.long, Held::Yes)
            .await;
        records.push(record);
    }
    let held = begin(&running, mine).await;
    let left = begin(&lapsed, mine).await;
    lapsed.renew("to zero", left.token, Duration::ZERO, Held::Yes).await;
    forget("forget_scope, of two records, a claim and a lapsed claim", 2).await;
    forget("forget_scope, a second time", 0).await;
    let other = probe.other_claim().with_scope(mine);
    probe
        .begin(
            "of a slot that was forgotten, with another fingerprint",
            &other,
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
    let done = ClaimOutcome::Done(records.swap_remove(2));
    theirs.begin("of another scope's record", &theirs.claim(), &done).await;
    running.begin("of the claim", &running.claim(), &IN_FLIGHT).await;
    let record = running.response(b"late");
    running
        .complete("by the claim's holder", held.token, &record, running.long, Held::Yes)
        .await;
    // A takeover, for example to settle the operation manually, does not change the scope.
    let second = lapsed.claim();
    lapsed
        .begin("of the lapsed claim", &second, &ClaimOutcome::Started { attempt: 2 })
        .await;
    let record = lapsed.response(b"settled");
    lapsed
        .complete("by the second holder", second.token, &record, lapsed.long, Held::Yes)
        .await;
    forget(
        "forget_scope, of operations that were claimed before and are finished now",
        2,
    )
    .await;
}

pub(super) async fn count_counts<H: Harness<Store: Inspect>>(probe: Probe<'_, H>) {
    let (lapsed, done) = (probe.elsewhere(), probe.elsewhere());
    probe
        .begin(
            "a claim that runs",
            &probe.claim(),
            &ClaimOutcome::Started { attempt: 1 },
        )
        .await;
    let claim = lapsed.claim();
    lapsed
        .begin("a claim that lapses", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    lapsed.renew("to zero", claim.token, Duration::ZERO, Held::Yes).await;
    let claim = done.claim();
    done.begin("a claim that ends", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let record = done.response(b"");
    done.complete("by its holder", claim.token, &record, done.long, Held::Yes)
        .await;
    let census = probe.answered("count", probe.store.count().await);
    // Other checks may use the store at the same time.
    if census.running == 0 || census.lapsed == 0 || census.done == 0 {
        probe.broken("count", format_args!("expected at least one of each, got {census:?}"));
    }
}

pub(super) async fn settle_ends_a_lapsed_claim_and_nothing_else<H: Harness<Store: Inspect>>(probe: Probe<'_, H>) {
    let answer = Response::new(Bytes::from_static(b"settled"));
    let settled = probe.store.settle(&probe.slot, &answer, probe.long).await;
    probe.expect_bool("settle, of a vacant slot", settled, false);
    let claim = probe.claim();
    probe
        .begin("of a vacant slot", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let settled = probe.store.settle(&probe.slot, &answer, probe.long).await;
    probe.expect_bool("settle, of a claim that is held", settled, false);
    let duplicate = claim.with_token(random_token()).with_on_lapse(OnLapse::Refuse);
    probe.begin("a duplicate, after that", &duplicate, &IN_FLIGHT).await;
    probe.renew("to zero", claim.token, Duration::ZERO, Held::Yes).await;
    probe
        .begin(
            "a duplicate of the lapsed claim",
            &duplicate,
            &ClaimOutcome::OutcomeUnknown,
        )
        .await;
    let settled = probe.store.settle(&probe.slot, &answer, probe.long).await;
    probe.expect_bool("settle, of a lapsed claim", settled, true);
    let record = crate::store::Record::of_response(claim.fingerprint, &answer);
    probe
        .begin(
            "a duplicate, after that",
            &duplicate,
            &ClaimOutcome::Done(record.clone()),
        )
        .await;
    probe
        .complete("by the former holder", claim.token, &record, probe.long, Held::Lost)
        .await;
    let settled = probe.store.settle(&probe.slot, &answer, probe.long).await;
    probe.expect_bool("settle, of an operation that is settled", settled, false);
}
