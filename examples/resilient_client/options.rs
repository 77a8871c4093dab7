//! The options.

use std::sync::LazyLock;
use std::time::Duration;

use clap::Parser;
use http::Uri;

use super::server;

/// Creates verification sessions through a bad network, and compares the bill with what was ordered.
#[derive(Parser)]
#[command(name = "resilient_client")]
pub(crate) struct Options {
    /// How many sessions to create, or documents to upload.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) operations: usize,

    /// Uploads documents of one session instead: every other one as a form, whose boundary is another one in
    /// each attempt.
    #[arg(long, conflicts_with = "new_key_each_attempt")]
    pub(crate) documents: bool,

    /// How many at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) concurrency: u16,

    /// How many of a hundred requests are lost, and as many of a hundred responses.
    #[arg(long, value_name = "PERCENT", default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=90))]
    pub(crate) loss: u8,

    /// How long the network may hold up a request or a response.
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = humantime::parse_duration)]
    pub(crate) delay: Duration,

    /// What the keys and the fate of each attempt depend on; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,

    /// A server `identity_verification` that runs, instead of one of its own.
    #[arg(long, value_name = "URL", conflicts_with_all = ["store", "provider_latency"])]
    pub(crate) server: Option<Uri>,

    /// The store of its own server: `memory`, `sqlite:PATH`, `redis://…` or `postgres://…`.
    #[arg(long, value_name = "URL", default_value = "memory")]
    store: String,

    /// How long the identity provider of its own server takes.
    #[arg(long, value_name = "DURATION", default_value = "20ms")]
    provider_latency: String,

    /// Makes the common mistake: a new key for each attempt, instead of one for each operation.
    #[arg(long)]
    pub(crate) new_key_each_attempt: bool,
}

impl Options {
    pub(crate) fn seed(&self) -> u64 {
        static DRAWN: LazyLock<u64> = LazyLock::new(|| uuid::Uuid::new_v4().as_u64_pair().0);
        self.seed.unwrap_or_else(|| *DRAWN)
    }

    pub(crate) fn of_the_server(&self) -> server::options::Options {
        server::options::Options::parse_from([
            "identity_verification",
            "--store",
            &self.store,
            "--provider-latency",
            &self.provider_latency,
        ])
    }
}
