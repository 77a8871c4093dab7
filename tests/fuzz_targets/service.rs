//! Whole requests through the layer: how it is configured, what clients send, what the handler does,
//! who is polled, who leaves and how time passes are the input's choice. Time is paused.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Inspect, MemoryStore, Record, Slot, StoreError, StoreErrorKind, Token,
};
use tower_idempotency::{
    Fate, FingerprintSource, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, KeyFormat, KeySource, Outcome,
    Policy, ProblemKind, Store, Verdict,
};

use super::body::{Broken, Planned, Script, Step, planned_panic};
use super::input::{Input, at_once};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let mut input = Input::new(data);
    runtime.block_on(async {
        match input.byte() % 4 {
            0 | 1 => scenario::<true>(&mut input, false).await,
            2 => scenario::<false>(&mut input, false).await,
            _ => scenario::<false>(&mut input, true).await,
        }
    });
}

/// What the handler does once.
#[derive(Debug, Clone)]
struct Plan {
    yields: usize,
    nap: Duration,
    end: End,
    status: StatusCode,
    headers: HeaderMap,
    steps: Vec<Step>,
    declared: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Answer,
    Fail,
    Panic,
    PanicAtOnce,
}

/// What a request is.
#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    uri: String,
    scope: Option<HeaderValue>,
    body: Bytes,
    /// The key without quotes, where the input did not make it up of bytes.
    key: Option<String>,
    /// The layer must take care of it.
    guarded: bool,
}

/// One run of the handler.
#[derive(Debug)]
struct Run {
    key: Option<IdempotencyKey>,
    parts: Parts,
    body: Bytes,
    plan: Plan,
}

#[derive(Debug)]
enum Known {
    Claimed { token: Token, runs: usize },
    Done { until: Instant },
}

#[derive(Debug, Default)]
struct World {
    plans: VecDeque<Plan>,
    runs: Vec<Run>,
    /// Handlers at work, by slot.
    working: HashMap<Slot, usize>,
    slots: HashMap<Slot, Known>,
    faults: VecDeque<u8>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A memory store that is watched; if it is not `IN_PROCESS` it is slow, and may fail.
#[derive(Clone)]
struct Watched<const IN_PROCESS: bool> {
    inner: MemoryStore,
    shared: Shared,
    lag: usize,
}

impl<const IN_PROCESS: bool> Watched<IN_PROCESS> {
    async fn lag(&self) {
        if !IN_PROCESS {
            yields(self.lag).await;
        }
    }

    /// Whether this call fails, and then whether it has its effect all the same.
    fn fault(&self) -> Option<bool> {
        match self.shared.world().faults.pop_front() {
            Some(1) => Some(false),
            Some(2) => Some(true),
            _ => None,
        }
    }

    async fn call<T>(&self, effect: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.lag().await;
        let failed = || Err(StoreError::new(StoreErrorKind::Unavailable, "as the input wants"));
        let answer = match self.fault() {
            None => effect(),
            Some(false) => failed(),
            Some(true) => effect().and_then(|_| failed()),
        };
        self.lag().await;
        answer
    }
}

impl<const IN_PROCESS: bool> Store for Watched<IN_PROCESS> {
    const IN_PROCESS: bool = IN_PROCESS;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.call(|| {
            let begun = at_once(self.inner.begin(begin))?;
            let mut world = self.shared.world();
            match (&begun, world.slots.get(&begin.slot)) {
                (ClaimOutcome::Started { attempt, .. }, known) => {
                    assert_eq!(*attempt, 1, "no lease lapses here");
                    match known {
                        Some(Known::Claimed { token, .. }) => assert_eq!(*token, begin.token, "claimed twice"),
                        Some(Known::Done { until }) => assert!(*until <= Instant::now(), "claimed although done"),
                        None => {}
                    }
                    if !matches!(known, Some(Known::Claimed { .. })) {
                        let claimed = Known::Claimed {
                            token: begin.token,
                            runs: 0,
                        };
                        world.slots.insert(begin.slot, claimed);
                    }
                }
                (ClaimOutcome::Done(_), known) => assert!(matches!(known, Some(Known::Done { .. }))),
                (ClaimOutcome::InFlight { .. }, known) => assert!(matches!(known, Some(Known::Claimed { .. }))),
                _ => {}
            }
            Ok(begun)
        })
        .await
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        assert!(
            !lease.is_zero(),
            "no claim is dropped unsettled, and none was taken over"
        );
        self.call(|| at_once(self.inner.renew(slot, token, lease))).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.call(|| {
            let held = at_once(self.inner.complete(slot, token, record, ttl))?;
            let until = Instant::now() + ttl;
            self.shared.ended(slot, token, held, Some(Known::Done { until }));
            Ok(held)
        })
        .await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.call(|| {
            let held = at_once(self.inner.release(slot, token))?;
            self.shared.ended(slot, token, held, None);
            Ok(held)
        })
        .await
    }

    async fn changed(&self, slot: &Slot, round: u32) {
        self.lag().await;
        self.inner.changed(slot, round).await;
    }
}

impl Shared {
    /// A claim was said to be over: it was if and only if its own token said so.
    fn ended(&self, slot: &Slot, asking: Token, held: Held, then: Option<Known>) {
        let mut world = self.world();
        let holds = matches!(world.slots.get(slot), Some(Known::Claimed { token, .. }) if *token == asking);
        assert_eq!(held == Held::Yes, holds, "fenced by the token");
        if holds {
            match then {
                Some(known) => world.slots.insert(*slot, known),
                None => world.slots.remove(slot),
            };
        }
    }
}

#[derive(Debug)]
struct HandlerFailed;

impl fmt::Display for HandlerFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler failed, as the input wants")
    }
}

/// Counts the handlers at work under a key: one at most.
struct AtWork(Shared, Option<Slot>);

impl AtWork {
    fn new(shared: &Shared, slot: Option<Slot>) -> Self {
        if let Some(slot) = slot {
            let mut world = shared.world();
            match world.slots.get_mut(&slot) {
                Some(Known::Claimed { runs, .. }) => {
                    *runs += 1;
                    assert_eq!(*runs, 1, "one run for each claim");
                }
                other => panic!("a handler runs without a claim: {other:?}"),
            }
            let working = world.working.entry(slot).or_default();
            *working += 1;
            assert_eq!(*working, 1, "one handler at a time");
        }
        Self(shared.clone(), slot)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let Self(shared, Some(slot)) = self else { return };
        if let Some(working) = shared.world().working.get_mut(slot) {
            *working -= 1;
        }
    }
}

fn handle(shared: Shared, request: Request<Script>) -> impl Future<Output = Result<Response<Script>, HandlerFailed>> {
    let plan = shared.world().plans.pop_front();
    let plan = plan.unwrap_or_else(ordinary_plan);
    let (parts, body) = request.into_parts();
    let key = parts.extensions.get::<IdempotencyKey>().cloned();
    let at_work = AtWork::new(&shared, key.as_ref().map(|key| *key.slot()));
    let end = plan.end;
    if end == End::PanicAtOnce {
        planned_panic();
    }
    async move {
        let _at_work = at_work;
        // The body of a guarded request is there; another's may never come.
        let body = match key {
            Some(_) => frames(pin!(body)).await.data,
            None => Bytes::new(),
        };
        yields(plan.yields).await;
        if !plan.nap.is_zero() {
            sleep(plan.nap).await;
        }
        match plan.end {
            End::Fail => return Err(HandlerFailed),
            End::Panic => planned_panic(),
            End::Answer | End::PanicAtOnce => {}
        }
        let mut world = shared.world();
        let mut response = Response::new(Script::new(plan.steps.clone(), plan.declared));
        *response.status_mut() = plan.status;
        *response.headers_mut() = plan.headers.clone();
        response.headers_mut().insert("x-run", world.runs.len().into());
        world.runs.push(Run { key, parts, body, plan });
        Ok(response)
    }
}

/// What was read of a body.
#[derive(Debug, Default, PartialEq)]
struct Read {
    data: Bytes,
    trailers: Option<HeaderMap>,
    broken: bool,
}

async fn frames<B>(mut body: Pin<&mut B>) -> Read
where
    B: http_body::Body<Data = Bytes, Error = Broken>,
{
    let mut read = Read::default();
    let mut data = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers().ok())) {
            Ok(Ok(more)) => data.extend_from_slice(&more),
            Ok(Err(trailers)) => read.trailers = trailers,
            Err(Broken) => {
                read.broken = true;
                break;
            }
        }
    }
    read.data = data.into();
    read
}

async fn yields(times: usize) {
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

#[derive(Debug, Clone, Copy, PartialEq)]
enum Prints {
    Request,
    Body,
    Nothing,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Keys {
    Header,
    Pointer,
    Closure,
}

struct Rules {
    prints: Prints,
    keys: Keys,
    format: KeyFormat,
    max_detached: usize,
    /// The header that marks replays.
    marker: &'static str,
}

fn configured<St: Store>(input: &mut Input<'_>, store: St) -> (IdempotencyLayerBuilder<St>, Rules) {
    let fate = |input: &mut Input<'_>| input.one_of(&[Fate::Release, Fate::Seal]);
    let prints = input.one_of(&[Prints::Request, Prints::Body, Prints::Nothing, Prints::Json]);
    let keys = input.one_of(&[Keys::Header, Keys::Header, Keys::Pointer, Keys::Closure]);
    let format = input.one_of(&[KeyFormat::Any, KeyFormat::Structured, KeyFormat::Uuid]);
    let policy = match input.byte() % 3 {
        0 => Policy::success(),
        1 => Policy::everything(),
        _ => Policy::from_fn(|status, _| match status.as_u16() % 3 {
            0 => Verdict::Store,
            1 => Verdict::Release,
            _ => Verdict::Seal,
        }),
    };
    let mut builder = IdempotencyLayer::builder(store)
        .lease(DAY)
        .policy(
            policy
                .on_panic(fate(input))
                .on_error(fate(input))
                .on_lost_body(fate(input)),
        )
        .key_format(format)
        .key(match keys {
            Keys::Header => KeySource::header("idempotency-key"),
            Keys::Pointer => KeySource::json_pointer("/k"),
            Keys::Closure => KeySource::from_fn(|parts, body| {
                let short = body.len() < 20;
                Ok(short.then(|| format!("{}{}", parts.uri.path(), String::from_utf8_lossy(body))))
            }),
        })
        .fingerprint(match prints {
            Prints::Request => FingerprintSource::request(),
            Prints::Body => FingerprintSource::body(),
            Prints::Nothing => FingerprintSource::none(),
            Prints::Json => FingerprintSource::json_fields(["/a", "/b/0"]),
        })
        .require_key(input.is_odd())
        .wait(input.one_of(&[0, 1, 1000]).millis())
        .ttl(input.one_of(&[24 * 3_600_000, 1, 50]).millis())
        .max_key_length(input.one_of(&[255, 4]))
        .max_request_body(input.one_of(&[2 << 20, 16, 0]))
        .max_response_body(input.one_of(&[1 << 20, 16, 0]))
        .response_body_within(input.one_of(&[30_000, 1]).millis());
    let max_detached = input.one_of(&[1024, 1]);
    builder = builder.max_detached(max_detached);
    let mut marker = "idempotency-replayed";
    match input.byte() % 4 {
        1 => builder = builder.cancel_on_disconnect(Fate::Release),
        2 => builder = builder.cancel_on_disconnect(Fate::Seal),
        3 => {
            builder = builder.stripe();
            marker = "idempotent-replayed";
        }
        _ => {}
    }
    (
        builder,
        Rules {
            prints,
            keys,
            format,
            max_detached,
            marker,
        },
    )
}

trait Millis {
    fn millis(self) -> Duration;
}

impl Millis for u64 {
    fn millis(self) -> Duration {
        Duration::from_millis(self)
    }
}

/// What the handler does when the input says no more: an answer with what is kept and what is not.
fn ordinary_plan() -> Plan {
    let mut plan = plan_of(&mut Input::new(&[]));
    for (name, value) in [
        ("set-cookie", "a=b"),
        ("date", "now"),
        ("connection", "x-a"),
        ("x-a", "a"),
        ("x-b", "b"),
    ] {
        plan.headers.insert(name, HeaderValue::from_static(value));
    }
    plan.steps = vec![Step::Data(Bytes::from_static(b"done"))];
    plan
}

fn plan_of(input: &mut Input<'_>) -> Plan {
    let yields = input.below(4);
    let nap = input.one_of(&[0, 0, 1, 2000]).millis();
    let end = input.one_of(&[
        End::Answer,
        End::Answer,
        End::Answer,
        End::Fail,
        End::Panic,
        End::PanicAtOnce,
    ]);
    let status = input.one_of(&[200, 201, 204, 302, 402, 409, 500, 503, 999]);
    let mut headers = HeaderMap::new();
    for _ in 0..input.below(4) {
        let (name, value) = input.one_of(&[
            ("content-type", "application/json"),
            ("content-type", "text/event-stream"),
            ("content-length", "7"),
            ("set-cookie", "a=b"),
            ("date", "now"),
            ("x-a", "a"),
            ("connection", "x-a"),
            ("trailer", "x-t"),
            ("idempotency-replayed", "never"),
        ]);
        headers.append(name, HeaderValue::from_static(value));
    }
    let mut steps = steps_of(input, &[Step::Yield, Step::Fail, Step::Panic, Step::Hang]);
    if input.is_odd() {
        let trailers = HeaderMap::from_iter([("x-t".parse().expect("a name"), HeaderValue::from_static("t"))]);
        steps.push(Step::Trailers(trailers));
    }
    Plan {
        yields,
        nap,
        end,
        status: StatusCode::from_u16(status).expect("valid"),
        headers,
        steps,
        declared: declared(input),
    }
}

fn steps_of(input: &mut Input<'_>, others: &[Step]) -> Vec<Step> {
    (0..input.below(5))
        .map(|_| match input.byte() {
            choice @ 0..16 => others[usize::from(choice) % others.len()].clone(),
            16..24 => Step::Data(Bytes::from_static(b"twenty bytes and more")),
            _ => Step::Data(Bytes::copy_from_slice(input.bytes())),
        })
        .collect()
}

fn declared(input: &mut Input<'_>) -> Option<u64> {
    match input.byte() {
        byte @ 0..8 => Some(u64::from(byte) * 7),
        _ => None,
    }
}

/// The data of a script, and whether it ends.
fn told_by(steps: &[Step]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    for step in steps {
        match step {
            Step::Data(more) => data.extend_from_slice(more),
            Step::Fail | Step::Panic | Step::Hang => return (data, false),
            Step::Yield | Step::Trailers(_) => {}
        }
    }
    (data, true)
}

const UUID: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

fn request_of(input: &mut Input<'_>, rules: &Rules) -> (Request<Script>, Asked) {
    let method = match input.byte() {
        choice @ 0..250 => {
            [Method::POST, Method::POST, Method::PATCH, Method::GET, Method::PUT][usize::from(choice) % 5].clone()
        }
        _ => Method::from_bytes(input.bytes()).unwrap_or(Method::POST),
    };
    let uri = input.one_of(&["/", "/a", "/a?x=1", "*"]);
    let mut headers = HeaderMap::new();
    let key = input.one_of(&[Some("a"), Some("a"), Some(UUID), Some("a b"), None]);
    let mut known = None;
    if let Some(key) = key {
        let line = match input.byte() {
            0..64 => Ok(HeaderValue::from_static(key)),
            64..128 => HeaderValue::try_from(format!("\"{key}\"")),
            128..160 => HeaderValue::try_from(format!("\"{key}\";p=1")),
            160..192 => HeaderValue::try_from(key.to_ascii_uppercase()),
            _ => HeaderValue::from_bytes(input.bytes()),
        };
        if let Ok(line) = line {
            // With the case of a UUID's digits made one, and quotes taken off.
            let text = line.to_str().unwrap_or_default();
            let text = text.strip_suffix(";p=1").unwrap_or(text).trim_matches('"');
            if text.eq_ignore_ascii_case(key) {
                let lower = rules.format == KeyFormat::Uuid;
                known = Some(if lower {
                    text.to_ascii_lowercase()
                } else {
                    text.to_owned()
                });
            }
            headers.append("idempotency-key", line);
        }
    }
    if input.byte() == 255 {
        headers.append("idempotency-key", HeaderValue::from_static("b"));
    }
    let scope = input
        .one_of(&[None, None, Some("Bearer a"), Some("Bearer b")])
        .map(HeaderValue::from_static);
    if let Some(scope) = &scope {
        headers.insert("authorization", scope.clone());
    }
    let steps = match input.byte() {
        choice @ 0..100 => {
            const BODIES: [&str; 8] = [
                "",
                r#"{"k":"a"}"#,
                r#"{"k":"a","a":1}"#,
                r#"{"k":17,"b":[1]}"#,
                r#"{"k":"a","k":"b"}"#,
                r#"{"k":""}"#,
                "EUR 10",
                "EUR 10 and some more",
            ];
            let body = BODIES[usize::from(choice) % BODIES.len()].as_bytes();
            // In two frames, which is the same request.
            let (front, back) = body.split_at(body.len() / 2);
            vec![
                Step::Data(Bytes::from_static(front)),
                Step::Data(Bytes::from_static(back)),
            ]
        }
        _ => steps_of(input, &[Step::Yield, Step::Fail, Step::Yield, Step::Hang]),
    };
    let (body, _) = told_by(&steps);
    let asked = Asked {
        guarded: [Method::POST, Method::PATCH].contains(&method)
            && rules.keys == Keys::Header
            && headers.contains_key("idempotency-key"),
        method: method.clone(),
        uri: uri.to_owned(),
        scope,
        body: body.into(),
        key: known.filter(|_| rules.keys == Keys::Header),
    };
    let mut request = Request::new(Script::new(steps, declared(input)));
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().expect("a valid target");
    *request.headers_mut() = headers;
    (request, asked)
}

/// What a client got.
#[derive(Debug)]
struct Answer {
    head: http::response::Parts,
    read: Read,
}

type Sent = Pin<Box<dyn Future<Output = Result<Answer, HandlerFailed>>>>;

/// `None` if the handler panicked.
fn poll(sent: &mut Sent, cx: &mut Context<'_>) -> Poll<Option<Result<Answer, HandlerFailed>>> {
    match catch_unwind(AssertUnwindSafe(|| sent.as_mut().poll(cx))) {
        Ok(answer) => answer.map(Some),
        Err(panic) => {
            assert!(panic.is::<Planned>(), "a panic that is not the handler's");
            Poll::Ready(None)
        }
    }
}

async fn scenario<const IN_PROCESS: bool>(input: &mut Input<'_>, flaky: bool) {
    let shared = Shared::default();
    let store = Watched::<IN_PROCESS> {
        inner: MemoryStore::new(),
        shared: shared.clone(),
        lag: input.below(3),
    };
    let memory = store.inner.clone();
    let (builder, rules) = configured(input, store);
    let layer = builder.build().expect("valid options");
    let world = shared.clone();
    let service = layer.layer(service_fn(move |request| handle(world.clone(), request)));
    {
        let mut world = shared.world();
        world.plans = (0..input.below(4)).map(|_| plan_of(input)).collect();
        if flaky {
            world.faults = (0..input.below(8)).map(|_| input.byte() % 4).collect();
        }
    }
    let mut clients: Vec<(Sent, Asked)> = Vec::new();
    let check = |asked: &Asked, answer: Option<Result<Answer, HandlerFailed>>| {
        if let Some(Ok(answer)) = answer {
            check_answer(&shared.world(), &rules, asked, &answer);
        }
    };
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let whom = usize::from(choice >> 4);
        match choice % 8 {
            0..=2 if clients.len() < 8 => {
                let (request, asked) = request_of(input, &rules);
                let service = service.clone();
                let sent: Sent = Box::pin(async move {
                    let (head, body) = service.oneshot(request).await?.into_parts();
                    let hint = body.size_hint();
                    let read = frames(pin!(body)).await;
                    if !read.broken && head.headers.get("x-run").is_none() {
                        assert_eq!(hint.exact(), Some(read.data.len() as u64), "a problem says its length");
                    }
                    Ok(Answer { head, read })
                });
                clients.push((sent, asked));
            }
            3 | 4 if whom < clients.len() => {
                let mut cx = Context::from_waker(Waker::noop());
                if let Poll::Ready(answer) = poll(&mut clients[whom].0, &mut cx) {
                    let (_, asked) = clients.remove(whom);
                    check(&asked, answer);
                }
            }
            5 if whom < clients.len() => drop(clients.remove(whom)),
            6 => advance(input.one_of(&[1, 10, 60, 1000, 5000, 40_000]).millis()).await,
            _ => tokio::task::yield_now().await,
        }
    }
    // Whoever is still there waits for the end, and one whose answer never ends goes.
    for (mut sent, asked) in clients {
        let end = timeout(HOUR, poll_fn(|cx| poll(&mut sent, cx)));
        if let Ok(answer) = end.await {
            check(&asked, answer);
        }
    }
    let background = layer.background();
    timeout(HOUR, background.wait())
        .await
        .expect("work without its client ends");
    assert_eq!(background.len(), 0);
    // Lost answers are asked for again, with pauses, and not counted as work.
    sleep(Duration::from_secs(120)).await;
    assert!(shared.world().working.values().all(|working| *working == 0));
    let census = at_once(memory.count()).expect("memory does not fail");
    // Time that passes in a call of a store is a failure too: the claims of those beyond the bound for
    // work that is asked again lapse.
    if IN_PROCESS || !flaky && rules.max_detached > 1 {
        assert_eq!((census.running, census.lapsed), (0, 0), "no claim is left behind");
    }
}

fn check_answer(world: &World, rules: &Rules, asked: &Asked, answer: &Answer) {
    let headers = &answer.head.headers;
    let outcome = answer.head.extensions.get::<Outcome>().copied();
    let run = headers.get("x-run").map(|run| {
        let run: usize = run.to_str().expect("digits").parse().expect("a number");
        &world.runs[run]
    });
    let Some(outcome) = outcome else {
        assert!(!asked.guarded, "every answer of a guarded request says its outcome");
        assert!(run.is_some_and(|run| run.key.is_none()), "passed through");
        return;
    };
    match outcome {
        Outcome::Executed | Outcome::Released | Outcome::Reopened | Outcome::Sealed => {
            let run = run.expect("the handler's answer");
            let mut expected = with_run(&run.plan.headers, headers);
            expected.remove(rules.marker);
            assert_eq!(*headers, expected, "untouched");
            check_body(run, answer);
            check_same(rules, asked, run, true);
        }
        Outcome::Replayed => {
            let run = run.expect("the handler's answer");
            let mut marked = headers
                .get_all("idempotency-replayed")
                .iter()
                .chain(headers.get_all("idempotent-replayed"));
            assert!(marked.any(|value| value == "true"));
            check_replay(run, answer);
            check_same(rules, asked, run, false);
        }
        Outcome::NotRetained => assert!(answer.head.status == 409 && run.is_none()),
        Outcome::Refused(kind) => {
            assert!(run.is_none(), "no answer of the handler");
            assert!(answer.head.status.is_client_error() || answer.head.status.is_server_error());
            assert!(kind != ProblemKind::KeyReused || rules.prints != Prints::Nothing);
            assert!(!matches!(
                kind,
                ProblemKind::ScopeUnavailable | ProblemKind::OutcomeUnknown
            ));
        }
        Outcome::Unprotected => panic!("the layer fails closed"),
        _ => panic!("an outcome that is not known"),
    }
}

/// The handler's headers, with the number that says which run it was.
fn with_run(plan: &HeaderMap, got: &HeaderMap) -> HeaderMap {
    let mut headers = plan.clone();
    if let Some(run) = got.get("x-run") {
        headers.insert("x-run", run.clone());
    }
    headers
}

fn check_body(run: &Run, answer: &Answer) {
    let (data, whole) = told_by(&run.plan.steps);
    assert_eq!(answer.head.status, run.plan.status);
    assert_eq!(answer.read.data, data);
    assert_eq!(answer.read.broken, !whole);
}

fn check_replay(run: &Run, answer: &Answer) {
    check_body(run, answer);
    let trailers = run.plan.steps.iter().find_map(|step| match step {
        Step::Trailers(trailers) => Some(trailers),
        _ => None,
    });
    assert_eq!(answer.read.trailers.as_ref(), trailers);
    let mut expected = with_run(&run.plan.headers, &answer.head.headers);
    let names_a = expected.contains_key("connection");
    for name in ["connection", "date", "set-cookie", "content-length"] {
        expected.remove(name);
    }
    if names_a {
        expected.remove("x-a");
    }
    if trailers.is_none() {
        expected.remove("trailer");
        if run.plan.headers.contains_key("content-length") {
            expected.insert("content-length", answer.read.data.len().into());
        }
    }
    let mut headers = answer.head.headers.clone();
    for name in ["idempotency-replayed", "idempotent-replayed"] {
        headers.remove(name);
        expected.remove(name);
    }
    assert_eq!(headers, expected);
}

/// The run was this request's own, or one that counts as the same.
fn check_same(rules: &Rules, asked: &Asked, run: &Run, own: bool) {
    let key = run.key.as_ref().expect("a guarded run");
    if let Some(expected) = &asked.key {
        assert_eq!(key.as_str(), expected);
    }
    assert_eq!(
        run.parts.headers.get("authorization"),
        asked.scope.as_ref(),
        "another's answer"
    );
    if own || rules.prints == Prints::Request {
        assert_eq!(
            (&run.parts.method, run.parts.uri.to_string()),
            (&asked.method, asked.uri.clone())
        );
    }
    if own || matches!(rules.prints, Prints::Request | Prints::Body) {
        assert_eq!(run.body, asked.body);
    }
}
