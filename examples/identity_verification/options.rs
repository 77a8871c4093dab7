//! The command-line options. Each option is also an environment variable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::events::EventOptions;

/// An identity-verification API that is safe to retry.
#[derive(Parser)]
#[command(name = "identity_verification")]
pub(crate) struct Options {
    /// The address to listen on; port 0 picks a free port.
    #[arg(long, env = "IDV_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:3000")]
    pub(crate) listen: String,

    /// The store for keys and data: `memory`, `sqlite:PATH`, `redis://…` or `postgres://…`.
    // This is a string that `store` checks later. If clap checked it, an error would quote the
    // value, including the password in the URL.
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

    /// How long a key stays blocked after the process that held it has died.
    #[arg(long, env = "IDV_LEASE", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,

    /// How often expired keys are removed from SQLite or PostgreSQL; expired keys have no effect
    /// even before they are removed.
    #[arg(long, env = "IDV_SWEEP_EVERY", value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    pub(crate) sweep_every: Duration,

    /// How long a concurrent duplicate waits for the first request's outcome; with `0s`, it gets
    /// `409` at once.
    #[arg(long, env = "IDV_WAIT", value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,

    /// Refuse guarded requests without a key.
    // This flag also takes a value, so that `--require-key=false` overrides the environment
    // variable.
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

    /// The maximum size of a guarded request's body, in bytes.
    #[arg(long, env = "IDV_MAX_REQUEST_BODY", value_name = "BYTES", default_value_t = 2 * 1024 * 1024)]
    pub(crate) max_request_body: usize,

    /// The maximum size of a stored response body, in bytes; a larger body is sent only to the
    /// first client.
    #[arg(long, env = "IDV_MAX_RESPONSE_BODY", value_name = "BYTES", default_value_t = 1024 * 1024)]
    pub(crate) max_response_body: usize,

    /// The maximum size of a request that uploads a document, in bytes.
    #[arg(long, env = "IDV_MAX_UPLOAD", value_name = "BYTES", default_value_t = 64 * 1024 * 1024)]
    pub(crate) max_upload: usize,

    /// The directory for documents; by default, a new temporary directory.
    #[arg(long, env = "IDV_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The name of this service among the services that share the store; it is part of every slot.
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

/// The store that `--store` selects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind<'a> {
    Memory,
    Sqlite(&'a Path),
    Postgres(&'a str),
    Redis(&'a str),
}

impl Options {
    /// Returns the selected store. The error never shows the URL, because the URL may contain a
    /// password.
    pub(crate) fn store(&self) -> Result<StoreKind<'_>, &'static str> {
        let url = self.store.as_str();
        match url.split_once(':') {
            None if url == "memory" => Ok(StoreKind::Memory),
            Some(("sqlite", "" | "//")) => Err("--store: `sqlite:` needs a file path, such as `sqlite:idv.db`"),
            Some(("sqlite", ":memory:")) => Err("--store: for an in-memory store, use `memory`"),
            Some(("sqlite", path)) => Ok(StoreKind::Sqlite(Path::new(path.strip_prefix("//").unwrap_or(path)))),
            Some(("postgres" | "postgresql", _)) => Ok(StoreKind::Postgres(url)),
            Some(("redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "valkey+unix", _)) => {
                Ok(StoreKind::Redis(url))
            }
            _ => Err("--store: unknown store; use `memory`, `sqlite:PATH`, `redis://…` or `postgres://…`"),
        }
    }
}
