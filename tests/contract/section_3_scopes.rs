//! Section 3 of the contract: whose key it is.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use http::Request;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{IdempotencyLayer, IdempotencyService, MemoryStore, ScopeSource, Store};

use crate::support::store::{Op, Scripted};
use crate::support::{Count, Gate, Inner, capture, counted, inner, ok, request, send, spawn};

fn by(authorization: &str) -> Request<Body> {
    let headers = [("idempotency-key", "k"), ("authorization", authorization)];
    request("POST", "/", &headers, "b")
}

fn numbered<St: Store>(layer: &IdempotencyLayer<St>, runs: &Count) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |_| ready(ok(format!("run {}", runs.up())))))
}

fn scoped(scope: ScopeSource) -> IdempotencyLayer {
    IdempotencyLayer::builder(MemoryStore::new())
        .scope(scope)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn contract_3_1_under_two_scopes_nobody_reads_anothers_answer() {
    let runs = Count::default();
    let service = numbered(&scoped(ScopeSource::default()), &runs);
    let acme = send(&service, by("Bearer acme")).await;
    let globex = send(&service, by("Bearer globex")).await;
    assert_eq!((acme.text(), globex.text()), ("run 1", "run 2"));
    send(&service, by("Bearer acme")).await.assert_replay_of(&acme);
    send(&service, by("Bearer globex")).await.assert_replay_of(&globex);
    // Another body under the other's key is no mismatch for them.
    let other = [("idempotency-key", "k"), ("authorization", "Bearer initech")];
    let answer = send(&service, request("PATCH", "/else", &other, "other")).await;
    assert_eq!(answer.text(), "run 3");
}

#[tokio::test(start_paused = true)]
async fn contract_3_1_under_two_scopes_nobody_blocks_another() {
    let gate = Gate::default();
    let runs = Count::default();
    let (stop, counter) = (gate.clone(), runs.clone());
    let service = scoped(ScopeSource::default()).layer(inner(move |_| {
        let (stop, run) = (stop.clone(), counter.up());
        async move {
            stop.pass().await;
            ok(format!("run {run}"))
        }
    }));
    let acme = spawn(&service, by("acme"));
    gate.arrival().await;
    let globex = spawn(&service, by("globex"));
    gate.arrival().await;
    send(&service, by("acme")).await.assert_problem(409, "in-flight");
    gate.open();
    assert_eq!(acme.await.unwrap().text(), "run 1");
    assert_eq!(globex.await.unwrap().text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_the_default_scope_is_the_authorization_header() {
    let runs = Count::default();
    let service = numbered(&IdempotencyLayer::new(MemoryStore::new()), &runs);
    send(&service, by("Bearer a")).await;
    assert!(send(&service, by("Bearer a")).await.is_replay());
    for other in ["Bearer A", "Bearer a ", "Basic YTpi"] {
        assert!(!send(&service, by(other)).await.is_replay(), "{other}");
    }
    // Two lines are neither of them alone.
    let two = [
        ("idempotency-key", "k"),
        ("authorization", "Bearer a"),
        ("authorization", "Bearer b"),
    ];
    assert!(!send(&service, request("POST", "/", &two, "b")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_requests_without_authorization_share_one_scope() {
    let runs = Count::default();
    let service = numbered(&IdempotencyLayer::new(MemoryStore::new()), &runs);
    let from = |address: &str| {
        let headers = [("idempotency-key", "k"), ("x-forwarded-for", address)];
        request("POST", "/", &headers, "b")
    };
    let first = send(&service, from("192.0.2.1")).await;
    send(&service, from("192.0.2.2")).await.assert_replay_of(&first);
    assert!(!send(&service, by("")).await.is_replay(), "an empty one is not none");
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_a_cookie_without_authorization_is_warned_of_once() {
    capture::install();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = numbered(&layer, &Count::default());
    let warnings = || {
        let mut events = capture::take();
        events.retain(|event| event.level == tracing::Level::WARN && event.message().contains("Cookie"));
        events.len()
    };
    let with = |headers: &[(&str, &str)]| {
        let mut all = vec![("idempotency-key", "k")];
        all.extend(headers);
        request("POST", "/", &all, "b")
    };
    send(&service, with(&[])).await;
    send(&service, with(&[("cookie", "sid=1"), ("authorization", "a")])).await;
    send(&service, request("POST", "/", &[("cookie", "sid=1")], "")).await;
    send(
        &service,
        request("GET", "/", &[("cookie", "sid=1"), ("idempotency-key", "k")], ""),
    )
    .await;
    assert_eq!(warnings(), 0);
    send(&service, with(&[("cookie", "sid=1")])).await;
    assert_eq!(warnings(), 1);
    for session in ["sid=1", "sid=2"] {
        send(&service, with(&[("cookie", session)])).await;
        send(
            &numbered(&layer.clone(), &Count::default()),
            with(&[("cookie", session)]),
        )
        .await;
    }
    assert_eq!(warnings(), 0, "once");
    // Whoever chose a scope knows.
    let chosen = numbered(&scoped(ScopeSource::header("x-account")), &Count::default());
    send(&chosen, with(&[("cookie", "sid=1")])).await;
    assert_eq!(warnings(), 0);
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_another_header_can_be_the_scope() {
    let runs = Count::default();
    let service = numbered(&scoped(ScopeSource::header("X-Account")), &runs);
    let of = |account: &str, authorization: &str| {
        let headers = [
            ("idempotency-key", "k"),
            ("x-account", account),
            ("authorization", authorization),
        ];
        request("POST", "/", &headers, "b")
    };
    let first = send(&service, of("a", "old token")).await;
    send(&service, of("a", "new token")).await.assert_replay_of(&first);
    assert!(!send(&service, of("b", "old token")).await.is_replay());
}

#[derive(Clone)]
struct Tenant(u32);

#[tokio::test(start_paused = true)]
async fn contract_3_2_an_extension_of_the_authentication_layer_can_be_the_scope() {
    let runs = Count::default();
    let layer = scoped(ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string()));
    let service = numbered(&layer, &runs);
    let of = |tenant: u32, token: &str| {
        let mut request = by(token);
        request.extensions_mut().insert(Tenant(tenant));
        request
    };
    let first = send(&service, of(1, "token")).await;
    send(&service, of(1, "refreshed token")).await.assert_replay_of(&first);
    assert_eq!(send(&service, of(2, "token")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_a_closure_can_tell_the_scope_or_all_can_share_one() {
    let runs = Count::default();
    let by_host = ScopeSource::from_head(|parts| Ok(parts.uri.host().unwrap_or_default().to_owned()));
    let service = numbered(&scoped(by_host), &runs);
    let on = |host: &str| {
        let uri = format!("http://{host}/");
        request("POST", &uri, &[("idempotency-key", "k"), ("authorization", host)], "b")
    };
    send(&service, on("a.example")).await;
    assert!(send(&service, on("a.example")).await.is_replay());
    assert!(!send(&service, on("b.example")).await.is_replay());
    let shared = numbered(&scoped(ScopeSource::shared_by_all("all")), &runs);
    let first = send(&shared, by("a")).await;
    send(&shared, by("b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_3_3_a_scope_that_cannot_be_determined_is_500() {
    let refusing = ScopeSource::from_head(|_| Err("the session store is down: secret detail".into()));
    let absent = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
    for scope in [refusing, absent] {
        let store = Scripted::default();
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(store.clone()).scope(scope).build().unwrap();
        let service = numbered(&layer, &runs);
        let answer = send(&service, by("a")).await;
        answer.assert_problem(500, "scope-unavailable");
        assert!(!answer.text().contains("secret"), "{}", answer.text());
        assert_eq!(answer.outcome(), "scope-unavailable");
        assert_eq!((runs.get(), store.calls(Op::Begin)), (0, 0));
        assert_eq!(counted(&layer, "scope-unavailable"), 1);
        // Without a key there is no scope to determine.
        assert_eq!(send(&service, request("POST", "/", &[], "")).await.text(), "run 1");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_3_4_an_authentication_layer_outside_authorises_replays_afresh() {
    let revoked = Arc::new(AtomicBool::new(false));
    let runs = Count::default();
    let guarded = numbered(&IdempotencyLayer::new(MemoryStore::new()), &runs);
    let check = revoked.clone();
    let service = service_fn(move |request: Request<Body>| {
        let (guarded, revoked) = (guarded.clone(), check.load(Ordering::SeqCst));
        async move {
            match revoked {
                true => Err("revoked"),
                false => Ok(guarded.oneshot(request).await.expect("no error")),
            }
        }
    });
    send(&service, by("a")).await;
    assert!(send(&service, by("a")).await.is_replay());
    revoked.store(true, Ordering::SeqCst);
    assert_eq!(service.oneshot(by("a")).await.unwrap_err(), "revoked");
    assert_eq!(runs.get(), 1);
}

#[test]
fn contract_3_4_the_documentation_of_the_layer_says_so() {
    let documentation = include_str!("../../src/layer/mod.rs");
    let text = documentation.replace("\n///", "");
    assert!(text.contains("Authentication and authorization belong outside this layer"));
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_the_authorization_scheme_is_compared_case_insensitively() {
    let runs = Count::default();
    let layer = scoped(ScopeSource::default());
    let service = numbered(&layer, &runs);
    let first = send(&service, by("Bearer Token")).await;
    for same in ["bearer Token", "BEARER Token", "bEaReR Token"] {
        send(&service, by(same)).await.assert_replay_of(&first);
        assert_eq!(layer.slot(Some(same), "k"), layer.slot(Some("Bearer Token"), "k"));
    }
    // Only the scheme: credentials have a case, and a value of one word may be a bare token.
    for other in ["Bearer token", "bearer  Token", "Token", "token", "BEARER"] {
        assert!(!send(&service, by(other)).await.is_replay(), "{other}");
        assert_ne!(layer.slot(Some(other), "k"), layer.slot(Some("Bearer Token"), "k"));
    }
    // Other headers count as they are.
    let own = scoped(ScopeSource::header("x-account"));
    assert_ne!(own.slot(Some("bearer a"), "k"), own.slot(Some("Bearer a"), "k"));
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_a_scheme_that_changes_with_every_request_is_warned_of_once() {
    capture::install();
    let warnings = || {
        let mut events = capture::take();
        events
            .retain(|event| event.level == tracing::Level::WARN && event.message().contains("ScopeSource::extension"));
        events.len()
    };
    for value in [
        "AWS4-HMAC-SHA256 Credential=a, Signature=1",
        "digest username=\"a\", nc=1",
        "OAuth oauth_nonce=\"1\"",
        "Signature keyId=\"a\"",
        "DPoP token",
        "Negotiate token",
    ] {
        let layer = IdempotencyLayer::new(MemoryStore::new());
        let service = numbered(&layer, &Count::default());
        for quiet in ["Bearer Digest", "Basic YTpi", "Digest", ""] {
            send(&service, by(quiet)).await;
        }
        assert_eq!(warnings(), 0, "{value}");
        send(&service, by(value)).await;
        assert_eq!(warnings(), 1, "{value}");
        send(&service, by(value)).await;
        send(&numbered(&layer.clone(), &Count::default()), by(value)).await;
        assert_eq!(warnings(), 0, "once");
        // Whoever chose a scope that stays the same knows.
        let chosen = numbered(&scoped(ScopeSource::header("x-account")), &Count::default());
        send(&chosen, by(value)).await;
        assert_eq!(warnings(), 0);
        // It changes in a combined scope as well.
        let combined = scoped(ScopeSource::default().and(ScopeSource::host()));
        send(&numbered(&combined, &Count::default()), by(value)).await;
        assert_eq!(warnings(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_scopes_can_be_combined() {
    let runs = Count::default();
    let scope = ScopeSource::default()
        .and(ScopeSource::header("stripe-account"))
        .and(ScopeSource::host());
    let layer = scoped(scope);
    let service = numbered(&layer, &runs);
    let of = |headers: &[(&str, &str)]| {
        let mut all = vec![("idempotency-key", "k")];
        all.extend(headers);
        request("POST", "/", &all, "b")
    };
    let first = [
        ("authorization", "Bearer a"),
        ("stripe-account", "acct_A"),
        ("host", "api.example"),
    ];
    let paid = send(&service, of(&first)).await;
    send(&service, of(&first)).await.assert_replay_of(&paid);
    let mut others = vec![vec![first[0], first[2]], vec![first[0], first[1]], vec![]];
    for (at, other) in [(0, "Bearer b"), (1, "acct_B"), (2, "other.example")] {
        let mut headers = first;
        headers[at].1 = other;
        others.push(headers.to_vec());
    }
    for headers in &others {
        let answer = send(&service, of(headers)).await;
        assert_eq!(answer.outcome(), "executed", "{headers:?}");
    }
    assert_eq!(runs.get(), 1 + others.len());
}

#[tokio::test(start_paused = true)]
async fn contract_3_2_the_slot_of_a_combined_scope_can_be_looked_up() {
    use tower_idempotency::SlotError;
    use tower_idempotency::store::Inspect;

    let store = MemoryStore::new();
    let scope = ScopeSource::default().and(ScopeSource::header("stripe-account"));
    let layer = IdempotencyLayer::builder(store.clone()).scope(scope).build().unwrap();
    let service = numbered(&layer, &Count::default());
    let headers = [
        ("idempotency-key", "k"),
        ("authorization", "bearer a"),
        ("stripe-account", "acct_A"),
    ];
    send(&service, request("POST", "/", &headers, "b")).await;
    send(&service, by("Bearer a")).await;
    for slot in [
        layer.slot(["Bearer a", "acct_A"], "k").unwrap(),
        layer.slot([Some("Bearer a"), None], "k").unwrap(),
    ] {
        assert!(store.look_up(&slot).await.unwrap().is_some());
    }
    let simple = layer.slot(Some("Bearer a"), "k").unwrap_err();
    assert!(matches!(
        simple,
        SlotError::ScopeValues {
            expected: 2,
            given: 1,
            ..
        }
    ));
    assert!(simple.to_string().contains("2 sources"), "{simple}");
}

#[tokio::test(start_paused = true)]
async fn contract_3_5_two_services_share_a_store_under_a_namespace_each() {
    let (store, runs) = (MemoryStore::new(), Count::default());
    let named = |name: &str| {
        let layer = IdempotencyLayer::builder(store.clone()).namespace(name).build();
        numbered(&layer.unwrap(), &runs)
    };
    let (gateway, billing) = (named("gateway"), named("billing"));
    let first = send(&gateway, by("Bearer a")).await;
    let second = send(&billing, by("Bearer a")).await;
    assert_eq!((first.text(), second.text()), ("run 1", "run 2"));
    send(&gateway, by("Bearer a")).await.assert_replay_of(&first);
    send(&billing, by("Bearer a")).await.assert_replay_of(&second);
    let none = numbered(&IdempotencyLayer::new(store.clone()), &runs);
    assert_eq!(send(&none, by("Bearer a")).await.text(), "run 3");
}

#[tokio::test(start_paused = true)]
async fn contract_3_5_a_gateway_in_front_of_a_service_does_not_block_it() {
    let (store, runs) = (MemoryStore::new(), Count::default());
    let named = |name: &str| {
        let layer = IdempotencyLayer::builder(store.clone()).namespace(name).build();
        layer.unwrap()
    };
    let behind = numbered(&named("billing"), &runs);
    let gateway = named("gateway").layer(inner(move |request: Request<Body>| {
        // Over a network: the extensions stay here.
        let (mut parts, body) = request.into_parts();
        parts.extensions.clear();
        let behind = behind.clone();
        async move {
            behind
                .oneshot(Request::from_parts(parts, body))
                .await
                .expect("no error")
                .map(Body::new)
        }
    }));
    let first = send(&gateway, by("Bearer a")).await;
    assert_eq!((first.status.as_u16(), first.text()), (200, "run 1"));
    send(&gateway, by("Bearer a")).await.assert_replay_of(&first);
}
