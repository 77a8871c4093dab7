//! Sending events, in this process and on paused time: the subscriber is a script.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{Request, Response, StatusCode};
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt, service_fn};

use super::request::{Answer, Call, sample};
use super::server::app::App;
use super::server::events::schedule::{GIVE_UP_AFTER, LONGEST_DELAY};
use super::server::events::send::HttpClient;
use super::server::events::sign::Secret;
use super::server::events::{Deliveries, Running};
use super::server::options::Options;

/// The example secret of the Standard Webhooks specification. In two pieces, for those who look for
/// secrets in repositories.
pub(crate) const SECRET: &str = concat!("whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");

/// What the subscriber got, and when.
#[derive(Debug, Clone)]
struct Received {
    at: Instant,
    id: String,
    timestamp: u64,
    signature: String,
    body: Bytes,
}

type Answered = Result<Response<Body>, BoxError>;

/// An application that sends events to a script.
struct Sending {
    router: Router,
    deliveries: Option<Deliveries>,
    received: Arc<Mutex<Vec<Received>>>,
}

fn status(status: u16) -> Answered {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

impl Sending {
    /// `answer` is told how many requests there have been, this one included.
    async fn to<F>(answer: impl Fn(usize) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answered> + Send,
    {
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let seen = received.clone();
        let client: HttpClient = BoxCloneSyncService::new(service_fn(move |request: Request<Full<Bytes>>| {
            let (seen, answer) = (seen.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let header = |name: &str| head.headers[name].to_str().unwrap().to_owned();
                assert_eq!(head.method, "POST");
                assert_eq!(head.uri, "http://subscriber.test/hook?t=1");
                assert_eq!(header("content-type"), "application/json");
                let received = Received {
                    at: Instant::now(),
                    id: header("webhook-id"),
                    timestamp: header("webhook-timestamp").parse().unwrap(),
                    signature: header("webhook-signature"),
                    body: body.collect().await.unwrap().to_bytes(),
                };
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(received);
                    seen.len()
                };
                answer(number).await
            }
        }));
        let options = [
            "identity_verification",
            "--events-url",
            "http://subscriber.test/hook?t=1",
        ];
        let options = Options::parse_from(options.iter().chain(&["--events-secret", SECRET]));
        let App { router, deliveries, .. } = App::open_with(&options, client).await.unwrap();
        Self {
            router,
            deliveries,
            received,
        }
    }

    fn start(&mut self) -> Running {
        self.deliveries.take().unwrap().start()
    }

    async fn send(&self, call: Call) -> Answer {
        let request = call.at("").map(Body::new);
        Answer::of(self.router.clone().oneshot(request).await.unwrap()).await
    }

    async fn decide(&self, user: &str) {
        let call = Call::decision(user, r#"{"status":"approved"}"#);
        self.send(call.key(user)).await.expect(200);
    }

    async fn sample(&self, what: &str) -> u64 {
        let metrics = self.send(Call::get("/metrics")).await.expect(200);
        sample(&metrics, &format!("idv_events_{what}"))
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Asks often at first.
    async fn until(&self, what: &str, value: u64) {
        let began = Instant::now();
        while self.sample(what).await != value {
            sleep((began.elapsed() / 20).max(Duration::from_millis(10))).await;
        }
    }

    /// The same for what takes hours or days: the clock jumps, since the outbox is looked at each
    /// second otherwise. Returns how long it took, to two hours.
    async fn until_long_after(&self, what: &str, value: u64) -> Duration {
        let began = Instant::now();
        while self.sample(what).await != value {
            tokio::time::advance(LONGEST_DELAY).await;
            sleep(Duration::from_secs(2)).await;
        }
        began.elapsed()
    }
}

#[test]
fn signatures_are_those_of_standard_webhooks() {
    let secret = Secret::parse(SECRET).unwrap();
    // The example of the specification.
    let signature = secret.sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        br#"{"test": 2432232314}"#,
    );
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    for bad in [
        "",
        "whsec_",
        "whsec_c2hvcnQ=",
        "whsec_not base64, but long enough to be one",
        &SECRET["whsec_".len()..],
        &SECRET[..SECRET.len() - 1],
        &format!("whsec_{}", "AAAA".repeat(22)),
    ] {
        let error = Secret::parse(bad).unwrap_err();
        assert!(error.contains("whsec_") && !error.contains("c2hvcnQ"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_decision_that_runs_is_one_event() {
    let mut sending = Sending::to(|_| async { status(200) }).await;
    let approve = Call::decision("usr_1", r#"{"status":"approved"}"#);
    sending.send(approve.clone().key("k-1")).await.expect(200);
    for _ in 0..3 {
        assert!(sending.send(approve.clone().key("k-1")).await.expect(200).is_replay());
    }
    for (call, refused) in [
        (Call::decision("usr_1", r#"{"status":"perhaps"}"#), 422),
        (Call::decision("usr_1", "{"), 400),
        (Call::decision("a%00b", r#"{"status":"approved"}"#), 422),
        (approve.clone().from("sk_test_nobody"), 401),
    ] {
        sending.send(call.clone()).await.expect(refused);
        sending.send(call.key("k-2")).await.expect(refused);
    }
    let other = Call::decision("usr_1", r#"{"status":"declined"}"#).key("k-1");
    sending.send(other).await.expect_problem(422, "key-reused");
    assert_eq!(sending.sample("pending").await, 1);
    // Without a key it runs each time; and ids are any text.
    let odd = Call::decision("%22%5C%0A%C3%A9", r#"{"status":"declined"}"#).from("sk_test_globex");
    for _ in 0..2 {
        sending.send(odd.clone()).await.expect(200);
    }
    assert_eq!(sending.sample("pending").await, 3);

    let _running = sending.start();
    sending.until("pending", 0).await;
    assert_eq!(sending.sample("delivered_total").await, 3);
    assert_eq!(sending.sample("delivery_failures_total").await, 0);
    let mut data = Vec::new();
    for received in sending.received() {
        let event: Value = serde_json::from_slice(&received.body).unwrap();
        assert_eq!(event["event_id"], received.id);
        assert!(received.id.starts_with("evt_") && !received.id.contains('.'));
        humantime::parse_rfc3339(event["timestamp"].as_str().unwrap()).unwrap();
        assert_eq!(event.as_object().unwrap().len(), 4, "{event}");
        data.push((event["type"].as_str().unwrap().to_owned(), event["data"].clone()));
    }
    data.sort_by_key(|(_, data)| (data["account"] != "acme", data["version"].as_u64()));
    let expected = |account, user, status, version| {
        let data = json!({ "account": account, "user_id": user, "status": status, "version": version });
        (format!("user.{status}"), data)
    };
    assert_eq!(
        data,
        [
            expected("acme", "usr_1", "approved", 1),
            expected("globex", "\"\\\n\u{e9}", "declined", 1),
            expected("globex", "\"\\\n\u{e9}", "declined", 2),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_subscriber_nothing_is_kept_and_nothing_told() {
    let app = App::open(&Options::parse_from(["identity_verification"]))
        .await
        .unwrap();
    assert!(app.deliveries.is_none());
    let call = Call::decision("usr_1", r#"{"status":"approved"}"#).key("k-1");
    let answer = app.router.clone().oneshot(call.at("").map(Body::new)).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(app.data.pending_events().await.unwrap(), 0);
    let metrics = Call::get("/metrics").at("").map(Body::new);
    let metrics = Answer::of(app.router.oneshot(metrics).await.unwrap()).await;
    assert!(!metrics.text().contains("idv_events"), "{}", metrics.text());
}

#[tokio::test(start_paused = true)]
async fn an_event_is_sent_as_soon_as_it_is_decided() {
    let mut sending = Sending::to(|_| async { status(204) }).await;
    let _running = sending.start();
    // Well between two looks at the outbox.
    sleep(Duration::from_millis(100)).await;
    for number in 0..20 {
        let decided = Instant::now();
        sending.decide(&format!("usr_{number}")).await;
        while sending.received().len() <= number {
            tokio::task::yield_now().await;
        }
        assert_eq!(decided.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_sent_again_unchanged_and_ever_more_seldom() {
    let mut sending = Sending::to(|number| async move {
        match number {
            1 => Err("connection refused".into()),
            2 => status(500),
            3 => status(400),
            // Not followed: the same URL is asked again, which the script checks.
            4 => {
                let mut response = status(302)?;
                let elsewhere = "http://elsewhere.test/".parse()?;
                response.headers_mut().insert(LOCATION, elsewhere);
                Ok(response)
            }
            5..15 => status(503),
            _ => status(200),
        }
    })
    .await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    sending.until("delivered_total", 1).await;
    let received = sending.received();
    assert_eq!(received.len(), 15);
    assert_eq!(sending.sample("delivery_failures_total").await, 14);
    assert_eq!(sending.sample("pending").await, 0);
    let mut longest = Duration::from_secs(1);
    for pair in received.windows(2) {
        assert_eq!(pair[0].id, pair[1].id);
        assert_eq!(pair[0].body, pair[1].body);
        let waited = pair[1].at - pair[0].at;
        // Up to half less by chance, and up to 1.5 s more until the outbox is looked at.
        assert!(
            waited >= longest / 2 && waited <= longest + Duration::from_millis(1600),
            "{waited:?} {longest:?}"
        );
        longest = (longest * 2).min(LONGEST_DELAY);
    }
    let secret = Secret::parse(SECRET).unwrap();
    for received in &received {
        let signature = secret.sign(&received.id, received.timestamp, &received.body);
        assert_eq!(received.signature, signature);
    }
    // Nothing is sent after that.
    sleep(Duration::from_secs(60 * 60)).await;
    assert_eq!(sending.received().len(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_asks_for_time_gets_it() {
    const ASKED: [u64; 2] = [600, 1_000_000];
    let mut sending = Sending::to(|number| async move {
        let mut response = status(if number <= ASKED.len() { 429 } else { 200 })?;
        if let Some(&seconds) = ASKED.get(number - 1) {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Ok(response)
    })
    .await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    sending.until("delivered_total", 1).await;
    let at: Vec<_> = sending.received().iter().map(|received| received.at).collect();
    assert!(at[1] - at[0] >= Duration::from_secs(600), "{at:?}");
    assert!(at[2] - at[1] >= LONGEST_DELAY, "{at:?}");
    assert!(at[2] - at[1] < LONGEST_DELAY * 2, "not forever: {at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_refuses_for_days_does_not_get_the_event() {
    let mut sending = Sending::to(|number| async move { status([410, 404, 301][number % 3]) }).await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    let took = sending.until_long_after("given_up_total", 1).await;
    assert_eq!(sending.sample("pending").await, 0);
    assert!(
        took >= GIVE_UP_AFTER && took < GIVE_UP_AFTER + LONGEST_DELAY * 3,
        "{took:?}"
    );
    let attempts = sending.received().len();
    assert!(attempts > 70, "{attempts}");
    sleep(LONGEST_DELAY * 2).await;
    assert_eq!(sending.received().len(), attempts);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_is_only_broken_gets_the_event_in_the_end() {
    let began = Instant::now();
    let mut sending = Sending::to(move |number| async move {
        if began.elapsed() > GIVE_UP_AFTER + LONGEST_DELAY * 5 {
            status(200)
        } else if number == 50 {
            // One refusal in between is none for days.
            status(404)
        } else if number.is_multiple_of(5) {
            Err("connection refused".into())
        } else {
            status([500, 503, 429, 408][number % 4])
        }
    })
    .await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    sending.until_long_after("delivered_total", 1).await;
    assert!(began.elapsed() > GIVE_UP_AFTER);
    assert_eq!(sending.sample("given_up_total").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_never_answers_is_left_in_time() {
    let mut sending = Sending::to(|number| async move {
        if number == 1 {
            std::future::pending::<()>().await;
        }
        status(200)
    })
    .await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    sending.until("delivered_total", 1).await;
    let received = sending.received();
    let waited = received[1].at - received[0].at;
    assert!(
        waited >= Duration::from_secs(15) && waited < Duration::from_secs(18),
        "{waited:?}"
    );
    assert_eq!(received[0].id, received[1].id);
}

/// The status is what counts. What follows may be endless, or break off.
#[tokio::test(start_paused = true)]
async fn an_answer_without_end_is_not_waited_for() {
    let polled = Arc::new(AtomicUsize::new(0));
    let endless = |every, breaks| {
        Body::new(Endless {
            every,
            breaks,
            next: Box::pin(sleep(Duration::ZERO)),
            polled: polled.clone(),
        })
    };
    let fast = endless(Duration::ZERO, false);
    let slow = endless(Duration::from_millis(300), false);
    let silent = endless(Duration::from_secs(1_000_000), false);
    let broken = endless(Duration::ZERO, true);
    let bodies = Arc::new(Mutex::new(vec![fast, slow, silent, broken]));
    let mut sending = Sending::to(move |_| {
        let body = bodies.lock().unwrap().pop().unwrap();
        async move { Ok(Response::new(body)) }
    })
    .await;
    for user in ["usr_1", "usr_2", "usr_3", "usr_4"] {
        sending.decide(user).await;
    }
    let began = Instant::now();
    let _running = sending.start();
    sending.until("pending", 0).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(sending.sample("delivered_total").await, 4);
    let polled = polled.load(Ordering::Relaxed);
    assert!((60..80).contains(&polled), "64 KiB are read, and no more: {polled}");
}

/// A body of pieces of 1 KiB, or one that breaks.
struct Endless {
    every: Duration,
    breaks: bool,
    next: Pin<Box<Sleep>>,
    polled: Arc<AtomicUsize>,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        ready!(self.next.as_mut().poll(cx));
        if self.breaks {
            return Poll::Ready(Some(Err("cut".into())));
        }
        let every = self.every;
        self.next.set(sleep(every));
        self.polled.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(vec![b'x'; 1024].into()))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_are_sent_at_once_and_all_in_the_end() {
    let now = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = now.clone();
    let mut sending = Sending::to(move |_| {
        let counted = counted.clone();
        async move {
            let (running, most) = &*counted;
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
            running.fetch_sub(1, Ordering::Relaxed);
            status(200)
        }
    })
    .await;
    for number in 0..100 {
        sending.decide(&format!("usr_{number}")).await;
    }
    let began = Instant::now();
    let _running = sending.start();
    sending.until("pending", 0).await;
    assert_eq!(now.1.load(Ordering::Relaxed), 8);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let ids: HashSet<_> = sending.received().into_iter().map(|received| received.id).collect();
    assert_eq!((ids.len(), sending.received().len()), (100, 100));
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_what_is_sent_end_and_takes_nothing_new() {
    let mut sending = Sending::to(|_| async {
        sleep(Duration::from_secs(5)).await;
        status(200)
    })
    .await;
    sending.decide("usr_1").await;
    let running = sending.start();
    while sending.received().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    running.take_no_more();
    sending.decide("usr_2").await;
    let began = Instant::now();
    running.end(Instant::now() + Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(sending.sample("delivered_total").await, 1);
    assert_eq!(sending.sample("pending").await, 1);
    assert_eq!(sending.received().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_a_subscriber_longer_than_it_may() {
    let mut sending = Sending::to(|_| async { std::future::pending().await }).await;
    sending.decide("usr_1").await;
    let running = sending.start();
    while sending.received().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    running.end(Instant::now() + Duration::from_secs(10)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert_eq!(sending.sample("pending").await, 1);
    // Not even in the background.
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(sending.received().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_sending_is_one_failed_attempt() {
    let mut sending = Sending::to(|number| async move {
        assert!(number > 1, "the first request");
        status(200)
    })
    .await;
    let _running = sending.start();
    sending.decide("usr_1").await;
    sending.until("delivered_total", 1).await;
    assert_eq!(sending.received().len(), 2);
}
