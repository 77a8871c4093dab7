//! One logical operation, as the client sees it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use uuid::Uuid;

use super::lifetime::{Lifetime, told_by};
use super::stopped::Stopped;
use crate::digest::Digest;
use crate::error::ConfigError;
use crate::request::key::{self, InvalidKey};

/// The longest key that servers accept, according to this crate's default and the documentation of
/// most providers.
const MAX_KEY_LENGTH: usize = 255;

/// One logical operation: its key, its attempts, and how it ended.
///
/// To choose the key, put an operation into the request's extensions. Clones represent the same
/// operation. Keep a clone to see how many attempts were made, even if the call fails. If a request
/// has no operation, [`IdempotencyKeyLayer`](super::IdempotencyKeyLayer) creates one. In both
/// cases, the response carries the operation in its extensions.
///
/// Create a new operation for each new intent. A later attempt with the same intent belongs to the
/// same operation, even after the program restarts. Store the key with the order, or derive the key
/// from the order number.
///
/// ```
/// use tower_idempotency::client::Operation;
///
/// let order = Operation::with_key("order-17")?;
/// assert_eq!((order.key(), order.attempts()), (Some("order-17"), 0));
///
/// // The same parts give the same UUID, in every process and release.
/// let charge = Operation::derived(["order-17", "charge"]);
/// assert_eq!(charge.key(), Operation::derived(["order-17", "charge"]).key());
/// assert_ne!(charge.key(), Operation::derived(["order-17", "refund"]).key());
/// # Ok::<(), tower_idempotency::InvalidKey>(())
/// ```
///
/// # Lifetime
///
/// A server forgets a key after a while (24 hours by this crate's default), and an attempt after
/// that time would run the operation again. An operation therefore has a lifetime, which is 23
/// hours by default
/// ([`RetryPolicyBuilder::key_lifetime`](super::RetryPolicyBuilder::key_lifetime)). After the
/// lifetime has elapsed, [`ClientLayer`](super::ClientLayer) and the middleware do not send the
/// operation again and report [`Stopped::KeyExpired`].
///
/// The lifetime begins when this value is created, or at the time set with
/// [`begun_at`](Self::begun_at). The lifetime is measured with the monotonic clock, so setting the
/// system clock does not change it. On Linux, this clock stops while the machine is suspended.
///
/// A server can report when it forgets the key, in the response header `Idempotency-Expires` (an
/// HTTP date, RFC 9110, section 5.6.7). This date can shorten the lifetime but never extend it. The
/// client does not use the last twenty-fourth of the remaining time, because dates are in whole
/// seconds and an attempt takes a while to arrive.
#[derive(Clone, Default)]
pub struct Operation(Arc<State>);

#[derive(Default)]
struct State {
    key: OnceLock<Key>,
    attempts: AtomicU32,
    replayed: AtomicBool,
    stopped: Mutex<Option<Stopped>>,
    lifetime: Mutex<Lifetime>,
}

/// A key and, if the caller wrote the key into the header, the header value as written.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) text: String,
    /// The header value that the caller wrote. A server may treat the quoted and the bare form as
    /// two different keys, so retries send the same form.
    pub(super) as_written: Option<HeaderValue>,
}

impl Operation {
    /// Creates an operation whose key is generated when its first request is sent. Use the same
    /// operation, or clones of it, for all requests with this intent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an operation with this key, which must consist of 1 to 255 bytes of visible ASCII
    /// and spaces.
    ///
    /// # Errors
    ///
    /// Returns an [`InvalidKey`] that names the rule that the key breaks.
    pub fn with_key(key: impl Into<String>) -> Result<Self, InvalidKey> {
        let key = key.into();
        key::check_text(&key, MAX_KEY_LENGTH)?;
        Ok(Self::keyed(key))
    }

    /// Creates an operation whose key is a UUID (version 8, RFC 9562) derived from these parts. The
    /// same parts in the same order give the same key, in every process and release.
    ///
    /// The parts must distinguish this intent from every other intent. For example, use the order
    /// number and the step. The content of the request is not enough, because two orders for the
    /// same goods are two operations.
    #[must_use]
    pub fn derived<I>(parts: I) -> Self
    where
        I: IntoIterator<Item: AsRef<[u8]>>,
    {
        let mut digest = Digest::new(b"ti.ckey1");
        for part in parts {
            digest.field(1, part.as_ref());
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.finish()[..16]);
        Self::keyed(Uuid::new_v8(bytes).to_string())
    }

    fn keyed(text: String) -> Self {
        let operation = Self::new();
        operation.key_or_else(|| Key { text, as_written: None });
        operation
    }

    /// Sets the [lifetime](Self#lifetime) of this operation and its clones, counted from the
    /// beginning of the operation. Default: the policy's
    /// [`key_lifetime`](super::RetryPolicyBuilder::key_lifetime). Choose a lifetime that is shorter
    /// than the time for which the server keeps keys.
    ///
    /// # Errors
    ///
    /// Returns an error if the lifetime is zero.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_idempotency::client::Operation;
    ///
    /// // This server keeps keys for an hour.
    /// let operation = Operation::new().with_lifetime(Duration::from_secs(55 * 60))?;
    /// assert!(Operation::new().with_lifetime(Duration::ZERO).is_err());
    /// # let _ = operation;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn with_lifetime(self, lifetime: Duration) -> Result<Self, ConfigError> {
        if lifetime.is_zero() {
            return Err(ConfigError::new("lifetime", "must be longer than zero"));
        }
        self.lifetime().own = Some(lifetime);
        Ok(self)
    }

    /// Sets the time at which the operation began, if it began in a different process. Pass the
    /// time that you stored with the key. The [lifetime](Self#lifetime) is counted from that time.
    /// The system clock is read only once, in this call, to determine the operation's age. A time
    /// in the future is treated as now.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tower_idempotency::client::Operation;
    ///
    /// # let stored_at = SystemTime::now() - Duration::from_secs(3600);
    /// let operation = Operation::with_key("5f0c6a2e-6d3b-4c53-9b2f-1f6f3f0c7a10")?.begun_at(stored_at);
    /// # let _ = operation;
    /// # Ok::<(), tower_idempotency::InvalidKey>(())
    /// ```
    #[must_use]
    pub fn begun_at(self, at: SystemTime) -> Self {
        self.lifetime()
            .begun_before(SystemTime::now().duration_since(at).unwrap_or_default());
        self
    }

    /// Returns the operation for a request that has this header. Returns `self` if it has the
    /// header's key or no key yet. Otherwise, returns a new operation, because the server receives
    /// the key in the header.
    pub(super) fn written(self, line: &HeaderValue) -> Self {
        let Some(text) = key::text_of_line(line) else {
            return Self::new();
        };
        let key = self.key_or_else(|| Key {
            text: text.clone().into_owned(),
            as_written: Some(line.clone()),
        });
        if key.text == text {
            return self;
        }
        Self::new().written(line)
    }

    /// The key. `None` before the first request is sent, or if the request does not need a key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.0.key.get().map(|key| key.text.as_str())
    }

    /// The number of times that the operation was sent, across all calls with it or its clones.
    /// [`ClientLayer`](super::ClientLayer), the middleware and [`RetryPolicy`](super::RetryPolicy)
    /// count the attempts.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.attempts.load(Ordering::Relaxed)
    }

    /// Whether the last response was a replay: an earlier attempt ran, and its response was lost.
    /// The server marks a replay with `Idempotency-Replayed: true`, or Stripe's
    /// `Idempotent-Replayed`.
    #[must_use]
    pub fn replayed(&self) -> bool {
        self.0.replayed.load(Ordering::Relaxed)
    }

    /// The reason why the last call ended, although its result could have been retried. `None` if
    /// its response was final.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        *self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the operation's key, and generates it first if the operation has none. If two
    /// requests for the same operation are sent at the same time, only one of them generates the
    /// key.
    pub(super) fn key_or_else(&self, make: impl FnOnce() -> Key) -> &Key {
        self.0.key.get_or_init(make)
    }

    pub(super) fn attempt_begins(&self) {
        self.0.attempts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, headers: &HeaderMap) {
        self.0.replayed.store(is_replay(headers), Ordering::Relaxed);
        self.told_lifetime(headers);
    }

    pub(super) fn unanswered(&self) {
        self.0.replayed.store(false, Ordering::Relaxed);
    }

    /// Records the key's remaining lifetime if the response headers report it.
    pub(super) fn told_lifetime(&self, headers: &HeaderMap) {
        if let Some(left) = told_by(headers) {
            self.lifetime().ends_within(left, Instant::now());
        }
    }

    /// Returns how long the key can still be sent. `by_default` is the lifetime for operations that
    /// do not set their own lifetime.
    pub(super) fn lifetime_left(&self, by_default: Duration) -> Duration {
        self.lifetime().left(by_default, Instant::now())
    }

    fn lifetime(&self) -> MutexGuard<'_, Lifetime> {
        self.0.lifetime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self, stopped: Option<Stopped>) {
        *self.0.stopped.lock().unwrap_or_else(PoisonError::into_inner) = stopped;
    }
}

/// Returns whether a response is a replay, according to this crate's default marker or Stripe's
/// marker.
pub(super) fn is_replay(headers: &HeaderMap) -> bool {
    let marked = |name| headers.get(name).is_some_and(|value| value == "true");
    marked("idempotency-replayed") || marked("idempotent-replayed")
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out because anyone who knows the key and the credentials can read the
        // response.
        f.debug_struct("Operation")
            .field("has_key", &self.key().is_some())
            .field("attempts", &self.attempts())
            .field("replayed", &self.replayed())
            .field("stopped", &self.stopped())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_are_stable_and_distinct() {
        let key = |parts: &[&str]| Operation::derived(parts).key().unwrap().to_owned();
        // Servers remember keys, so this value must never change.
        assert_eq!(key(&["order-17", "charge"]), "80af2aac-a236-8b84-b633-5ffb24e7e760");
        assert_ne!(key(&["order-17", "charge"]), key(&["order-17charge"]));
        assert_ne!(key(&["order-17", "charge"]), key(&["charge", "order-17"]));
        assert_eq!(
            Uuid::parse_str(&key(&[])).unwrap().get_version_num(),
            8,
            "derived from no parts"
        );
    }

    #[test]
    fn keys_that_no_server_accepts_are_refused() {
        for (key, reason) in [
            ("", "empty"),
            ("caf\u{e9}", "visible ASCII"),
            ("a\nb", "visible ASCII"),
            ("k".repeat(256).as_str(), "256 bytes"),
        ] {
            let error = Operation::with_key(key).unwrap_err();
            assert!(error.to_string().contains(reason), "{key:?}: {error}");
        }
        assert!(Operation::with_key("k".repeat(255)).is_ok());
        assert!(Operation::with_key("order 17, \"red\"").is_ok(), "sent in quotes");
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let shown = format!("{:?}", Operation::with_key("secret").unwrap());
        assert!(!shown.contains("secret") && shown.contains("attempts"), "{shown}");
    }

    #[test]
    fn either_marker_identifies_a_replay() {
        for (name, value, replayed) in [
            ("idempotency-replayed", "true", true),
            ("idempotent-replayed", "true", true),
            ("idempotent-replayed", "false", false),
            ("x-other", "true", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            let operation = Operation::new();
            operation.answered(&headers);
            assert_eq!(operation.replayed(), replayed, "{name}: {value}");
        }
    }
}
