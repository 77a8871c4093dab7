//! Checks whether the runtime has the timer that leases and timeouts need.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

/// Checks for a timer on each call until one has been found.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    found: AtomicBool,
    reported: AtomicBool,
}

impl Timer {
    /// Returns whether the runtime has a timer. Logs an error the first time it does not find a
    /// timer.
    pub(crate) fn is_there(&self) -> bool {
        if self.found.load(Ordering::Relaxed) {
            return true;
        }
        // Without a timer, `sleep` panics. Tokio provides no other way to check for a timer.
        let there = Handle::try_current().is_ok() && catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
        if there {
            self.found.store(true, Ordering::Relaxed);
        } else if !self.reported.swap(true, Ordering::Relaxed) {
            tracing::error!(
                target: "tower_idempotency",
                "the idempotency layer needs a Tokio runtime with a timer, but there is none: requests with a key are \
                 refused; build the runtime with `enable_all` or `enable_time`"
            );
        }
        there
    }
}
