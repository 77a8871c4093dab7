//! A connection, replaced when it can come back no more.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use redis::{ErrorKind, RedisError, RedisResult};

type Remake<C> = Box<dyn Fn() -> Option<C> + Send + Sync>;

/// A `ConnectionManager` tries again after a network's error, but not after the server refused its
/// greeting, as while a password is changed or too many clients are connected: it answers that
/// error for ever. This takes its place by a new one.
pub(super) struct Link<C> {
    now: RwLock<(u64, C)>,
    remake: Option<Remake<C>>,
}

impl<C: Clone> Link<C> {
    /// One that is never replaced.
    pub(super) fn fixed(connection: C) -> Self {
        Self {
            now: RwLock::new((0, connection)),
            remake: None,
        }
    }

    pub(super) fn remade(connection: C, remake: impl Fn() -> Option<C> + Send + Sync + 'static) -> Self {
        Self {
            remake: Some(Box::new(remake)),
            ..Self::fixed(connection)
        }
    }

    /// The connection, and which one it is.
    pub(super) fn get(&self) -> (u64, C) {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Learns from the answer that this one gave.
    pub(super) fn learn<T>(&self, which: u64, answer: &RedisResult<T>) {
        let (Some(remake), Err(error)) = (&self.remake, answer) else {
            return;
        };
        if !was_refused(error) {
            return;
        }
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        // Of many that fail together, one replaces it.
        if now.0 == which
            && let Some(connection) = remake()
        {
            *now = (which + 1, connection);
        }
    }
}

fn was_refused(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::RESP3NotSupported => true,
        _ => error.to_string().contains("refused to switch database"),
    }
}

impl<C> fmt::Debug for Link<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}
