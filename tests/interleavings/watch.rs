//! A memory store that is watched, beside a book of who holds what, kept apart from the code under test.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;
use tower_idempotency::Store;
use tower_idempotency::store::{
    Census, ClaimOutcome, ClaimRequest, Held, Inspect, MemoryStore, Record, Slot, StoreError, StoreErrorKind, Token,
};

/// How often anything of ours was polled: what stands still for it stands still.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activity(Arc<AtomicUsize>);

impl Activity {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Pending that many times, woken at once each time.
    pub(crate) async fn yields(&self, times: usize) {
        let mut left = times;
        poll_fn(|cx| {
            self.up();
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// How slow the store is, in polls, and what it does to its callers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lag {
    /// Before a call has its effect, and between the effect and the answer.
    pub(crate) call: [usize; 2],
    /// Between the registration of a waiter and its wait: where a thread can be stopped.
    pub(crate) wait: usize,
    /// The first claim takes effect, and its answer is lost.
    pub(crate) loses_first_answer: bool,
}

impl Lag {
    pub(crate) const NONE: Self = Self {
        call: [0, 0],
        wait: 0,
        loses_first_answer: false,
    };
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    token: Token,
    attempt: u32,
    /// `None`: forever.
    until: Option<Instant>,
}

/// Who holds the one slot there is.
#[derive(Debug, Default)]
struct Book {
    claim: Option<Claim>,
    done: bool,
    begins: usize,
}

#[derive(Clone)]
pub(crate) struct Watched<const IN_PROCESS: bool> {
    inner: MemoryStore,
    book: Arc<Mutex<Book>>,
    activity: Activity,
    lag: Lag,
}

/// The answer of a call to the memory store, which waits for nothing.
fn at_once<F: Future>(call: F) -> F::Output {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the memory store answers at once"),
    }
}

impl<const IN_PROCESS: bool> Watched<IN_PROCESS> {
    pub(crate) fn new(activity: Activity, lag: Lag) -> Self {
        Self {
            inner: MemoryStore::new(),
            book: Arc::default(),
            activity,
            lag,
        }
    }

    pub(crate) fn census(&self) -> Census {
        at_once(self.inner.count()).expect("memory does not fail")
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn slowly<T>(&self, effect: impl FnOnce() -> T) -> T {
        self.activity.yields(self.lag.call[0]).await;
        let answer = effect();
        self.activity.yields(self.lag.call[1]).await;
        answer
    }

    /// What a call under a token answers: `Yes` if and only if the token holds the slot.
    fn fenced(&self, asking: Token, held: Held) -> bool {
        let book = self.book();
        let holds = book.claim.is_some_and(|claim| claim.token == asking);
        assert_eq!(
            held == Held::Yes,
            holds,
            "{asking:?} spoke, and {:?} holds the slot",
            book.claim
        );
        holds
    }

    fn began(&self, begin: &ClaimRequest, begun: &ClaimOutcome) {
        let now = Instant::now();
        let mut book = self.book();
        let runs = |claim: &Claim| claim.until.is_none_or(|until| now < until);
        match begun {
            ClaimOutcome::Started { attempt, .. } => {
                assert!(!book.done, "claimed although done");
                let before = book.claim.map_or(0, |claim| claim.attempt);
                match book.claim {
                    Some(claim) if claim.token == begin.token => assert_eq!(*attempt, before),
                    other => {
                        assert!(!other.is_some_and(|claim| runs(&claim)), "two claims run: {other:?}");
                        assert_eq!(*attempt, before + 1);
                    }
                }
                book.claim = Some(Claim {
                    token: begin.token,
                    attempt: *attempt,
                    until: now.checked_add(begin.lease),
                });
            }
            ClaimOutcome::InFlight { .. } => assert!(book.claim.as_ref().is_some_and(runs), "nothing is in flight"),
            ClaimOutcome::Done(_) => assert!(book.done, "nothing is done"),
            begun => panic!("{begun:?}: all requests are the same"),
        }
    }
}

impl<const IN_PROCESS: bool> Store for Watched<IN_PROCESS> {
    const IN_PROCESS: bool = IN_PROCESS;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let claim = || {
            let begun = at_once(self.inner.begin(begin))?;
            self.began(begin, &begun);
            self.book().begins += 1;
            match self.lag.loses_first_answer && self.book().begins == 1 {
                true => Err(StoreError::new(StoreErrorKind::Unavailable, "as the test wants")),
                false => Ok(begun),
            }
        };
        match IN_PROCESS {
            true => claim(),
            false => self.slowly(claim).await,
        }
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let renew = || {
            let held = at_once(self.inner.renew(slot, token, lease))?;
            if self.fenced(token, held)
                && let Some(claim) = &mut self.book().claim
            {
                claim.until = Instant::now().checked_add(lease);
            }
            Ok(held)
        };
        match IN_PROCESS {
            true => renew(),
            false => self.slowly(renew).await,
        }
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.slowly(|| {
            let held = at_once(self.inner.complete(slot, token, record, ttl))?;
            if self.fenced(token, held) {
                let mut book = self.book();
                (book.claim, book.done) = (None, true);
            }
            Ok(held)
        })
        .await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.slowly(|| {
            let held = at_once(self.inner.release(slot, token))?;
            if self.fenced(token, held) {
                self.book().claim = None;
            }
            Ok(held)
        })
        .await
    }

    fn changed(&self, slot: &Slot, round: u32) -> impl Future<Output = ()> + Send {
        let ended = self.inner.changed(slot, round);
        async move {
            self.activity.yields(self.lag.wait).await;
            ended.await;
        }
    }
}
