//! Opening a connection, with several attempts if necessary.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult};
use tokio::time::Instant;

/// A function that makes one attempt to open a connection.
pub(super) type Make<C> = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = RedisResult<C>> + Send>> + Send + Sync>;

/// The number of attempts before the waiting requests get an error. The attempts take long enough
/// for a server to restart, but not too long for requests to wait.
const TRIES: u32 = 6;
/// An attempt that fails after this time is the last one.
const LONGEST_SERIES: Duration = Duration::from_secs(3);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Tries to open a connection until an attempt succeeds or the limits are reached. An attempt that
/// follows a failure starts after a pause. Any other attempt starts immediately.
pub(super) async fn in_series<C>(make: &Make<C>, failures: &AtomicU32) -> RedisResult<C> {
    let begun = Instant::now();
    let mut tries = 1;
    loop {
        let failed = failures.load(Ordering::Relaxed);
        if failed > 0 {
            tokio::time::sleep(pause(failed)).await;
        }
        match make().await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                failures.fetch_add(1, Ordering::Relaxed);
                if tries == TRIES || begun.elapsed() >= LONGEST_SERIES || is_final(&error) {
                    return Err(error);
                }
            }
        }
        tries += 1;
    }
}

/// Returns whether the error will persist for more than a second. If so, the waiting requests get
/// the error immediately.
fn is_final(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed | ErrorKind::RESP3NotSupported | ErrorKind::InvalidClientConfig
    ) || error.to_string().contains("refused to switch database")
}

/// Returns the pause before the next attempt. The pause doubles with each failure. Many processes
/// can lose the connection to their server at the same time. To keep these processes from all
/// reconnecting at once, each pause is shortened by a random amount, up to half.
fn pause(failures: u32) -> Duration {
    let longest = (SHORTEST_PAUSE * (1 << failures.saturating_sub(1).min(8))).min(LONGEST_PAUSE);
    let chance = RandomState::new().hash_one(failures) % 1024;
    longest - longest * u32::try_from(chance).unwrap_or(0) / 2048
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn failing(tries: Arc<AtomicUsize>, until: usize, kind: ErrorKind) -> Make<usize> {
        Arc::new(move || {
            let n = tries.fetch_add(1, Ordering::Relaxed) + 1;
            Box::pin(async move {
                if n >= until {
                    Ok(n)
                } else {
                    Err(RedisError::from((kind, "no")))
                }
            })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_try_is_immediate_and_later_tries_are_increasingly_far_apart() {
        let (tries, failures) = (Arc::new(AtomicUsize::new(0)), AtomicU32::new(0));
        let started = Instant::now();
        let made = in_series(&failing(tries.clone(), 1, ErrorKind::Io), &failures).await;
        assert_eq!((made.unwrap(), started.elapsed()), (1, Duration::ZERO));

        tries.store(0, Ordering::Relaxed);
        let made = in_series(&failing(tries.clone(), usize::MAX, ErrorKind::Io), &failures).await;
        assert!(made.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 6);
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(600) && took <= Duration::from_millis(1300),
            "{took:?}"
        );

        // The next series takes these failures into account.
        let again = Instant::now();
        let made = in_series(&failing(tries.clone(), 1, ErrorKind::Io), &failures).await;
        assert!(made.is_ok() && again.elapsed() >= LONGEST_PAUSE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_will_persist_is_returned_immediately() {
        let (tries, failures) = (Arc::new(AtomicUsize::new(0)), AtomicU32::new(0));
        let make = failing(tries.clone(), usize::MAX, ErrorKind::AuthenticationFailed);
        assert!(in_series(&make, &failures).await.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn pauses_differ_and_are_bounded() {
        for failures in [1, 2, 5, 30, u32::MAX] {
            let pause = pause(failures);
            assert!(
                pause >= SHORTEST_PAUSE / 2 && pause <= LONGEST_PAUSE,
                "{failures}: {pause:?}"
            );
        }
    }
}
