//! Whether the runtime has the timer that leases and time-outs need.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

const NOT_LOOKED: u8 = 0;
const THERE: u8 = 1;
const MISSING: u8 = 2;

/// Looks once.
#[derive(Debug, Default)]
pub(crate) struct Timer(AtomicU8);

impl Timer {
    /// Whether the runtime has a timer. If not, that is logged.
    pub(crate) fn is_there(&self) -> bool {
        match self.0.load(Ordering::Relaxed) {
            THERE => return true,
            NOT_LOOKED => {}
            _ => return false,
        }
        // Tokio tells it in no other way.
        let there = Handle::try_current().is_ok() && catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
        self.0.store(if there { THERE } else { MISSING }, Ordering::Relaxed);
        if !there {
            tracing::error!(
                target: "tower_idempotency",
                "the idempotency layer needs a Tokio runtime with a timer, and there is none: requests with a key are \
                 refused; build the runtime with `enable_all` or `enable_time`"
            );
        }
        there
    }
}
