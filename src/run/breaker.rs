//! A circuit breaker around `begin` that refuses requests quickly while the store is unavailable.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::config::BreakerConfig;
use crate::store::{StoreError, StoreErrorKind};

/// While the breaker is closed, every request calls the store. When it opens, no request calls the
/// store for a while. Then one request at a time calls the store, until the store answers.
pub(crate) struct Breaker {
    config: Option<BreakerConfig>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of consecutive failures.
    failures: u32,
    /// The breaker is open until this time, and after that until a probe succeeds.
    open_until: Option<Instant>,
    /// Whether a request is calling the store while the breaker is open.
    probing: bool,
}

/// The source of the error that a request receives if the store was not called.
#[derive(Debug)]
struct Open;

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the circuit breaker is open")
    }
}

impl std::error::Error for Open {}

impl Breaker {
    pub(crate) fn new(config: Option<BreakerConfig>) -> Self {
        Self {
            config,
            state: Mutex::default(),
        }
    }

    /// Returns a permit to call the store, or an error if the breaker refuses the call.
    pub(crate) fn enter(&self) -> Result<Permit<'_>, StoreError> {
        let mut is_probe = false;
        if let Some(config) = self.config {
            let mut state = self.state();
            if let Some(until) = state.open_until {
                if state.probing || Instant::now() < until {
                    let message = format!(
                        "the store failed {} times in a row and is not called; it is tried again every {:?}",
                        state.failures, config.pause
                    );
                    return Err(StoreError::new(StoreErrorKind::Unavailable, message).with_source(Open));
                }
                state.probing = true;
                is_probe = true;
            }
        }
        Ok(Permit {
            breaker: self,
            is_probe,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the error was returned without calling the store.
pub(crate) fn was_not_asked(error: &StoreError) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Open>())
}

/// Permission to call the store once. If it is dropped, the next request can call the store.
pub(crate) struct Permit<'b> {
    breaker: &'b Breaker,
    /// Whether the breaker is open and this request probes the store.
    is_probe: bool,
}

impl Permit<'_> {
    /// Reports the result of the call. An error that the store itself returned is an answer, not a
    /// failure.
    pub(crate) fn report<T>(self, answer: &Result<T, StoreError>) {
        let Some(config) = self.breaker.config else { return };
        let failed = answer
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), StoreErrorKind::Timeout | StoreErrorKind::Unavailable));
        let mut state = self.breaker.state();
        let was_open = state.open_until.is_some();
        if failed && was_open && !self.is_probe {
            // This call began before the breaker opened, so its failure does not provide new
            // information.
            return;
        }
        if failed {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= config.failures {
                state.open_until = Some(Instant::now() + config.pause);
            }
        } else {
            state.failures = 0;
            state.open_until = None;
        }
        let (is_open, failures) = (state.open_until.is_some(), state.failures);
        drop(state);
        if is_open != was_open {
            tell(is_open, failures);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.state().probing = false;
        }
    }
}

fn tell(is_open: bool, failures: u32) {
    if is_open {
        tracing::error!(
            target: "tower_idempotency",
            failures,
            "the store is failing: requests are refused without calling it until it responds again; see the earlier \
             warnings for the cause"
        );
    } else {
        tracing::info!(target: "tower_idempotency", "the store responds again");
    }
    #[cfg(feature = "metrics")]
    metrics::gauge!("idempotency_store_breaker_open").set(f64::from(u8::from(is_open)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PAUSE: Duration = Duration::from_secs(1);

    fn breaker(failures: u32) -> Breaker {
        Breaker::new(Some(BreakerConfig { failures, pause: PAUSE }))
    }

    fn answer(breaker: &Breaker, kind: Option<StoreErrorKind>) {
        let answer = kind.map_or(Ok(()), |kind| Err(StoreError::new(kind, "scripted")));
        breaker.enter().expect("permission").report(&answer);
    }

    #[tokio::test(start_paused = true)]
    async fn contract_6_3_the_breaker_opens_after_failures_in_a_row_and_closes_at_an_answer() {
        let breaker = breaker(3);
        answer(&breaker, Some(StoreErrorKind::Timeout));
        answer(&breaker, Some(StoreErrorKind::Unavailable));
        answer(&breaker, None);
        for _ in 0..3 {
            answer(&breaker, Some(StoreErrorKind::Timeout));
        }
        let refused = breaker.enter().map(drop).unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Unavailable);
        assert!(was_not_asked(&refused));
        tokio::time::advance(PAUSE).await;
        answer(&breaker, None);
        answer(&breaker, None);
    }

    #[tokio::test(start_paused = true)]
    async fn contract_6_3_one_probe_at_a_time_finds_the_store_again() {
        let breaker = breaker(1);
        answer(&breaker, Some(StoreErrorKind::Timeout));
        tokio::time::advance(PAUSE).await;
        let probe = breaker.enter().unwrap();
        assert!(breaker.enter().is_err(), "a second probe");
        drop(probe);
        let probe = breaker
            .enter()
            .expect("a probe whose request was dropped lets the next one ask");
        probe.report::<()>(&Err(StoreError::new(StoreErrorKind::Timeout, "still away")));
        assert!(breaker.enter().is_err(), "open for another pause");
        tokio::time::advance(PAUSE).await;
        answer(&breaker, None);
    }

    #[tokio::test(start_paused = true)]
    async fn contract_6_3_what_was_asked_before_the_breaker_opened_does_not_keep_it_open() {
        let breaker = breaker(1);
        let early = breaker.enter().unwrap();
        let other = breaker.enter().unwrap();
        answer(&breaker, Some(StoreErrorKind::Timeout));
        tokio::time::advance(PAUSE).await;
        let probe = breaker.enter().unwrap();
        early.report::<()>(&Err(StoreError::new(StoreErrorKind::Timeout, "late")));
        assert!(breaker.enter().is_err(), "the probe is still the only one");
        drop(probe);
        drop(other);
        answer(&breaker, None);
    }

    #[test]
    fn what_the_store_itself_answers_is_no_failure() {
        let breaker = breaker(1);
        answer(&breaker, Some(StoreErrorKind::Corrupt));
        answer(&breaker, Some(StoreErrorKind::Full));
        assert!(breaker.enter().is_ok());
    }

    #[test]
    fn without_a_configuration_the_store_is_always_asked() {
        let breaker = Breaker::new(None);
        for _ in 0..100 {
            answer(&breaker, Some(StoreErrorKind::Timeout));
        }
        assert!(breaker.enter().is_ok());
    }
}
