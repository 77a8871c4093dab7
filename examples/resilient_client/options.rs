//! The command-line options.

use std::sync::LazyLock;
use std::time::Duration;

use clap::Parser;
use http::Uri;

use super::server;

/// Creates verification sessions through a bad network, and compares the bill with the orders.
#[derive(Parser)]
#[command(name = "resilient_client")]
pub(crate) struct Options {
    /// The number of sessions to create, or of documents to upload.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) operations: usize,

    /// Uploads documents to one session instead. Every other document is sent as a form, with a
    /// different boundary for each attempt.
    #[arg(long, conflicts_with = "new_key_each_attempt")]
    pub(crate) documents: bool,

    /// How many operations run at the same time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) concurrency: u16,

    /// The percentage of requests that are lost, and the percentage of responses that are lost.
    #[arg(long, value_name = "PERCENT", default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=90))]
    pub(crate) loss: u8,

    /// The longest delay of a request or a response in the network.
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = humantime::parse_duration)]
    pub(crate) delay: Duration,

    /// The seed for the keys and for the fate of each attempt; by default, each run has a different
    /// seed.
    #[arg(long)]
    seed: Option<u64>,

    /// A running `identity_verification` server to use, instead of starting one.
    #[arg(long, value_name = "URL", conflicts_with_all = ["store", "provider_latency"])]
    pub(crate) server: Option<Uri>,

    /// The store of the server that the client starts: `memory`, `sqlite:PATH`, `redis://…` or
    /// `postgres://…`.
    #[arg(long, value_name = "URL", default_value = "memory")]
    store: String,

    /// How long the identity provider takes in the server that the client starts.
    #[arg(long, value_name = "DURATION", default_value = "20ms")]
    provider_latency: String,

    /// Makes the common mistake of using a new key for each attempt, instead of one key for each
    /// operation.
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
