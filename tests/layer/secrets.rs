//! Nothing that is somebody's secret is logged or shown, and each request is logged once.

use std::fmt::Write as _;
use std::future::ready;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{DynStore, StoreError, StoreErrorKind};
use tower_idempotency::{
    Fate, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, KeySource, MemoryStore,
    Policy, RequestBody, ScopeSource, Store,
};

use crate::support::capture::{self, Captured};
use crate::support::store::{Act, Op, Scripted};
use crate::support::{BrokenBody, Inner, ScriptedBody, Step, drain, inner, ok, poll_times, request, send};

/// What each part of a request and a response has in it, and nothing else may have.
const SECRET: &str = "HUSH";
const KEY: &str = "HUSH-key-81";
const AUTHORIZATION: &str = "Bearer HUSH-token-82";
const COOKIE: &str = "sid=HUSH-cookie-83";
const BODY: &str = r#"{"card":"HUSH-body-84","id":"HUSH-id-85"}"#;

fn secret_to(path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    let headers = [
        ("idempotency-key", key),
        ("authorization", AUTHORIZATION),
        ("cookie", COOKIE),
    ];
    request("POST", path, &headers, body)
}

/// Answers with secrets of its own; the path says how.
fn service<St: Store>(layer: &IdempotencyLayer<St>) -> IdempotencyService<Inner, St> {
    layer.layer(inner(|request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/panic" => panic!("a handler's own words"),
            "/slow" => tokio::time::sleep(Duration::from_secs(100)).await,
            _ => {}
        }
        let mut response = ok("HUSH-response-86");
        let secret = HeaderValue::from_static("HUSH-header-87");
        response.headers_mut().insert("set-cookie", secret.clone());
        response.headers_mut().insert("x-token", secret);
        if path == "/fail" {
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        }
        response
    }))
}

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

/// Runs what the closure makes and returns what was logged meanwhile.
async fn logged<T>(run: impl Future<Output = T>) -> (T, Vec<Captured>) {
    capture::install();
    capture::take();
    let output = run.await;
    (output, capture::take())
}

#[track_caller]
fn assert_no_secret(events: &[Captured]) {
    for event in events {
        let shown = format!("{event:?}");
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

/// The one event that reports an outcome.
#[track_caller]
fn the_report(events: &[Captured]) -> &Captured {
    let reports: Vec<_> = events
        .iter()
        .filter(|event| event.fields.contains_key("outcome"))
        .collect();
    assert_eq!(reports.len(), 1, "{events:?}");
    assert_eq!(reports[0].target, "tower_idempotency");
    reports[0]
}

/// Whether it is 16 hexadecimal digits: the start of a slot.
fn is_slot(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What is sent first, without being looked at; what is sent then; outcome, attempt and status that are
/// reported of it.
type Case = (
    IdempotencyLayer,
    Option<&'static str>,
    Request<Body>,
    [Option<&'static str>; 3],
);

#[tokio::test(start_paused = true)]
async fn each_request_is_reported_in_one_event_with_stable_fields_and_no_secret() {
    let small = || builder().max_response_body(4).build().unwrap();
    let sealing = || {
        let policy = Policy::success().on_panic(Fate::Seal);
        builder().policy(policy).build().unwrap()
    };
    let plain = builder().build().unwrap();
    let cases: Vec<Case> = vec![
        (
            plain.clone(),
            None,
            secret_to("/", KEY, BODY),
            [Some("executed"), Some("1"), Some("200")],
        ),
        (
            plain.clone(),
            None,
            secret_to("/", KEY, BODY),
            [Some("replayed"), None, Some("200")],
        ),
        (
            plain.clone(),
            None,
            secret_to("/", KEY, "HUSH other"),
            [Some("key-reused"), None, Some("422")],
        ),
        (
            plain,
            None,
            secret_to("/fail", "HUSH-f", BODY),
            [Some("released"), Some("1"), Some("502")],
        ),
        (
            small(),
            None,
            secret_to("/", KEY, BODY),
            [Some("sealed"), Some("1"), Some("200")],
        ),
        (
            small(),
            Some("/"),
            secret_to("/", KEY, BODY),
            [Some("not-retained"), None, Some("409")],
        ),
        (
            sealing(),
            Some("/panic"),
            secret_to("/panic", KEY, BODY),
            [Some("not-retained"), None, Some("409")],
        ),
        (
            builder().max_request_body(4).build().unwrap(),
            None,
            secret_to("/", KEY, BODY),
            [Some("body-too-large"), None, Some("413")],
        ),
        (
            builder().build().unwrap(),
            None,
            secret_to("/", KEY, broken()),
            [Some("body-unreadable"), None, Some("400")],
        ),
    ];
    for (layer, before, request, [outcome, attempt, status]) in cases {
        let service = service(&layer);
        if let Some(path) = before {
            let first = service.clone().oneshot(secret_to(path, KEY, BODY));
            let _ = tokio::spawn(first).await;
        }
        let (answer, events) = logged(send(&service, request)).await;
        let report = the_report(&events);
        assert_eq!(report.field("outcome"), outcome);
        assert_eq!(report.field("attempt"), attempt, "{report:?}");
        assert_eq!(report.field("status"), status, "{report:?}");
        assert!(report.field("slot").is_some_and(is_slot), "{report:?}");
        assert_eq!(answer.outcome(), outcome.unwrap());
        assert_no_secret(&events);
    }
}

/// A body whose failure tells a secret.
fn broken() -> Body {
    let body = ScriptedBody::new([Step::Data("HUSH".into()), Step::Fail]);
    Body::new(body.map_err(|BrokenBody| axum::Error::new(std::io::Error::other("HUSH in an error"))))
}

#[tokio::test(start_paused = true)]
async fn refusals_without_a_slot_are_reported_without_one() {
    for (layer, request, outcome) in [
        (
            builder().require_key(true),
            request("POST", "/", &[("cookie", COOKIE)], BODY),
            "missing-key",
        ),
        (builder(), secret_to("/", "HUSH, two", BODY), "invalid-key"),
        (builder(), secret_to("/", "\"HUSH", BODY), "invalid-key"),
        (builder(), secret_to("/", "\"HUSH\";HUSH=HUSH", BODY), "invalid-key"),
        (builder().max_key_length(2), secret_to("/", KEY, BODY), "invalid-key"),
        (
            builder().key(KeySource::json_pointer("/card")).max_key_length(2),
            secret_to("/", KEY, BODY),
            "invalid-key",
        ),
        (
            builder().scope(ScopeSource::extension(|_: &&'static str| String::new())),
            secret_to("/", KEY, BODY),
            "scope-unavailable",
        ),
    ] {
        let service = service(&layer.build().unwrap());
        let (answer, events) = logged(send(&service, request)).await;
        let report = the_report(&events);
        assert_eq!(report.field("outcome"), Some(outcome));
        assert_eq!(
            (report.field("slot"), report.field("attempt")),
            (None, None),
            "{report:?}"
        );
        let status = answer.status.as_u16().to_string();
        assert_eq!(report.field("status"), Some(status.as_str()));
        assert_no_secret(&events);
        assert!(!answer.text().contains(SECRET), "{}", answer.text());
    }
}

#[tokio::test(start_paused = true)]
async fn pass_through_is_reported_in_one_event_too() {
    let layer = builder().build().unwrap();
    let service = service(&layer);
    for request in [
        request("GET", "/HUSH", &[("idempotency-key", KEY), ("cookie", COOKIE)], ""),
        request("POST", "/HUSH", &[("authorization", AUTHORIZATION)], BODY),
    ] {
        let (_, events) = logged(send(&service, request)).await;
        assert_eq!(the_report(&events).field("outcome"), Some("unguarded"));
        assert_no_secret(&events);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_response_is_reported_without_a_status() {
    let layer = builder().build().unwrap();
    let panics = service(&layer).oneshot(secret_to("/panic", KEY, BODY));
    let (panic, events) = logged(tokio::spawn(panics)).await;
    assert!(panic.unwrap_err().is_panic());
    let report = the_report(&events);
    assert_eq!(
        (report.field("outcome"), report.field("status")),
        (Some("released"), None)
    );
    assert_eq!(report.field("attempt"), Some("1"));
    assert_no_secret(&events);

    let fails = layer.layer(service_fn(|_: Request<Body>| {
        ready(Err::<Response<Full<Bytes>>, _>("HUSH in an error of the handler"))
    }));
    let (error, events) = logged(fails.oneshot(secret_to("/", KEY, BODY))).await;
    error.unwrap_err();
    assert_eq!(the_report(&events).field("outcome"), Some("released"));
    assert_no_secret(&events);
}

#[tokio::test(start_paused = true)]
async fn troubles_of_the_store_are_logged_without_secrets() {
    for op in [Op::Begin, Op::Renew, Op::Complete, Op::Release] {
        for act in [Act::Fail, Act::Hang, Act::Corrupt, Act::Lost] {
            if op == Op::Begin && matches!(act, Act::Lost) {
                continue;
            }
            for fail_open in [false, true] {
                let store = Scripted::default();
                store.always(op, act.clone());
                let mut builder = IdempotencyLayer::builder(store);
                if fail_open {
                    builder = builder.run_unprotected_when_store_fails();
                }
                let layer = builder.build().unwrap();
                let service = service(&layer);
                let (_, events) = logged(async {
                    for path in ["/", "/fail", "/slow"] {
                        send(&service, secret_to(path, &format!("{KEY}{path}"), BODY)).await;
                    }
                    drain(&layer).await;
                })
                .await;
                assert!(events.len() >= 3);
                if !matches!((op, &act), (Op::Release, Act::Lost)) {
                    let loud = events.iter().any(|event| event.level <= tracing::Level::WARN);
                    assert!(loud, "{op:?} {act:?}: {events:?}");
                }
                assert_no_secret(&events);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave_and_waits_are_logged_without_secrets() {
    let layer = builder().wait(Duration::from_secs(200)).build().unwrap();
    let service = service(&layer);
    let (_, events) = logged(async {
        let mut request = Box::pin(service.clone().oneshot(secret_to("/slow", KEY, BODY)));
        assert!(poll_times(request.as_mut(), 3).await.is_none());
        drop(request);
        let replay = send(&service, secret_to("/slow", KEY, BODY)).await;
        assert!(replay.is_replay());
    })
    .await;
    let outcomes: Vec<_> = events.iter().filter_map(|event| event.field("outcome")).collect();
    assert_eq!(outcomes, ["executed", "replayed"]);
    assert_no_secret(&events);
}

#[tokio::test(start_paused = true)]
async fn the_cookie_warning_does_not_show_the_cookie() {
    let service = service(&builder().build().unwrap());
    let headers = [("idempotency-key", KEY), ("cookie", COOKIE)];
    let (_, events) = logged(send(&service, request("POST", "/", &headers, BODY))).await;
    assert!(events.iter().any(|event| event.message().contains("Cookie")));
    assert_no_secret(&events);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_scope_closure_is_logged_and_not_sent() {
    let scope = ScopeSource::from_head(|_| Err("the session store is down".into()));
    let service = service(&builder().scope(scope).build().unwrap());
    let (answer, events) = logged(send(&service, secret_to("/", KEY, BODY))).await;
    let told = |event: &Captured| {
        event.level == tracing::Level::ERROR
            && event
                .field("error")
                .is_some_and(|error| error.contains("the session store is down"))
    };
    assert!(events.iter().any(told), "{events:?}");
    assert!(!answer.text().contains("session store"), "{}", answer.text());
    assert_no_secret(&events);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_can_be_shown_with_debug_shows_a_secret() {
    let mut shown = String::new();
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::builder(store.clone())
        .max_response_body(10)
        .key(KeySource::from_fn(|_, _| Ok(Some(KEY.to_owned()))))
        .build()
        .unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let service = layer.layer(inner(move |request: Request<Body>| {
        let operation: &IdempotencyKey = request.extensions().get().unwrap();
        assert_eq!(operation.as_str(), KEY);
        sender.send(operation.clone()).unwrap();
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ok("HUSH-a-response-over-the-limit")
        }
    }));
    // The future in each of its states, polled by hand.
    let mut future = Box::pin(service.clone().oneshot(secret_to("/", KEY, BODY)));
    write!(shown, "{layer:?} {service:?} {store:?}").unwrap();
    assert!(poll_times(future.as_mut(), 2).await.is_none());
    let mut direct = Box::pin(tower::Service::call(
        &mut service.clone(),
        secret_to("/", "HUSH-other-key", BODY),
    ));
    write!(shown, "{direct:?}").unwrap();
    assert!(poll_times(direct.as_mut(), 1).await.is_some(), "in flight");
    write!(shown, "{direct:?}").unwrap();
    let response = future.await.unwrap();
    write!(shown, "{:?} {:?}", response.body(), response.extensions()).unwrap();
    write!(shown, "{:?}", receiver.recv().await.unwrap()).unwrap();
    for body in [
        RequestBody::<Body>::live(Body::from(BODY)),
        RequestBody::from(Bytes::from(BODY)),
    ] {
        write!(shown, "{body:?}").unwrap();
    }
    let scripted = Scripted::default();
    let other = IdempotencyLayer::new(scripted.clone());
    let replayed = {
        let service = self::service(&other);
        send(&service, secret_to("/", KEY, BODY)).await;
        service.oneshot(secret_to("/", KEY, BODY)).await.unwrap()
    };
    write!(shown, "{:?} {:?}", replayed.body(), scripted.begins()).unwrap();
    let begin = scripted.begins()[0];
    write!(shown, "{} {:?}", begin.slot, scripted.records()).unwrap();
    write!(shown, "{:?}", DynStore::new(tower_idempotency::MemoryStore::new())).unwrap();
    assert!(
        shown.contains("ResponseBody(partial)") && shown.contains("ResponseBody(kept)"),
        "{shown}"
    );
    assert!(!shown.contains(SECRET), "{shown}");

    // Nor is a whole slot shown, by which an operation could be found in the store.
    let whole: String = begin.slot.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(shown.contains(&whole[..8]) && !shown.contains(&whole[..16]));
}

#[test]
fn errors_show_their_cause_and_nothing_else() {
    let error = StoreError::new(StoreErrorKind::Unavailable, "a store: connecting")
        .with_source(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(error.to_string(), "a store: connecting");
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("refused"));
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}
