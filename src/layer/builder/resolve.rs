//! The profiles, and how they combine with individual options: an option that was set explicitly
//! takes precedence, whether it was set before or after the profile.

use std::time::Duration;

use http::HeaderName;

use crate::answer::{Policy, Rendering};
use crate::error::ConfigError;
use crate::request::scope::TagKey;
use crate::request::{FingerprintSource, KeySource, ScopeSource};
use crate::run::config::{BreakerConfig, Config};

/// In a unary call, the request and the response each end after their first message. A request or
/// response that takes longer than this to end is treated as a stream.
const GRPC_STREAM_AFTER: Duration = Duration::from_secs(5);

/// A set of options under one name.
#[derive(Debug, Clone)]
pub(super) enum Profile {
    Stripe,
    Grpc,
    Webhooks { sender: Box<str>, event_id: KeySource },
}

impl Profile {
    /// The name of the builder method.
    fn option(&self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Grpc => "grpc",
            Self::Webhooks { .. } => "webhooks",
        }
    }
}

/// The options that were set explicitly, among those that a profile would otherwise set.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) profiles: Vec<Profile>,
    pub(super) key: Option<KeySource>,
    pub(super) scope: Option<ScopeSource>,
    pub(super) tag_key: Option<Result<TagKey, ConfigError>>,
    pub(super) fingerprint: Option<FingerprintSource>,
    pub(super) require_key: Option<bool>,
    pub(super) policy: Option<Policy>,
    pub(super) replay_header: Option<HeaderName>,
    pub(super) rendering: Option<Rendering>,
    pub(super) documentation: Option<Rendering>,
    pub(super) response_body_within: Option<Duration>,
    pub(super) grpc_request_within: Option<Duration>,
    pub(super) breaker: Option<BreakerConfig>,
    pub(super) has_no_breaker: bool,
}

impl Chosen {
    /// Returns the complete configuration. Contradictory options are errors.
    pub(super) fn resolve(mut self, mut config: Config) -> Result<Config, ConfigError> {
        if self.documentation.is_some() && self.rendering.is_some() {
            return Err(ConfigError::new(
                "problem_documentation",
                "applies only to the standard problems, which `problem_response` replaces; remove one of the two",
            ));
        }
        if let [first, .., second] = &self.profiles[..] {
            return Err(ConfigError::new(
                second.option(),
                format!("`{}` is already set; use only one profile per layer", first.option()),
            ));
        }
        if self.grpc_request_within.is_some() && !matches!(self.profiles[..], [Profile::Grpc]) {
            return Err(ConfigError::new(
                "grpc_request_within",
                "applies only to gRPC calls; use it together with `grpc`",
            ));
        }
        if self.breaker.is_some() && self.has_no_breaker {
            return Err(ConfigError::new(
                "circuit_breaker",
                "`without_circuit_breaker` turns the circuit breaker off; remove one of the two",
            ));
        }
        match self.profiles.pop() {
            None => {}
            Some(Profile::Stripe) => {
                self.exclude_documentation("stripe")?;
                self.policy.get_or_insert_with(Policy::stripe);
                self.scope
                    .get_or_insert_with(|| ScopeSource::default().and(ScopeSource::header("stripe-account")));
                self.replay_header
                    .get_or_insert(HeaderName::from_static("idempotent-replayed"));
                self.rendering.get_or_insert(Rendering::Stripe);
            }
            Some(Profile::Grpc) => {
                self.exclude_documentation("grpc")?;
                self.policy.get_or_insert_with(Policy::grpc);
                self.rendering.get_or_insert(Rendering::Grpc);
                self.response_body_within.get_or_insert(GRPC_STREAM_AFTER);
                self.grpc_request_within.get_or_insert(GRPC_STREAM_AFTER);
            }
            Some(Profile::Webhooks { sender, event_id }) => {
                let twice = |option| {
                    let reason = "`webhooks` already sets this option; remove one of the two";
                    Err(ConfigError::new(option, reason))
                };
                if self.key.is_some() {
                    return twice("key");
                }
                if self.scope.is_some() {
                    return twice("scope");
                }
                self.key = Some(event_id);
                self.scope = Some(ScopeSource::shared_by_all(&sender).and(ScopeSource::endpoint()));
                self.fingerprint.get_or_insert_with(FingerprintSource::none);
                self.require_key.get_or_insert(true);
            }
        }
        let Self {
            profiles: _,
            key,
            scope,
            tag_key,
            fingerprint,
            require_key,
            policy,
            replay_header,
            rendering,
            documentation,
            response_body_within,
            grpc_request_within,
            breaker,
            has_no_breaker,
        } = self;
        set(&mut config.key.source, key);
        set(&mut config.scope.source, scope);
        set(&mut config.scope.tag_key, tag_key.transpose()?);
        set(&mut config.fingerprint, fingerprint);
        set(&mut config.require_key, require_key);
        set(&mut config.policy, policy);
        set(&mut config.replay_header, replay_header);
        set(&mut config.rendering, rendering.or(documentation));
        set(&mut config.response_body_within, response_body_within);
        config.grpc_request_within = grpc_request_within;
        if has_no_breaker {
            config.breaker = None;
        } else if breaker.is_some() {
            config.breaker = breaker;
        }
        Ok(config)
    }

    fn exclude_documentation(&self, profile: &'static str) -> Result<(), ConfigError> {
        match self.documentation {
            None => Ok(()),
            Some(_) => Err(ConfigError::new(
                "problem_documentation",
                format!("applies only to the standard problems, which `{profile}` replaces; remove one of the two"),
            )),
        }
    }
}

fn set<T>(option: &mut T, chosen: Option<T>) {
    if let Some(value) = chosen {
        *option = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_7_3_grpc_bounds_both_streams_and_an_option_takes_precedence() {
        let grpc = || Chosen {
            profiles: vec![Profile::Grpc],
            ..Chosen::default()
        };
        let config = grpc().resolve(Config::default()).unwrap();
        assert_eq!(config.response_body_within, GRPC_STREAM_AFTER);
        assert_eq!(config.grpc_request_within, Some(GRPC_STREAM_AFTER));
        let minute = Duration::from_secs(60);
        let chosen = Chosen {
            response_body_within: Some(minute),
            grpc_request_within: Some(minute),
            ..grpc()
        };
        let config = chosen.resolve(Config::default()).unwrap();
        assert_eq!(config.response_body_within, minute);
        assert_eq!(config.grpc_request_within, Some(minute));
        let config = Chosen::default().resolve(Config::default()).unwrap();
        assert_eq!(config.response_body_within, Duration::from_secs(30));
        assert_eq!(config.grpc_request_within, None);
    }
}
