//! An identity-verification API whose operations cost money and must not happen twice.
//!
//! ```text
//! cargo run --example identity_verification
//! cargo run --example identity_verification -- --store sqlite:idv.db
//! ```
//!
//! What concerns idempotency is in `app.rs`: three layers, and where they stand; and the store that
//! they keep their keys in, in `storage.rs`. The handlers know nothing of it, except those that hand
//! their provider a key of its own. On a database what they write is in the transaction of their
//! operation, which is in `data/`: charged and answered, or neither, whatever crashes. So are the
//! webhooks that tell of decisions, which `events/` delivers.

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
use tracing_subscriber::EnvFilter;

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
    // Before the address is announced: who reads it may send a signal at once.
    let signal = shutdown::signal()?;

    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()?;

    Ok(serve::serve(listener, app, signal).await)
}

/// Standard output is for the address alone.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
