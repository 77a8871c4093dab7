//! One race: some clients send the same request, and a schedule says who is polled, who leaves, when
//! work in the background goes on and when time passes.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::runtime::Handle;
use tokio::time::{Instant, advance, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{Fate, IdempotencyLayer, Outcome, ProblemKind};

use super::schedule::{self, Choices};
use super::watch::{Activity, Lag, Watched};

/// What a run of the handler does after it has yielded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Success,
    Refusal,
    Failure,
    Panic,
}

#[derive(Clone, Debug)]
pub(crate) struct Race {
    pub(crate) clients: usize,
    /// The first so many clients may leave, whenever the schedule says.
    pub(crate) leavers: usize,
    pub(crate) wait: Duration,
    pub(crate) lag: Lag,
    pub(crate) lease: Duration,
    /// How often a run of the handler yields.
    pub(crate) yields: usize,
    /// How the runs end, in order; those beyond succeed.
    pub(crate) ends: &'static [End],
    /// By how many seconds time may pass, each once and in order.
    pub(crate) ticks: &'static [u64],
    pub(crate) cancel: Option<Fate>,
}

impl Race {
    /// Two duplicates that wait, on a store that answers at once; nobody leaves, and nothing fails.
    pub(crate) const QUIET: Self = Self {
        clients: 2,
        leavers: 0,
        wait: Duration::from_secs(5),
        lag: Lag::NONE,
        lease: Duration::from_secs(30),
        yields: 1,
        ends: &[],
        ticks: &[],
        cancel: None,
    };
}

/// How a client's request ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Got {
    Answer { outcome: Outcome, body: Bytes },
    Error,
    Panic,
    Left,
}

/// What is known when all is over.
#[derive(Debug)]
pub(crate) struct Over {
    pub(crate) got: Vec<Got>,
    pub(crate) runs: usize,
    /// Handlers that were at work at once, at most.
    pub(crate) at_once: usize,
    pub(crate) retry: Got,
    /// Claims that lapsed and were not taken over before the retry.
    pub(crate) lapsed: u64,
}

#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler failed, as the test wants")
    }
}

#[derive(Debug, Default)]
struct Works {
    runs: usize,
    now: usize,
    most: usize,
}

/// A handler at work, counted until it is done or dropped.
struct AtWork(Arc<Mutex<Works>>);

impl AtWork {
    fn start(works: &Arc<Mutex<Works>>) -> (Self, usize) {
        let mut counts = works.lock().unwrap_or_else(PoisonError::into_inner);
        let run = counts.runs;
        counts.runs += 1;
        counts.now += 1;
        counts.most = counts.most.max(counts.now);
        (Self(Arc::clone(works)), run)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now -= 1;
    }
}

/// A waker that remembers.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Client {
    /// `None` once it has ended.
    sent: Option<Pin<Box<dyn Future<Output = Got>>>>,
    woken: Arc<Flag>,
    got: Got,
    asked: Option<Instant>,
    /// It was looked at when it had waited for as long as it may, and waits on.
    late: bool,
}

impl Client {
    fn new(sent: impl Future<Output = Got> + 'static) -> Self {
        let woken = Arc::new(Flag::default());
        woken.0.store(true, Ordering::Relaxed);
        Self {
            sent: Some(Box::pin(sent)),
            woken,
            got: Got::Left,
            asked: None,
            late: false,
        }
    }

    fn is_runnable(&self) -> bool {
        self.sent.is_some() && self.woken.0.load(Ordering::Relaxed)
    }

    fn poll(&mut self, wait: Duration) {
        let Some(mut sent) = self.sent.take() else { return };
        let asked = *self.asked.get_or_insert_with(Instant::now);
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut cx = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| sent.as_mut().poll(&mut cx))) {
            Ok(Poll::Pending) => {
                self.sent = Some(sent);
                self.late = asked.elapsed() >= wait;
            }
            Ok(Poll::Ready(got)) => self.got = got,
            Err(panic) if panic.is::<Failed>() => self.got = Got::Panic,
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Poll(usize),
    Leave(usize),
    Background,
    Tick,
}

impl Race {
    /// Runs it by the schedule.
    pub(crate) fn run<const IN_PROCESS: bool>(&self, choices: &mut Choices) -> Over {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            // One task's turn each time that the schedule lets the runtime have one.
            .event_interval(1)
            .build()
            .expect("a runtime");
        runtime.block_on(self.play::<IN_PROCESS>(choices))
    }

    async fn play<const IN_PROCESS: bool>(&self, choices: &mut Choices) -> Over {
        let activity = Activity::default();
        let store = Watched::<IN_PROCESS>::new(activity.clone(), self.lag);
        let watched = store.clone();
        let mut builder = IdempotencyLayer::builder(store).wait(self.wait).lease(self.lease);
        if let Some(fate) = self.cancel {
            builder = builder.cancel_on_disconnect(fate);
        }
        let layer = builder.build().expect("valid options");
        let works = Arc::new(Mutex::new(Works::default()));
        let service = layer.layer(self.handler(&works, &activity));
        let mut clients: Vec<Client> = (0..self.clients).map(|_| Client::new(send(service.clone()))).collect();
        // A store that answers at once leaves nobody an excuse.
        let prompt = IN_PROCESS && self.lag == Lag::NONE;
        self.schedule(choices, &activity, &mut clients, prompt).await;
        let background = layer.background();
        timeout(Duration::from_secs(3600), background.wait())
            .await
            .expect("work without its client ends");
        // Lost answers are asked for again in the background, and that is not waited for.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let census = watched.census();
        assert_eq!(census.running, 0, "no claim is left behind");
        let retry = send(service).await;
        let works = works.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(works.now, 0);
        Over {
            got: clients.into_iter().map(|client| client.got).collect(),
            runs: works.runs,
            at_once: works.most,
            retry,
            lapsed: census.lapsed,
        }
    }

    async fn schedule(&self, choices: &mut Choices, activity: &Activity, clients: &mut [Client], prompt: bool) {
        let mut ticks = self.ticks.iter();
        // Whether the background may have something to do, as far as can be seen.
        let mut stirs = true;
        while clients.iter().any(|client| client.sent.is_some()) {
            let alive = Handle::current().metrics().num_alive_tasks();
            let indices = 0..clients.len();
            let mut options: Vec<Next> = indices.filter(|&i| clients[i].is_runnable()).map(Next::Poll).collect();
            let waiting = options.is_empty();
            options.extend((alive > 0 && stirs).then_some(Next::Background));
            let leaves = |&i: &usize| clients[i].sent.is_some();
            options.extend((0..self.leavers).filter(leaves).map(Next::Leave));
            options.extend((!ticks.as_slice().is_empty()).then_some(Next::Tick));
            if waiting && !stirs && ticks.as_slice().is_empty() {
                // Nobody can do anything, and no time passes: somebody waits for what is over.
                panic!("a waiter is lost");
            }
            let next = match options.is_empty() {
                true => Next::Background,
                false => options[choices.choose(options.len())],
            };
            if std::env::var_os(schedule::ONE).is_some() {
                eprintln!("{next:?} of {options:?}");
            }
            match next {
                Next::Poll(i) => {
                    clients[i].poll(self.wait);
                    let late = clients.iter().filter(|client| client.late && client.sent.is_some());
                    // Who holds the claim takes as long as the handler does.
                    assert!(!prompt || late.count() <= 1, "a waiter waits beyond its bound");
                }
                Next::Leave(i) => clients[i].sent = None,
                Next::Tick => advance(Duration::from_secs(*ticks.next().expect("there is one"))).await,
                Next::Background => {
                    stirs = turn(activity, clients, alive).await;
                    continue;
                }
            }
            stirs = true;
        }
    }

    fn handler(
        &self,
        works: &Arc<Mutex<Works>>,
        activity: &Activity,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Response<Full<Bytes>>,
        Error = Failed,
        Future: Future<Output = Result<Response<Full<Bytes>>, Failed>> + Send,
    > + Clone
    + Send
    + 'static {
        let (works, activity, yields, ends) = (Arc::clone(works), activity.clone(), self.yields, self.ends);
        service_fn(move |_| {
            let (at_work, run) = AtWork::start(&works);
            let activity = activity.clone();
            async move {
                activity.yields(yields).await;
                drop(at_work);
                let mut response = Response::new(Full::from(format!("run {run}")));
                match ends.get(run).copied().unwrap_or(End::Success) {
                    End::Success => {}
                    End::Refusal => *response.status_mut() = StatusCode::BAD_REQUEST,
                    End::Failure => return Err(Failed),
                    // Without the hook, which would print each.
                    End::Panic => resume_unwind(Box::new(Failed)),
                }
                Ok(response)
            }
        })
    }
}

/// Lets the runtime have turns until something of ours moved or was woken; `false` if nothing did.
async fn turn(activity: &Activity, clients: &[Client], tasks: usize) -> bool {
    let moved = || {
        (
            activity.get(),
            clients.iter().filter(|client| client.is_runnable()).count(),
        )
    };
    let before = moved();
    for _ in 0..=tasks {
        let mut yielded = false;
        poll_fn(|cx| match std::mem::replace(&mut yielded, true) {
            true => Poll::Ready(()),
            false => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
        .await;
        if moved() != before {
            return true;
        }
    }
    false
}

async fn send<S>(service: S) -> Got
where
    S: Service<Request<Full<Bytes>>>,
    S: Service<Request<Full<Bytes>>, Error = Failed>,
    S::Response: IntoAnswer,
{
    let request = Request::post("/").header("idempotency-key", "k").body(Full::default());
    match service.oneshot(request.expect("a valid request")).await {
        Ok(response) => response.into_answer().await,
        Err(Failed) => Got::Error,
    }
}

trait IntoAnswer {
    fn into_answer(self) -> impl Future<Output = Got>;
}

impl<B: http_body::Body<Data = Bytes, Error = Infallible>> IntoAnswer for Response<B> {
    async fn into_answer(self) -> Got {
        let outcome = *self.extensions().get().expect("a guarded request");
        let Ok(body) = self.into_body().collect().await;
        Got::Answer {
            outcome,
            body: body.to_bytes(),
        }
    }
}

impl Got {
    pub(crate) fn is_in_flight(&self) -> bool {
        matches!(
            self,
            Self::Answer {
                outcome: Outcome::Refused(ProblemKind::InFlight),
                ..
            }
        )
    }

    /// The body of a success that is kept.
    pub(crate) fn kept(&self) -> Option<&Bytes> {
        match self {
            Self::Answer {
                outcome: Outcome::Executed | Outcome::Replayed,
                body,
            } => Some(body),
            _ => None,
        }
    }
}

impl Over {
    /// What holds of every race without a lapse: one handler at a time, one answer for all, and a key
    /// that is not blocked.
    pub(crate) fn check(&self) {
        assert!(self.at_once <= 1, "{self:?}");
        assert_eq!(self.lapsed, 0, "a claim was left to lapse: {self:?}");
        self.check_answers();
    }

    pub(crate) fn check_answers(&self) {
        let answers: Vec<&Bytes> = self.got.iter().chain([&self.retry]).filter_map(Got::kept).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{self:?}");
        assert!(!self.retry.is_in_flight(), "{self:?}");
    }
}
