//! A connection, and the time of its last reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone)]
pub(super) struct Live<C> {
    pub(super) connection: C,
    pub(super) facts: Arc<Facts>,
}

impl<C> Live<C> {
    pub(super) fn new(connection: C) -> Self {
        Self {
            connection,
            facts: Arc::new(Facts::new()),
        }
    }
}

/// The method that the store uses to claim slots on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Not known yet. The store claims a slot with the command, and confirms the claim with the
    /// script.
    Unproven,
    /// With `SET … NX GET`, on Valkey and on Redis 7.0 or later.
    Command,
    /// With the script alone.
    Script,
}

const NEVER: u64 = u64::MAX;

/// The shared facts about a connection. Times are in milliseconds since the connection was opened.
pub(super) struct Facts {
    made: Instant,
    dialect: AtomicU8,
    heard: AtomicU64,
    /// The time at which the first request after the last reply was sent.
    waits_since: AtomicU64,
}

impl Facts {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            dialect: AtomicU8::new(Dialect::Unproven as u8),
            heard: AtomicU64::new(0),
            waits_since: AtomicU64::new(NEVER),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.dialect.load(Ordering::Relaxed) {
            x if x == Dialect::Command as u8 => Dialect::Command,
            x if x == Dialect::Script as u8 => Dialect::Script,
            _ => Dialect::Unproven,
        }
    }

    pub(super) fn speaks(&self, dialect: Dialect) {
        self.dialect.store(dialect as u8, Ordering::Relaxed);
    }

    fn since_made(&self, at: Instant) -> u64 {
        u64::try_from((at - self.made).as_millis()).unwrap_or(NEVER)
    }

    /// Records that a request is being sent now.
    pub(super) fn asks(&self) -> Instant {
        let now = Instant::now();
        let (at, relaxed) = (self.since_made(now), Ordering::Relaxed);
        let _ = self.waits_since.compare_exchange(NEVER, at, relaxed, relaxed);
        now
    }

    /// Records that the server has replied.
    pub(super) fn answers(&self) {
        self.heard.store(self.since_made(Instant::now()), Ordering::Relaxed);
        self.waits_since.store(NEVER, Ordering::Relaxed);
    }

    /// Returns the time of the server's last reply or `asked`, whichever is later.
    pub(super) fn heard_since(&self, asked: Instant) -> Instant {
        asked.max(self.made + Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// Returns whether a request was sent at least `silence` ago and nothing has arrived since.
    pub(super) fn is_mute_for(&self, silence: Duration) -> bool {
        let since = self.waits_since.load(Ordering::Relaxed);
        since != NEVER && self.made + Duration::from_millis(since) + silence <= Instant::now()
    }

    /// Returns how long ago the connection was opened.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_mute_only_when_it_was_asked_and_never_answered() {
        let facts = Facts::new();
        tokio::time::advance(2 * SILENCE).await;
        assert!(!facts.is_mute_for(SILENCE), "nobody asked");
        facts.asks();
        tokio::time::advance(SILENCE / 2).await;
        facts.asks();
        assert!(!facts.is_mute_for(SILENCE));
        tokio::time::advance(SILENCE / 2).await;
        assert!(facts.is_mute_for(SILENCE), "counted from the first");
        facts.answers();
        tokio::time::advance(2 * SILENCE).await;
        assert!(!facts.is_mute_for(SILENCE));
        assert_eq!(facts.age(), 5 * SILENCE);
    }
}
