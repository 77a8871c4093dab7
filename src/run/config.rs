//! The layer's complete, validated configuration.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, Method};

use crate::answer::{Fate, Policy, Rendering};
use crate::error::ConfigError;
use crate::request::FingerprintSource;
use crate::request::key::{KeyFormat, KeyRules, KeySource};
use crate::request::scope::ScopeRules;

/// After a crash, a key stays blocked until its lease expires. Because leases are renewed, no lease
/// needs to be longer than this limit.
const MAX_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// No process, database or API stays unchanged for longer than this limit, and this value is far
/// from overflowing.
const MAX_TTL: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
/// The maximum for waits and timeouts. A longer value is assumed to be a mistake.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// The stores measure time in milliseconds.
const MIN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) methods: Vec<Method>,
    pub(crate) key: KeyRules,
    pub(crate) require_key: bool,
    pub(crate) scope: ScopeRules,
    pub(crate) fingerprint: FingerprintSource,
    pub(crate) policy: Policy,
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
    pub(crate) wait: Duration,
    pub(crate) store_timeout: Duration,
    pub(crate) settle_within: Duration,
    pub(crate) fail_open: bool,
    pub(crate) max_request_body: usize,
    /// The maximum size of a streamed request body in bytes. `None`: bodies are held in memory.
    pub(crate) stream_request_bodies: Option<usize>,
    pub(crate) max_response_body: usize,
    pub(crate) response_body_within: Duration,
    /// How long the request of a gRPC call can continue after its first message. `None`: requests
    /// are not treated as gRPC calls.
    pub(crate) grpc_request_within: Option<Duration>,
    pub(crate) max_detached: usize,
    /// `None`: the handler runs to completion.
    pub(crate) cancel_on_disconnect: Option<Fate>,
    pub(crate) replay_header: HeaderName,
    /// The response header with the time at which the stored response expires, if any.
    pub(crate) lifetime_header: Option<HeaderName>,
    /// Whether a stream is read to its end even if its client disconnects.
    pub(crate) drain_streams: bool,
    pub(crate) unreplayed: Vec<HeaderName>,
    pub(crate) rendering: Rendering,
    /// `false`: every request passes through.
    pub(crate) enabled: bool,
    pub(crate) pass_when: Option<Predicate>,
    pub(crate) on_replay: Option<ReplayHook>,
    /// `None`: the store is called no matter how often it has failed.
    pub(crate) breaker: Option<BreakerConfig>,
}

/// Selects the requests that pass through untouched.
#[derive(Clone)]
pub(crate) struct Predicate(pub(crate) Arc<dyn Fn(&Parts) -> bool + Send + Sync>);

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Predicate(..)")
    }
}

type ReplayFn = dyn Fn(&Parts, &mut http::response::Parts) + Send + Sync;

/// Changes a replayed response before the response is sent.
#[derive(Clone)]
pub(crate) struct ReplayHook(pub(crate) Arc<ReplayFn>);

impl fmt::Debug for ReplayHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayHook(..)")
    }
}

/// The settings of the circuit breaker, which stops requesting claims from a failing store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerConfig {
    /// The number of consecutive failures after which the store is not called.
    pub(crate) failures: u32,
    /// How long the layer refrains from calling the store after these failures.
    pub(crate) pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            key: KeyRules {
                source: KeySource::default(),
                format: KeyFormat::Any,
                max_length: 255,
            },
            require_key: false,
            scope: ScopeRules::default(),
            fingerprint: FingerprintSource::default(),
            policy: Policy::default(),
            ttl: Duration::from_secs(24 * 60 * 60),
            lease: Duration::from_secs(30),
            wait: Duration::ZERO,
            store_timeout: Duration::from_secs(5),
            settle_within: Duration::from_secs(5 * 60),
            fail_open: false,
            max_request_body: 2 * 1024 * 1024,
            stream_request_bodies: None,
            max_response_body: 1024 * 1024,
            response_body_within: Duration::from_secs(30),
            grpc_request_within: None,
            max_detached: 1024,
            cancel_on_disconnect: None,
            replay_header: HeaderName::from_static("idempotency-replayed"),
            lifetime_header: None,
            drain_streams: false,
            unreplayed: vec![header::DATE, header::SET_COOKIE],
            rendering: Rendering::default(),
            enabled: true,
            pass_when: None,
            on_replay: None,
            breaker: Some(BreakerConfig {
                failures: 5,
                pause: Duration::from_secs(1),
            }),
        }
    }
}

impl Config {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.methods.is_empty() {
            return Err(ConfigError::new(
                "methods",
                "the set is empty, so no request would be guarded",
            ));
        }
        if let Some(method) = self.methods.iter().find(|method| **method == Method::CONNECT) {
            return Err(ConfigError::new(
                "methods",
                format!("{method} has no response that could be stored"),
            ));
        }
        self.key.validate()?;
        self.scope.validate()?;
        self.fingerprint.validate()?;
        self.validate_streaming()?;
        for (option, value, least, most) in [
            ("ttl", self.ttl, MIN, MAX_TTL),
            ("lease", self.lease, MIN, MAX_LEASE),
            ("wait", self.wait, Duration::ZERO, MAX_WAIT),
            ("store_timeout", self.store_timeout, MIN, MAX_WAIT),
            ("response_body_within", self.response_body_within, MIN, MAX_WAIT),
            ("settle_within", self.settle_within, Duration::ZERO, MAX_WAIT),
            (
                "grpc_request_within",
                self.grpc_request_within.unwrap_or(MIN),
                MIN,
                MAX_WAIT,
            ),
        ] {
            if value < least || value > most {
                return Err(ConfigError::new(
                    option,
                    format!("{value:?} is not between {least:?} and {most:?}"),
                ));
            }
        }
        if let Some(BreakerConfig { failures, pause }) = self.breaker
            && (failures == 0 || pause < MIN || pause > MAX_WAIT)
        {
            return Err(ConfigError::new(
                "circuit_breaker",
                format!(
                    "{failures} failures with a pause of {pause:?} cannot work; use at least 1 failure and a pause \
                     between {MIN:?} and {MAX_WAIT:?}"
                ),
            ));
        }
        if self.max_detached == 0 {
            return Err(ConfigError::new(
                "max_detached",
                "0 would refuse every first request; to stop work when its client disconnects, use \
                 `cancel_on_disconnect`",
            ));
        }
        if self.drain_streams && self.cancel_on_disconnect.is_some() {
            return Err(ConfigError::new(
                "drain_streams",
                "a stream cannot be read to its end without its client if `cancel_on_disconnect` cancels the operation; \
                 remove one of the two options",
            ));
        }
        if self.lifetime_header.as_ref() == Some(&self.replay_header) {
            return Err(ConfigError::new(
                "lifetime_header",
                format!(
                    "`{}` is already the name of the replay marker; choose a different name",
                    self.replay_header
                ),
            ));
        }
        Ok(())
    }

    fn validate_streaming(&self) -> Result<(), ConfigError> {
        let refused = |reason| Err(ConfigError::new("stream_request_bodies", reason));
        match self.stream_request_bodies {
            None => Ok(()),
            Some(0) => refused("0 would refuse every body; set the size of the largest upload in bytes"),
            Some(_) if self.key.source.needs_body() => {
                refused("a key in the body needs the whole body in memory; use a key in the head, such as a header")
            }
            Some(_) if self.grpc_request_within.is_some() => {
                refused("`grpc` reads each whole request before its method runs; remove one of the two options")
            }
            Some(_) => self.fingerprint.validate_streamed(),
        }
    }

    /// Clamps a handler's TTL to the option's range.
    pub(crate) fn ttl_within_range(ttl: Duration) -> Duration {
        ttl.clamp(MIN, MAX_TTL)
    }

    /// Returns the interval at which a lease is renewed.
    pub(crate) fn third_of_lease(&self) -> Duration {
        (self.lease / 3).max(MIN)
    }

    /// Returns the time limit for requesting or renewing a claim. If the store took a large part of
    /// the lease to answer, too little of the lease would remain.
    pub(crate) fn claim_timeout(&self) -> Duration {
        self.store_timeout.min(self.third_of_lease())
    }

    pub(crate) fn guards(&self, method: &Method) -> bool {
        self.enabled && self.methods.contains(method)
    }

    /// Returns a predicate for the response headers that are left out of the record: hop-by-hop
    /// headers (RFC 9110, section 7.6.1, including the headers that `Connection` names) and the
    /// headers in `unreplayed`. `Trailer` is kept if the response has trailers.
    pub(crate) fn skips<'h>(&'h self, headers: &'h HeaderMap, trailers: bool) -> impl Fn(&HeaderName) -> bool + 'h {
        static HOP_BY_HOP: [HeaderName; 7] = [
            header::CONNECTION,
            HeaderName::from_static("keep-alive"),
            HeaderName::from_static("proxy-connection"),
            header::PROXY_AUTHENTICATE,
            header::TE,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
        ];
        // This is a linear search, because responses have few headers, and comparing names is
        // faster than hashing them.
        let named = headers.keys().any(|name| name == header::CONNECTION);
        move |name| {
            HOP_BY_HOP.contains(name)
                || self.unreplayed.contains(name)
                || !trailers && *name == header::TRAILER
                || named
                    && headers.get_all(header::CONNECTION).iter().any(|line| {
                        let mut named = line.to_str().unwrap_or_default().split(',');
                        named.any(|named| named.trim().eq_ignore_ascii_case(name.as_str()))
                    })
        }
    }
}
