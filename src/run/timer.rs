//! Whether the runtime has the timer that leases and time-outs need.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

/// Looks until it has found a timer once.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    found: AtomicBool,
    reported: AtomicBool,
}

impl Timer {
    /// Whether the runtime has a timer. The first time that it has none is logged.
    pub(crate) fn is_there(&self) -> bool {
        if self.found.load(Ordering::Relaxed) {
            return true;
        }
        // Tokio says so in no other way.
        let there = Handle::try_current().is_ok() && catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
        if there {
            self.found.store(true, Ordering::Relaxed);
        } else if !self.reported.swap(true, Ordering::Relaxed) {
            tracing::error!(
                target: "tower_idempotency",
                "the idempotency layer needs a Tokio runtime with a timer, and there is none: requests with a key are \
                 refused; build the runtime with `enable_all` or `enable_time`"
            );
        }
        there
    }
}
