//! The information that a handler receives about the operation that it runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::key::KeyText;
use super::slot::Slot;
use crate::digest::Digest;

/// The idempotency key of the request that a handler processes, and the number of the attempt.
///
/// The layer puts this value into the request's extensions whenever it runs a handler for a request
/// with a key. In Axum, this type is an extractor. Use `IdempotencyKey` if the handler needs a key,
/// and `Option<IdempotencyKey>` if requests without a key pass through.
///
/// ```
/// use tower_idempotency::IdempotencyKey;
///
/// async fn charge(operation: IdempotencyKey) -> String {
///     // The payment provider accepts idempotency keys; send it the same one for each attempt.
///     let downstream = operation.derive("charge");
///     if operation.attempt() > 1 {
///         // An earlier attempt died with its process, or was reopened; find out how far it got.
///     }
///     downstream.to_string()
/// }
/// # let _ = charge;
/// ```
#[derive(Clone)]
pub struct IdempotencyKey {
    key: KeyText,
    slot: Slot,
    attempt: u32,
    claims: Claims,
}

/// The claims under which a request runs: the claim of the innermost idempotency layer, followed by
/// the claims of the layers around it. Tokens are plain numbers here, because the store modules are
/// on a floor above this module, which therefore cannot import them.
#[derive(Clone, Default)]
pub(crate) struct Claims {
    /// The token and the lease of the claim.
    claim: Option<(u64, Duration)>,
    outer: Option<Arc<(Slot, Claims)>>,
}

/// Two keys are equal if they name the same attempt of the same operation.
impl PartialEq for IdempotencyKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, self.slot, self.attempt) == (&other.key, other.slot, other.attempt)
    }
}

impl Eq for IdempotencyKey {}

impl IdempotencyKey {
    pub(crate) fn new(key: KeyText, slot: Slot, attempt: u32) -> Self {
        Self {
            key,
            slot,
            attempt,
            claims: Claims::default(),
        }
    }

    /// Adds the claim under which the request runs.
    pub(crate) fn claimed(mut self, token: u64, lease: Duration) -> Self {
        self.claims.claim = Some((token, lease));
        self
    }

    /// Returns whether a layer has a claim for the request. If not, the request runs unprotected.
    #[cfg_attr(
        not(all(feature = "axum", any(feature = "postgres", feature = "_sqlite"))),
        allow(dead_code, reason = "used only to explain a missing transaction")
    )]
    pub(crate) fn is_claimed(&self) -> bool {
        self.claims.claim.is_some()
    }

    /// Whether an outer layer had inserted a key into the request.
    pub(crate) fn is_inside_another_layer(&self) -> bool {
        self.claims.outer.is_some()
    }

    /// Sets the key that an outer layer inserted into the request.
    pub(crate) fn set_outer(&mut self, outer: Self) {
        self.claims.outer = Some(Arc::new((outer.slot, outer.claims)));
    }

    /// Returns the tokens and leases of the claims that this layer and the layers around it have on
    /// the given slot, each in its own store.
    pub(crate) fn claims_for(&self, slot: &Slot) -> impl Iterator<Item = (u64, Duration)> {
        let claims = std::iter::successors(Some((&self.slot, &self.claims)), |(_, claims)| {
            claims.outer.as_deref().map(|(slot, claims)| (slot, claims))
        });
        claims
            .filter(move |(held, _)| *held == slot)
            .filter_map(|(_, claims)| claims.claim)
    }

    /// Creates a key to pass to a handler in a test. The slot is derived from the key alone.
    ///
    /// ```
    /// use tower_idempotency::IdempotencyKey;
    ///
    /// let second = IdempotencyKey::for_tests("order-17", 2);
    /// assert_eq!((second.as_str(), second.attempt()), ("order-17", 2));
    /// ```
    #[must_use]
    pub fn for_tests(key: &str, attempt: u32) -> Self {
        let mut digest = Digest::new(b"ti.tests");
        digest.field(1, key.as_bytes());
        Self::new(key.into(), Slot::from_bytes(digest.finish()), attempt)
    }

    /// The key itself, without quotes or parameters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.key.as_str()
    }

    /// The number of this attempt: 1 for the first attempt, and one more for each takeover of a
    /// lapsed or reopened claim.
    ///
    /// If the number is 2 or more, the outcome of an earlier attempt is uncertain: its process
    /// died, or its outcome was [reopened](crate::Verdict::Reopen). If the process was only frozen,
    /// that attempt may still be running. After an attempt that released the key, the next attempt
    /// is number 1 again.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The operation's name in the store: a digest of the scope and the key.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Derives a UUID (version 8, RFC 9562) for a provider that accepts idempotency keys. The UUID
    /// is the same for each attempt of this operation, and different for each label, scope and key.
    ///
    /// ```
    /// # use tower_idempotency::IdempotencyKey;
    /// # fn example(operation: IdempotencyKey) {
    /// assert_eq!(operation.derive("charge"), operation.derive("charge"));
    /// assert_ne!(operation.derive("charge"), operation.derive("receipt"));
    /// # }
    /// ```
    #[must_use]
    pub fn derive(&self, label: &str) -> Uuid {
        let mut digest = Digest::new(b"ti.dkey1");
        digest.field(1, self.slot.as_bytes());
        digest.field(2, label.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.finish()[..16]);
        Uuid::new_v8(bytes)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is not shown, because anyone who knows the key and the scope can read the
        // response.
        f.debug_struct("IdempotencyKey")
            .field("slot", &self.slot)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_are_stable_and_distinct() {
        let operation = |byte, attempt| IdempotencyKey::new("k".into(), Slot::from_bytes([byte; 32]), attempt);
        let derived = operation(1, 1).derive("charge");
        // Providers remember keys, so this value must never change.
        assert_eq!(derived.to_string(), "ab286900-93b1-8da3-8189-3468155ba995");
        assert_eq!(derived.get_version_num(), 8);
        assert_eq!(derived, operation(1, 2).derive("charge"), "the same for each attempt");
        assert_ne!(derived, operation(2, 1).derive("charge"));
        assert_ne!(derived, operation(1, 1).derive("refund"));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let shown = format!(
            "{:?}",
            IdempotencyKey::new("secret".into(), Slot::from_bytes([0; 32]), 1)
        );
        assert!(!shown.contains("secret"), "{shown}");
    }
}
