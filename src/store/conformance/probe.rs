//! Calls the store under test, step by step, on a single slot.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::harness::Harness;
use crate::request::{Fingerprint, Slot};
use crate::store::{ClaimOutcome, ClaimRequest, Held, Record, Store, StoreError, Token};

/// The expected result `InFlight`. The remaining time is not compared.
pub(super) const IN_FLIGHT: ClaimOutcome = ClaimOutcome::InFlight {
    lease_left: Duration::ZERO,
};

pub(super) struct Probe<'a, H: Harness> {
    pub(super) harness: &'a H,
    rule: &'static str,
    pub(super) store: Arc<H::Store>,
    pub(super) slot: Slot,
    pub(super) fingerprint: Fingerprint,
    /// A duration that is longer than a run of the suite.
    pub(super) long: Duration,
}

impl<'a, H: Harness> Probe<'a, H> {
    pub(super) fn new(harness: &'a H, rule: &'static str) -> Self {
        Self {
            harness,
            rule,
            store: Arc::new(harness.store()),
            slot: random_slot(),
            fingerprint: random_fingerprint(),
            long: Duration::from_secs(3600).max(harness.unit() * 1000),
        }
    }

    /// Returns a probe for the same rule on a new slot, through a new handle.
    pub(super) fn elsewhere(&self) -> Self {
        Self::new(self.harness, self.rule)
    }

    /// Returns a probe for the same rule on the given slot.
    pub(super) fn at(&self, slot: Slot) -> Self {
        Self {
            harness: self.harness,
            rule: self.rule,
            store: Arc::clone(&self.store),
            slot,
            fingerprint: self.fingerprint,
            long: self.long,
        }
    }

    /// Returns a `begin` request for the slot, with a new token and a lease that does not lapse.
    pub(super) fn claim(&self) -> ClaimRequest {
        ClaimRequest::new(self.slot, self.fingerprint)
            .with_lease(self.long)
            .with_ttl(self.long)
    }

    /// Like [`claim`](Self::claim), but with a lease of the given number of units.
    pub(super) fn claim_for(&self, units: u32) -> ClaimRequest {
        self.claim().with_lease(self.units(units))
    }

    /// Like [`claim`](Self::claim), but with a different fingerprint from the same rule.
    pub(super) fn other_claim(&self) -> ClaimRequest {
        let [first, second, ..] = *self.fingerprint.as_bytes();
        self.claim_of([first, second])
    }

    /// Like [`claim`](Self::claim), but with a random fingerprint from a different rule. Every call
    /// uses the same rule.
    pub(super) fn claim_under_another_rule(&self) -> ClaimRequest {
        let [first, second, ..] = *self.fingerprint.as_bytes();
        self.claim_of([!first, second])
    }

    /// Like [`claim`](Self::claim), but with the given rule and a random digest.
    fn claim_of(&self, rule: [u8; 2]) -> ClaimRequest {
        let mut bytes = *random_fingerprint().as_bytes();
        bytes[..2].copy_from_slice(&rule);
        ClaimRequest {
            fingerprint: Fingerprint::from_bytes(bytes),
            ..self.claim()
        }
    }

    /// Returns a stored response with the slot's fingerprint.
    pub(super) fn response(&self, body: &[u8]) -> Record {
        response(self.fingerprint, body)
    }

    pub(super) fn units(&self, units: u32) -> Duration {
        self.harness.unit() * units
    }

    pub(super) async fn pass(&self, units: u32) {
        self.harness.pass(self.units(units)).await;
    }

    pub(super) async fn begin(&self, step: &str, begin: &ClaimRequest, expected: &ClaimOutcome) {
        let answer = self.store.begin(begin).await;
        self.expect_begun(&format!("begin, {step}"), answer, expected);
    }

    pub(super) async fn renew(&self, step: &str, token: Token, lease: Duration, expected: Held) {
        let answer = self.store.renew(&self.slot, token, lease).await;
        self.expect_held(&format!("renew, {step}"), answer, expected);
    }

    pub(super) async fn complete(&self, step: &str, token: Token, record: &Record, ttl: Duration, expected: Held) {
        let answer = self.store.complete(&self.slot, token, record, ttl).await;
        self.expect_held(&format!("complete, {step}"), answer, expected);
    }

    pub(super) async fn release(&self, step: &str, token: Token, expected: Held) {
        let answer = self.store.release(&self.slot, token).await;
        self.expect_held(&format!("release, {step}"), answer, expected);
    }

    pub(super) fn expect_begun(&self, step: &str, answer: Result<ClaimOutcome, StoreError>, expected: &ClaimOutcome) {
        let answer = self.answered(step, answer);
        if let (ClaimOutcome::Done(got), ClaimOutcome::Done(expected)) = (&answer, expected)
            && got != expected
        {
            let (got, expected) = (got.to_bytes(), expected.to_bytes());
            let at = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let (got, expected) = (got.len(), expected.len());
            self.broken(step, format_args!("the record came back changed: its stored form has {got} bytes instead of {expected}, and the first difference is at byte {at}"));
        }
        if !alike(&answer, expected) {
            self.broken(step, format_args!("expected {}, got {answer:?}", named(expected)));
        }
    }

    pub(super) fn expect_held(&self, step: &str, answer: Result<Held, StoreError>, expected: Held) {
        let answer = self.answered(step, answer);
        if answer != expected {
            self.broken(step, format_args!("expected {expected:?}, got {answer:?}"));
        }
    }

    pub(super) fn answered<T>(&self, step: &str, answer: Result<T, StoreError>) -> T {
        answer.unwrap_or_else(|error| {
            let kind = error.kind();
            self.broken(step, format_args!("the store failed ({kind:?}): {error}"))
        })
    }

    pub(super) fn broken(&self, step: &str, what: impl std::fmt::Display) -> ! {
        panic!(
            "store conformance: the rule `{}` is broken. {step}: {what}. (slot {})",
            self.rule, self.slot
        )
    }

    /// Runs the tasks at the same time, and returns their outputs in the tasks' order. Panics if a
    /// task panics.
    pub(super) async fn together<F>(&self, tasks: impl IntoIterator<Item = F>) -> Vec<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let mut set = JoinSet::new();
        let count = tasks
            .into_iter()
            .enumerate()
            .map(|(index, task)| set.spawn(async move { (index, task.await) }))
            .count();
        let mut outputs: Vec<_> = (0..count).map(|_| None).collect();
        while let Some(joined) = set.join_next().await {
            match joined {
                Ok((index, output)) => outputs[index] = Some(output),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => self.broken("a task of the suite", error),
                },
            }
        }
        outputs.into_iter().flatten().collect()
    }
}

/// Returns whether the results match. Two `InFlight` results match regardless of the lease's
/// remaining time.
pub(super) fn alike(answer: &ClaimOutcome, expected: &ClaimOutcome) -> bool {
    match (answer, expected) {
        (ClaimOutcome::InFlight { .. }, ClaimOutcome::InFlight { .. }) => true,
        _ => answer == expected,
    }
}

pub(super) fn named(expected: &ClaimOutcome) -> String {
    match expected {
        ClaimOutcome::InFlight { .. } => "InFlight".into(),
        _ => format!("{expected:?}"),
    }
}

pub(super) fn random_slot() -> Slot {
    let mut bytes = [0; Slot::LEN];
    let (first, second) = bytes.split_at_mut(Slot::LEN / 2);
    first.copy_from_slice(Uuid::new_v4().as_bytes());
    second.copy_from_slice(Uuid::new_v4().as_bytes());
    Slot::from_bytes(bytes)
}

fn random_fingerprint() -> Fingerprint {
    Fingerprint::from_bytes(Uuid::new_v4().into_bytes())
}

pub(super) fn random_token() -> Token {
    Token::random()
}

/// Returns a stored response with a header whose value is not text and must not be logged.
pub(super) fn response(fingerprint: Fingerprint, body: &[u8]) -> Record {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from_static(b"caf\xe9")) {
        value.set_sensitive(true);
        headers.insert("x-raw", value);
    }
    let body = Bytes::copy_from_slice(body);
    Record::response(fingerprint, StatusCode::CREATED, &headers, |_| false, &body, None)
}
