//! Placing the orders: one operation each, many at once.

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

use super::client::{self, ResilientClient};
use super::options::Options;

/// What happened to all orders.
#[derive(Default)]
pub(crate) struct Ordered {
    pub(crate) operations: usize,
    /// The sessions in the responses.
    pub(crate) sessions: BTreeSet<String>,
    pub(crate) attempts: u64,
    pub(crate) replays: usize,
    /// How the operations without a session ended.
    pub(crate) failures: Vec<String>,
    pub(crate) took: Duration,
}

#[derive(Deserialize)]
struct Session {
    session_id: String,
}

/// Places them at `origin`, and returns when each has its response.
pub(crate) async fn place(origin: &Uri, options: &Options) -> Result<Ordered, Box<dyn Error + Send + Sync>> {
    let client = client::new(options.new_key_each_attempt)?;
    // Hidden if standard error is not a terminal.
    let progress = ProgressBar::new(options.operations as u64).with_style(ProgressStyle::with_template(
        "{bar:40} {pos}/{len} sessions, {per_sec}, {elapsed}{msg}",
    )?);

    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..options.concurrency {
        let (client, next, progress) = (client.clone(), Arc::clone(&next), progress.clone());
        let (origin, seed, operations) = (origin.clone(), options.seed(), options.operations);
        workers.spawn(async move {
            let mut done = Ordered::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= operations {
                    return done;
                }
                done.add(create(client.clone(), &origin, seed, number).await);
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

/// One session, whatever it takes.
async fn create(
    mut client: ResilientClient,
    origin: &Uri,
    seed: u64,
    number: usize,
) -> (Operation, Result<Session, String>) {
    // The key depends on the order, here on its number; in an application, on the row that says what is to be
    // done. If this program dies and starts again, it uses the same keys.
    let operation = Operation::derived([seed.to_le_bytes(), (number as u64).to_le_bytes()]);
    let body = json!({ "user_id": format!("usr_{number}"), "workflow_id": "wkf_kyc_full" });
    let request = Request::post(format!("{origin}v1/verification/sessions"))
        .header("authorization", "Bearer sk_test_acme")
        .header("content-type", "application/json")
        .extension(operation.clone())
        .body(Full::from(body.to_string()));
    let answer = async {
        let request = request.map_err(|error| error.to_string())?;
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
    fn add(&mut self, (operation, answer): (Operation, Result<Session, String>)) {
        self.operations += 1;
        self.attempts += u64::from(operation.attempts());
        self.replays += usize::from(operation.replayed());
        match answer {
            Ok(session) => {
                self.sessions.insert(session.session_id);
            }
            Err(failure) => self.failures.push(failure),
        }
    }

    fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.sessions.extend(other.sessions);
        self.attempts += other.attempts;
        self.replays += other.replays;
        self.failures.extend(other.failures);
    }
}
