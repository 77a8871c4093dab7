//! What the tests share: requests, answers read whole, gates, bodies by script, and (in their own
//! modules) stores by script and captured events.
#![allow(dead_code, reason = "each test crate uses a part of it")]

pub(crate) mod capture;
pub(crate) mod store;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt, service_fn};
use tower_idempotency::{GuardedBody, IdempotencyLayer, Outcome, Store};

/// A `POST` with a key.
pub(crate) fn post(path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    request("POST", path, &[("idempotency-key", key)], body)
}

/// A request with exactly these headers.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).expect("a valid request")
}

/// A response read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) outcome: Option<Outcome>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("visible"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }

    /// The outcome's name, as it is counted.
    pub(crate) fn outcome(&self) -> &'static str {
        self.outcome.map_or("none", Outcome::as_str)
    }

    /// Panics unless this is the problem of that slug, complete and with its status.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, slug: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["code"], slug);
        assert_eq!(problem["status"], status);
        assert!(
            problem["type"]
                .as_str()
                .is_some_and(|url| url.ends_with(&format!("#{slug}")))
        );
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        assert!(!self.headers.contains_key("idempotency-replayed"), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_replay_of(&self, first: &Self) {
        assert!(self.is_replay(), "{self:?}");
        assert!(!first.is_replay(), "{first:?}");
        assert_eq!(self.status, first.status);
        assert_eq!(self.body, first.body);
        assert_eq!(self.trailers, first.trailers);
        let mut headers = self.headers.clone();
        headers.remove("idempotency-replayed");
        let mut expected = first.headers.clone();
        for name in ["date", "set-cookie"] {
            expected.remove(name);
        }
        assert_eq!(headers, expected);
        assert_eq!(self.outcome(), "replayed");
    }
}

/// Reads a response to its end; panics if its body fails.
pub(crate) async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("the whole body");
    let trailers = collected.trailers().cloned();
    Answer {
        status: head.status,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
        outcome: head.extensions.get().copied(),
    }
}

/// Sends one request through a clone of the service and reads the answer to its end.
pub(crate) async fn send<S, Q, B>(service: &S, request: Request<Q>) -> Answer
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    read(respond(service, request).await).await
}

/// As [`send`], and leaves the body to the test.
pub(crate) async fn respond<S, Q, B>(service: &S, request: Request<Q>) -> Response<B>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    S::Error: Debug,
{
    let response = watched(Duration::from_secs(300), service.clone().oneshot(request)).await;
    response.expect("no error")
}

/// What never comes fails a test instead of hanging it. The bound is far beyond what any test needs, on
/// a clock that is paused or not.
async fn watched<T>(bound: Duration, wait: impl Future<Output = T>) -> T {
    let output = tokio::time::timeout(bound, wait).await;
    output.unwrap_or_else(|_| panic!("what was waited for did not come in {bound:?}"))
}

/// Waits until no work goes on without its client.
pub(crate) async fn drain<St: Store>(layer: &IdempotencyLayer<St>) {
    let background = layer.background();
    watched(Duration::from_secs(3600), background.wait()).await;
}

/// As [`send`], in a task of its own.
pub(crate) fn spawn<S, Q, B>(service: &S, request: Request<Q>) -> JoinHandle<Answer>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Debug,
    S::Future: Send,
    Q: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Debug,
{
    let request = service.clone().oneshot(request);
    tokio::spawn(async move { read(request.await.expect("no error")).await })
}

/// Polls once, whatever woke it.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls that many times; `None` if it is not ready by then.
pub(crate) async fn poll_times<F: Future + ?Sized>(mut future: Pin<&mut F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = poll_once(future.as_mut()).await {
            return Some(output);
        }
    }
    None
}

/// Pending that many times, woken at once each time.
pub(crate) async fn yields(times: usize) {
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until it is so, by the clock of the machine.
pub(crate) async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !so().await {
        assert!(started.elapsed() < Duration::from_secs(60), "too late: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets every task of a current-thread runtime go as far as it can without time passing.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// An inner service under a short name.
pub(crate) type Inner<B = Full<Bytes>> = BoxCloneSyncService<Request<Body>, Response<B>, Infallible>;

/// An inner service that never fails.
pub(crate) fn inner<F, R, B>(handler: F) -> Inner<B>
where
    F: FnMut(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: 'static,
{
    let mut handler = handler;
    BoxCloneSyncService::new(service_fn(move |request| {
        let response = handler(request);
        async move { Ok(response.await) }
    }))
}

/// `200` with that body.
pub(crate) fn ok(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}

/// How often that outcome was counted.
#[track_caller]
pub(crate) fn counted<St: Store>(layer: &IdempotencyLayer<St>, outcome: &str) -> u64 {
    let found = layer.counts().find(|(name, _)| *name == outcome);
    found.unwrap_or_else(|| panic!("no outcome is called {outcome}")).1
}

/// Counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    /// Counts one more and returns how many there are now.
    pub(crate) fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A place where handlers stop until a test lets them go on.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    /// For the handler: says that it is here, and waits.
    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }

    /// For the test: waits until one more is here.
    pub(crate) async fn arrival(&self) {
        let arrival = watched(Duration::from_secs(120), self.arrived.acquire()).await;
        arrival.expect("never closed").forget();
    }

    /// Lets one go on.
    pub(crate) fn open_once(&self) {
        self.open.add_permits(1);
    }

    /// Lets all go on, now and later.
    pub(crate) fn open(&self) {
        self.open.add_permits(1 << 20);
    }
}

/// One step of a body.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending once.
    Yield,
    /// Waits at the gate.
    Stop(Gate),
    Fail,
    Panic,
    /// Pending for ever.
    Hang,
}

pin_project_lite::pin_project! {
    /// A body that does what it is told; `!Unpin`, and without a declared length.
    pub(crate) struct ScriptedBody {
        steps: VecDeque<Step>,
        waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
        polled: Count,
        hint: SizeHint,
        #[pin]
        pinned: PhantomPinned,
    }
}

/// What a [`ScriptedBody`] fails with.
#[derive(Debug)]
pub(crate) struct BrokenBody;

impl std::fmt::Display for BrokenBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body broke off")
    }
}

impl std::error::Error for BrokenBody {}

impl ScriptedBody {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            waiting: None,
            polled: Count::default(),
            hint: SizeHint::default(),
            pinned: PhantomPinned,
        }
    }

    /// Declares a length, true or not.
    pub(crate) fn declaring(mut self, bytes: u64) -> Self {
        self.hint = SizeHint::with_exact(bytes);
        self
    }

    /// Counts how often the body was polled.
    pub(crate) fn counting(mut self, polled: &Count) -> Self {
        self.polled = polled.clone();
        self
    }
}

impl From<Bytes> for ScriptedBody {
    fn from(data: Bytes) -> Self {
        let length = data.len() as u64;
        Self::new([Step::Data(data)]).declaring(length)
    }
}

impl GuardedBody for ScriptedBody {
    fn from_buffered(data: Bytes) -> Self {
        data.into()
    }
}

impl From<&'static str> for ScriptedBody {
    fn from(data: &'static str) -> Self {
        Self::from(Bytes::from_static(data.as_bytes()))
    }
}

impl http_body::Body for ScriptedBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.polled.up();
        let this = self.as_mut().project();
        if let Some(waiting) = this.waiting {
            ready!(waiting.as_mut().poll(cx));
            *this.waiting = None;
        }
        match this.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                if let Some(declared) = this.hint.exact() {
                    *this.hint = SizeHint::with_exact(declared.saturating_sub(data.len() as u64));
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Fail) => Poll::Ready(Some(Err(BrokenBody))),
            Some(Step::Panic) => panic!("a body panics, as the test wants"),
            Some(Step::Hang) => {
                this.steps.push_front(Step::Hang);
                Poll::Pending
            }
            Some(Step::Stop(gate)) => {
                let mut waiting = Box::pin(async move { gate.pass().await });
                if waiting.as_mut().poll(cx).is_pending() {
                    *this.waiting = Some(waiting);
                    return Poll::Pending;
                }
                self.poll_frame(cx)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
