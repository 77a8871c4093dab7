//! Section 7 of the contract: the profiles, and how they and single options go together.

use std::future::ready;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use tower::Layer;
use tower_idempotency::{
    FingerprintSource, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, KeySource, MemoryStore, Policy,
    ScopeSource,
};

use crate::support::{Count, Inner, ScriptedBody, Step, inner, ok, post, request, send};

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

fn numbered(layer: &IdempotencyLayer, status: u16) -> IdempotencyService<Inner> {
    let runs = Count::default();
    layer.layer(inner(move |_| {
        let response = Response::builder().status(status);
        let body = Full::<Bytes>::from(format!("run {}", runs.up()));
        ready(response.body(body).unwrap())
    }))
}

#[tokio::test(start_paused = true)]
async fn contract_7_1_stripe_stores_a_result_once_the_endpoint_has_begun_to_execute() {
    for (status, stored) in [
        (200, true),
        (201, true),
        (402, true),
        (500, true),
        (502, true),
        (504, true),
        (400, false),
        (401, false),
        (404, false),
        (409, false),
        (422, false),
        (429, false),
        (503, false),
    ] {
        let service = numbered(&builder().stripe().build().unwrap(), status);
        send(&service, post("/v1/charges", "k", "b")).await;
        let retry = send(&service, post("/v1/charges", "k", "b")).await;
        assert_eq!(retry.header("idempotent-replayed").is_some(), stored, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_1_the_accounts_of_stripe_do_not_share_keys() {
    let service = numbered(&builder().stripe().build().unwrap(), 200);
    let payout = |account: &str| {
        let headers = [
            ("idempotency-key", "k"),
            ("authorization", "Bearer sk_platform"),
            ("stripe-account", account),
        ];
        request("POST", "/v1/payouts", &headers, "b")
    };
    let first = send(&service, payout("acct_A")).await;
    assert_eq!(send(&service, payout("acct_B")).await.text(), "run 2");
    let again = send(&service, payout("acct_A")).await;
    assert_eq!(again.text(), first.text());
}

#[tokio::test(start_paused = true)]
async fn contract_7_1_options_take_precedence_over_the_profile_in_any_order() {
    type Configure = fn(IdempotencyLayerBuilder) -> IdempotencyLayerBuilder;
    let orders: [Configure; 2] = [
        |builder| builder.stripe().policy(Policy::success()),
        |builder| builder.policy(Policy::success()).stripe(),
    ];
    for configure in orders {
        let service = numbered(&configure(builder()).build().unwrap(), 402);
        send(&service, post("/", "k", "b")).await;
        assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
    }
    let orders: [Configure; 2] = [
        |builder| builder.stripe().problem_response(|_, _| Response::new("own".into())),
        |builder| builder.problem_response(|_, _| Response::new("own".into())).stripe(),
    ];
    for configure in orders {
        let service = numbered(&configure(builder()).build().unwrap(), 200);
        assert_eq!(send(&service, post("/", "", "b")).await.text(), "own");
    }
    let orders: [Configure; 2] = [
        |builder| builder.stripe().replay_header("x-again"),
        |builder| builder.replay_header("x-again").stripe(),
    ];
    for configure in orders {
        let service = numbered(&configure(builder()).build().unwrap(), 200);
        send(&service, post("/", "k", "b")).await;
        assert_eq!(
            send(&service, post("/", "k", "b")).await.header("x-again"),
            Some("true")
        );
    }
}

#[test]
fn contract_7_1_contradictions_are_errors_of_build() {
    let url = "https://api.example.com/docs";
    for (builder, option) in [
        (builder().stripe().problem_documentation(url), "problem_documentation"),
        (builder().problem_documentation(url).stripe(), "problem_documentation"),
        (builder().grpc().problem_documentation(url), "problem_documentation"),
        (
            builder()
                .problem_response(|_, _| Response::default())
                .problem_documentation(url),
            "problem_documentation",
        ),
        (builder().stripe().grpc(), "grpc"),
        (builder().webhooks("svix", KeySource::webhook_id()).stripe(), "stripe"),
        (
            builder()
                .scope(ScopeSource::default())
                .webhooks("svix", KeySource::webhook_id()),
            "scope",
        ),
        (
            builder()
                .webhooks("svix", KeySource::webhook_id())
                .key(KeySource::default()),
            "key",
        ),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.option(), option, "{error}");
    }
}

fn event(path: &str, id: &str, body: &'static str) -> Request<Body> {
    request("POST", path, &[("webhook-id", id)], body)
}

#[tokio::test(start_paused = true)]
async fn contract_7_2_an_event_that_is_sent_to_two_endpoints_is_processed_by_both() {
    let layer = builder().webhooks("svix", KeySource::webhook_id()).build().unwrap();
    let service = numbered(&layer, 200);
    let billing = send(&service, event("/hooks/billing", "evt_1", r#"{"sent":1}"#)).await;
    let search = send(&service, event("/hooks/search", "evt_1", r#"{"sent":1}"#)).await;
    assert_eq!((billing.text(), search.text()), ("run 1", "run 2"));
    // Delivered again with another timestamp, and to a URL with another query.
    send(&service, event("/hooks/billing?try=2", "evt_1", r#"{"sent":2}"#))
        .await
        .assert_replay_of(&billing);
}

#[tokio::test(start_paused = true)]
async fn contract_7_2_an_event_without_an_id_is_refused() {
    let layer = builder().webhooks("svix", KeySource::webhook_id()).build().unwrap();
    let missing = request("POST", "/hooks", &[], "{}");
    send(&numbered(&layer, 200), missing)
        .await
        .assert_problem(400, "missing-key");
    let optional = builder()
        .require_key(false)
        .webhooks("svix", KeySource::webhook_id())
        .build()
        .unwrap();
    let passes = send(&numbered(&optional, 200), request("POST", "/hooks", &[], "{}")).await;
    assert_eq!(passes.text(), "run 1");
}

#[tokio::test(start_paused = true)]
async fn contract_7_2_a_fingerprint_can_be_added_to_the_webhook_profile() {
    let layer = builder()
        .webhooks("svix", KeySource::webhook_id())
        .fingerprint(FingerprintSource::body())
        .build()
        .unwrap();
    let service = numbered(&layer, 200);
    send(&service, event("/hooks", "evt_1", "a")).await;
    send(&service, event("/hooks", "evt_1", "b"))
        .await
        .assert_problem(422, "key-reused");
}

#[tokio::test(start_paused = true)]
async fn contract_6_1_a_body_that_an_outer_limit_cuts_off_is_too_large() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = numbered(&layer, 200);
    let chunked = || ScriptedBody::new([Step::Data("0123456789".into()), Step::Yield, Step::Data("more".into())]);
    let limited = Body::new(Limited::new(chunked().map_err(|error| error.to_string()), 12));
    send(&service, post("/", "k", limited))
        .await
        .assert_problem(413, "body-too-large");
    let broken = Body::new(ScriptedBody::new([Step::Data("0123".into()), Step::Fail]).map_err(axum::Error::new));
    send(&service, post("/", "k", broken))
        .await
        .assert_problem(400, "body-unreadable");
}

#[tokio::test(start_paused = true)]
async fn requests_that_a_predicate_names_pass_untouched() {
    let layer = builder()
        .require_key(true)
        .pass_when(|head| head.uri.path().starts_with("/streams/"))
        .build()
        .unwrap();
    let service = numbered(&layer, 200);
    for run in 1..=2 {
        let answer = send(&service, post("/streams/a", "k", "b")).await;
        assert_eq!((answer.text(), answer.outcome()), (&*format!("run {run}"), "none"));
    }
    send(&service, post("/", "k", "b")).await;
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn a_layer_can_be_switched_off() {
    let layer = builder().enabled(false).require_key(true).build().unwrap();
    let service = layer.layer(inner(|_| ready(ok("ran"))));
    for _ in 0..2 {
        let answer = send(&service, post("/", "k", "b")).await;
        assert_eq!((answer.text(), answer.outcome()), ("ran", "none"));
    }
}
