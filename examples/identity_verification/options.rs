//! The options, each of which is an environment variable as well.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::events::EventOptions;

/// An identity-verification API that is safe to retry.
#[derive(Parser)]
#[command(name = "identity_verification")]
pub(crate) struct Options {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, env = "IDV_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:3000")]
    pub(crate) listen: String,

    /// Where keys and data are kept: `memory`, `sqlite:PATH`, `redis://…` or `postgres://…`.
    // Text here, and checked in `store`: clap would quote a wrong value, and with it the password in a URL.
    #[arg(
        long,
        env = "IDV_STORE",
        value_name = "URL",
        default_value = "memory",
        hide_env_values = true
    )]
    store: String,

    /// How long an outcome is kept.
    #[arg(long, env = "IDV_TTL", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,

    /// How long a key is blocked after the process that held it has died.
    #[arg(long, env = "IDV_LEASE", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,

    /// How often SQLite and PostgreSQL remove expired keys, which do not count even before.
    #[arg(long, env = "IDV_SWEEP_EVERY", value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) sweep_every: Duration,

    /// How long a concurrent duplicate waits for the first one's outcome; at `0s` it gets `409` at once.
    #[arg(long, env = "IDV_WAIT", value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,

    /// Refuse guarded requests without a key.
    // A flag that also takes a value, so that `--require-key=false` overrides the variable.
    #[arg(
        long,
        env = "IDV_REQUIRE_KEY",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub(crate) require_key: bool,

    /// How long the simulated identity provider takes.
    #[arg(long, env = "IDV_PROVIDER_LATENCY", value_name = "DURATION", default_value = "150ms", value_parser = humantime::parse_duration)]
    pub(crate) provider_latency: Duration,

    /// At most so many bytes in the body of a guarded request.
    #[arg(long, env = "IDV_MAX_REQUEST_BODY", value_name = "BYTES", default_value_t = 2 * 1024 * 1024)]
    pub(crate) max_request_body: usize,

    /// At most so many bytes of a response body are stored; a larger one is sent to the first client only.
    #[arg(long, env = "IDV_MAX_RESPONSE_BODY", value_name = "BYTES", default_value_t = 1024 * 1024)]
    pub(crate) max_response_body: usize,

    /// At most so many bytes in a request that uploads a document.
    #[arg(long, env = "IDV_MAX_UPLOAD", value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    pub(crate) max_upload: usize,

    /// Where documents are written; a new temporary directory if it is not given.
    #[arg(long, env = "IDV_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The name of this service among those that share the store; a part of every slot.
    #[arg(
        long,
        env = "IDV_NAMESPACE",
        value_name = "NAME",
        default_value = "identity-verification"
    )]
    pub(crate) namespace: String,

    #[command(flatten)]
    pub(crate) events: EventOptions,
}

/// What `--store` names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind<'a> {
    Memory,
    Sqlite(&'a Path),
    Postgres(&'a str),
    Redis(&'a str),
}

impl Options {
    /// The store that was asked for. The error never shows the URL, which may hold a password.
    pub(crate) fn store(&self) -> Result<StoreKind<'_>, &'static str> {
        let url = self.store.as_str();
        match url.split_once(':') {
            None if url == "memory" => Ok(StoreKind::Memory),
            Some(("sqlite", "" | "//")) => Err("--store: `sqlite:` needs the path of a file, as `sqlite:idv.db`"),
            Some(("sqlite", ":memory:")) => Err("--store: for a store in memory use `memory`"),
            Some(("sqlite", path)) => Ok(StoreKind::Sqlite(Path::new(path.strip_prefix("//").unwrap_or(path)))),
            Some(("postgres" | "postgresql", _)) => Ok(StoreKind::Postgres(url)),
            Some(("redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "valkey+unix", _)) => {
                Ok(StoreKind::Redis(url))
            }
            _ => Err("--store: unknown store; use `memory`, `sqlite:PATH`, `redis://…` or `postgres://…`"),
        }
    }
}
