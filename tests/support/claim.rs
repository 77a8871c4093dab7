//! Slots, fingerprints, and the requests for [`Store::begin`](tower_idempotency::Store::begin).

use std::time::Duration;

use tower_idempotency::Fingerprint;
use tower_idempotency::store::{ClaimRequest, OnLapse, ScopeTag, Slot, Token};

/// How long a [`claim`] lasts, and how long its outcome is kept: longer than any test.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// The fingerprint of a [`claim`].
pub(crate) const PRINT: Fingerprint = print(0xAB);

/// A fingerprint of the same rule as [`PRINT`]. Its digest is different for each byte except
/// `0xAB`.
pub(crate) const fn print(byte: u8) -> Fingerprint {
    print_under(0xAB, byte)
}

/// A fingerprint of a different rule than [`PRINT`], as after a deployment that changed the rule.
pub(crate) const fn print_under_another_rule(byte: u8) -> Fingerprint {
    print_under(0xCD, byte)
}

const fn print_under(rule: u8, byte: u8) -> Fingerprint {
    let mut bytes = [byte; Fingerprint::LEN];
    bytes[0] = rule;
    bytes[1] = rule;
    Fingerprint::from_bytes(bytes)
}

/// Returns a slot for each number. The slots are spread as digests are.
pub(crate) fn slot(number: u64) -> Slot {
    let mut bytes = [0; Slot::LEN];
    bytes[..8].copy_from_slice(&mix(number).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    Slot::from_bytes(bytes)
}

/// Returns a different number for each number, as good as random.
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}

/// The place of a claim: a slot, or the [`slot`] of a number.
pub(crate) trait Place {
    fn slot(self) -> Slot;
}

impl Place for Slot {
    fn slot(self) -> Slot {
        self
    }
}

impl Place for u64 {
    fn slot(self) -> Slot {
        slot(self)
    }
}

/// Returns a claim with a token of its own, for [`PRINT`] and [`HOUR`]s. [`Claim`] changes what a
/// test cares about.
pub(crate) fn claim(at: impl Place) -> ClaimRequest {
    ClaimRequest::new(at.slot(), PRINT).with_lease(HOUR).with_ttl(HOUR)
}

/// Changes a [`claim`], one thing at a time.
pub(crate) trait Claim {
    fn token(self, token: u64) -> Self;
    fn print(self, fingerprint: Fingerprint) -> Self;
    fn scope(self, scope: u32) -> Self;
    fn lease(self, lease: Duration) -> Self;
    fn ttl(self, ttl: Duration) -> Self;
    fn on_lapse(self, on_lapse: OnLapse) -> Self;
}

impl Claim for ClaimRequest {
    fn token(mut self, token: u64) -> Self {
        self.token = Token(token);
        self
    }

    fn print(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    fn scope(mut self, scope: u32) -> Self {
        let mut tag = [0; ScopeTag::LEN];
        tag[..4].copy_from_slice(&scope.to_le_bytes());
        self.scope = ScopeTag::from_bytes(tag);
        self
    }

    fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self
    }
}
