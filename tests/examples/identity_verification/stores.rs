//! What a client can rely on, on every store; and that servers on one store are one service.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::process::{Server, program};
use super::request::{Answer, BILLING, Call, EVENTS, SCREENINGS, SESSIONS, count, sample};
use crate::support::eventually;

use crate::support::servers::postgres::{PASSWORD, Postgres};
use crate::support::servers::redis::Redis;

/// A store of a test's own, empty.
pub(crate) struct Store {
    pub(crate) url: String,
    /// What it is on, to be removed in the end.
    _there: Box<dyn Any + Send + Sync>,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// A store that needs nothing to be removed in the end.
    pub(crate) fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            _there: Box::new(()),
        }
    }

    pub(crate) fn memory() -> Option<Self> {
        Some(Self::at("memory"))
    }

    pub(crate) fn sqlite() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("idv-sqlite-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Some(Self {
            url: format!("sqlite:{}", directory.join("idv.db").display()),
            _there: Box::new(Directory(directory)),
        })
    }

    pub(crate) fn postgres() -> Option<Self> {
        Postgres::shared().map(|server| Self::at(server.create_database()))
    }

    pub(crate) fn redis() -> Option<Self> {
        Redis::start().map(|server| Self {
            url: server.url(),
            _there: Box::new(server),
        })
    }

    fn is_sql(&self) -> bool {
        self.url.starts_with("sqlite:") || self.url.starts_with("postgres:")
    }

    pub(crate) fn server(&self, options: &[&str]) -> Server {
        let mut command = program();
        command.env("IDV_STORE", &self.url).args(options);
        if !options.contains(&"--provider-latency") {
            command.args(["--provider-latency", "1ms"]);
        }
        Server::spawn(command)
    }
}

macro_rules! tests {
    ($($store:ident),*: $tests:tt) => { $(tests!(@ $store $tests);)* };
    (@ $store:ident { $($test:ident,)* }) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(store) = super::super::Store::$store() {
                        super::super::$test(&store).await;
                    }
                }
            )*
        }
    };
}

pub(crate) use tests;

/// One server.
mod alone {
    tests!(memory, sqlite, postgres, redis: {
        a_session_is_created_once_and_replayed,
        what_fails_charges_nothing_and_frees_the_key,
        invalid_requests_store_nothing,
        the_flaky_workflow_fails_once_for_each_user,
        a_large_report_is_charged_once,
        a_screening_is_charged_once,
        a_users_version_counts_the_decisions_that_ran,
        an_event_is_processed_once,
        requests_without_a_key_run_each_time,
        data_is_listed_oldest_first_and_by_account,
        any_text_comes_back_as_it_was,
        an_outcome_is_kept_for_the_ttl,
        of_many_distinct_operations_at_once_all_run,
        what_is_measured,
        it_stops_with_success,
    });
}

/// Several servers, at once or one after the other.
mod together {
    tests!(sqlite, postgres, redis: {
        two_servers_are_one_service,
        of_two_hundred_duplicates_on_two_servers_one_runs,
        servers_can_start_at_once_on_an_empty_store,
        a_restart_forgets_nothing,
        a_crash_after_writing,
        a_client_that_hangs_up_and_asks_elsewhere_is_charged_once,
        operations_for_one_user_are_each_counted,
    });
}

fn event(id: &str) -> Call {
    Call::post(
        EVENTS,
        json!({ "event_id": id, "type": "paid", "data": {} }).to_string(),
    )
}

async fn list(server: &Server, path: &str, field: &str, api_key: &str) -> Vec<Value> {
    let answer = server.send(&Call::get(path).from(api_key)).await.expect(200);
    answer.json()[field].as_array().unwrap().clone()
}

async fn sessions(server: &Server) -> Vec<Value> {
    list(server, SESSIONS, "sessions", "sk_test_acme").await
}

async fn charges(server: &Server) -> Vec<Value> {
    list(server, BILLING, "charges", "sk_test_acme").await
}

async fn events(server: &Server) -> Vec<Value> {
    list(server, EVENTS, "events", "").await
}

async fn a_session_is_created_once_and_replayed(store: &Store) {
    let server = store.server(&[]);
    let call = Call::session("usr_1", "wkf_kyc_full").key("k-1");
    let first = server.send(&call).await.expect(201);
    let session = first.json();
    let id = session["session_id"].as_str().unwrap();
    assert_eq!(session["attempt"], 1);
    assert_eq!(session.as_object().unwrap().len(), 6, "{session}");
    assert!(!first.is_replay());
    for api_key in ["sk_test_acme", "sk_test_acme_rotated"] {
        let again = server.send(&call.clone().from(api_key)).await.expect(201);
        assert!(again.is_replay());
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("set-cookie"), None);
    }
    let other = server.send(&Call::session("usr_2", "any").key("k-1")).await;
    other.expect_problem(422, "key-reused");

    assert_eq!(sessions(&server).await, std::slice::from_ref(&session));
    let bill = server.send(&Call::get(BILLING).from("sk_test_acme")).await.expect(200);
    assert_eq!(
        bill.json(),
        json!({
            "charges": [{ "operation": "verification_session", "reference": id, "amount_cents": 150 }],
            "total_cents": 150,
        })
    );
    let path = format!("{SESSIONS}/{id}");
    let shown = server.send(&Call::get(&path).from("sk_test_acme")).await.expect(200);
    assert_eq!(shown.json(), session);
    for (path, api_key) in [(&*path, "sk_test_acm"), (&format!("{path}0"), "sk_test_acme")] {
        server.send(&Call::get(path).from(api_key)).await.expect_error(404);
    }
    // Another account's key of the same name.
    let other = server.send(&call.from("sk_test_acm")).await.expect(201);
    assert!(!other.is_replay());
    assert_eq!(charges(&server).await.len(), 1);
}

async fn what_fails_charges_nothing_and_frees_the_key(store: &Store) {
    let server = store.server(&[]);
    for (workflow, status) in [("wkf_provider_down", 503), ("wkf_declined", 402), ("wkf_panic", 500)] {
        let call = Call::session("usr_1", workflow).key(workflow);
        for _ in 0..2 {
            assert!(!server.send(&call).await.expect_error(status).is_replay());
        }
        assert!(charges(&server).await.is_empty() && sessions(&server).await.is_empty());
    }
    for workflow in ["wkf_provider_down", "wkf_declined", "wkf_panic"] {
        // The key is free, for another body too, and the attempts start over.
        let other = Call::session("usr_2", "any").key(workflow);
        assert_eq!(server.send(&other).await.expect(201).json()["attempt"], 1);
    }
    assert_eq!(charges(&server).await.len(), 3);
}

async fn invalid_requests_store_nothing(store: &Store) {
    let server = store.server(&[]);
    for (call, status) in [
        (Call::post(SESSIONS, "nonsense"), 400),
        (Call::post(SESSIONS, r#"{"user_id":"","workflow_id":"any"}"#), 422),
        (
            Call::post(SESSIONS, r#"{"user_id":"a\u0000b","workflow_id":"any"}"#),
            422,
        ),
        (Call::post(SCREENINGS, "{}"), 422),
        (Call::decision("usr_1", r#"{"status":"perhaps"}"#), 422),
        (Call::decision("a%00b", r#"{"status":"approved"}"#), 422),
    ] {
        for call in [call.clone(), call.key("k-1")] {
            server.send(&call.from("sk_test_acme")).await.expect_error(status);
        }
    }
    for body in ["{", r#"{"event_id":"e","type":""}"#] {
        assert!(server.send(&Call::post(EVENTS, body)).await.status.is_client_error());
    }
    assert!(charges(&server).await.is_empty() && events(&server).await.is_empty());
    server.send(&Call::session("usr_1", "any").key("k-1")).await.expect(201);
}

async fn the_flaky_workflow_fails_once_for_each_user(store: &Store) {
    let server = store.server(&[]);
    for (api_key, user) in [
        ("sk_test_acme", "usr_1"),
        ("sk_test_acme", "usr_2"),
        ("sk_test_globex", "usr_1"),
    ] {
        let call = Call::session(user, "wkf_flaky").from(api_key).key(user);
        server.send(&call).await.expect_error(503);
        let retry = server.send(&call).await.expect(201);
        assert!(!retry.is_replay());
        assert_eq!(retry.json()["attempt"], 1);
        assert!(server.send(&call).await.expect(201).is_replay());
    }
    assert_eq!(charges(&server).await.len(), 2);
}

async fn a_large_report_is_charged_once(store: &Store) {
    let server = store.server(&[]);
    let call = Call::session("usr_1", "wkf_large_report").key("k-1");
    let first = server.send(&call).await.expect(201);
    assert_eq!(first.json()["report"].as_str().unwrap().len(), 3 * 1024 * 1024);
    for _ in 0..2 {
        let again = server.send(&call).await.expect_problem(409, "response-not-retained");
        assert_eq!(again.json()["original_status"], 201);
    }
    assert_eq!(charges(&server).await.len(), 1);
    assert_eq!(sessions(&server).await.len(), 1);
}

async fn a_screening_is_charged_once(store: &Store) {
    let server = store.server(&[]);
    let call = Call::post(SCREENINGS, r#"{"full_name":"Auric Goldfinger"}"#)
        .from("sk_test_acme")
        .key("k-1");
    let first = server.send(&call).await.expect(201);
    assert_eq!(first.json()["hits"], json!(["Auric Goldfinger"]));
    assert_eq!(server.send(&call).await.expect(201).body, first.body);
    let id = &first.json()["screening_id"];
    assert_eq!(
        charges(&server).await,
        [json!({ "operation": "aml_screening", "reference": id, "amount_cents": 35 })]
    );
}

async fn a_users_version_counts_the_decisions_that_ran(store: &Store) {
    let server = store.server(&[]);
    let approve = Call::decision("usr_1", r#"{"status":"approved"}"#);
    let decline = Call::decision("usr_1", r#"{"status":"declined"}"#);
    for (call, status, version) in [
        (approve.clone().key("k-1"), "approved", 1),
        (approve.clone().key("k-1"), "approved", 1),
        (decline.key("k-2"), "declined", 2),
        (approve.clone().key("k-1"), "approved", 1),
        (approve.clone(), "approved", 3),
        (approve.from("sk_test_globex").key("k-1"), "approved", 1),
    ] {
        let answer = server.send(&call).await.expect(200);
        assert_eq!(
            answer.json(),
            json!({ "user_id": "usr_1", "status": status, "version": version })
        );
    }
}

async fn an_event_is_processed_once(store: &Store) {
    let server = store.server(&[]);
    let first = server.send(&event("evt_1")).await.expect(200);
    assert_eq!(first.json(), json!({ "event_id": "evt_1", "received": true }));
    let changed = r#"{"event_id":"evt_1","type":"paid","data":{"sent_at":2}}"#;
    assert!(server.send(&Call::post(EVENTS, changed)).await.expect(200).is_replay());
    let number = Call::post(EVENTS, r#"{"event_id":900719925474099312345,"type":"paid"}"#);
    server.send(&number).await.expect(200);
    let raw = server.send(&Call::get(EVENTS)).await.expect(200);
    assert_eq!(
        raw.text(),
        r#"{"events":[{"event_id":"evt_1","type":"paid"},{"event_id":900719925474099312345,"type":"paid"}]}"#
    );
}

async fn requests_without_a_key_run_each_time(store: &Store) {
    let server = store.server(&[]);
    for _ in 0..3 {
        let answer = server.send(&Call::session("usr_1", "any")).await.expect(201);
        assert_eq!(answer.json()["attempt"], 1);
        let screening = Call::post(SCREENINGS, r#"{"full_name":"Ada Lovelace"}"#).from("sk_test_acme");
        server.send(&screening).await.expect(201);
    }
    server
        .send(&Call::session("usr_1", "wkf_declined"))
        .await
        .expect_error(402);
    assert_eq!(charges(&server).await.len(), 6);
    assert_eq!(sessions(&server).await.len(), 3);
}

async fn data_is_listed_oldest_first_and_by_account(store: &Store) {
    let server = store.server(&[]);
    let users: Vec<String> = (0..12).map(|number| format!("usr_{}", 20 - number)).collect();
    for user in &users {
        server.send(&Call::session(user, "any").key(user)).await.expect(201);
        server.send(&event(user)).await.expect(200);
    }
    let sessions = sessions(&server).await;
    assert_eq!(
        sessions.iter().map(|session| &session["user_id"]).collect::<Vec<_>>(),
        users.iter().collect::<Vec<_>>()
    );
    let charges = charges(&server).await;
    let references: Vec<_> = charges.iter().map(|charge| &charge["reference"]).collect();
    assert_eq!(
        references,
        sessions
            .iter()
            .map(|session| &session["session_id"])
            .collect::<Vec<_>>()
    );
    let events = events(&server).await;
    assert_eq!(
        events.iter().map(|event| &event["event_id"]).collect::<Vec<_>>(),
        users.iter().collect::<Vec<_>>()
    );
    for other in ["sk_test_acm", "sk_test_globex"] {
        assert!(list(&server, SESSIONS, "sessions", other).await.is_empty());
        assert!(list(&server, BILLING, "charges", other).await.is_empty());
    }
}

async fn any_text_comes_back_as_it_was(store: &Store) {
    let server = store.server(&[]);
    let long = "lang ".repeat(20_000);
    for text in [
        "'; DROP TABLE idv_sessions; --",
        "ü \u{1f600} \"\\\n\t\u{7f}\u{1}",
        " padded ",
        &long,
    ] {
        let body = json!({ "user_id": text, "workflow_id": text }).to_string();
        server
            .send(&Call::post(SESSIONS, body).from("sk_test_acme"))
            .await
            .expect(201);
        let session = sessions(&server).await.pop().unwrap();
        assert_eq!(
            (&session["user_id"], &session["workflow_id"]),
            (&json!(text), &json!(text))
        );
        let flaky = json!({ "user_id": text, "workflow_id": "wkf_flaky" }).to_string();
        for status in [503, 201] {
            server
                .send(&Call::post(SESSIONS, flaky.clone()).from("sk_test_acme"))
                .await
                .expect(status);
        }
        let body = json!({ "event_id": "e", "type": text }).to_string();
        server
            .send(&Call::post(
                EVENTS,
                body.replace("\"e\"", &format!("\"{}\"", text.len())),
            ))
            .await
            .expect(200);
        assert_eq!(events(&server).await.pop().unwrap()["type"], text);
    }
    let user = "u".repeat(5000);
    for version in 1..3 {
        let answer = server
            .send(&Call::decision(&user, r#"{"status":"approved"}"#))
            .await
            .expect(200);
        assert_eq!(answer.json()["version"], version);
    }
}

/// With a short lease the store has a third of it to answer, which on a busy machine it may not do at once.
async fn in_time(server: &Server, call: &Call) -> Answer {
    eventually("the store answers in time", async || {
        let answer = server.send(call).await;
        (answer.status != 503).then_some(answer)
    })
    .await
}

async fn an_outcome_is_kept_for_the_ttl(store: &Store) {
    let server = store.server(&["--ttl", "2s", "--lease", "1s"]);
    let call = Call::session("usr_1", "any").key("k-1");
    let first = in_time(&server, &call).await.expect(201);
    eventually("it runs again", async || {
        let again = in_time(&server, &call).await.expect(201);
        (again.body != first.body).then_some(())
    })
    .await;
    assert_eq!(charges(&server).await.len(), 2);
}

async fn of_many_distinct_operations_at_once_all_run(store: &Store) {
    let server = Arc::new(store.server(&["--provider-latency", "100ms"]));
    let mut clients = JoinSet::new();
    for number in 0..100 {
        let server = Arc::clone(&server);
        let key = format!("k-{number}");
        clients.spawn(async move { server.send(&Call::session("usr_1", "any").key(&key)).await });
    }
    for answer in clients.join_all().await {
        answer.expect(201);
    }
    assert_eq!(charges(&server).await.len(), 100);
    assert_eq!(sessions(&server).await.len(), 100);
}

async fn what_is_measured(store: &Store) {
    let server = store.server(&[]);
    for call in [Call::session("usr_1", "any").key("k-1"), event("evt_1")] {
        for _ in 0..2 {
            server.send(&call).await;
        }
    }
    let metrics = server.send(&Call::get("/metrics")).await.expect(200);
    assert_eq!(count(&metrics, "executed"), 2);
    assert_eq!(count(&metrics, "replayed"), 2);
    assert_eq!(sample(&metrics, "identity_provider_calls_total"), 1);
    // What only a store in this process can tell at any time.
    assert_eq!(metrics.text().contains("idempotency_store_"), store.url == "memory");
}

async fn it_stops_with_success(store: &Store) {
    let server = store.server(&["--provider-latency", "300ms"]);
    let running = server
        .connect(&Call::session("usr_1", "any").key("k-1").on_the_wire())
        .await;
    eventually("the operation runs", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        (sample(&metrics, "identity_provider_calls_total") > 0).then_some(())
    })
    .await;
    server.signal("TERM");
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(!log.contains(PASSWORD));
    drop(running);
}

async fn two_servers_are_one_service(store: &Store) {
    let (a, b) = (store.server(&[]), store.server(&[]));
    let call = Call::session("usr_1", "any").key("k-1");
    let first = a.send(&call).await.expect(201);
    let replay = b.send(&call).await.expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);
    b.send(&Call::session("usr_2", "any").key("k-1"))
        .await
        .expect_problem(422, "key-reused");
    b.send(&Call::session("usr_2", "any").key("k-2")).await.expect(201);
    // What failed once on one succeeds on the other.
    let flaky = Call::session("usr_3", "wkf_flaky").key("k-3");
    a.send(&flaky).await.expect_error(503);
    b.send(&flaky).await.expect(201);
    assert!(a.send(&flaky).await.expect(201).is_replay());
    for (server, version) in [(&a, 1), (&b, 2), (&a, 3)] {
        let answer = server.send(&Call::decision("usr_1", r#"{"status":"approved"}"#)).await;
        assert_eq!(answer.expect(200).json()["version"], version);
    }
    a.send(&event("evt_1")).await.expect(200);
    assert!(b.send(&event("evt_1")).await.expect(200).is_replay());
    for server in [&a, &b] {
        assert_eq!(sessions(server).await.len(), 3);
        assert_eq!(charges(server).await.len(), 3);
        assert_eq!(events(server).await.len(), 1);
        server
            .send(&Call::get(first.header("location").unwrap()).from("sk_test_acme"))
            .await
            .expect(200);
    }
    let screening = Call::new(Method::POST, SCREENINGS, r#"{"full_name":"Ada"}"#)
        .from("sk_test_acme")
        .key("k-4");
    let first = a.send(&screening).await.expect(201);
    assert_eq!(b.send(&screening).await.expect(201).body, first.body);
}

async fn of_two_hundred_duplicates_on_two_servers_one_runs(store: &Store) {
    for (wait, key) in [("0s", "k-1"), ("30s", "k-2")] {
        let options = ["--wait", wait, "--provider-latency", "500ms"];
        let servers = [Arc::new(store.server(&options)), Arc::new(store.server(&options))];
        let before = charges(&servers[0]).await.len();
        let mut clients = JoinSet::new();
        for number in 0..200 {
            let server = Arc::clone(&servers[number % 2]);
            clients.spawn(async move { server.send(&Call::session("usr_1", "any").key(key)).await });
        }
        let answers = clients.join_all().await;
        let ran: Vec<&Answer> = answers
            .iter()
            .filter(|answer| answer.status == 201 && !answer.is_replay())
            .collect();
        assert_eq!(ran.len(), 1);
        for answer in &answers {
            if answer.status == 201 {
                assert_eq!(answer.body, ran[0].body);
            } else {
                assert_eq!(wait, "0s", "{answer:?}");
                answer.clone().expect_problem(409, "in-flight");
            }
        }
        assert_eq!(charges(&servers[1]).await.len(), before + 1);
        assert_eq!(sessions(&servers[1]).await.len(), before + 1);
    }
}

async fn servers_can_start_at_once_on_an_empty_store(store: &Store) {
    let servers: Vec<Server> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..6).map(|_| scope.spawn(|| store.server(&[]))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    for server in &servers {
        server.send(&Call::session("usr_1", "any").key("k-1")).await.expect(201);
    }
    assert_eq!(charges(&servers[0]).await.len(), 1);
}

async fn a_restart_forgets_nothing(store: &Store) {
    let call = Call::session("usr_1", "any").key("k-1");
    let flaky = Call::session("usr_2", "wkf_flaky").key("k-2");
    let server = store.server(&[]);
    let first = server.send(&call).await.expect(201);
    server.send(&event("evt_1")).await.expect(200);
    server
        .send(&Call::decision("usr_1", r#"{"status":"approved"}"#))
        .await
        .expect(200);
    server.send(&flaky).await.expect_error(503);
    let before = (sessions(&server).await, charges(&server).await, events(&server).await);
    // Killed, and stopped.
    server.signal("KILL");
    server.ended().await;
    store.server(&[]).signal("TERM");

    let server = store.server(&[]);
    assert_eq!(
        (sessions(&server).await, charges(&server).await, events(&server).await),
        before
    );
    let replay = server.send(&call).await.expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);
    assert!(server.send(&event("evt_1")).await.expect(200).is_replay());
    server.send(&flaky).await.expect(201);
    let decision = server.send(&Call::decision("usr_1", r#"{"status":"declined"}"#)).await;
    assert_eq!(decision.expect(200).json()["version"], 2);
}

/// With the atomic mode it is charged once. Without, the charge of the attempt that died stays, and
/// the attempt's number tells the handler that there may be one.
async fn a_crash_after_writing(store: &Store) {
    let server = store.server(&["--lease", "1500ms"]);
    let crash = Call::session("usr_1", "wkf_crash").key("k-1");
    eventually("it dies", async || server.try_send(&crash).await.is_err()).await;
    let (status, _) = server.ended().await;
    assert_eq!(status.code(), None, "killed by SIGABRT: {status}");

    let server = store.server(&["--lease", "1500ms"]);
    let left_behind = usize::from(!store.is_sql());
    assert_eq!(charges(&server).await.len(), left_behind);
    assert_eq!(sessions(&server).await.len(), left_behind);
    let answer = eventually("the lease has lapsed", async || {
        let answer = in_time(&server, &crash).await;
        (answer.status != 409).then_some(answer)
    })
    .await
    .expect(201);
    assert!(!answer.is_replay());
    assert_eq!(answer.json()["attempt"], 2);
    assert_eq!(charges(&server).await.len(), left_behind + 1);
    assert_eq!(sessions(&server).await.len(), left_behind + 1);
    assert!(in_time(&server, &crash).await.expect(201).is_replay());
    // The user has been through it.
    in_time(&server, &Call::session("usr_1", "wkf_crash").key("k-2"))
        .await
        .expect(201);
}

async fn a_client_that_hangs_up_and_asks_elsewhere_is_charged_once(store: &Store) {
    let (a, b) = (store.server(&[]), store.server(&[]));
    let slow = Call::session("usr_1", "wkf_slow").key("k-1");
    let connection = a.connect(&slow.on_the_wire()).await;
    eventually("the operation runs", async || {
        let metrics = a.send(&Call::get("/metrics")).await;
        (sample(&metrics, "identity_provider_calls_total") > 0).then_some(())
    })
    .await;
    drop(connection);
    b.send(&slow).await.expect_problem(409, "in-flight");
    let replay = eventually("the outcome is there", async || {
        let answer = b.send(&slow).await;
        (answer.status != 409).then_some(answer)
    })
    .await;
    assert!(replay.expect(201).is_replay());
    assert_eq!(charges(&b).await.len(), 1);
}

async fn operations_for_one_user_are_each_counted(store: &Store) {
    let servers = [Arc::new(store.server(&[])), Arc::new(store.server(&[]))];
    let mut clients = JoinSet::new();
    for number in 0..40 {
        let server = Arc::clone(&servers[number % 2]);
        let call = Call::decision("usr_1", r#"{"status":"approved"}"#).key(&format!("k-{number}"));
        clients.spawn(async move { server.send(&call).await.expect(200).json()["version"].as_u64().unwrap() });
    }
    let mut versions = clients.join_all().await;
    versions.sort_unstable();
    assert_eq!(versions, (1..=40).collect::<Vec<_>>());
}

/// Starts it on that store, in vain, and returns what it says.
fn refusal(url: &str) -> String {
    let output = program()
        .args(["--listen", "127.0.0.1:0", "--store", url])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert!(
        said.starts_with("error: --store: ") || said.contains("\nerror: --store: "),
        "{said}"
    );
    assert!(
        !said.contains("panicked") && !said.contains("secret") && !said.contains(PASSWORD),
        "{said}"
    );
    said
}

#[test]
fn a_postgres_that_refuses_is_an_error_that_says_why() {
    let Some(server) = Postgres::shared() else { return };
    let url = server.create_database();
    let said = refusal(&url.replace(PASSWORD, "secret"));
    assert!(said.contains("password authentication failed"), "{said}");
    let said = refusal(&server.url("no_such_database"));
    assert!(said.contains("\"no_such_database\" does not exist"), "{said}");
    server.sql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'secret'");
    let said = refusal(&url.replace(&format!("postgres:{PASSWORD}"), "reader:secret"));
    assert!(said.contains("permission denied"), "{said}");
}

#[test]
fn a_redis_that_refuses_is_an_error_that_says_why() {
    let Some(server) = Redis::start_with(&["--requirepass", "right"]) else {
        return;
    };
    let said = refusal(&server.url());
    assert!(said.contains("requires a password"), "{said}");
    let said = refusal(&server.url().replace("redis://", "redis://:secret@"));
    assert!(said.contains("rejected the user name or the password"), "{said}");
    let said = refusal(
        &server
            .url()
            .replace("redis://", "redis://:right@")
            .replace("127.0.0.1", "127.0.0.2"),
    );
    assert!(said.contains("nothing listens"), "{said}");
    // Not compiled in.
    refusal(&server.url().replace("redis://", "rediss://:secret@"));
}

/// As a server does with its `timeout`, and a load balancer.
#[tokio::test]
async fn a_redis_that_closed_idle_connections_costs_no_request() {
    let Some(redis) = Redis::start() else { return };
    let store = Store {
        url: redis.url(),
        _there: Box::new(()),
    };
    let server = store.server(&[]);
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    for n in 0..3 {
        let call = Call::session("usr_1", "any").key(&format!("k-{n}"));
        server.send(&call).await.expect(201);
        let mut kill = ::redis::cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
        let killed: u32 = kill.query_async(&mut raw).await.unwrap();
        assert!(killed >= 2, "those of the keys and of the data");
    }
}

#[test]
fn a_file_that_cannot_be_a_database_is_an_error() {
    let store = Store::sqlite().unwrap();
    let path = store.url.strip_prefix("sqlite:").unwrap();
    std::fs::write(
        path,
        "no database, but longer than the header of one would be".repeat(40),
    )
    .unwrap();
    let said = refusal(&store.url);
    assert!(said.contains("not an SQLite database"), "{said}");
    refusal(&format!("{}/idv.db", store.url));
}

#[tokio::test]
async fn a_relative_path_is_relative_to_the_working_directory() {
    let store = Store::sqlite().unwrap();
    let path = PathBuf::from(store.url.strip_prefix("sqlite:").unwrap());
    let mut command = program();
    command
        .current_dir(path.parent().unwrap())
        .args(["--store", "sqlite:idv.db"]);
    let server = Server::spawn(command);
    server.send(&Call::session("usr_1", "any").key("k-1")).await.expect(201);
    assert!(path.is_file());
    let call = Call::session("usr_1", "any").key("k-1");
    assert!(store.server(&[]).send(&call).await.expect(201).is_replay());
}

/// What fails while the database is away fails with `503` and runs once it is back.
#[tokio::test]
async fn an_outage_is_503_and_leaves_nothing_behind() {
    let Some(mut redis) = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]) else {
        return;
    };
    let store = Store {
        url: redis.url(),
        _there: Box::new(()),
    };
    outage(&store, |up| if up { redis.restart() } else { redis.kill() }).await;
    let Some(postgres) = Postgres::start() else { return };
    let store = Store {
        url: postgres.create_database(),
        _there: Box::new(()),
    };
    outage(&store, |up| if up { postgres.restart() } else { postgres.kill() }).await;
}

async fn outage(store: &Store, mut turn: impl FnMut(bool)) {
    let server = store.server(&[]);
    server.send(&Call::session("usr_1", "any").key("k-1")).await.expect(201);
    turn(false);
    let call = Call::session("usr_1", "any").key("k-2");
    server.send(&call).await.expect(503);
    server
        .send(&Call::get(BILLING).from("sk_test_acme"))
        .await
        .expect_error(503);
    server.send(&Call::session("usr_1", "any")).await.expect_error(503);
    server.send(&Call::get("/healthz")).await.expect(200);
    turn(true);
    // For a moment it may be in flight: the layer gives back what the refused request may have claimed.
    let answer = eventually("it runs again", async || {
        let answer = server.send(&call).await;
        (answer.status != 503 && answer.status != 409).then_some(answer)
    })
    .await
    .expect(201);
    assert_eq!(answer.json()["attempt"], 1, "no claim was left behind to lapse");
    assert!(
        server
            .send(&Call::session("usr_1", "any").key("k-1"))
            .await
            .expect(201)
            .is_replay()
    );
    assert_eq!(charges(&server).await.len(), 2);
}
