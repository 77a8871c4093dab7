//! Sending events from the built program, to a scripted subscriber or to itself, on every store.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;
use tokio::task::JoinSet;

use super::deliveries::SECRET;
use super::process::{Server, program};
use super::request::{Call, EVENTS, sample};
use super::server::app::App;
use super::server::events::sign::Secret;
use super::server::options::Options;
use super::stores::Store;
use super::subscriber::{Reply, Request, Subscriber, url};
use crate::support::eventually;

use crate::support::servers::postgres::Postgres;
use crate::support::servers::process::free_port;
use crate::support::servers::proxy::Proxy;
use crate::support::servers::redis::Redis;

mod alone {
    use super::super::stores::tests;

    tests!(memory, sqlite, postgres, redis: {
        an_event_for_each_decision_that_ran,
        an_event_whose_answer_is_lost_is_sent_again,
        a_claim_lapses_and_fences,
        it_stops_with_success_while_nobody_takes_its_events,
    });
}

mod together {
    use super::super::stores::tests;

    tests!(sqlite, postgres, redis: {
        what_is_decided_before_a_crash_is_sent_after_it,
        what_is_being_sent_at_a_crash_is_sent_again,
        two_servers_share_the_outbox_and_lose_nothing,
        events_of_a_frozen_server_are_taken_over,
    });
}

impl Store {
    fn sender(&self, url: &str, options: &[&str]) -> Server {
        let events = ["--events-url", url, "--events-secret", SECRET];
        self.server(&[&events, options].concat())
    }
}

async fn decide(server: &Server, user: &str) {
    let decision = Call::decision(user, r#"{"status":"approved"}"#).key(user);
    server.send(&decision).await.expect(200);
}

async fn count(server: &Server, what: &str) -> u64 {
    let metrics = server.send(&Call::get("/metrics")).await.expect(200);
    sample(&metrics, &format!("idv_events_{what}"))
}

async fn pending_are(server: &Server, number: u64) {
    eventually(&format!("{number} are pending"), async || {
        (count(server, "pending").await == number).then_some(())
    })
    .await;
}

fn user(request: &Request) -> String {
    let body: Value = serde_json::from_str(&request.body).unwrap();
    body["data"]["user_id"].as_str().unwrap().to_owned()
}

fn is_signed(request: &Request) {
    let timestamp = request.header("webhook-timestamp").parse().unwrap();
    let signature = Secret::parse(SECRET)
        .unwrap()
        .sign(request.id(), timestamp, request.body.as_bytes());
    assert_eq!(request.header("webhook-signature"), signature);
}

/// By event, that it was the same each time.
fn by_id(requests: &[Request]) -> HashMap<&str, usize> {
    let mut seen: HashMap<&str, (&str, usize)> = HashMap::new();
    for request in requests {
        is_signed(request);
        let (body, times) = seen.entry(request.id()).or_insert((&request.body, 0));
        assert_eq!(*body, request.body);
        *times += 1;
    }
    seen.into_iter().map(|(id, (_, times))| (id, times)).collect()
}

async fn an_event_for_each_decision_that_ran(store: &Store) {
    let subscriber = Subscriber::start(|_| Reply::Status(200)).await;
    let server = store.sender(&subscriber.url(), &[]);
    for user in ["usr_1", "usr_2", "usr_%22%C3%A9"] {
        for _ in 0..3 {
            decide(&server, user).await;
        }
    }
    let again = Call::decision("usr_1", r#"{"status":"declined"}"#);
    server.send(&again).await.expect(200);
    for refused in ["perhaps", ""] {
        let call = Call::decision("usr_1", &format!(r#"{{"status":"{refused}"}}"#)).key("k-1");
        server.send(&call).await.expect(422);
    }
    eventually("all are delivered", async || {
        (count(&server, "delivered_total").await == 4).then_some(())
    })
    .await;
    pending_are(&server, 0).await;
    let requests = subscriber.requests();
    assert_eq!(by_id(&requests).len(), 4);
    assert_eq!(requests.len(), 4);
    let mut users: Vec<_> = requests
        .iter()
        .map(|request| {
            assert_eq!(request.line, "POST /hook HTTP/1.1");
            let body: Value = serde_json::from_str(&request.body).unwrap();
            assert_eq!(body["event_id"], request.id());
            assert_eq!(body["data"]["account"], "acme");
            (
                body["data"]["user_id"].as_str().unwrap().to_owned(),
                body["data"]["version"].as_u64().unwrap(),
                body["type"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    users.sort();
    let expected = [
        ("usr_\"\u{e9}", 1, "user.approved"),
        ("usr_1", 1, "user.approved"),
        ("usr_1", 2, "user.declined"),
        ("usr_2", 1, "user.approved"),
    ];
    assert_eq!(
        users,
        expected.map(|(user, version, of)| (user.into(), version, of.into()))
    );
    assert_eq!(count(&server, "delivery_failures_total").await, 0);
}

/// Cut, redirecting, silent, endless: it is sent again each time, as it was.
async fn an_event_whose_answer_is_lost_is_sent_again(store: &Store) {
    let elsewhere = Subscriber::start(|_| Reply::Status(200)).await;
    let to = elsewhere.url();
    let times = Mutex::new(HashMap::<String, usize>::new());
    let subscriber = Subscriber::start(move |request| {
        let user = user(request);
        let mut times = times.lock().unwrap();
        let times = times.entry(user.clone()).or_default();
        *times += 1;
        match (&*user, *times) {
            ("usr_1", 1) => Reply::Cut,
            ("usr_1", 2) => Reply::Redirect(to.clone()),
            ("usr_2", 1) => Reply::Never,
            ("usr_2", 2) => Reply::Endless,
            _ => Reply::Status(200),
        }
    })
    .await;
    let server = store.sender(&subscriber.url(), &["--events-timeout", "700ms"]);
    for user in ["usr_1", "usr_2"] {
        decide(&server, user).await;
    }
    pending_are(&server, 0).await;
    assert_eq!(count(&server, "delivered_total").await, 2);
    assert!(count(&server, "delivery_failures_total").await >= 4);
    assert!(elsewhere.requests().is_empty(), "redirects are not followed");
    let requests = subscriber.requests();
    assert_eq!(by_id(&requests).len(), 2);
    for each in ["usr_1", "usr_2"] {
        let requests: Vec<_> = requests.iter().filter(|request| user(request) == each).collect();
        // On a busy machine an attempt may have been cut short, or a claim have lapsed.
        assert!(requests.len() >= 3, "{requests:?}");
        let (first, last) = (requests[0], requests[requests.len() - 1]);
        assert_eq!(first.id(), last.id());
        assert_ne!(first.header("webhook-timestamp"), last.header("webhook-timestamp"));
        assert_ne!(first.header("webhook-signature"), last.header("webhook-signature"));
    }

    server.signal("TERM");
    let (_, log) = server.ended().await;
    for said in [
        requests[0].id(),
        requests[1].id(),
        "307",
        "no response within",
        "attempt=2",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    for secret in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "usr_1", "v1,", "/hook"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

/// The steps of the outbox, on the store itself.
async fn a_claim_lapses_and_fences(store: &Store) {
    const LEASE: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(1000);
    let options = [
        "identity_verification",
        "--store",
        &store.url,
        "--events-url",
        "http://127.0.0.1:1/",
    ];
    let options = Options::parse_from(options.iter().chain(&["--events-secret", SECRET]));
    let app = App::open(&options).await.unwrap();
    // Not started: nobody else claims.
    let data = &app.data;
    let decide = async |user: &str| {
        let call = Call::decision(user, r#"{"status":"approved"}"#).key(user);
        let call = call.at("").map(axum::body::Body::new);
        let answer = tower::ServiceExt::oneshot(app.router.clone(), call).await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    let claim = async |lease| eventually("it is due", async || data.claim_events(1, lease).await.unwrap().pop()).await;
    assert!(data.claim_events(9, LEASE).await.unwrap().is_empty());
    decide("usr_1").await;
    let first = claim(LEASE).await;
    let second = claim(LONG).await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert_eq!(first.event.id, second.event.id);
    assert_eq!(first.event.body, second.event.body);
    // The first comes late, and changes nothing.
    data.postpone_event(&first, Duration::ZERO, true).await.unwrap();
    data.give_up_event(&first).await.unwrap();
    assert!(data.claim_events(9, LONG).await.unwrap().is_empty());
    assert_eq!(data.pending_events().await.unwrap(), 1);

    // How long it has been refused counts from the first refusal in a row.
    assert_eq!(second.refused_for, None);
    data.postpone_event(&second, Duration::ZERO, true).await.unwrap();
    let third = claim(LONG).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    data.postpone_event(&third, Duration::ZERO, true).await.unwrap();
    let fourth = claim(LONG).await;
    assert!(fourth.refused_for.unwrap() >= Duration::from_millis(20));
    assert!(fourth.refused_for.unwrap() < Duration::from_secs(60));
    data.postpone_event(&fourth, Duration::ZERO, false).await.unwrap();
    let fifth = claim(LONG).await;
    assert_eq!((fifth.attempt, fifth.refused_for), (5, None));
    assert_eq!(fifth.event.body, first.event.body);

    // Given up it is not sent any more; but who has delivered it has.
    data.give_up_event(&fifth).await.unwrap();
    data.postpone_event(&fifth, Duration::ZERO, false).await.unwrap();
    assert_eq!(data.pending_events().await.unwrap(), 0);
    assert!(data.claim_events(9, LONG).await.unwrap().is_empty());
    data.event_delivered(&first.event.id).await.unwrap();

    // The longest due first, and no more than asked for.
    for user in ["usr_2", "usr_3", "usr_4"] {
        decide(user).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut ids = Vec::new();
    for (limit, expected) in [(2, 2), (2, 1), (2, 0)] {
        let claimed = data.claim_events(limit, LONG).await.unwrap();
        assert_eq!(claimed.len(), expected);
        ids.extend(claimed.into_iter().map(|claimed| claimed.event.id));
    }
    let ids: HashSet<_> = ids.into_iter().collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(data.pending_events().await.unwrap(), 3);
    for id in &ids {
        data.event_delivered(id).await.unwrap();
    }
    assert_eq!(data.pending_events().await.unwrap(), 0);
}

async fn it_stops_with_success_while_nobody_takes_its_events(store: &Store) {
    let server = store.sender(&url(free_port()), &[]);
    for user in ["usr_1", "usr_2"] {
        decide(&server, user).await;
    }
    eventually("it was tried", async || {
        (count(&server, "delivery_failures_total").await >= 2).then_some(())
    })
    .await;
    assert_eq!(count(&server, "pending").await, 2);
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(log.contains("events=2"), "{log}");
    assert_eq!(log.contains("are lost"), store.url == "memory", "{log}");
}

async fn what_is_decided_before_a_crash_is_sent_after_it(store: &Store) {
    // What it was about to try when it died is free after twice that.
    let options = ["--events-timeout", "1s"];
    let port = free_port();
    let server = store.sender(&url(port), &options);
    for number in 0..5 {
        decide(&server, &format!("usr_{number}")).await;
    }
    server.signal("KILL");
    server.ended().await;

    let subscriber = Subscriber::start_on(port, |_| Reply::Status(200)).await;
    let server = store.sender(&url(port), &options);
    // The answers were not lost with the process either.
    for number in 0..5 {
        decide(&server, &format!("usr_{number}")).await;
    }
    pending_are(&server, 0).await;
    let requests = subscriber.requests();
    assert_eq!(by_id(&requests).len(), 5);
    assert_eq!(requests.iter().map(user).collect::<HashSet<_>>().len(), 5);
}

async fn what_is_being_sent_at_a_crash_is_sent_again(store: &Store) {
    let subscriber = Subscriber::start(|_| Reply::Never).await;
    let server = store.sender(&subscriber.url(), &["--events-timeout", "1s"]);
    decide(&server, "usr_1").await;
    let taken = eventually("it is being sent", async || subscriber.requests().pop()).await;
    server.signal("KILL");
    server.ended().await;
    let port = subscriber.port;
    drop(subscriber);

    eventually("the port is free", async || {
        let free = std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        free.then_some(())
    })
    .await;
    let subscriber = Subscriber::start_on(port, |_| Reply::Status(200)).await;
    let server = store.sender(&url(port), &["--events-timeout", "1s"]);
    pending_are(&server, 0).await;
    for request in subscriber.requests() {
        assert_eq!(request.id(), taken.id());
        assert_eq!(request.body, taken.body);
    }
    assert!(!subscriber.requests().is_empty());
}

async fn two_servers_share_the_outbox_and_lose_nothing(store: &Store) {
    // Of the events, a third is taken, a third is not, and a third is without an answer; then all are.
    let seen = Mutex::new(HashSet::new());
    let subscriber = Subscriber::start(move |request| {
        if !seen.lock().unwrap().insert(request.id().to_owned()) {
            return Reply::Status(200);
        }
        let number: usize = user(request)["usr_".len()..].parse().unwrap();
        match number % 3 {
            0 => Reply::Cut,
            1 => Reply::Status(503),
            _ => Reply::Status(200),
        }
    })
    .await;
    let url = subscriber.url();
    let servers = [Arc::new(store.sender(&url, &[])), Arc::new(store.sender(&url, &[]))];
    let mut clients = JoinSet::new();
    for number in 0..40 {
        let server = servers[number % 2].clone();
        clients.spawn(async move { decide(&server, &format!("usr_{number}")).await });
    }
    clients.join_all().await;
    for server in &servers {
        pending_are(server, 0).await;
    }
    let requests = subscriber.requests();
    assert_eq!(by_id(&requests).len(), 40);
    let users: HashSet<_> = requests.iter().map(user).collect();
    assert_eq!(users.len(), 40);
}

async fn events_of_a_frozen_server_are_taken_over(store: &Store) {
    let hanging = Subscriber::start(|_| Reply::Never).await;
    let options = ["--events-timeout", "2s"];
    let frozen = store.sender(&hanging.url(), &options);
    decide(&frozen, "usr_1").await;
    let first = eventually("it is being sent", async || hanging.requests().pop()).await;
    frozen.signal("STOP");

    let subscriber = Subscriber::start(|_| Reply::Status(200)).await;
    let other = store.sender(&subscriber.url(), &options);
    pending_are(&other, 0).await;
    let requests = subscriber.requests();
    assert_eq!(requests[0].id(), first.id());
    assert_eq!(requests[0].body, first.body);
    // It finds itself overtaken, and the event stays delivered.
    let sent_before = hanging.requests().len();
    frozen.signal("CONT");
    eventually("it has noticed that time went by", async || {
        (count(&frozen, "delivery_failures_total").await > 0).then_some(())
    })
    .await;
    assert_eq!(count(&frozen, "pending").await, 0);
    assert_eq!(hanging.requests().len(), sent_before);
}

/// The server as its own subscriber: what it takes twice it processes once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_has_the_layer_processes_each_event_once() {
    let store = Store::memory().unwrap();
    let receiver = store.server(&[]);
    let port = receiver.origin.rsplit(':').next().unwrap().parse().unwrap();
    let network = Proxy::start(port).await;
    let url = format!("http://127.0.0.1:{}{EVENTS}", network.port());
    let sender = store.sender(&url, &[]);
    // The receiver takes the event, and its answer is lost.
    network.cut_after_requests(1);
    decide(&sender, "usr_1").await;
    eventually("it is delivered", async || {
        (count(&sender, "delivered_total").await == 1).then_some(())
    })
    .await;
    assert_eq!(network.counts().cuts, 1);
    assert!(count(&sender, "delivery_failures_total").await >= 1);
    let metrics = receiver.send(&Call::get("/metrics")).await;
    assert_eq!(super::request::count(&metrics, "executed"), 1);
    assert!(super::request::count(&metrics, "replayed") >= 1);
    let events = receiver.send(&Call::get(EVENTS)).await.expect(200).json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["type"], "user.approved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_hangs_does_not_keep_it_from_stopping() {
    let subscriber = Subscriber::start(|_| Reply::Never).await;
    let store = Store::sqlite().unwrap();
    let server = store.sender(&subscriber.url(), &["--events-timeout", "10m"]);
    decide(&server, "usr_1").await;
    eventually("it is being sent", async || subscriber.requests().pop()).await;
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.ended().await;
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(status.code(), Some(0), "the event is in the outbox: {log}");
    assert!(log.contains("events=1"), "{log}");
}

/// Both the subscriber and the store may be away, in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_store_delays_events_and_loses_none() {
    let Some(mut redis) = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]) else {
        return;
    };
    let url = redis.url();
    outage(&url, |up| if up { redis.restart() } else { redis.kill() }).await;
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.create_database();
    outage(&url, |up| if up { postgres.restart() } else { postgres.kill() }).await;
}

async fn outage(store: &str, mut turn: impl FnMut(bool)) {
    let port = free_port();
    let mut command = program();
    command.args(["--store", store, "--events-url", &url(port)]);
    command.args(["--events-secret", SECRET, "--events-timeout", "1s"]);
    let server = Server::spawn(command);
    decide(&server, "usr_1").await;
    turn(false);
    eventually("it looks in vain", async || {
        let metrics = server.send(&Call::get("/metrics")).await.expect(200);
        (!metrics.text().contains("idv_events_pending")).then_some(())
    })
    .await;
    let subscriber = Subscriber::start_on(port, |_| Reply::Status(200)).await;
    turn(true);
    eventually("it is delivered", async || {
        let metrics = server.send(&Call::get("/metrics")).await.expect(200);
        metrics.text().contains("idv_events_pending 0").then_some(())
    })
    .await;
    assert_eq!(by_id(&subscriber.requests()).len(), 1);
}

#[test]
fn a_subscriber_or_secret_that_cannot_be_is_an_error() {
    let good = "http://127.0.0.1:9/hook?token=hidden";
    for (url, secret, says) in [
        (
            Some("https://hidden.test/"),
            Some(SECRET),
            "--events-url: this example does not support TLS",
        ),
        (
            Some("ftp://hidden.test/"),
            Some(SECRET),
            "--events-url: the URL is not valid",
        ),
        (
            Some("hidden.test/hook"),
            Some(SECRET),
            "--events-url: the URL is not valid",
        ),
        (Some("/hidden"), Some(SECRET), "--events-url: the URL is not valid"),
        (Some("http://"), Some(SECRET), "--events-url: the URL is not valid"),
        (
            Some("http://:80/hidden"),
            Some(SECRET),
            "--events-url: the URL is not valid",
        ),
        (
            Some("http://hid den/"),
            Some(SECRET),
            "--events-url: the URL is not valid",
        ),
        (Some(""), Some(SECRET), "--events-url: the URL is not valid"),
        (
            Some("http://user:hidden@host.test/"),
            Some(SECRET),
            "remove the user and password",
        ),
        (Some(good), None, "needs `--events-secret`"),
        (None, Some(SECRET), "--events-secret: has no effect without"),
        (Some(good), Some(""), "--events-secret: not a Standard Webhooks secret"),
        (
            Some(good),
            Some("whsec_hidden"),
            "--events-secret: not a Standard Webhooks secret",
        ),
    ] {
        let mut as_options = program();
        let mut as_variables = program();
        for (name, value) in [("url", url), ("secret", secret)] {
            if let Some(value) = value {
                as_options.arg(format!("--events-{name}")).arg(value);
                as_variables.env(format!("IDV_EVENTS_{}", name.to_uppercase()), value);
            }
        }
        for mut command in [as_options, as_variables] {
            let output = command.args(["--listen", "127.0.0.1:0"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{url:?}: {said}");
            assert!(said.contains(says), "{url:?}: {said}");
            assert!(output.stdout.is_empty());
            for secret in ["hidden", "MfKQ9r8G", "panicked"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
    let mut help = program();
    help.env("IDV_EVENTS_URL", good).env("IDV_EVENTS_SECRET", SECRET);
    let said = help.arg("--help").output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("IDV_EVENTS_SECRET"));
    assert!(!said.contains("hidden") && !said.contains("MfKQ9r8G"), "{said}");
}
