//! The layer's configuration, whole and checked.

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

/// A crash blocks a key for as long as its lease; because leases are renewed, none needs to be longer.
const MAX_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than any process, database or API lives unchanged, and far from overflow.
const MAX_TTL: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
/// Waits and time-outs beyond this are mistakes.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// The clocks of the stores count milliseconds.
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
    /// Bytes of a streamed request body at most. `None`: bodies are held.
    pub(crate) stream_request_bodies: Option<usize>,
    pub(crate) max_response_body: usize,
    pub(crate) response_body_within: Duration,
    /// How long the request of a gRPC call may go on after its first message. `None`: no request is one.
    pub(crate) grpc_request_within: Option<Duration>,
    pub(crate) max_detached: usize,
    /// `None`: the handler runs to its end.
    pub(crate) cancel_on_disconnect: Option<Fate>,
    pub(crate) replay_header: HeaderName,
    /// The header that tells until when a retry gets the response, if any.
    pub(crate) lifetime_header: Option<HeaderName>,
    /// Whether a stream is read to its end although its client disconnected.
    pub(crate) drain_streams: bool,
    pub(crate) unreplayed: Vec<HeaderName>,
    pub(crate) rendering: Rendering,
    /// `false`: every request passes through.
    pub(crate) enabled: bool,
    pub(crate) pass_when: Option<Predicate>,
    pub(crate) on_replay: Option<ReplayHook>,
    /// `None`: the store is asked however often it failed.
    pub(crate) breaker: Option<BreakerConfig>,
}

/// Which requests pass through untouched.
#[derive(Clone)]
pub(crate) struct Predicate(pub(crate) Arc<dyn Fn(&Parts) -> bool + Send + Sync>);

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Predicate(..)")
    }
}

type ReplayFn = dyn Fn(&Parts, &mut http::response::Parts) + Send + Sync;

/// What is changed in a replay.
#[derive(Clone)]
pub(crate) struct ReplayHook(pub(crate) Arc<ReplayFn>);

impl fmt::Debug for ReplayHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayHook(..)")
    }
}

/// When the store is not asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerConfig {
    /// After so many failures in a row.
    pub(crate) failures: u32,
    /// For so long.
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
                "the set is empty, so that nothing would be guarded",
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
                    "{failures} failures and a pause of {pause:?} cannot work; give at least 1 failure and a pause between \
                     {MIN:?} and {MAX_WAIT:?}"
                ),
            ));
        }
        if self.max_detached == 0 {
            return Err(ConfigError::new(
                "max_detached",
                "0 would refuse every first request; use `cancel_on_disconnect` to let no work go on without its client",
            ));
        }
        Ok(())
    }

    fn validate_streaming(&self) -> Result<(), ConfigError> {
        let refused = |reason| Err(ConfigError::new("stream_request_bodies", reason));
        match self.stream_request_bodies {
            None => Ok(()),
            Some(0) => refused("0 would refuse every body; give the bytes of the largest upload"),
            Some(_) if self.key.source.needs_body() => {
                refused("the key is in the body, which would have to be held; use a key of the head, such as a header")
            }
            Some(_) if self.grpc_request_within.is_some() => {
                refused("`grpc` reads each request whole before its method runs; leave one of the two out")
            }
            Some(_) => self.fingerprint.validate_streamed(),
        }
    }

    /// A TTL that a handler chose, brought into the range of the option.
    pub(crate) fn ttl_within_range(ttl: Duration) -> Duration {
        ttl.clamp(MIN, MAX_TTL)
    }

    /// How often a lease is renewed.
    pub(crate) fn third_of_lease(&self) -> Duration {
        (self.lease / 3).max(MIN)
    }

    /// How long a claim may take to be made or renewed. An answer that took a large part of the
    /// lease would leave too little of it.
    pub(crate) fn claim_timeout(&self) -> Duration {
        self.store_timeout.min(self.third_of_lease())
    }

    pub(crate) fn guards(&self, method: &Method) -> bool {
        self.enabled && self.methods.contains(method)
    }

    /// Which response headers are left out of the record: hop-by-hop ones (RFC 9110, section 7.6.1,
    /// with what `Connection` names), and those on the list.
    /// `Trailer` stays where there are trailers.
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
        // Looked for by walking: responses have few headers, and names compare faster than they hash.
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
