//! A client that retries correctly through a bad network.
//!
//! ```text
//! cargo run --example resilient_client
//! cargo run --release --example resilient_client -- --operations 10000 --store sqlite:idv.db
//! cargo run --example resilient_client -- --documents
//! cargo run --example resilient_client -- --new-key-each-attempt
//! ```
//!
//! It starts the example server `identity_verification` behind a proxy that loses and delays
//! messages and cuts connections. It creates verification sessions or uploads documents through the
//! proxy, and compares the server's bill with the orders. The idempotency code is in `client.rs`.
//! With `--new-key-each-attempt`, the client makes the common mistake of using a new key for each
//! attempt, and the bill shows the extra charges.

mod client;
mod direct;
mod documents;
mod network;
mod options;
mod orders;
mod report;

/// The example server's own modules.
#[path = "../identity_verification"]
#[allow(dead_code, reason = "this process ends when its client is done, not on a signal")]
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
    mod records;
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
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use self::network::BadNetwork;
use self::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let targets = std::env::var("RUST_LOG").ok().and_then(|targets| targets.parse().ok());
    let targets = targets.unwrap_or_else(|| Targets::new().with_default(LevelFilter::ERROR));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether the bill equals the orders.
async fn run(options: &Options) -> Result<bool, Box<dyn Error + Send + Sync>> {
    // Start the server in this process, unless a running server is given.
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

    let session = match options.documents {
        true => Some(documents::open_session(&server).await?),
        false => None,
    };
    let before = report::bill(&server).await?;
    let ordered = orders::place(&through, options, session.as_deref()).await?;
    let bill = report::bill(&server).await?.since(&before);
    let documents = match &session {
        Some(session) => Some(documents::count(&server, session).await?),
        None => None,
    };

    drop(stop);
    if let Some(serving) = serving {
        serving.await?;
    }
    Ok(report::print(
        options.seed(),
        &ordered,
        &network.losses(),
        &bill,
        documents,
    ))
}

fn origin(listener: &TcpListener) -> Result<Uri, Box<dyn Error + Send + Sync>> {
    Ok(format!("http://{}", listener.local_addr()?).parse()?)
}
