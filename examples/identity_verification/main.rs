//! An identity-verification API whose operations cost money and must not happen twice.
//!
//! ```text
//! cargo run --example identity_verification
//! cargo run --example identity_verification -- --store sqlite:idv.db
//! ```
//!
//! Two files contain the idempotency code. `app.rs` adds the layers, and `storage.rs` opens the
//! store that the layers share. The handlers contain no idempotency code, except that some send a
//! derived key to their provider. On a database, handlers write in the transaction of their
//! operation (`data/`). After any crash, either an operation is charged and its response is
//! recorded, or neither happens. The events of decisions are written in the same transaction, and
//! `events/` delivers them as webhooks.

mod accounts;
mod app;
mod billing;
mod data;
mod documents;
mod drain;
mod error;
mod events;
mod json;
mod metrics;
mod operations;
mod options;
mod page;
mod provider;
mod records;
mod screenings;
mod serve;
mod sessions;
mod shutdown;
mod storage;
mod users;
mod webhooks;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use self::app::App;
use self::options::Options;
use self::serve::Stopped;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    log_to_stderr();
    match run(&options).await {
        Ok(Stopped::Cleanly) => ExitCode::SUCCESS,
        Ok(Stopped::WithWorkAbandoned) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: &Options) -> Result<Stopped, Box<dyn Error>> {
    let app = App::open(options).await?;
    let listener = TcpListener::bind(&options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    // Install the signal handlers before the address is printed, because a program that reads the
    // address may send a signal at once.
    let signal = shutdown::signal()?;

    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()?;

    Ok(serve::serve(listener, app, signal).await)
}

/// Logs to standard error, because standard output has only the address. `RUST_LOG` selects the
/// events to log, for example `info,tower_idempotency=debug`.
fn log_to_stderr() {
    let chosen = std::env::var("RUST_LOG").ok().and_then(|targets| targets.parse().ok());
    let targets = chosen.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
}
