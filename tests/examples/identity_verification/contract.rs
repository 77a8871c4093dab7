//! Rows of the contract over real HTTP, on every store.

use std::collections::HashSet;

use axum::http::Method;
use serde_json::{Value, json};

use super::process::{Server, program};
use super::request::{Answer, BILLING, Call, EVENTS, RECORDS, SCREENINGS, SESSIONS, sample};
use super::stores::{Store, tests};
use crate::support::eventually;

/// One server.
mod alone {
    use super::tests;

    tests!(memory, sqlite, postgres, redis: {
        contract_2_5_an_event_whose_key_cannot_be_read_is_refused_and_not_processed,
        contract_2_7_a_key_that_only_a_bug_can_send_is_refused,
        contract_3_2_a_scheme_in_lower_case_is_the_same_caller,
        contract_4_7_the_refusal_of_a_large_report_says_where_the_session_is,
        contract_7_each_problem_has_an_instance_and_says_whether_to_retry,
        contract_7_2_an_event_that_is_delivered_twice_is_processed_once,
        an_account_that_forgets_its_records_forgets_what_is_finished_and_its_own,
    });
}

/// Several servers on one store.
mod together {
    use super::tests;

    tests!(sqlite, postgres, redis: {
        contract_3_5_servers_with_different_namespaces_do_not_see_each_others_keys,
        contract_3_5_an_operation_in_flight_does_not_block_another_namespace,
        contract_3_5_the_namespace_has_a_default_and_can_be_a_variable,
        contract_4_7_another_server_says_where_the_session_is,
        records_are_forgotten_on_every_server,
    });
}

async fn list(server: &Server, path: &str, field: &str) -> Vec<Value> {
    let answer = server.send(&Call::get(path).from("sk_test_acme")).await.expect(200);
    answer.json()[field].as_array().unwrap().clone()
}

async fn events(server: &Server) -> Vec<Value> {
    list(server, EVENTS, "events").await
}

async fn provider_was_called(server: &Server) {
    eventually("the operation runs", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        sample(&metrics, "identity_provider_calls_total") > 0
    })
    .await;
}

async fn forget(server: &Server, api_key: &str) -> Answer {
    let call = Call::new(Method::DELETE, RECORDS, "").from(api_key);
    server.send(&call).await
}

async fn an_account_that_forgets_its_records_forgets_what_is_finished_and_its_own(store: &Store) {
    let server = store.server(&[]);
    let acme = |key: &str| Call::session("usr_1", "any").key(key);
    let others = [acme("k-1").from("sk_test_acm"), acme("k-1").from("sk_test_globex")];
    for call in [acme("k-1"), acme("k-2")].iter().chain(&others) {
        server.send(call).await.expect(201);
    }
    // Webhooks have a scope of their own.
    let event = Call::post(EVENTS, r#"{"event_id":"evt_1","type":"paid"}"#);
    server.send(&event).await.expect(200);
    let slow = Call::session("usr_2", "wkf_slow").key("k-3");
    let connection = server.connect(&slow.on_the_wire()).await;
    eventually("the slow operation runs", async || {
        let metrics = server.send(&Call::get("/metrics")).await;
        sample(&metrics, "identity_provider_calls_total") == 5
    })
    .await;

    forget(&server, "sk_unknown").await.expect_error(401);
    let forgotten = forget(&server, "sk_test_acme_rotated").await.expect(200);
    assert_eq!(forgotten.json(), json!({ "forgotten": 2 }));
    assert_eq!(
        forget(&server, "sk_test_acme").await.expect(200).json(),
        json!({ "forgotten": 0 })
    );

    server.send(&slow).await.expect_problem(409, "in-flight");
    drop(connection);
    for call in others.iter().chain([&event]) {
        assert!(server.send(call).await.is_replay(), "another scope's record stays");
    }
    let again = server.send(&acme("k-1")).await.expect(201);
    assert!(!again.is_replay(), "what is forgotten runs again");
    let replay = eventually("the slow operation is finished", async || {
        let answer = server.send(&slow).await;
        (answer.status != 409).then_some(answer)
    })
    .await;
    assert!(replay.expect(201).is_replay(), "a claim stays");
    assert_eq!(forget(&server, "sk_test_acme").await.json(), json!({ "forgotten": 2 }));
}

async fn records_are_forgotten_on_every_server(store: &Store) {
    let [one, other] = [store.server(&[]), store.server(&[])];
    let call = Call::session("usr_1", "any").key("k-1");
    one.send(&call).await.expect(201);
    assert!(other.send(&call).await.is_replay());
    assert_eq!(forget(&other, "sk_test_acme").await.json(), json!({ "forgotten": 1 }));
    assert!(!one.send(&call).await.expect(201).is_replay());
}

async fn contract_2_5_an_event_whose_key_cannot_be_read_is_refused_and_not_processed(store: &Store) {
    let server = store.server(&[]);
    let whole = r#"{"event_id":"evt_1","type":"paid"}"#;
    for body in [
        "nonsense",
        "{",
        r#"{"event_id":"evt_1","type":"paid""#,
        r#"{"event_id":"evt_1","type":"paid"}}"#,
        r#"{"event_id":"evt_1","event_id":"evt_2","type":"paid"}"#,
        r#"{"event_id":"evt_1\ud800","type":"paid"}"#,
        r#"{"event_id":"","type":"paid"}"#,
        r#"{"event_id":true,"type":"paid"}"#,
    ] {
        server
            .send(&Call::post(EVENTS, body))
            .await
            .expect_problem(400, "invalid-key");
    }
    let encoded = Call::post(EVENTS, whole).header("content-encoding", "gzip");
    server.send(&encoded).await.expect_problem(400, "invalid-key");
    // No key at all: the application finds the event incomplete.
    for (body, status) in [("", 400), ("[]", 422), (r#"{"type":"paid"}"#, 422)] {
        server.send(&Call::post(EVENTS, body)).await.expect_error(status);
    }
    assert!(events(&server).await.is_empty());
    let first = server.send(&Call::post(EVENTS, whole)).await.expect(200);
    assert!(!first.is_replay(), "nothing was stored");
}

async fn contract_2_7_a_key_that_only_a_bug_can_send_is_refused(store: &Store) {
    let server = store.server(&[]);
    for key in [
        "undefined",
        "NULL",
        "None",
        "nil",
        "nan",
        "\"[object Object]\"",
        "{{key}}",
        "${key}",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ] {
        let call = Call::session("usr_1", "any").key(key);
        server.send(&call).await.expect_problem(400, "invalid-key");
    }
    for id in ["undefined", "{{event.id}}"] {
        let event = json!({ "event_id": id, "type": "paid" }).to_string();
        let answer = server.send(&Call::post(EVENTS, event)).await;
        answer.expect_problem(400, "invalid-key");
    }
    assert_eq!(server.charges().await, 0);
    assert!(events(&server).await.is_empty());
}

async fn contract_3_2_a_scheme_in_lower_case_is_the_same_caller(store: &Store) {
    let server = store.server(&[]);
    let by = |credentials: &str| {
        Call::post(SESSIONS, r#"{"user_id":"usr_1","workflow_id":"any"}"#)
            .header("authorization", credentials)
            .key("k-1")
    };
    let first = server.send(&by("Bearer sk_test_acme")).await.expect(201);
    for credentials in [
        "bearer sk_test_acme",
        "BEARER sk_test_acme",
        "bearer sk_test_acme_rotated",
    ] {
        let retry = server.send(&by(credentials)).await.expect(201);
        assert!(retry.is_replay(), "{credentials}");
        assert_eq!(retry.body, first.body);
    }
    let other = server.send(&by("bearer sk_test_acm")).await.expect(201);
    assert!(!other.is_replay());
    server.send(&by("bearer SK_TEST_ACME")).await.expect_error(401);
    assert_eq!(server.charges().await, 1);
}

/// The `409` to a retry of `call`, with the session where it says.
async fn refusal_of_large_report(server: &Server, call: &Call, first: &Answer) {
    let refusal = server.send(call).await.expect_problem(409, "response-not-retained");
    let location = first.header("location").unwrap();
    assert_eq!(refusal.header("location"), Some(location));
    let problem = refusal.json();
    assert_eq!(problem["original_location"], location);
    assert_eq!(problem["original_status"], 201);
    assert_eq!(problem["retryable"], false);
    assert_eq!(refusal.header("retry-after"), None);
    assert_eq!(refusal.header("set-cookie"), None);
    assert!(!refusal.is_replay());
    let session = server.send(&Call::get(location).from("sk_test_acme")).await.expect(200);
    assert_eq!(session.json()["session_id"], first.json()["session_id"]);
}

async fn contract_4_7_the_refusal_of_a_large_report_says_where_the_session_is(store: &Store) {
    let server = store.server(&[]);
    let call = Call::session("usr_1", "wkf_large_report").key("k-1");
    let first = server.send(&call).await.expect(201);
    for _ in 0..2 {
        refusal_of_large_report(&server, &call, &first).await;
    }
    assert_eq!(server.charges().await, 1);
}

async fn contract_4_7_another_server_says_where_the_session_is(store: &Store) {
    let (a, b) = (store.server(&[]), store.server(&[]));
    let call = Call::session("usr_1", "wkf_large_report").key("k-1");
    let first = a.send(&call).await.expect(201);
    refusal_of_large_report(&b, &call, &first).await;
    assert_eq!(b.charges().await, 1);
}

async fn contract_7_each_problem_has_an_instance_and_says_whether_to_retry(store: &Store) {
    // The provider does not answer while the test runs, and no response is small enough to be stored.
    let server = store.server(&[
        "--require-key",
        "--provider-latency",
        "10m",
        "--max-request-body",
        "1000",
        "--max-response-body",
        "10",
    ]);
    let session = Call::session("usr_1", "any").key("k-session");
    let running = server.connect(&session.on_the_wire()).await;
    provider_was_called(&server).await;
    let decision = Call::decision("usr_1", r#"{"status":"approved"}"#).key("k-decision");
    server.send(&decision).await.expect(200);
    let other = Call::decision("usr_1", r#"{"status":"declined"}"#);
    let long = Call::session(&"u".repeat(1000), "any");
    let screening = Call::new(Method::POST, SCREENINGS, "{").from("sk_test_acme");
    let mut instances = HashSet::new();
    for (call, status, code, retryable) in [
        (other.clone(), 400, "missing-key", false),
        (screening.clone(), 400, "missing-key", false),
        (screening.key("a,b"), 400, "invalid-key", false),
        (session, 409, "in-flight", true),
        (decision, 409, "response-not-retained", false),
        (other.key("k-decision"), 422, "key-reused", false),
        (long.key("k-long"), 413, "body-too-large", false),
    ] {
        let problem = server.send(&call).await.expect_problem(status, code).json();
        assert_eq!(problem["retryable"], retryable, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        for member in ["type", "title", "detail"] {
            assert!(
                problem[member].as_str().is_some_and(|text| !text.is_empty()),
                "{problem}"
            );
        }
        let instance = problem["instance"].as_str().unwrap();
        assert!(instance.starts_with("urn:uuid:"), "{problem}");
        assert!(instances.insert(instance.to_owned()), "used before: {problem}");
    }
    drop(running);
}

async fn contract_7_2_an_event_that_is_delivered_twice_is_processed_once(store: &Store) {
    let server = store.server(&[]);
    let event = |time: u32| json!({ "event_id": "evt_1", "type": "paid", "data": { "sent_at": time } }).to_string();
    let first = server.send(&Call::post(EVENTS, event(1))).await.expect(200);
    assert!(!first.is_replay());
    for call in [
        Call::post(EVENTS, event(1)),
        // The id alone counts, whatever the sender changed since.
        Call::post(EVENTS, event(2)),
        // A key in a header is ignored, also one that is not valid.
        Call::post(EVENTS, event(1)).key("k-1"),
        Call::post(EVENTS, event(1)).key("a,b"),
        // The sender is not authenticated, so its credentials do not count.
        Call::post(EVENTS, event(1)).from("sk_test_globex"),
    ] {
        let again = server.send(&call).await.expect(200);
        assert!(again.is_replay(), "{call:?}");
        assert_eq!(again.body, first.body);
    }
    // What an account did under the same text is another operation.
    let session = server
        .send(&Call::session("usr_1", "any").key("evt_1"))
        .await
        .expect(201);
    assert!(!session.is_replay());
    assert_eq!(events(&server).await, [json!({ "event_id": "evt_1", "type": "paid" })]);
}

async fn contract_3_5_servers_with_different_namespaces_do_not_see_each_others_keys(store: &Store) {
    let billing = store.server(&["--namespace", "billing"]);
    let onboarding = store.server(&["--namespace", "onboarding"]);
    let call = Call::session("usr_1", "any").key("k-1");
    let event = Call::post(EVENTS, r#"{"event_id":"evt_1","type":"paid"}"#);
    let decision = Call::decision("usr_1", r#"{"status":"approved"}"#).key("k-2");
    let mut firsts = Vec::new();
    for server in [&billing, &onboarding] {
        let answers = [
            server.send(&call).await.expect(201),
            server.send(&event).await.expect(200),
            server.send(&decision).await.expect(200),
        ];
        assert!(answers.iter().all(|answer| !answer.is_replay()));
        firsts.push(answers);
    }
    assert_ne!(firsts[0][0].body, firsts[1][0].body, "two sessions");
    // Another body under the same key is no reuse of the other's key.
    let other = Call::session("usr_2", "any").key("k-3");
    billing.send(&other).await.expect(201);
    onboarding
        .send(&Call::session("usr_3", "any").key("k-3"))
        .await
        .expect(201);
    // Each has its own records, also after a restart.
    let again = store.server(&["--namespace", "billing"]);
    for (server, first) in [(&billing, &firsts[0]), (&again, &firsts[0]), (&onboarding, &firsts[1])] {
        for (call, first) in [&call, &event, &decision].into_iter().zip(first) {
            let replay = server.send(call).await.expect(first.status.as_u16());
            assert!(replay.is_replay());
            assert_eq!(replay.body, first.body);
        }
    }
    // The data is shared: the namespace is of the keys alone.
    assert_eq!(list(&again, BILLING, "charges").await.len(), 4);
    assert_eq!(events(&again).await.len(), 2);
}

async fn contract_3_5_an_operation_in_flight_does_not_block_another_namespace(store: &Store) {
    let a = store.server(&["--namespace", "a", "--provider-latency", "10m"]);
    let second_a = store.server(&["--namespace", "a"]);
    let b = store.server(&["--namespace", "b"]);
    let call = Call::session("usr_1", "any").key("k-1");
    let running = a.connect(&call.on_the_wire()).await;
    provider_was_called(&a).await;
    second_a.send(&call).await.expect_problem(409, "in-flight");
    assert!(!b.send(&call).await.expect(201).is_replay());
    drop(running);
}

async fn contract_3_5_the_namespace_has_a_default_and_can_be_a_variable(store: &Store) {
    let call = Call::session("usr_1", "any").key("k-1");
    let first = store.server(&[]).send(&call).await.expect(201);
    let named = store.server(&["--namespace", "identity-verification"]);
    let replay = named.send(&call).await.expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);

    let mut command = program();
    command.env("IDV_STORE", &store.url).env("IDV_NAMESPACE", "other");
    let variable = Server::spawn(command);
    let other = variable.send(&call).await.expect(201);
    assert!(!other.is_replay());
    let option = store.server(&["--namespace", "other"]);
    assert_eq!(option.send(&call).await.expect(201).body, other.body);
}
