//! The application in this process. Time is paused: it goes on only while everybody sleeps.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Method;
use clap::Parser;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use super::request::{Answer, BILLING, Call, EVENTS, SCREENINGS, SESSIONS, count, sample};
use super::server::app::App;
use super::server::options::Options;

struct Sandbox {
    router: Router,
}

impl Sandbox {
    async fn new(options: &[&str]) -> Self {
        let options = Options::parse_from(["identity_verification"].iter().chain(options));
        let App { router, .. } = App::open(&options).await.unwrap();
        Self { router }
    }

    async fn send(&self, call: Call) -> Answer {
        let request = call.at("").map(Body::new);
        Answer::of(self.router.clone().oneshot(request).await.unwrap()).await
    }

    async fn charges(&self, api_key: &str) -> Vec<Value> {
        let bill = self.send(Call::get(BILLING).from(api_key)).await.expect(200).json();
        let charges = bill["charges"].as_array().unwrap().clone();
        let total: u64 = charges
            .iter()
            .map(|charge| charge["amount_cents"].as_u64().unwrap())
            .sum();
        assert_eq!(bill["total_cents"], total);
        charges
    }

    async fn sessions(&self, api_key: &str) -> Vec<Value> {
        let list = self.send(Call::get(SESSIONS).from(api_key)).await.expect(200).json();
        list["sessions"].as_array().unwrap().clone()
    }

    async fn events(&self) -> Value {
        self.send(Call::get(EVENTS)).await.expect(200).json()["events"].clone()
    }

    async fn metrics(&self) -> Answer {
        self.send(Call::get("/metrics")).await.expect(200)
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_created_once_and_replayed() {
    let sandbox = Sandbox::new(&[]).await;
    let call = Call::session("usr_1", "wkf_kyc_full").key("k-1");
    let began = Instant::now();
    let first = sandbox.send(call.clone()).await.expect(201);
    assert_eq!(began.elapsed(), Duration::from_millis(150), "the provider's latency");

    let session = first.json();
    let id = session["session_id"].as_str().unwrap();
    assert_eq!(session["user_id"], "usr_1");
    assert_eq!(session["workflow_id"], "wkf_kyc_full");
    assert_eq!(session["status"], "in_review");
    assert_eq!(session["attempt"], 1);
    humantime::parse_rfc3339(session["created_at"].as_str().unwrap()).unwrap();
    assert_eq!(session.as_object().unwrap().len(), 6, "{session}");
    assert_eq!(first.header("location"), Some(&*format!("{SESSIONS}/{id}")));
    assert_eq!(
        first.header("set-cookie"),
        Some(&*format!("idv_last_session={id}; HttpOnly; Path=/"))
    );
    assert!(!first.is_replay());

    let second = sandbox.send(call).await.expect(201);
    assert!(second.is_replay());
    assert_eq!(second.body, first.body);
    assert_eq!(second.header("location"), first.header("location"));
    assert_eq!(second.header("content-type"), first.header("content-type"));
    assert_eq!(second.header("set-cookie"), None);

    assert_eq!(
        sandbox.charges("sk_test_acme").await,
        [json!({ "operation": "verification_session", "reference": id, "amount_cents": 150 })]
    );
    assert_eq!(sandbox.sessions("sk_test_acme").await, std::slice::from_ref(&session));
    assert_eq!(sample(&sandbox.metrics().await, "identity_provider_calls_total"), 1);

    let path = format!("{SESSIONS}/{id}");
    let shown = sandbox
        .send(Call::get(&path).from("sk_test_acme_rotated"))
        .await
        .expect(200);
    assert_eq!(shown.json(), session);
    sandbox
        .send(Call::get(&path).from("sk_test_globex"))
        .await
        .expect_error(404);
    let unknown = Call::get(&format!("{SESSIONS}/vs_0")).from("sk_test_acme");
    sandbox.send(unknown).await.expect_error(404);
}

#[tokio::test(start_paused = true)]
async fn sessions_and_charges_are_listed_oldest_first_and_per_account() {
    let sandbox = Sandbox::new(&[]).await;
    for user in ["usr_1", "usr_2", "usr_3"] {
        // Without a key: it runs, unguarded, as attempt 1.
        let created = sandbox.send(Call::session(user, "any")).await.expect(201);
        assert_eq!(created.json()["attempt"], 1);
    }
    let sessions = sandbox.sessions("sk_test_acme").await;
    let users: Vec<_> = sessions.iter().map(|session| session["user_id"].clone()).collect();
    assert_eq!(users, ["usr_1", "usr_2", "usr_3"]);
    let references: Vec<_> = sandbox.charges("sk_test_acme").await;
    let references: Vec<_> = references.iter().map(|charge| charge["reference"].clone()).collect();
    let ids: Vec<_> = sessions.iter().map(|session| session["session_id"].clone()).collect();
    assert_eq!(references, ids);
    for other in ["sk_test_acm", "sk_test_globex"] {
        assert!(sandbox.sessions(other).await.is_empty());
        assert!(sandbox.charges(other).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_screening_is_charged_once() {
    let sandbox = Sandbox::new(&[]).await;
    for (name, hits) in [
        ("Ada Lovelace", json!([])),
        ("Auric Goldfinger", json!(["Auric Goldfinger"])),
    ] {
        let call = Call::post(SCREENINGS, json!({ "full_name": name }).to_string()).from("sk_test_acme");
        let began = Instant::now();
        let first = sandbox
            .send(call.clone().key(name.split(' ').next().unwrap()))
            .await
            .expect(201);
        assert_eq!(began.elapsed(), Duration::from_millis(150));
        assert_eq!(first.json()["full_name"], name);
        assert_eq!(first.json()["hits"], hits);
        let second = sandbox
            .send(call.key(name.split(' ').next().unwrap()))
            .await
            .expect(201);
        assert!(second.is_replay());
        let charge = sandbox.charges("sk_test_acme").await.pop().unwrap();
        let id = &first.json()["screening_id"];
        assert_eq!(
            charge,
            json!({ "operation": "aml_screening", "reference": id, "amount_cents": 35 })
        );
    }
    assert_eq!(sandbox.charges("sk_test_acme").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_users_version_counts_the_decisions_that_ran() {
    let sandbox = Sandbox::new(&[]).await;
    let began = Instant::now();
    let approve = Call::decision("usr_1", r#"{"status":"approved"}"#);
    let decline = Call::decision("usr_1", r#"{"status":"declined"}"#);
    for (call, status, version) in [
        (approve.clone().key("k-1"), "approved", 1),
        (approve.clone().key("k-1"), "approved", 1),
        (decline.clone().key("k-2"), "declined", 2),
        (approve.clone().key("k-1"), "approved", 1),
        (approve.clone(), "approved", 3),
        (approve.clone().from("sk_test_globex").key("k-1"), "approved", 1),
    ] {
        let answer = sandbox.send(call).await.expect(200);
        assert_eq!(
            answer.json(),
            json!({ "user_id": "usr_1", "status": status, "version": version })
        );
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "no provider is called");
    let reused = sandbox.send(decline.key("k-1")).await;
    reused.expect_problem(422, "key-reused");
    let other_user = Call::decision("usr_2", r#"{"status":"approved"}"#).key("k-3");
    assert_eq!(sandbox.send(other_user).await.expect(200).json()["version"], 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_is_processed_once() {
    let sandbox = Sandbox::new(&[]).await;
    let event = |id: Value, time| json!({ "event_id": id, "type": "paid", "data": { "sent_at": time } }).to_string();
    let first = sandbox
        .send(Call::post(EVENTS, event(json!("evt_1"), 1)))
        .await
        .expect(200);
    assert_eq!(first.json(), json!({ "event_id": "evt_1", "received": true }));
    // Another body, another header key: the id alone counts.
    let again = Call::post(EVENTS, event(json!("evt_1"), 2)).key("k-2");
    let again = sandbox.send(again).await.expect(200);
    assert!(again.is_replay());
    assert_eq!(again.body, first.body);
    // The header is not the key.
    sandbox
        .send(Call::post(EVENTS, event(json!("evt_2"), 1)).key("k-2"))
        .await
        .expect(200);
    // An integer is taken by its digits.
    sandbox.send(Call::post(EVENTS, event(json!(7), 1))).await.expect(200);
    assert!(sandbox.send(Call::post(EVENTS, event(json!("7"), 1))).await.is_replay());
    assert_eq!(
        sandbox.events().await,
        json!([
            { "event_id": "evt_1", "type": "paid" },
            { "event_id": "evt_2", "type": "paid" },
            { "event_id": 7, "type": "paid" },
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn an_invalid_event_is_refused_and_not_kept() {
    let sandbox = Sandbox::new(&[]).await;
    for (body, status) in [
        ("", 400),
        ("[]", 422),
        ("{}", 422),
        (r#"{"type":"paid","data":{}}"#, 422),
        (r#"{"event_id":"evt_1","data":{}}"#, 422),
        (r#"{"event_id":"evt_1","type":"","data":{}}"#, 422),
        (r#"{"event_id":"evt_1","type":7,"data":{}}"#, 422),
    ] {
        sandbox.send(Call::post(EVENTS, body)).await.expect_error(status);
    }
    for id in ["\"\"", "1.5", "null", "{}", "\"caf\u{e9}\""] {
        let body = format!(r#"{{"event_id":{id},"type":"paid","data":{{}}}}"#);
        let answer = sandbox.send(Call::post(EVENTS, body)).await;
        answer.expect_problem(400, "invalid-key");
    }
    // Whether there is an id cannot be told.
    let broken = sandbox.send(Call::post(EVENTS, "{")).await;
    broken.expect_problem(400, "invalid-key");
    assert_eq!(sandbox.events().await, json!([]));
    let valid = r#"{"event_id":"evt_1","type":"paid","data":{}}"#;
    assert!(!sandbox.send(Call::post(EVENTS, valid)).await.expect(200).is_replay());
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_known_key_are_refused() {
    let sandbox = Sandbox::new(&[]).await;
    let call = Call::session("usr_1", "any").key("k-1");
    sandbox.send(call.clone()).await.expect(201);
    let anonymous = Call::post(SESSIONS, r#"{"user_id":"usr_1","workflow_id":"any"}"#).key("k-1");
    for call in [
        anonymous.clone(),
        anonymous.clone().from("sk_test_nobody"),
        anonymous.clone().from(""),
        anonymous.clone().header("authorization", "Basic sk_test_acme"),
        anonymous.header("authorization", "sk_test_acme"),
        Call::get(SESSIONS),
        Call::get(BILLING),
        Call::get(&format!("{SESSIONS}/vs_1")),
        Call::post(SCREENINGS, "{}"),
        Call::new(Method::PATCH, "/v1/users/usr_1/status", "{}"),
    ] {
        let refused = sandbox.send(call).await.expect_error(401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_scoped_by_account() {
    let sandbox = Sandbox::new(&[]).await;
    let call = Call::session("usr_1", "any").key("k-1");
    let first = sandbox.send(call.clone()).await.expect(201);
    let rotated = sandbox
        .send(call.clone().from("sk_test_acme_rotated"))
        .await
        .expect(201);
    assert!(rotated.is_replay());
    assert_eq!(rotated.body, first.body);
    for other in ["sk_test_acm", "sk_test_globex"] {
        let answer = sandbox.send(call.clone().from(other)).await.expect(201);
        assert!(!answer.is_replay());
        assert_eq!(sandbox.charges(other).await.len(), 1);
    }
    assert_eq!(sandbox.charges("sk_test_acme").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn invalid_bodies_are_refused_by_the_application_and_free_the_key() {
    let sandbox = Sandbox::new(&[]).await;
    for (path, valid, cases) in [
        (
            SESSIONS,
            r#" {"user_id":"usr_1","workflow_id":"any","more":1} "#,
            &[
                ("", 400),
                ("nonsense", 400),
                (r#"{"user_id":"usr_1","workflow_id":"any"}}"#, 400),
                (r#"{"user_id":"","workflow_id":"any""#, 400),
                ("null", 422),
                ("{}", 422),
                (r#"["usr_1","any"]"#, 422),
                (r#"{"user_id":"usr_1"}"#, 422),
                (r#"{"workflow_id":"any"}"#, 422),
                (r#"{"user_id":"","workflow_id":"any"}"#, 422),
                (r#"{"user_id":"usr_1","workflow_id":""}"#, 422),
                (r#"{"user_id":1,"workflow_id":"any"}"#, 422),
                (r#"{"user_id":"usr_1","workflow_id":null}"#, 422),
            ][..],
        ),
        (
            SCREENINGS,
            r#"{"full_name":"Ada Lovelace"}"#,
            &[
                ("x", 400),
                ("{}", 422),
                (r#"{"full_name":""}"#, 422),
                (r#"{"full_name":[]}"#, 422),
            ],
        ),
    ] {
        for (body, status) in cases {
            let call = Call::post(path, *body).from("sk_test_acme").key(path);
            sandbox.send(call).await.expect_error(*status);
        }
        assert!(sandbox.sessions("sk_test_globex").await.is_empty());
        let call = Call::post(path, valid).from("sk_test_acme").key(path);
        assert!(!sandbox.send(call).await.expect(201).is_replay(), "the key was free");
    }
    for (body, status) in [
        ("x", 400),
        ("{}", 422),
        (r#"{"status":""}"#, 422),
        (r#"{"status":"Approved"}"#, 422),
        (r#"{"status":"in_review"}"#, 422),
        (r#"{"status":true}"#, 422),
    ] {
        let call = Call::decision("usr_1", body).key("k-1");
        sandbox.send(call).await.expect_error(status);
    }
    let call = Call::decision("usr_1", r#"{"status":"approved"}"#).key("k-1");
    assert_eq!(sandbox.send(call).await.expect(200).json()["version"], 1);
    assert_eq!(sandbox.charges("sk_test_acme").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_key_is_refused_before_the_application() {
    let sandbox = Sandbox::new(&[]).await;
    for key in ["", "a,b", "\"open"] {
        let call = Call::session("usr_1", "any").key(key);
        sandbox.send(call).await.expect_problem(400, "invalid-key");
    }
    assert!(sandbox.charges("sk_test_acme").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn workflows_that_fail_create_and_charge_nothing() {
    let sandbox = Sandbox::new(&[]).await;
    for (workflow, status) in [("wkf_provider_down", 503), ("wkf_declined", 402), ("wkf_panic", 500)] {
        let call = Call::session("usr_1", workflow).key(workflow);
        for _ in 0..2 {
            let began = Instant::now();
            let answer = sandbox.send(call.clone()).await.expect_error(status);
            assert_eq!(began.elapsed(), Duration::from_millis(150), "{workflow}");
            assert!(!answer.is_replay());
        }
        // The key is free, for another body too.
        let other = Call::session("usr_2", "any").from("sk_test_acm").key(workflow);
        sandbox.send(other).await.expect(201);
    }
    assert!(sandbox.sessions("sk_test_acme").await.is_empty());
    assert!(sandbox.charges("sk_test_acme").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_flaky_workflow_fails_once_for_each_user_of_each_account() {
    let sandbox = Sandbox::new(&[]).await;
    for (api_key, user) in [
        ("sk_test_acme", "usr_1"),
        ("sk_test_acme", "usr_2"),
        ("sk_test_globex", "usr_1"),
    ] {
        let call = Call::session(user, "wkf_flaky").from(api_key).key(user);
        sandbox.send(call.clone()).await.expect_error(503);
        let retry = sandbox.send(call.clone()).await.expect(201);
        assert!(!retry.is_replay());
        assert_eq!(retry.json()["attempt"], 1, "the first attempt failed in an orderly way");
        assert!(sandbox.send(call).await.expect(201).is_replay());
        sandbox
            .send(Call::session(user, "wkf_flaky").from(api_key))
            .await
            .expect(201);
    }
}

#[tokio::test(start_paused = true)]
async fn the_slow_workflow_takes_two_seconds_whatever_the_latency() {
    let sandbox = Sandbox::new(&["--provider-latency", "10s"]).await;
    let began = Instant::now();
    sandbox.send(Call::session("usr_1", "wkf_slow")).await.expect(201);
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    sandbox.send(Call::session("usr_1", "any")).await.expect(201);
    assert_eq!(began.elapsed(), Duration::from_secs(12));
}

#[tokio::test(start_paused = true)]
async fn a_large_report_is_delivered_once_and_never_made_again() {
    let sandbox = Sandbox::new(&[]).await;
    let call = Call::session("usr_1", "wkf_large_report").key("k-1");
    let first = sandbox.send(call.clone()).await.expect(201);
    assert_eq!(first.json()["report"].as_str().unwrap().len(), 3 * 1024 * 1024);
    let second = sandbox.send(call).await.expect_problem(409, "response-not-retained");
    assert_eq!(second.json()["original_status"], 201);
    assert_eq!(second.header("retry-after"), None);
    assert_eq!(sandbox.charges("sk_test_acme").await.len(), 1);

    let roomy = Sandbox::new(&["--max-response-body", "4194304"]).await;
    let call = Call::session("usr_1", "wkf_large_report").key("k-1");
    let first = roomy.send(call.clone()).await.expect(201);
    let second = roomy.send(call).await.expect(201);
    assert!(second.is_replay());
    assert_eq!(second.body, first.body);
}

#[tokio::test(start_paused = true)]
async fn another_body_under_the_same_key_is_refused() {
    let sandbox = Sandbox::new(&[]).await;
    let call = Call::session("usr_1", "any").key("k-1");
    let first = sandbox.send(call.clone()).await.expect(201);
    let reused = sandbox.send(Call::session("usr_2", "any").key("k-1")).await;
    assert_eq!(
        reused.expect_problem(422, "key-reused").header("x-should-retry"),
        Some("false")
    );
    assert_eq!(sandbox.send(call).await.body, first.body, "the original still replays");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_kept_for_the_ttl() {
    let sandbox = Sandbox::new(&["--ttl", "2s"]).await;
    let call = Call::session("usr_1", "any").key("k-1");
    sandbox.send(call.clone()).await.expect(201);
    tokio::time::advance(Duration::from_millis(1990)).await;
    assert!(sandbox.send(call.clone()).await.expect(201).is_replay());
    tokio::time::advance(Duration::from_millis(20)).await;
    assert!(!sandbox.send(call).await.expect(201).is_replay());
    assert_eq!(sandbox.charges("sk_test_acme").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_concurrent_duplicate_gets_409_or_waits_if_told_to() {
    let call = Call::session("usr_1", "wkf_slow").key("k-1");
    for (wait, waited) in [("0s", false), ("1s", false), ("5s", true)] {
        let sandbox = Sandbox::new(&["--wait", wait]).await;
        let (first, second) = tokio::join!(sandbox.send(call.clone()), sandbox.send(call.clone()));
        let first = first.expect(201);
        if waited {
            let second = second.expect(201);
            assert!(second.is_replay());
            assert_eq!(second.body, first.body);
        } else {
            let second = second.expect_problem(409, "in-flight");
            assert_eq!(second.header("retry-after"), Some("1"));
        }
        assert_eq!(sandbox.charges("sk_test_acme").await.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_can_be_required() {
    let sandbox = Sandbox::new(&["--require-key"]).await;
    sandbox
        .send(Call::session("usr_1", "any"))
        .await
        .expect_problem(400, "missing-key");
    let decision = Call::decision("usr_1", r#"{"status":"approved"}"#);
    sandbox.send(decision).await.expect_problem(400, "missing-key");
    sandbox.send(Call::session("usr_1", "any").key("k-1")).await.expect(201);
    assert_eq!(
        sandbox.charges("sk_test_acme").await.len(),
        1,
        "what is not guarded needs none"
    );
    // An event has its key in the body.
    let event = Call::post(EVENTS, r#"{"event_id":"evt_1","type":"paid","data":{}}"#);
    sandbox.send(event).await.expect(200);
    let nameless = Call::post(EVENTS, r#"{"type":"paid","data":{}}"#).key("k-1");
    sandbox.send(nameless).await.expect_problem(400, "missing-key");
    // Authentication comes first.
    sandbox.send(Call::post(SESSIONS, "{}")).await.expect_error(401);

    for overridden in [&["--require-key=false"][..], &[]] {
        let sandbox = Sandbox::new(overridden).await;
        sandbox.send(Call::session("usr_1", "any")).await.expect(201);
    }
}

#[tokio::test(start_paused = true)]
async fn the_limits_are_the_layers() {
    let long = "u".repeat(100);
    let sandbox = Sandbox::new(&["--max-request-body", "100"]).await;
    let refused = sandbox.send(Call::session(&long, "any").key("k-1")).await;
    refused.expect_problem(413, "body-too-large");
    sandbox.send(Call::session(&long, "any")).await.expect(201);
    sandbox.send(Call::session("usr_1", "any").key("k-1")).await.expect(201);

    // More than Axum's own limit.
    let sandbox = Sandbox::new(&["--max-request-body", "4000000"]).await;
    let huge = "u".repeat(3_000_000);
    let allowed = sandbox.send(Call::session(&huge, "any").key("k-1")).await;
    assert_eq!(allowed.status, 201);

    let sandbox = Sandbox::new(&[]).await;
    let refused = sandbox.send(Call::session(&huge, "any").key("k-1")).await;
    refused.expect_problem(413, "body-too-large");
    sandbox.send(Call::session(&huge, "any")).await.expect_error(413);
}

#[tokio::test(start_paused = true)]
async fn metrics_count_both_layers() {
    let sandbox = Sandbox::new(&[]).await;
    let event = Call::post(EVENTS, r#"{"event_id":"evt_1","type":"paid","data":{}}"#);
    let call = Call::session("usr_1", "any").key("k-1");
    for call in [&event, &event, &call, &call, &call] {
        sandbox.send(call.clone()).await;
    }
    sandbox.send(Call::session("usr_2", "any").key("k-1")).await.expect(422);
    sandbox
        .send(Call::session("usr_2", "wkf_declined").key("k-2"))
        .await
        .expect(402);
    let metrics = sandbox.metrics().await;
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    for (outcome, expected) in [
        ("executed", 2),
        ("replayed", 3),
        ("key-reused", 1),
        ("released", 1),
        ("unguarded", 0),
        ("overloaded", 0),
    ] {
        assert_eq!(count(&metrics, outcome), expected, "{outcome}");
    }
    assert_eq!(sample(&metrics, "idempotency_store_entries"), 2);
    assert!(sample(&metrics, "idempotency_store_bytes") > 0);
    assert_eq!(sample(&metrics, "idempotency_store_evicted_total"), 0);
    assert_eq!(sample(&metrics, "idempotency_background_operations"), 0);
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(metrics.text().contains(&format!("# TYPE {name} ")), "{name}");
        assert!(metrics.text().contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_the_routes() {
    let sandbox = Sandbox::new(&[]).await;
    sandbox.send(Call::get("/healthz")).await.expect(200);
    sandbox.send(Call::get("/nowhere")).await.expect_error(404);
    sandbox.send(Call::post("/healthz", "")).await.expect(405);
    let delete = Call::new(Method::DELETE, BILLING, "").from("sk_test_acme");
    sandbox.send(delete).await.expect(405);
}

#[tokio::test(start_paused = true)]
async fn the_page_may_run_what_it_was_served_with_and_nothing_else() {
    let sandbox = Sandbox::new(&[]).await;
    let page = sandbox.send(Call::get("/")).await.expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.header("cache-control"), Some("no-store"));

    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let nonce = policy
        .split_once("script-src 'nonce-")
        .unwrap()
        .1
        .split('\'')
        .next()
        .unwrap();
    assert_eq!(nonce.len(), 32, "{policy}");
    let text = page.text();
    assert_eq!(text.matches(&format!(" nonce=\"{nonce}\">")).count(), 2);
    assert_eq!(text.matches("<script").count() + text.matches("<style").count(), 2);
    assert!(!text.contains("{nonce}") && !text.contains(" style=\"") && !text.contains("innerHTML"));

    let again = sandbox.send(Call::get("/")).await.expect(200);
    assert!(!again.text().contains(nonce), "a nonce is for one answer");
}

#[tokio::test]
async fn an_option_that_cannot_work_is_an_error_that_shows_no_password() {
    for options in [
        ["--store", "sqlite:"],
        ["--store", "sqlite::memory:"],
        ["--store", "sqlite:/secret/there/is/no/such.db"],
        ["--store", "redis://user:secret@127.0.0.1:1"],
        ["--store", "redis://user:secret@host:port"],
        ["--store", "postgres://user:secret@127.0.0.1:1/db"],
        ["--store", "postgres://user:secret@host:port/db"],
        ["--store", "postgres://user:secret@127.0.0.1:1/db?sslmode=secret"],
        ["--store", "mysql://user:secret@host/db"],
        ["--store", "secret"],
        ["--store", ""],
        ["--ttl", "0s"],
        ["--lease", "25h"],
        ["--wait", "25h"],
        ["--namespace", ""],
    ] {
        let parsed = Options::parse_from(["identity_verification"].iter().chain(&options));
        let error = App::open(&parsed).await.err().unwrap().to_string();
        assert!(error.contains(options[0].trim_start_matches('-')), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for options in [
        ["--sweep-every", "often"],
        ["--ttl", "soon"],
        ["--max-request-body", "much"],
        ["--wait", ""],
    ] {
        assert!(Options::try_parse_from(["identity_verification"].iter().chain(&options)).is_err());
    }
}
