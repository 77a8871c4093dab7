//! The simulated identity provider. `workflow_id` controls its behavior, like magic card numbers
//! in a payment sandbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use uuid::Uuid;

use super::accounts::Account;
use super::data::Data;
use super::error::ApiError;

/// How long `wkf_slow` takes.
const SLOW: Duration = Duration::from_secs(2);
/// The size of the report of `wkf_large_report`, in bytes.
const LARGE_REPORT: usize = 3 * 1024 * 1024;
/// The sandbox's watch list.
const WATCH_LIST: [&str; 3] = ["Auric Goldfinger", "Ernst Stavro Blofeld", "Keyser Soze"];

/// The client of the provider. Clones share one count of calls.
#[derive(Clone)]
pub(crate) struct Provider {
    latency: Duration,
    calls: Arc<AtomicU64>,
    /// Where the sandbox records which users have been through a workflow, whatever happens to the
    /// operation.
    data: Data,
}

/// A verification that the provider has accepted.
pub(crate) struct Verification {
    pub(crate) report: Option<String>,
    /// Whether the sandbox crashes the process once this verification has been written.
    pub(crate) crash_after_writing: bool,
}

impl Provider {
    pub(crate) fn new(latency: Duration, data: Data) -> Self {
        Self {
            latency,
            calls: Arc::default(),
            data,
        }
    }

    /// Returns how often the provider was called.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Starts a verification. A real provider would receive `idempotency_key`, so that it does not
    /// charge twice if a call is repeated after a crash.
    pub(crate) async fn verify(
        &self,
        account: Account,
        user_id: &str,
        workflow_id: &str,
        idempotency_key: Uuid,
    ) -> Result<Verification, ApiError> {
        let latency = if workflow_id == "wkf_slow" { SLOW } else { self.latency };
        self.call(latency, idempotency_key).await;

        let mut verification = Verification {
            report: None,
            crash_after_writing: false,
        };
        match workflow_id {
            "wkf_provider_down" => return Err(unavailable()),
            "wkf_flaky" if self.data.is_first_time(account, "wkf_flaky", user_id).await? => return Err(unavailable()),
            "wkf_declined" => {
                return Err(ApiError::new(
                    StatusCode::PAYMENT_REQUIRED,
                    "the provider declined the verification; nothing was charged",
                ));
            }
            "wkf_panic" => panic!("the sandbox workflow `wkf_panic`"),
            "wkf_large_report" => verification.report = Some("r".repeat(LARGE_REPORT)),
            "wkf_crash" => {
                verification.crash_after_writing = self.data.is_first_time(account, "wkf_crash", user_id).await?
            }
            _ => {}
        }
        Ok(verification)
    }

    /// Returns the entries of the watch list that match the name.
    pub(crate) async fn screen(&self, full_name: &str, idempotency_key: Uuid) -> Vec<&'static str> {
        self.call(self.latency, idempotency_key).await;
        WATCH_LIST
            .into_iter()
            .filter(|entry| entry.eq_ignore_ascii_case(full_name.trim()))
            .collect()
    }

    async fn call(&self, latency: Duration, idempotency_key: Uuid) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%idempotency_key, "calling the provider");
        tokio::time::sleep(latency).await;
    }
}

fn unavailable() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the provider is unavailable; nothing was created or charged",
    )
}
