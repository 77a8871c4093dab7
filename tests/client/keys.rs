//! One key for each logical operation.

use http::{HeaderName, Method, Request};
use http_body_util::{Either, Full};
use tower::{ServiceBuilder, ServiceExt};
use tower_idempotency::client::{ClientLayer, IdempotencyKeyLayer, Operation};
use uuid::Uuid;

use super::script::{STACKS, Script, Sent, Step, answer, answer_with, patient, post, with_method};

/// The request as it was sent by a layer alone.
async fn sent_by(layer: IdempotencyKeyLayer, request: Request<Sent>) -> super::script::Attempt {
    let script = Script::new([answer(200)]);
    let client = ServiceBuilder::new().layer(layer).service(script.service());
    client.oneshot(request).await.unwrap();
    script.seen().pop().unwrap()
}

fn version(key: &str) -> usize {
    let uuid = Uuid::parse_str(key).unwrap_or_else(|_| panic!("{key} is no UUID"));
    uuid.get_version_num()
}

#[tokio::test]
async fn an_unsafe_request_without_a_key_gets_a_uuid() {
    let keys = IdempotencyKeyLayer::new;
    assert_eq!(version(sent_by(keys(), post("")).await.key().unwrap()), 4);
    assert_eq!(
        version(sent_by(keys().time_ordered(), post("")).await.key().unwrap()),
        7
    );

    let quoted = sent_by(keys().quoted(), post("")).await;
    let inner = quoted
        .key()
        .unwrap()
        .strip_prefix('"')
        .unwrap()
        .strip_suffix('"')
        .unwrap();
    assert_eq!(version(inner), 4);

    let named = sent_by(keys().header(HeaderName::from_static("webhook-id")), post("")).await;
    assert_eq!(named.key(), None);
    assert_eq!(version(named.headers["webhook-id"].to_str().unwrap()), 4);
}

#[tokio::test]
async fn the_method_decides_who_gets_a_key() {
    for (method, gets_one) in [
        (Method::POST, true),
        (Method::PATCH, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::from_bytes(b"PURCHASE").unwrap(), true),
        (Method::GET, false),
        (Method::HEAD, false),
        (Method::OPTIONS, false),
        (Method::TRACE, false),
    ] {
        let sent = sent_by(IdempotencyKeyLayer::new(), with_method(method.clone())).await;
        assert_eq!(sent.key().is_some(), gets_one, "{method}");
    }
    let only_post = || IdempotencyKeyLayer::new().methods([Method::POST]);
    assert!(sent_by(only_post(), with_method(Method::POST)).await.key().is_some());
    assert!(sent_by(only_post(), with_method(Method::PUT)).await.key().is_none());
}

#[tokio::test]
async fn a_key_that_the_caller_set_is_sent() {
    let mut by_header = post("");
    by_header
        .headers_mut()
        .insert("idempotency-key", "mine".parse().unwrap());
    let operation = Operation::new();
    by_header.extensions_mut().insert(operation.clone());
    assert_eq!(sent_by(IdempotencyKeyLayer::new(), by_header).await.key(), Some("mine"));
    assert_eq!(operation.key(), Some("mine"), "and the operation tells it");

    for (key, quoted, line) in [
        ("order-17", false, "order-17"),
        ("order-17", true, "\"order-17\""),
        ("a;b\\c", false, "a;b\\c"),
        ("order 17", false, "\"order 17\""),
        ("a,b", false, "\"a,b\""),
        ("say \"so\" \\", false, "\"say \\\"so\\\" \\\\\""),
    ] {
        let mut request = post("");
        request.extensions_mut().insert(Operation::with_key(key).unwrap());
        let layer = IdempotencyKeyLayer::new();
        let sent = sent_by(if quoted { layer.quoted() } else { layer }, request).await;
        assert_eq!(sent.key(), Some(line), "{key}");
        assert!(sent.headers["idempotency-key"].is_sensitive());
    }

    let mut get = with_method(Method::GET);
    get.extensions_mut().insert(Operation::with_key("asked-for").unwrap());
    assert_eq!(
        sent_by(IdempotencyKeyLayer::new(), get).await.key(),
        Some("asked-for"),
        "whatever the method"
    );
}

#[tokio::test]
async fn a_key_that_the_caller_wrote_is_sent_again_as_it_was_written() {
    for (line, key) in [
        ("\"order-17\"", "order-17"),
        ("order-17", "order-17"),
        ("\"a\\\"b\";v=1", "a\"b"),
    ] {
        for layer in [IdempotencyKeyLayer::new(), IdempotencyKeyLayer::new().quoted()] {
            let operation = Operation::new();
            let mut first = post("");
            first.headers_mut().insert("idempotency-key", line.parse().unwrap());
            first.extensions_mut().insert(operation.clone());
            assert_eq!(sent_by(layer.clone(), first).await.key(), Some(line));
            assert_eq!(operation.key(), Some(key));

            let mut again = post("");
            again.extensions_mut().insert(operation.clone());
            assert_eq!(sent_by(layer, again).await.key(), Some(line), "not quoted twice");
        }
    }
}

#[tokio::test]
async fn what_is_sent_is_what_the_response_tells() {
    let other = Operation::with_key("another").unwrap();
    let mut request = post("");
    request.headers_mut().insert("idempotency-key", "mine".parse().unwrap());
    request.extensions_mut().insert(other.clone());
    let script = Script::new([answer_with(200, &[("idempotency-replayed", "true")])]);
    let client = ServiceBuilder::new()
        .layer(ClientLayer::builder(patient()).build().unwrap())
        .service(script.service());
    let response = client.oneshot(request).await.unwrap();
    let told = response.extensions().get::<Operation>().unwrap();
    assert_eq!((told.key(), told.attempts(), told.replayed()), (Some("mine"), 1, true));
    assert_eq!(script.keys(), [Some("mine".to_owned())]);
    assert_eq!(
        (other.key(), other.attempts(), other.replayed()),
        (Some("another"), 0, false)
    );
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_the_same_key_and_each_operation_its_own() {
    for stack in STACKS {
        let script = Script::new([Step::Lost, answer(503), answer(201), Step::Lost, answer(201)]);
        let first = stack.run(&script, post("a")).await;
        let second = stack.run(&script, post("a")).await;
        assert_eq!((first.status, second.status), (Some(201), Some(201)));

        let keys: Vec<_> = script.keys().into_iter().map(Option::unwrap).collect();
        assert_eq!(keys.len(), 5);
        assert_eq!(keys[0], keys[1]);
        assert_eq!(keys[1], keys[2]);
        assert_ne!(keys[2], keys[3], "a new operation");
        assert_eq!(keys[3], keys[4]);
        assert_eq!(first.operation.key(), Some(keys[0].as_str()));
        assert_eq!((first.operation.attempts(), second.operation.attempts()), (3, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_asked_again_keeps_its_key_and_counts_on() {
    for stack in STACKS {
        let script = Script::new([answer(404), answer(201)]);
        let operation = Operation::new();
        for _ in 0..2 {
            let mut request = post("a");
            request.extensions_mut().insert(operation.clone());
            stack.run(&script, request).await;
        }
        let keys = script.keys();
        assert_eq!(keys[0], keys[1]);
        assert_eq!(operation.attempts(), 2);
    }
}

#[tokio::test]
async fn the_response_tells_the_operation_and_whether_it_was_replayed() {
    for (marker, replayed) in [
        ("idempotency-replayed", true),
        ("idempotent-replayed", true),
        ("x-none", false),
    ] {
        let script = Script::new([answer_with(201, &[(marker, "true")])]);
        let whole = ClientLayer::builder(patient()).build().unwrap();
        let response = ServiceBuilder::new()
            .layer(whole)
            .service(script.service())
            .oneshot(post(""))
            .await
            .unwrap();
        let operation = response.extensions().get::<Operation>().unwrap();
        assert_eq!((operation.replayed(), operation.attempts()), (replayed, 1));

        let response = ServiceBuilder::new()
            .layer(IdempotencyKeyLayer::new())
            .service(script.service())
            .oneshot(post(""))
            .await
            .unwrap();
        assert_eq!(response.extensions().get::<Operation>().unwrap().replayed(), replayed);
    }
}

#[tokio::test]
async fn two_requests_at_once_with_one_operation_carry_one_key() {
    let script = Script::new([answer(200)]);
    let client = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .service(script.service());
    let operation = Operation::new();
    let calls = (0..8).map(|_| {
        let mut request = post("");
        request.extensions_mut().insert(operation.clone());
        tokio::spawn(client.clone().oneshot(request))
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    let keys = script.keys();
    assert!(keys.iter().all(|key| *key == keys[0]) && keys[0].is_some(), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_the_same_request() {
    for stack in STACKS {
        let script = Script::new([Step::Lost, Step::Lost, answer(201)]);
        let mut request = post("{\"cents\":1000}");
        request.headers_mut().append("x-many", "1".parse().unwrap());
        request.headers_mut().append("x-many", "2".parse().unwrap());
        *request.body_mut() = Either::Left(Full::from("{\"cents\":1000}"));
        stack.run(&script, request).await;
        let seen = script.seen();
        assert_eq!(seen.len(), 3);
        for attempt in &seen {
            assert_eq!(attempt.body, "{\"cents\":1000}");
            assert_eq!(attempt.uri, "http://server.test/charges?of=17");
            assert_eq!(attempt.method, Method::POST);
            assert_eq!(attempt.headers, seen[0].headers);
            assert_eq!(attempt.headers.get_all("x-many").iter().count(), 2);
        }
    }
}
