//! Places the orders. Each order is one operation, and many orders are placed at the same time.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tower::{Service, ServiceExt};
use tower_idempotency::client::Operation;

use super::client::{self, Body, ResilientClient};
use super::direct::API_KEY;
use super::documents;
use super::options::Options;

/// The result of all orders together.
#[derive(Default)]
pub(crate) struct Ordered {
    pub(crate) operations: usize,
    /// The sessions or documents that were created, according to the responses.
    pub(crate) made: BTreeSet<String>,
    pub(crate) attempts: u64,
    pub(crate) replays: usize,
    /// The errors of the operations that created nothing.
    pub(crate) failures: Vec<String>,
    pub(crate) took: Duration,
}

#[derive(Deserialize)]
struct Made {
    session_id: String,
    document_id: Option<String>,
}

/// Places the orders at `origin`, and returns once each order has its response.
///
/// With a session, each order is a document of that session.
pub(crate) async fn place(
    origin: &Uri,
    options: &Options,
    session: Option<&str>,
) -> Result<Ordered, Box<dyn Error + Send + Sync>> {
    let client = client::new(options.new_key_each_attempt)?;
    // The progress bar is hidden if standard error is not a terminal.
    let progress = ProgressBar::new(options.operations as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} operations, {per_sec}, {elapsed}{msg}",
    )?);

    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..options.concurrency {
        let (client, next, progress) = (client.clone(), Arc::clone(&next), progress.clone());
        let (origin, seed, operations) = (origin.clone(), options.seed(), options.operations);
        let session = session.map(str::to_owned);
        workers.spawn(async move {
            let mut done = Ordered::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= operations {
                    return done;
                }
                let request = match &session {
                    Some(session) => documents::upload(&origin, session, seed, number),
                    None => new_session(&origin, number),
                };
                done.add(send(client.clone(), request, seed, number).await);
                progress.inc(1);
            }
        });
    }
    let mut all = Ordered::default();
    while let Some(done) = workers.join_next().await {
        all.merge(done?);
    }
    all.took = progress.elapsed();
    progress.finish_and_clear();
    Ok(all)
}

fn new_session(origin: &Uri, number: usize) -> Result<Request<Body>, http::Error> {
    let body = json!({ "user_id": format!("usr_{number}"), "workflow_id": "wkf_kyc_full" });
    Request::post(format!("{origin}v1/verification/sessions"))
        .header("authorization", API_KEY)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
}

/// Sends one operation, with as many attempts as it takes.
async fn send(
    mut client: ResilientClient,
    request: Result<Request<Body>, http::Error>,
    seed: u64,
    number: usize,
) -> (Operation, Result<Made, String>) {
    // Derive the key from what identifies the order. Here, this is the order's number. In an
    // application, it is the row that describes the work to do. If this program dies and starts
    // again with the same seed, it uses the same keys.
    let operation = Operation::derived([seed.to_le_bytes(), (number as u64).to_le_bytes()]);
    let sent = operation.clone();
    let answer = async {
        let mut request = request.map_err(|error| error.to_string())?;
        request.extensions_mut().insert(sent);
        let service = client.ready().await.map_err(|error| error.to_string())?;
        let response = service.call(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|never| never.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{status}: {error}"))
    };
    (operation, answer.await)
}

impl Ordered {
    fn add(&mut self, (operation, answer): (Operation, Result<Made, String>)) {
        self.operations += 1;
        self.attempts += u64::from(operation.attempts());
        self.replays += usize::from(operation.replayed());
        match answer {
            Ok(made) => {
                self.made.insert(made.document_id.unwrap_or(made.session_id));
            }
            Err(failure) => self.failures.push(failure),
        }
    }

    fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.made.extend(other.made);
        self.attempts += other.attempts;
        self.replays += other.replays;
        self.failures.extend(other.failures);
    }
}
