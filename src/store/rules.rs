//! A slot's state and all of its transitions. The transitions are pure functions that take the
//! current time as an argument.
//!
//! This module is the only definition of the rules. The memory store uses this code directly, and
//! every other store is checked against it through [`Machine`].

use std::time::Duration;

use super::claim::{ClaimOutcome, ClaimRequest, Held, Millis, OnLapse, Token};
use super::record::Record;
use crate::request::Fingerprint;

/// The content of a slot that is not vacant. `X` is the type of the extra data that a store
/// attaches to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Occupant<X = ()> {
    Running(Box<Running<X>>),
    Done { record: Record, expires_at: Millis },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Running<X> {
    pub(crate) token: Token,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: u32,
    pub(crate) lease_until: Millis,
    /// How long the store remembers the claim after it lapses.
    pub(crate) memory: Duration,
    pub(crate) extra: X,
}

impl<X> Running<X> {
    fn claim(begin: &ClaimRequest, attempt: u32, now: Millis, extra: X) -> Self {
        Self {
            token: begin.token,
            fingerprint: begin.fingerprint,
            attempt,
            lease_until: now.after(begin.lease),
            memory: begin.ttl,
            extra,
        }
    }
}

impl<X> Occupant<X> {
    pub(crate) fn claim(begin: &ClaimRequest, attempt: u32, now: Millis, extra: X) -> Self {
        Self::Running(Box::new(Running::claim(begin, attempt, now, extra)))
    }

    /// Returns the time at which the slot becomes vacant again, unless its state changes before
    /// then.
    pub(crate) fn forgotten_at(&self) -> Millis {
        match self {
            Self::Running(running) => running.lease_until.after(running.memory),
            Self::Done { expires_at, .. } => *expires_at,
        }
    }

    pub(crate) fn is_forgotten(&self, now: Millis) -> bool {
        self.forgotten_at() <= now
    }

    /// Decides the outcome of a call to `begin`, and takes over a lapsed claim. Returns `None` if
    /// the slot is vacant. The caller must then claim the slot.
    pub(crate) fn begin(&mut self, begin: &ClaimRequest, now: Millis) -> Option<ClaimOutcome> {
        if self.is_forgotten(now) {
            return None;
        }
        let running = match self {
            Self::Done { record, .. } if record.fingerprint().conflicts_with(&begin.fingerprint) => {
                return Some(ClaimOutcome::Mismatch);
            }
            Self::Done { record, .. } => return Some(ClaimOutcome::Done(record.clone())),
            Self::Running(running) => running,
        };
        Some(if running.token == begin.token {
            // This call repeats an earlier call to `begin` whose result was lost.
            ClaimOutcome::Started {
                attempt: running.attempt,
            }
        } else if running.fingerprint.conflicts_with(&begin.fingerprint) {
            ClaimOutcome::Mismatch
        } else if now < running.lease_until {
            ClaimOutcome::InFlight {
                lease_left: now.until(running.lease_until),
            }
        } else if begin.on_lapse == OnLapse::Refuse {
            ClaimOutcome::OutcomeUnknown
        } else {
            let attempt = running.attempt.saturating_add(1);
            running.token = begin.token;
            // The new fingerprint may be from a different rule, which later requests also use.
            running.fingerprint = begin.fingerprint;
            running.attempt = attempt;
            running.lease_until = now.after(begin.lease);
            running.memory = begin.ttl;
            ClaimOutcome::Started { attempt }
        })
    }

    /// Returns the claim if it is still held under the given token. A lapsed claim stays held until
    /// a new claim takes over.
    pub(crate) fn held_by(&mut self, token: Token, now: Millis) -> Option<&mut Running<X>> {
        if self.is_forgotten(now) {
            return None;
        }
        match self {
            Self::Running(running) if running.token == token => Some(running),
            _ => None,
        }
    }
}

/// The reference model of a slot, against which stores are checked.
///
/// ```
/// use tower_idempotency::store::{ClaimRequest, ClaimOutcome, Held, Machine, Millis, Record, Token};
/// use tower_idempotency::{Fingerprint, Slot};
///
/// let begin = ClaimRequest::new(Slot::from_bytes([0; 32]), Fingerprint::from_bytes([0; 16])).with_token(Token(1));
/// let mut slot = Machine::default();
/// assert_eq!(slot.begin(&begin, Millis(0)), ClaimOutcome::started(1));
///
/// // The holder dies. When its lease expires, a second holder takes over and fences off the first.
/// let second = begin.with_token(Token(2));
/// assert!(matches!(slot.begin(&second, Millis(29_999)), ClaimOutcome::InFlight { .. }));
/// assert_eq!(slot.begin(&second, Millis(30_000)), ClaimOutcome::started(2));
/// let record = Record::outcome_unknown(begin.fingerprint);
/// assert_eq!(slot.complete(Token(1), &record, begin.ttl, Millis(30_001)), Held::Lost);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    occupant: Option<Occupant>,
}

impl Machine {
    /// Claims the slot, or returns the reason why it cannot be claimed.
    pub fn begin(&mut self, begin: &ClaimRequest, now: Millis) -> ClaimOutcome {
        if let Some(begun) = self.occupant.as_mut().and_then(|occupant| occupant.begin(begin, now)) {
            return begun;
        }
        self.occupant = Some(Occupant::claim(begin, 1, now, ()));
        ClaimOutcome::Started { attempt: 1 }
    }

    /// Sets the lease to expire `lease` from now.
    pub fn renew(&mut self, token: Token, lease: Duration, now: Millis) -> Held {
        match self.occupant.as_mut().and_then(|occupant| occupant.held_by(token, now)) {
            Some(running) => {
                running.lease_until = now.after(lease);
                Held::Yes
            }
            None => Held::Lost,
        }
    }

    /// Ends the claim and stores its outcome for `ttl` from now.
    pub fn complete(&mut self, token: Token, record: &Record, ttl: Duration, now: Millis) -> Held {
        match self.occupant.as_mut().and_then(|occupant| occupant.held_by(token, now)) {
            Some(_) => {
                self.occupant = Some(Occupant::Done {
                    record: record.clone(),
                    expires_at: now.after(ttl),
                });
                Held::Yes
            }
            None => Held::Lost,
        }
    }

    /// Ends the claim and frees the slot.
    pub fn release(&mut self, token: Token, now: Millis) -> Held {
        match self.occupant.as_mut().and_then(|occupant| occupant.held_by(token, now)) {
            Some(_) => {
                self.occupant = None;
                Held::Yes
            }
            None => Held::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Slot;

    const LEASE: Duration = Duration::from_millis(100);
    const TTL: Duration = Duration::from_millis(1000);
    const RULE: u8 = 1;
    const OTHER_RULE: u8 = 2;

    fn begin(token: u64, print: u8) -> ClaimRequest {
        ClaimRequest::new(Slot::from_bytes([0; 32]), fingerprint(RULE, print))
            .with_token(Token(token))
            .with_lease(LEASE)
            .with_ttl(TTL)
    }

    /// Like [`begin`], but after a deployment that changed the rule.
    fn under_another_rule(token: u64, print: u8) -> ClaimRequest {
        ClaimRequest {
            fingerprint: fingerprint(OTHER_RULE, print),
            ..begin(token, print)
        }
    }

    fn fingerprint(rule: u8, print: u8) -> Fingerprint {
        let mut bytes = [print; Fingerprint::LEN];
        bytes[..2].copy_from_slice(&[0, rule]);
        Fingerprint::from_bytes(bytes)
    }

    fn record(print: u8) -> Record {
        Record::outcome_unknown(fingerprint(RULE, print))
    }

    const fn at(millis: u64) -> Millis {
        Millis(millis)
    }

    fn in_flight(left: u64) -> ClaimOutcome {
        ClaimOutcome::InFlight {
            lease_left: Duration::from_millis(left),
        }
    }

    #[test]
    fn contract_5_3_and_5_4_a_running_claim() {
        let mut slot = Machine::default();
        assert_eq!(slot.begin(&begin(1, 7), at(0)), ClaimOutcome::Started { attempt: 1 });
        assert_eq!(slot.begin(&begin(2, 7), at(99)), in_flight(1));
        assert_eq!(slot.begin(&begin(2, 8), at(99)), ClaimOutcome::Mismatch);
        assert_eq!(
            slot.begin(&begin(1, 7), at(50)),
            ClaimOutcome::Started { attempt: 1 },
            "the same begin again"
        );
        assert_eq!(slot.renew(Token(1), LEASE, at(90)), Held::Yes);
        assert_eq!(slot.begin(&begin(2, 7), at(189)), in_flight(1));
        assert_eq!(slot.renew(Token(2), LEASE, at(90)), Held::Lost);
        assert_eq!(slot.release(Token(2), at(90)), Held::Lost);
    }

    #[test]
    fn contract_4_6_a_lapsed_claim() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        assert_eq!(
            slot.begin(&begin(2, 8), at(100)),
            ClaimOutcome::Mismatch,
            "another fingerprint is still refused"
        );
        let refuse = begin(2, 7).with_on_lapse(OnLapse::Refuse);
        assert_eq!(slot.begin(&refuse, at(100)), ClaimOutcome::OutcomeUnknown);
        assert_eq!(slot.begin(&begin(2, 7), at(100)), ClaimOutcome::Started { attempt: 2 });
        assert_eq!(slot.complete(Token(1), &record(7), TTL, at(101)), Held::Lost);
        assert_eq!(slot.renew(Token(1), LEASE, at(101)), Held::Lost);
        assert_eq!(slot.renew(Token(2), Duration::ZERO, at(102)), Held::Yes, "given back");
        assert_eq!(
            slot.begin(&begin(3, 8), at(103)),
            ClaimOutcome::Mismatch,
            "and remembered"
        );
        assert_eq!(slot.begin(&begin(3, 7), at(103)), ClaimOutcome::Started { attempt: 3 });
        assert_eq!(slot.release(Token(3), at(104)), Held::Yes);
        assert_eq!(
            slot.begin(&begin(4, 8), at(105)),
            ClaimOutcome::Started { attempt: 1 },
            "freed: any fingerprint, attempt 1"
        );
    }

    #[test]
    fn contract_5_9_a_claim_of_another_rule_is_in_flight_and_its_record_is_replayed() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        for print in [7, 8] {
            assert_eq!(slot.begin(&under_another_rule(2, print), at(50)), in_flight(50));
        }
        slot.complete(Token(1), &record(7), TTL, at(60));
        for print in [7, 8] {
            assert_eq!(
                slot.begin(&under_another_rule(2, print), at(61)),
                ClaimOutcome::Done(record(7))
            );
        }
        assert_eq!(
            slot.begin(&begin(2, 8), at(62)),
            ClaimOutcome::Mismatch,
            "the same rule"
        );
    }

    #[test]
    fn contract_5_9_a_lapsed_claim_of_another_rule_is_taken_over_with_the_new_fingerprint() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        let refuse = under_another_rule(2, 7).with_on_lapse(OnLapse::Refuse);
        assert_eq!(slot.begin(&refuse, at(100)), ClaimOutcome::OutcomeUnknown);
        assert_eq!(slot.begin(&under_another_rule(2, 7), at(100)), ClaimOutcome::started(2));
        assert_eq!(slot.begin(&under_another_rule(3, 8), at(101)), ClaimOutcome::Mismatch);
        assert_eq!(slot.begin(&begin(3, 8), at(101)), in_flight(99), "the former rule");
        assert_eq!(
            slot.begin(&under_another_rule(2, 7), at(102)),
            ClaimOutcome::started(2),
            "the same begin again"
        );
        assert_eq!(slot.complete(Token(1), &record(7), TTL, at(103)), Held::Lost);
    }

    #[test]
    fn a_lapsed_claim_that_nobody_took_over_can_still_complete() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        assert_eq!(slot.renew(Token(1), LEASE, at(500)), Held::Yes);
        assert_eq!(slot.complete(Token(1), &record(7), TTL, at(900)), Held::Yes);
        assert_eq!(slot.begin(&begin(2, 7), at(901)), ClaimOutcome::Done(record(7)));
    }

    #[test]
    fn a_lapsed_claim_is_forgotten_when_its_memory_ends() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        assert_eq!(slot.begin(&begin(2, 8), at(1099)), ClaimOutcome::Mismatch);
        assert_eq!(slot.renew(Token(1), LEASE, at(1100)), Held::Lost);
        assert_eq!(slot.begin(&begin(2, 8), at(1100)), ClaimOutcome::Started { attempt: 1 });
    }

    #[test]
    fn contract_5_5_a_record_lives_for_its_ttl_from_completion() {
        let mut slot = Machine::default();
        slot.begin(&begin(1, 7), at(0));
        assert_eq!(slot.complete(Token(1), &record(7), TTL, at(50)), Held::Yes);
        assert_eq!(
            slot.complete(Token(1), &record(7), TTL, at(51)),
            Held::Lost,
            "it has ended"
        );
        assert_eq!(slot.begin(&begin(2, 7), at(1049)), ClaimOutcome::Done(record(7)));
        assert_eq!(slot.begin(&begin(2, 8), at(1049)), ClaimOutcome::Mismatch);
        assert_eq!(slot.begin(&begin(2, 8), at(1050)), ClaimOutcome::Started { attempt: 1 });
    }

    #[test]
    fn durations_round_up_and_saturate() {
        assert_eq!(at(1).after(Duration::from_nanos(1)), at(2));
        assert_eq!(at(1).after(Duration::MAX), at(u64::MAX));
        assert_eq!(at(u64::MAX).after(LEASE), at(u64::MAX));
    }
}
