//! The configuration: what cannot work is refused when the layer is built, by the option's name.

use std::future::ready;
use std::time::Duration;

use http::Method;
use tower::Layer;
use tower_idempotency::store::WhenFull;
use tower_idempotency::{
    ConfigError, Fate, FingerprintSource, IdempotencyLayer, IdempotencyLayerBuilder, KeyFormat, KeySource, MemoryStore,
    Policy, ScopeSource,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{inner, ok, post, send};

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

#[track_caller]
fn assert_refused(builder: IdempotencyLayerBuilder, option: &str) -> ConfigError {
    let error = builder.build().expect_err(option);
    assert_eq!(error.option(), option);
    assert!(error.to_string().contains(&format!("`{option}`")), "{error}");
    // A reason is there beside the name.
    assert!(error.to_string().len() > option.len() + 30, "{error}");
    error
}

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TINY: Duration = Duration::from_nanos(999_999);
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn durations_that_cannot_work_are_refused() {
    for wrong in [Duration::ZERO, TINY, 11 * YEAR, Duration::MAX] {
        assert_refused(builder().ttl(wrong), "ttl");
    }
    for wrong in [Duration::ZERO, TINY, DAY + MILLI, Duration::MAX] {
        assert_refused(builder().lease(wrong), "lease");
        assert_refused(builder().store_timeout(wrong), "store_timeout");
    }
    for wrong in [DAY + MILLI, Duration::MAX] {
        assert_refused(builder().wait(wrong), "wait");
        assert_refused(builder().settle_within(wrong), "settle_within");
        assert_refused(builder().response_body_within(wrong), "response_body_within");
    }
    for wrong in [Duration::ZERO, TINY, DAY + MILLI, Duration::MAX] {
        assert_refused(builder().grpc().grpc_request_within(wrong), "grpc_request_within");
    }
    let error = assert_refused(builder().ttl(Duration::ZERO), "ttl");
    assert!(
        error.to_string().contains("1ms"),
        "it says what would be accepted: {error}"
    );
}

#[test]
fn durations_at_their_bounds_are_accepted() {
    for ttl in [MILLI, 10 * YEAR] {
        builder().ttl(ttl).build().unwrap();
    }
    for value in [MILLI, DAY] {
        builder().lease(value).store_timeout(value).build().unwrap();
    }
    for value in [Duration::ZERO, DAY] {
        builder().wait(value).settle_within(value).build().unwrap();
    }
}

#[test]
fn an_option_for_grpc_needs_its_profile() {
    let within = Duration::from_secs(1);
    assert_refused(builder().grpc_request_within(within), "grpc_request_within");
    assert_refused(builder().stripe().grpc_request_within(within), "grpc_request_within");
    builder().grpc_request_within(within).grpc().build().unwrap();
}

#[test]
fn a_set_of_methods_that_cannot_work_is_refused() {
    assert_refused(builder().methods([]), "methods");
    assert_refused(builder().methods([Method::POST, Method::CONNECT]), "methods");
    builder()
        .methods([Method::POST, Method::GET, Method::DELETE])
        .build()
        .unwrap();
}

#[test]
fn a_secret_that_is_too_short_for_the_tags_of_scopes_is_refused() {
    for short in [&b""[..], &[7; 15]] {
        assert_refused(builder().scope_tag_secret(short), "scope_tag_secret");
    }
    let with = |secret: &[u8]| builder().scope_tag_secret(secret).build().unwrap();
    let tag = |layer: &IdempotencyLayer<_>| layer.scope_tag(Some("Bearer a")).unwrap();
    assert_eq!(tag(&with(&[7; 16])), tag(&with(&[7; 16])));
    assert_ne!(tag(&with(&[7; 16])), tag(&with(&[8; 16])));
    assert_ne!(tag(&with(&[7; 16])), tag(&builder().build().unwrap()), "no secret");
    let shown = format!("{:?}", with(b"a secret of more than 16 bytes"));
    assert!(shown.contains("TagKey(..)") && !shown.contains("secret of"), "{shown}");
}

#[test]
fn names_that_are_no_header_names_are_refused() {
    for wrong in ["", "with space", "colon:", "caf\u{e9}", "line\nbreak"] {
        assert_refused(builder().key(KeySource::header(wrong)), "key");
        assert_refused(builder().scope(ScopeSource::header(wrong)), "scope");
        assert_refused(builder().replay_header(wrong), "replay_header");
        assert_refused(builder().unreplayed_headers(["date", wrong]), "unreplayed_headers");
    }
}

#[test]
fn pointers_that_are_none_are_refused() {
    for wrong in ["", "id", "#/id", "/a~", "/a~2", "/~x/b"] {
        assert_refused(builder().key(KeySource::json_pointer(wrong)), "key");
        let fields = FingerprintSource::json_fields(["/ok", wrong]);
        assert_refused(builder().fingerprint(fields), "fingerprint");
    }
    let nothing: [&str; 0] = [];
    assert_refused(
        builder().fingerprint(FingerprintSource::json_fields(nothing)),
        "fingerprint",
    );
    for right in ["/", "/a/b/0", "/~0~1", "//"] {
        builder().key(KeySource::json_pointer(right)).build().unwrap();
    }
}

#[test]
fn documentation_urls_that_cannot_be_linked_are_refused() {
    for wrong in [
        "",
        "docs",
        "/docs",
        "//example.com/docs",
        "ftp://example.com",
        "mailto:a@example.com",
        "https://",
        "https://example.com/#anchor",
        "https://example.com/<x>",
        "https://example.com/a b",
        "https://example.com/\"",
    ] {
        assert_refused(builder().problem_documentation(wrong), "problem_documentation");
    }
    for right in ["https://example.com", "http://localhost:8080/docs?page=idempotency"] {
        builder().problem_documentation(right).build().unwrap();
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let both = builder().drain_streams(true).cancel_on_disconnect(Fate::Reopen);
    assert_refused(both, "drain_streams");
    let pause = Duration::from_secs(2);
    for both in [
        builder().circuit_breaker(3, pause).without_circuit_breaker(),
        builder().without_circuit_breaker().circuit_breaker(3, pause),
    ] {
        assert_refused(both, "circuit_breaker");
    }
    assert_refused(builder().lifetime_header("Idempotency-Replayed"), "lifetime_header");
    let stripe = builder().stripe().lifetime_header("idempotent-replayed");
    assert_refused(stripe, "lifetime_header");
}

#[test]
fn limits_that_would_refuse_everything_are_refused() {
    assert_refused(builder().max_key_length(0), "max_key_length");
    assert_refused(builder().max_detached(0), "max_detached");
    builder()
        .max_key_length(1)
        .max_detached(1)
        .max_request_body(0)
        .max_response_body(0)
        .build()
        .unwrap();
}

#[test]
fn the_first_mistake_is_named_whatever_follows() {
    let error = builder()
        .replay_header("not a name")
        .problem_documentation("no url")
        .unreplayed_headers([""])
        .ttl(Duration::ZERO)
        .build()
        .unwrap_err();
    assert_eq!(error.option(), "replay_header");
}

#[test]
fn a_memory_store_that_cannot_work_is_refused() {
    let error = MemoryStore::builder().budget(64 * 1024 - 1).build().unwrap_err();
    assert_eq!(error.option(), "budget");
    MemoryStore::builder()
        .budget(64 * 1024)
        .when_full(WhenFull::RefuseNew)
        .build()
        .unwrap();
}

#[test]
fn a_config_error_is_an_error_and_can_be_compared() {
    let error = builder().ttl(Duration::ZERO).build().unwrap_err();
    let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(error.clone());
    assert_eq!(boxed.to_string(), error.to_string());
    assert_eq!(error, builder().ttl(Duration::ZERO).build().unwrap_err());
}

#[test]
fn every_option_can_be_set_at_once() {
    builder()
        .methods([Method::PUT])
        .key(KeySource::header("x-request-key"))
        .key_format(KeyFormat::Uuid)
        .max_key_length(36)
        .require_key(true)
        .scope(ScopeSource::shared_by_all("one"))
        .fingerprint(FingerprintSource::body())
        .policy(Policy::everything())
        .ttl(DAY)
        .lease(MILLI)
        .wait(MILLI)
        .store_timeout(MILLI)
        .settle_within(MILLI)
        .run_unprotected_when_store_fails()
        .max_request_body(1)
        .max_response_body(1)
        .max_detached(1)
        .cancel_on_disconnect(Fate::Seal)
        .replay_header("x-replayed")
        .unreplayed_headers(["date"])
        .problem_documentation("https://example.com")
        .build()
        .unwrap();
}

#[test]
fn the_defaults_are_as_documented() {
    let shown = format!("{:?}", IdempotencyLayer::new(MemoryStore::new()));
    for default in [
        "methods: [POST, PATCH]",
        "idempotency-key",
        "format: Any",
        "max_length: 255",
        "require_key: false",
        "authorization",
        "FingerprintSource::request()",
        "ttl: 86400s",
        "lease: 30s",
        "wait: 0ns",
        "store_timeout: 5s",
        "settle_within: 300s",
        "fail_open: false",
        "max_request_body: 2097152",
        "max_response_body: 1048576",
        "max_detached: 1024",
        "cancel_on_disconnect: None",
        "idempotency-replayed",
        "text/event-stream",
        "on_panic: Release",
        "on_error: Release",
        "on_lost_body: Seal",
        "on_lapse: RunAgain",
    ] {
        assert!(shown.contains(default), "{default} in {shown}");
    }
    let built = format!("{:?}", builder().build().unwrap());
    assert_eq!(built, shown, "`new` and an untouched builder are the same");
}

/// What the options of time reach the store as.
#[tokio::test(start_paused = true)]
async fn the_lease_and_the_ttl_reach_the_store() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(7))
        .ttl(Duration::from_secs(77))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| ready(ok("done"))));
    store.once(Op::Complete, Act::Lost);
    send(&service, post("/", "k", "b")).await;
    let begin = store.begins()[0];
    assert_eq!((begin.lease.as_secs(), begin.ttl.as_secs()), (7, 77));
    let defaults = Scripted::default();
    let service = IdempotencyLayer::new(defaults.clone()).layer(inner(|_| ready(ok("done"))));
    send(&service, post("/", "k", "b")).await;
    let begin = defaults.begins()[0];
    assert_eq!((begin.lease.as_secs(), begin.ttl.as_secs()), (30, 86_400));
}

#[tokio::test(start_paused = true)]
async fn the_response_limit_is_1_mib_by_default() {
    const MIB: usize = 1024 * 1024;
    for (bytes, kept) in [(MIB, true), (MIB + 1, false)] {
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| ready(ok(vec![0; bytes]))));
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!(first.body.len(), bytes);
        assert_eq!(send(&service, post("/", "k", "b")).await.is_replay(), kept, "{bytes}");
    }
}

#[test]
fn key_sources_that_name_nothing_are_refused() {
    let nothing: [&str; 0] = [];
    assert_refused(builder().key(KeySource::headers(nothing)), "key");
    assert_refused(builder().key(KeySource::headers(["x-key", "not a name"])), "key");
    assert_refused(builder().key(KeySource::json_pointers(nothing)), "key");
    assert_refused(builder().key(KeySource::json_pointers(["/a", "b"])), "key");
    let joined = KeySource::json_pointers(["/a", "/b"]);
    assert_refused(builder().key(joined).key_format(KeyFormat::Uuid), "key_format");
}

#[test]
fn an_empty_namespace_is_refused() {
    assert_refused(builder().namespace(""), "namespace");
    assert_refused(
        builder().scope(ScopeSource::host().and(ScopeSource::header("not a name"))),
        "scope",
    );
    builder().namespace("billing").build().unwrap();
}

#[test]
fn fields_that_cannot_be_left_out_are_refused() {
    let nothing: [&str; 0] = [];
    for source in [
        FingerprintSource::request().without(nothing),
        FingerprintSource::request().without(["csrf"]),
        FingerprintSource::canonical_json().without(["/ok", ""]),
        FingerprintSource::body().without(["/csrf"]),
        FingerprintSource::none().without(["/csrf"]),
        FingerprintSource::json_fields(["/a"]).without(["/csrf"]),
    ] {
        assert_refused(builder().fingerprint(source), "fingerprint");
    }
    let right = FingerprintSource::request().without(["/csrf", "/items/0/at"]);
    builder().fingerprint(right).build().unwrap();
}
