//! A client that retries rightly, through a network that does not deserve it.
//!
//! ```text
//! cargo run --example resilient_client
//! cargo run --release --example resilient_client -- --operations 10000 --store sqlite:idv.db
//! cargo run --example resilient_client -- --new-key-each-attempt
//! ```
//!
//! It starts the example server `identity_verification` and a proxy before it that loses, delays and
//! cuts; creates verification sessions through that; and compares the server's bill with what was
//! ordered. What concerns idempotency is in `client.rs`. With `--new-key-each-attempt` it makes the
//! common mistake, and the bill shows it.

mod client;
mod network;
mod options;
mod orders;
mod report;

/// The example server's own modules.
#[path = "../identity_verification"]
#[allow(dead_code, reason = "this process ends with its client, not by a signal")]
mod server {
    mod accounts;
    pub(crate) mod app;
    mod billing;
    mod data;
    mod documents;
    mod drain;
    mod error;
    mod events;
    mod json;
    mod metrics;
    mod operations;
    pub(crate) mod options;
    mod page;
    mod provider;
    mod screenings;
    pub(crate) mod serve;
    mod sessions;
    mod storage;
    mod users;
    mod webhooks;
}

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use http::Uri;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use self::network::BadNetwork;
use self::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error")))
        .with_writer(std::io::stderr)
        .init();
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether the bill is what was ordered.
async fn run(options: &Options) -> Result<bool, Box<dyn Error + Send + Sync>> {
    // In this process, unless there is one already.
    let (stop, stopped) = oneshot::channel::<()>();
    let (server, serving) = match &options.server {
        Some(server) => (server.clone(), None),
        None => {
            let app = server::app::App::open(&options.of_the_server())
                .await
                .map_err(|error| error.to_string())?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let origin = origin(&listener)?;
            let signal = async {
                let _ = stopped.await;
            };
            (origin, Some(tokio::spawn(server::serve::serve(listener, app, signal))))
        }
    };

    let network = TcpListener::bind("127.0.0.1:0").await?;
    let through = origin(&network)?;
    let network = BadNetwork::start(network, server.clone(), options);

    let before = report::bill(&server).await?;
    let ordered = orders::place(&through, options).await?;
    let bill = report::bill(&server).await?.since(&before);

    drop(stop);
    if let Some(serving) = serving {
        serving.await?;
    }
    Ok(report::print(options.seed(), &ordered, &network.losses(), &bill))
}

fn origin(listener: &TcpListener) -> Result<Uri, Box<dyn Error + Send + Sync>> {
    Ok(format!("http://{}", listener.local_addr()?).parse()?)
}
