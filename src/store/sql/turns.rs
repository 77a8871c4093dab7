//! Turns to write, for a database that allows one writer at a time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// The queues for the databases in use, by file. Pools and stores that use the same file share one
/// queue.
static QUEUES: LazyLock<Mutex<HashMap<PathBuf, Weak<Queue<()>>>>> = LazyLock::new(Mutex::default);

/// The queue of all writers to one database in this process: first come, first served.
///
/// If a database allows one writer at a time, writers that wait without a queue poll the database's
/// lock. The writer that polls at the right moment gets the lock, and the other writers sleep
/// longer each time. In a queue, each writer is woken when its turn comes.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Queue<()>>);

/// A turn to write. Dropping this value ends the turn.
#[derive(Debug)]
#[must_use = "the turn is over when it is dropped"]
pub(super) struct Turn {
    _turn: OwnedMutexGuard<()>,
}

impl Turns {
    /// Returns the queue for the database in this file. All users of the file must pass the same
    /// path.
    pub(super) fn of(file: PathBuf) -> Self {
        let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&file).and_then(Weak::upgrade) {
            return Self(queue);
        }
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::default();
        queues.insert(file, Arc::downgrade(&queue));
        Self(queue)
    }

    /// Waits for a turn. A caller that gives up leaves the queue.
    pub(super) async fn next(&self) -> Turn {
        let _turn = Arc::clone(&self.0).lock_owned().await;
        Turn { _turn }
    }

    /// Returns a turn, unless another caller has a turn or is waiting for one.
    pub(super) fn at_once(&self) -> Option<Turn> {
        let _turn = Arc::clone(&self.0).try_lock_owned().ok()?;
        Some(Turn { _turn })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn all_users_of_a_file_share_one_queue() {
        let (one, same, other) = (
            Turns::of("/a/b.db".into()),
            Turns::of("/a/b.db".into()),
            Turns::of("/a/c.db".into()),
        );
        let turn = one.at_once().unwrap();
        assert!(same.at_once().is_none());
        assert!(other.at_once().is_some());
        drop(turn);
        assert!(same.at_once().is_some());
    }

    #[test]
    fn a_file_that_nobody_uses_has_no_queue() {
        let of = |path: &str| drop(Turns::of(path.into()));
        of("/forgotten/1.db");
        of("/forgotten/2.db");
        let queues = QUEUES.lock().unwrap();
        assert!(!queues.contains_key(&PathBuf::from("/forgotten/1.db")));
    }

    #[test]
    fn turns_are_taken_in_order_and_callers_that_left_are_skipped() {
        let turns = Turns::of("/order.db".into());
        let first = turns.at_once().unwrap();
        let mut second = Box::pin(turns.next());
        let mut third = Box::pin(turns.next());
        let mut fourth = Box::pin(turns.next());
        for waiting in [&mut second, &mut third, &mut fourth] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(first);
        assert!(turns.at_once().is_none(), "the caller that has waited longest is next");
        assert!((&mut third).now_or_never().is_none());
        drop(third);
        let turn = second.now_or_never().expect("its turn");
        assert!((&mut fourth).now_or_never().is_none());
        drop(turn);
        drop(fourth.now_or_never().expect("its turn"));
        assert!(turns.at_once().is_some());
    }
}
