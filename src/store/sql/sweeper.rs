//! Removes expired rows, a few at a time.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::error::ConfigError;
use crate::store::{StoreError, StoreErrorKind};

/// How long a window can take. The limit is needed because a server that has disappeared from the
/// network never answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// The length of the sweeper's rest after a window, as a multiple of the window's duration. The
/// rest keeps the effect on claims small. The sweeper still keeps up with any load, because the
/// database must process a claim and a record for each row before the sweeper removes it.
const REST: u32 = 4;
/// The shortest pause between two rounds. Without a pause, the sweeper would query the database
/// nonstop.
const SHORTEST: Duration = Duration::from_millis(100);
/// The lag above which the sweeper rests less if the lag is still growing.
const FAR_BEHIND: Duration = Duration::from_secs(3600);

/// The sweeper's interface to a store.
pub(super) trait Sweepable: Send + Sync + 'static {
    /// The store's name in messages.
    const NAME: &'static str;
    /// The number of rows in one window. The number is small, because the rows may stay locked for
    /// as long as the window takes.
    const ROWS: u32 = 500;

    /// Processes the first rows that became due at or after the given mark, in the order in which
    /// they became due. Removes forgotten rows, gives a new due time to rows that live longer than
    /// planned, and skips locked rows.
    ///
    /// An implementation reads one index entry for each row that it processes, however many rows
    /// are due. An index may keep the entries of removed rows for a while. The mark prevents the
    /// sweeper from reading these entries again.
    fn sweep_window(&self, from: Option<Mark>, rows: u32) -> impl Future<Output = Result<Window, StoreError>> + Send;
}

/// A time at which rows were due, on the database's clock and in the database's own unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(pub(super) i64);

/// The result of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The number of rows that were removed.
    pub(super) removed: u64,
    /// The number of due rows that the window processed.
    pub(super) seen: u64,
    /// The time at which the last of these rows became due.
    pub(super) last: Option<Mark>,
    /// How long ago the last of these rows became due.
    pub(super) lag: Duration,
    /// How long the database was busy with the window, as closely as the store can measure this
    /// time.
    pub(super) took: Duration,
}

/// Removes at most `rows` rows, and returns the number of rows removed.
pub(super) async fn sweep_once<S: Sweepable>(store: &S, rows: u32) -> Result<u64, StoreError> {
    let mut from = None;
    loop {
        let window = store.sweep_window(from, rows).await?;
        if window.removed > 0 || window.seen < u64::from(rows.max(1)) {
            return Ok(window.removed);
        }
        from = window.last;
    }
}

/// Removes expired rows in the background until it is dropped.
///
/// Expired rows are never used, whether they are swept or not. The only effect of sweeping is to
/// free disk space. Several processes can safely sweep the same table. If a round fails, the
/// sweeper logs the error at `warn`, counts it, and tries again in the next round.
///
/// As long as rows are due, the sweeper works for a fifth of the time, or for half of the time if
/// it is more than an hour behind and not catching up. When no rows are due, it checks again after
/// a pause.
#[must_use = "the sweeper stops when it is dropped"]
pub struct Sweeper {
    task: AbortHandle,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    removed: AtomicU64,
    errors: AtomicU64,
    lag_millis: AtomicU64,
}

impl Sweeper {
    pub(super) fn start<S: Sweepable>(store: S, every: Duration) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| {
            ConfigError::new(
                "sweep_every",
                "there is no Tokio runtime to sweep on; call it from async code, or enter a runtime first",
            )
        })?;
        let counts = Arc::<Counts>::default();
        let task = runtime.spawn(sweep(store, every, Arc::clone(&counts)));
        Ok(Self {
            task: task.abort_handle(),
            counts,
        })
    }

    /// Returns the number of rows removed since the sweeper was started.
    #[must_use]
    pub fn removed(&self) -> u64 {
        self.counts.removed.load(Ordering::Relaxed)
    }

    /// Returns the number of rounds that failed since the sweeper was started.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.counts.errors.load(Ordering::Relaxed)
    }

    /// Returns the sweeper's lag: how long ago the most recently processed rows became due. The lag
    /// is zero if the sweeper has processed all rows that are due. Set up an alert for a lag that
    /// grows for hours.
    ///
    /// With the feature `metrics`, this is the gauge `idempotency_sweeper_lag_seconds`.
    #[must_use]
    pub fn lag(&self) -> Duration {
        Duration::from_millis(self.counts.lag_millis.load(Ordering::Relaxed))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper")
            .field("removed", &self.removed())
            .field("errors", &self.errors())
            .field("lag", &self.lag())
            .finish_non_exhaustive()
    }
}

impl Counts {
    fn add(&self, store: &'static str, removed: u64, lag: Duration) {
        self.removed.fetch_add(removed, Ordering::Relaxed);
        let millis = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.lag_millis.store(millis, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        metrics::gauge!("idempotency_sweeper_lag_seconds", "store" => store).set(lag.as_secs_f64());
        #[cfg(not(feature = "metrics"))]
        let _ = store;
    }
}

async fn sweep<S: Sweepable>(store: S, every: Duration, counts: Arc<Counts>) {
    loop {
        if let Err(error) = sweep_all(&store, &counts).await {
            counts.errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                target: "tower_idempotency",
                store = S::NAME,
                error = &error as &(dyn std::error::Error + 'static),
                "expired rows could not be removed; the next round tries again"
            );
        }
        tokio::time::sleep(every.max(SHORTEST)).await;
    }
}

/// Removes the rows that are due, window by window.
async fn sweep_all<S: Sweepable>(store: &S, counts: &Counts) -> Result<(), StoreError> {
    let mut from = None;
    let mut lag_before = Duration::MAX;
    loop {
        let window = tokio::time::timeout(PATIENCE, store.sweep_window(from, S::ROWS)).await;
        let window = window.unwrap_or_else(|elapsed| {
            let message = format!("{}: sweep: the database did not answer within {PATIENCE:?}", S::NAME);
            Err(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
        })?;
        if window.seen < u64::from(S::ROWS) {
            counts.add(S::NAME, window.removed, Duration::ZERO);
            return Ok(());
        }
        counts.add(S::NAME, window.removed, window.lag);
        let falls_back = window.lag > FAR_BEHIND && window.lag >= lag_before;
        lag_before = window.lag;
        from = window.last;
        tokio::time::sleep(window.took * if falls_back { 1 } else { REST }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use tokio::time::Instant;

    type Asked = Vec<(Option<Mark>, Instant)>;

    /// Rows by their due times. `false` marks rows that live longer than planned. Each window takes
    /// 10 ms.
    #[derive(Clone, Default)]
    struct Rows {
        due: Arc<Mutex<VecDeque<(i64, bool)>>>,
        asked: Arc<Mutex<Asked>>,
        lag: Duration,
        fails: Arc<AtomicU64>,
    }

    impl Rows {
        fn new(due: impl IntoIterator<Item = (i64, bool)>) -> Self {
            let rows = Self::default();
            rows.due.lock().unwrap().extend(due);
            rows
        }
    }

    impl Sweepable for Rows {
        const NAME: &'static str = "rows";
        const ROWS: u32 = 3;

        async fn sweep_window(&self, from: Option<Mark>, rows: u32) -> Result<Window, StoreError> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.asked.lock().unwrap().push((from, Instant::now()));
            if self.fails.load(Ordering::Relaxed) > 0 {
                self.fails.fetch_sub(1, Ordering::Relaxed);
                return Err(StoreError::new(StoreErrorKind::Unavailable, "rows: sweep: scripted"));
            }
            let mut due = self.due.lock().unwrap();
            let taken: Vec<_> = (0..rows).map_while(|_| due.pop_front()).collect();
            Ok(Window {
                removed: taken.iter().filter(|(_, is_over)| *is_over).count() as u64,
                seen: taken.len() as u64,
                last: taken.last().map(|(at, _)| Mark(*at)),
                lag: self.lag,
                took: Duration::from_millis(10),
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_from_window_to_window_and_rests_in_proportion() {
        let rows = Rows::new((0..7).map(|at| (at, at != 1)));
        let sweeper = Sweeper::start(rows.clone(), Duration::from_secs(60)).unwrap();
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!((sweeper.removed(), sweeper.errors()), (6, 0));
        let asked = rows.asked.lock().unwrap().clone();
        let marks: Vec<_> = asked.iter().map(|(mark, _)| *mark).collect();
        assert_eq!(marks, [None, Some(Mark(2)), Some(Mark(5))]);
        assert_eq!(
            asked[1].1 - asked[0].1,
            Duration::from_millis(50),
            "a fifth of the time"
        );
        rows.due.lock().unwrap().push_back((9, true));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(sweeper.removed(), 7);
        assert_eq!(
            rows.asked.lock().unwrap()[3].0,
            None,
            "each round starts from the beginning"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_reports_its_lag_and_rests_less_if_the_lag_does_not_shrink() {
        let mut rows = Rows::new((0..5000).map(|at| (at, true)));
        rows.lag = Duration::from_secs(7200);
        let sweeper = Sweeper::start(rows.clone(), Duration::from_secs(60)).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sweeper.lag(), rows.lag);
        let asked = rows.asked.lock().unwrap().clone();
        assert_eq!(asked[9].1 - asked[8].1, Duration::from_millis(20), "half of the time");
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!((sweeper.lag(), sweeper.removed()), (Duration::ZERO, 5000));
    }

    #[tokio::test(start_paused = true)]
    async fn it_pauses_between_rounds_even_if_told_not_to() {
        let rows = Rows::default();
        let _sweeper = Sweeper::start(rows.clone(), Duration::ZERO).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            rows.asked.lock().unwrap().len(),
            9,
            "after 10 ms, and then every 110 ms"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_counted_and_the_next_round_goes_on() {
        let rows = Rows::new((0..7).map(|at| (at, true)));
        rows.fails.store(2, Ordering::Relaxed);
        let sweeper = Sweeper::start(rows, Duration::from_secs(60)).unwrap();
        tokio::time::sleep(Duration::from_secs(125)).await;
        assert_eq!((sweeper.removed(), sweeper.errors()), (7, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_window_removes_something_if_anything_can_be_removed() {
        let rows = Rows::new([(1, false), (2, false), (3, true), (4, true)]);
        let mut removed = Vec::new();
        for _ in 0..3 {
            removed.push(sweep_once(&rows, 1).await.unwrap());
        }
        assert_eq!(removed, [1, 1, 0]);
    }
}
