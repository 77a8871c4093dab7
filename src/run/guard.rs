//! The state that all clones of one layer and its services share.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_utils::CachePadded;
use http::Response;
use http::request::Parts;
use http_body::Body;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::breaker::Breaker;
use super::config::Config;
use super::timer::Timer;
use crate::answer::{Outcome, Problem, Tally};
use crate::body::ResponseBody;
use crate::request::Slot;
use crate::store::Token;

/// The store, the configuration and the counts of one layer.
pub(crate) struct Guard<St> {
    // The fields that every request reads, the fields that every request writes, and the reference
    // count are on separate cache lines. Otherwise, workers would wait for each other.
    pub(crate) store: CachePadded<St>,
    pub(crate) config: CachePadded<Config>,
    /// Work without a client: handlers whose clients have disconnected, and outcomes that are
    /// stored in the background.
    pub(crate) tasks: TaskTracker,
    pub(crate) tally: CachePadded<Tally>,
    pub(crate) breaker: Breaker,
    pub(crate) timer: Timer,
    pub(crate) warned_of_cookie: AtomicBool,
    pub(crate) warned_of_scheme: AtomicBool,
    warned_of_body: AtomicBool,
    /// The number of claims that are being given back because the store's answer was lost.
    pub(crate) taking_back: AtomicUsize,
    next_token: CachePadded<AtomicU64>,
}

impl<St> Guard<St> {
    pub(crate) fn new(store: St, config: Config) -> Self {
        // Tokens are unique across processes because of the random start, and unique within this
        // process because of the counter.
        let (start, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self {
            store: CachePadded::new(store),
            breaker: Breaker::new(config.breaker),
            timer: Timer::default(),
            config: CachePadded::new(config),
            tasks: TaskTracker::new(),
            tally: CachePadded::default(),
            warned_of_cookie: AtomicBool::new(false),
            warned_of_scheme: AtomicBool::new(false),
            warned_of_body: AtomicBool::new(false),
            taking_back: AtomicUsize::new(0),
            next_token: CachePadded::new(AtomicU64::new(start)),
        }
    }

    pub(crate) fn token(&self) -> Token {
        Token(self.next_token.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether so much work is running without clients that no first request is admitted.
    pub(crate) fn is_overloaded(&self) -> bool {
        self.tasks.len() >= self.config.max_detached
    }

    /// Renders a problem as the response to a request, and counts and logs the request.
    pub(crate) fn respond<RB>(
        &self,
        outcome: Outcome,
        problem: &Problem,
        request: &Parts,
        slot: Option<&Slot>,
        attempt: Option<u32>,
    ) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        self.tally.report_of(outcome, slot, attempt, || {
            let rendered = self.config.rendering.render(problem, request);
            rendered.map(|body| ResponseBody::kept(body, None))
        })
    }

    /// Logs once that the service's body type cannot be made from a stream.
    pub(crate) fn report_unstreamable(&self) {
        if !self.warned_of_body.swap(true, Ordering::Relaxed) {
            tracing::error!(
                target: "tower_idempotency",
                "`stream_request_bodies` is set, but the service's request body cannot be made from a stream: requests \
                 with a key are refused; implement `GuardedBody::from_streamed`, or use `RequestBody` or the body type \
                 of axum or tonic"
            );
        }
    }

    /// Runs a future to completion after its owner has been dropped.
    ///
    /// `home` is the runtime that polled the future, for owners that are dropped outside a runtime.
    pub(crate) fn adopt(&self, home: Option<&Handle>, future: impl Future<Output = ()> + Send + 'static) {
        let current = Handle::try_current().ok();
        match home.or(current.as_ref()) {
            Some(handle) => drop(self.tasks.spawn_on(future, handle)),
            // When the future is dropped, each claim in it is logged.
            None => tracing::error!(
                target: "tower_idempotency",
                "a request was dropped outside a Tokio runtime, so its handler cannot run to completion; drop requests \
                 only inside the runtime"
            ),
        }
    }
}
