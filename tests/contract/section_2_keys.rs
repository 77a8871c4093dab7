//! Section 2 of the contract: where the key is, and which keys are valid.

use std::future::ready;

use axum::body::Body;
use http::{HeaderValue, Request};
use tower::Layer;
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, InvalidKey, KeyFormat, KeySource,
    MemoryStore, ScopeSource, Slot, Store,
};

use crate::support::store::Scripted;
use crate::support::{Count, Inner, inner, ok, post, request, send};

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

/// Answers with the key that it runs under.
fn telling<St: Store>(layer: &IdempotencyLayer<St>) -> IdempotencyService<Inner, St> {
    layer.layer(inner(|request: Request<Body>| {
        let key = request.extensions().get().map(IdempotencyKey::as_str);
        ready(ok(key.unwrap_or("no key").to_owned()))
    }))
}

const UUID: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

#[tokio::test(start_paused = true)]
async fn contract_2_1_the_header_is_idempotency_key_in_any_case() {
    let service = telling(&builder().build().unwrap());
    for name in ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"] {
        let answer = send(&service, request("POST", "/", &[(name, "k")], "")).await;
        assert_eq!(answer.text(), "k");
    }
    let other = send(&service, request("POST", "/", &[("x-idempotency-key", "k")], "")).await;
    assert_eq!(other.text(), "no key");
}

#[tokio::test(start_paused = true)]
async fn contract_2_1_the_header_can_be_named_otherwise() {
    for name in ["PayPal-Request-Id", "X-Idempotency-Key", "webhook-id"] {
        let layer = builder().key(KeySource::header(name)).build().unwrap();
        let service = telling(&layer);
        let first = send(&service, request("POST", "/", &[(name, "k")], "")).await;
        assert_eq!(first.text(), "k");
        assert!(
            send(&service, request("POST", "/", &[(name, "k")], ""))
                .await
                .is_replay()
        );
        assert_eq!(send(&service, post("/", "k", "")).await.text(), "no key");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_2_quoted_and_bare_name_the_same_key() {
    for (spellings, key) in [
        (
            vec![
                UUID.to_owned(),
                format!("\"{UUID}\""),
                format!("\"{UUID}\";a=1"),
                format!("\"{UUID}\";a;b=\"x\"; c=?0"),
                format!("\"{UUID}\" "),
            ],
            UUID,
        ),
        (
            vec![
                r"a;b\c".to_owned(),
                r#""a;b\\c""#.to_owned(),
                r#""a;b\\c";p"#.to_owned(),
            ],
            r"a;b\c",
        ),
        (
            vec![r#""say \"hi\"""#.to_owned(), r#""say \"hi\"";q=0.5"#.to_owned()],
            r#"say "hi""#,
        ),
        (vec![r#""a,b""#.to_owned()], "a,b"),
        (
            vec!["order/17:a{b}|c~".to_owned(), "\"order/17:a{b}|c~\"".to_owned()],
            "order/17:a{b}|c~",
        ),
        (vec!["'k'".to_owned()], "'k'"),
        (vec![":a:".to_owned(), "\":a:\"".to_owned()], ":a:"),
        (vec!["?1".to_owned(), "\"?1\"".to_owned()], "?1"),
    ] {
        let service = telling(&builder().build().unwrap());
        let first = send(&service, post("/", &spellings[0], "b")).await;
        assert_eq!((first.status.as_u16(), first.text()), (200, key), "{}", spellings[0]);
        for spelling in &spellings[1..] {
            let again = send(&service, post("/", spelling, "b")).await;
            assert!(again.is_replay(), "{spelling}: {again:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_2_similar_keys_are_different_keys() {
    let service = telling(&builder().build().unwrap());
    for key in ["a", "A", "a.", "\"a \"", "\" a\"", "a;b", "\"a;b\\\\\"", "'a'"] {
        let answer = send(&service, post("/", key, "b")).await;
        assert_eq!(answer.outcome(), "executed", "{key}: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_2_structured_takes_only_structured_field_strings() {
    let service = telling(&builder().key_format(KeyFormat::Structured).build().unwrap());
    assert_eq!(send(&service, post("/", "\"k\";v=1", "")).await.text(), "k");
    for not in [
        "k",
        UUID,
        "17",
        "?1",
        ":aGk=:",
        "@1",
        "%\"k\"",
        "(\"k\")",
        "\"k\", \"k\"",
        "\"k\"x",
        "'k'",
    ] {
        let answer = send(&service, post("/", not, "")).await;
        answer.assert_problem(400, "invalid-key");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_2_uuid_takes_any_uuid_and_nothing_else() {
    let service = telling(&builder().key_format(KeyFormat::Uuid).build().unwrap());
    for uuid in [
        UUID,
        "00000000-0000-0000-0000-000000000001",
        "ffffffff-ffff-ffff-ffff-fffffffffffe",
        "12345678-1234-1234-1234-123456789abc",
        "01890a5d-ac96-774b-bcce-b302099a8057",
    ] {
        let first = send(&service, post("/", uuid, "")).await;
        assert_eq!(first.text(), uuid);
        let upper = format!("\"{}\"", uuid.to_ascii_uppercase());
        assert!(send(&service, post("/", &upper, "")).await.is_replay(), "{upper}");
    }
    for not in [
        "order-17",
        "8e03978e40d543ddbc936894a57f9324",
        "{8e03978e-40d5-43dd-bc93-6894a57f9324}",
        "urn:uuid:8e03978e-40d5-43dd-bc93-6894a57f9324",
        "8e03978e-40d5-43dd-bc93-6894a57f932",
        "8e03978e-40d5-43dd-bc93-6894a57f93245",
        "8e03978e-40d5-43dd-bc93-6894a57f932g",
        "8e03978e4-0d5-43dd-bc93-6894a57f9324",
    ] {
        send(&service, post("/", not, ""))
            .await
            .assert_problem(400, "invalid-key");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_3_one_to_255_bytes_after_unquoting() {
    let service = telling(&builder().build().unwrap());
    let (most, more) = ("k".repeat(255), "k".repeat(256));
    let escaped = format!("\"{}\"", "\\\\".repeat(255));
    for (line, valid) in [
        ("k", true),
        ("\" \"", true),
        (most.as_str(), true),
        (&format!("\"{most}\""), true),
        (&format!("\"{most}\";parameter={most}"), true),
        (escaped.as_str(), true),
        (more.as_str(), false),
        (&format!("\"{more}\""), false),
        ("", false),
        ("\"\"", false),
        ("\"\";a=1", false),
    ] {
        let answer = send(&service, post("/", line, "")).await;
        if valid {
            assert_eq!(answer.status.as_u16(), 200, "{line}: {answer:?}");
        } else {
            answer.assert_problem(400, "invalid-key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_3_the_maximum_can_be_changed() {
    let service = telling(&builder().max_key_length(4).build().unwrap());
    assert_eq!(send(&service, post("/", "\"four\"", "")).await.text(), "four");
    send(&service, post("/", "fives", ""))
        .await
        .assert_problem(400, "invalid-key");
    let service = telling(&builder().max_key_length(1000).build().unwrap());
    let long = "k".repeat(1000);
    assert_eq!(send(&service, post("/", &long, "")).await.text(), long);
}

#[tokio::test(start_paused = true)]
async fn contract_2_3_visible_ascii_and_inside_quotes_space() {
    let service = telling(&builder().build().unwrap());
    let visible: String = (b'!'..=b'~').map(char::from).collect();
    let bare: String = visible.chars().filter(|c| !"\",".contains(*c)).collect();
    assert_eq!(send(&service, post("/", &bare, "")).await.text(), bare);
    let quoted = format!("\"{} \"", visible.replace('\\', "\\\\").replace('"', "\\\""));
    assert_eq!(
        send(&service, post("/", &quoted, "")).await.text(),
        format!("{visible} ")
    );
    for bytes in [
        &b"a b"[..],
        b"a\tb",
        b"caf\xc3\xa9",
        b"\xff",
        b"\"caf\xc3\xa9\"",
        b"\"a\tb\"",
        b"\"\xff\"",
    ] {
        let mut request = post("/", "k", "");
        let line = HeaderValue::from_bytes(bytes).unwrap();
        request.headers_mut().insert("idempotency-key", line);
        let answer = send(&service, request).await;
        answer.assert_problem(400, "invalid-key");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_3_an_empty_key_is_invalid_never_missing() {
    for require in [false, true] {
        let service = telling(&builder().require_key(require).build().unwrap());
        for empty in ["", "\"\""] {
            send(&service, post("/", empty, ""))
                .await
                .assert_problem(400, "invalid-key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_4_two_lines_or_a_bare_comma_are_invalid() {
    let service = telling(&builder().build().unwrap());
    for lines in [
        &["a", "b"][..],
        &["a", "a"],
        &["a", ""],
        &["\"a\"", "\"a\""],
        &["a,b"],
        &["a,"],
        &[",a"],
        &["a, a"],
        &["\"a\",\"b\""],
        &["\"a\", \"a\""],
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("idempotency-key", *line)).collect();
        send(&service, request("POST", "/", &headers, ""))
            .await
            .assert_problem(400, "invalid-key");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_a_json_pointer_into_the_body() {
    for (pointer, body, expected) in [
        ("/event_id", r#"{"event_id":"evt_1"}"#, Ok("evt_1")),
        ("/idempotency_key", r#"{"a":1,"idempotency_key":"k"}"#, Ok("k")),
        ("/a/b/1", r#"{"a":{"b":["x","y"]}}"#, Ok("y")),
        ("/a~1b", r#"{"a/b":"slash"}"#, Ok("slash")),
        ("/m~0n", r#"{"m~n":"tilde"}"#, Ok("tilde")),
        ("/", r#"{"":"empty name"}"#, Ok("empty name")),
        ("/id", r#"{"id":17}"#, Ok("17")),
        ("/id", r#"{"id":-17}"#, Ok("-17")),
        (
            "/id",
            r#"{"id":123456789012345678901234567890}"#,
            Ok("123456789012345678901234567890"),
        ),
        ("/id", r#"{"id":"\u0061b"}"#, Ok("ab")),
        ("/id", r#"{"id":"with space"}"#, Ok("with space")),
        ("/id", r#"{"id":"a,b"}"#, Ok("a,b")),
        ("/id", r#"{"id":"a\"b"}"#, Ok("a\"b")),
        ("/id", r#"{"id":1.5}"#, Err("invalid-key")),
        ("/id", r#"{"id":1e3}"#, Err("invalid-key")),
        ("/id", r#"{"id":true}"#, Err("invalid-key")),
        ("/id", r#"{"id":null}"#, Err("invalid-key")),
        ("/id", r#"{"id":{}}"#, Err("invalid-key")),
        ("/id", r#"{"id":["x"]}"#, Err("invalid-key")),
        ("/id", r#"{"id":"a","id":"b"}"#, Err("invalid-key")),
        ("/id", r#"{"other":1}"#, Err("missing-key")),
        ("/id", "[1]", Err("missing-key")),
        ("/id", "{", Err("invalid-key")),
        ("/id", "", Err("missing-key")),
        ("/id", r#"{"id":"a"} trailing"#, Err("invalid-key")),
    ] {
        let layer = builder()
            .key(KeySource::json_pointer(pointer))
            .require_key(true)
            .build()
            .unwrap();
        let service = telling(&layer);
        let answer = send(&service, request("POST", "/", &[], body)).await;
        match expected {
            Ok(key) => assert_eq!((answer.text(), answer.outcome()), (key, "executed"), "{pointer} {body}"),
            Err(slug) => {
                assert_eq!(answer.outcome(), slug, "{pointer} {body}");
                answer.assert_problem(400, slug);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_nothing_at_the_pointer_passes_through_with_its_body() {
    let layer = builder().key(KeySource::json_pointer("/id")).build().unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |request: Request<Body>| {
        counter.up();
        async move { ok(axum::body::to_bytes(request.into_body(), 1000).await.unwrap()) }
    }));
    for body in [r#"{"other":1}"#, "[17]", ""] {
        for _ in 0..2 {
            let answer = send(&service, request("POST", "/", &[("idempotency-key", "k")], body)).await;
            assert_eq!((answer.text(), answer.outcome()), (body, "none"));
        }
    }
    assert_eq!((runs.get(), crate::support::counted(&layer, "unguarded")), (6, 6));
    let body = r#"{"id":"k","amount":1}"#;
    assert_eq!(send(&service, request("POST", "/", &[], body)).await.text(), body);
    assert!(send(&service, request("POST", "/", &[], body)).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_a_closure_over_head_and_body() {
    let source = KeySource::from_fn(|parts, body| {
        if parts.uri.path() == "/refuse" {
            return Err(InvalidKey::new("the event has no number"));
        }
        let query = parts.uri.query();
        Ok(query.map(|query| format!("{query}/{}", body.len())))
    });
    let service = telling(&builder().key(source.clone()).build().unwrap());
    assert_eq!(
        send(&service, request("POST", "/?e1", &[], "body")).await.text(),
        "e1/4"
    );
    assert!(send(&service, request("POST", "/?e1", &[], "body")).await.is_replay());
    assert_eq!(send(&service, request("POST", "/", &[], "body")).await.text(), "no key");
    let refused = send(&service, request("POST", "/refuse", &[], "body")).await;
    refused.assert_problem(400, "invalid-key");
    assert_eq!(refused.json()["detail"], "the event has no number");
    let service = telling(&builder().key(source).require_key(true).build().unwrap());
    send(&service, request("POST", "/", &[], ""))
        .await
        .assert_problem(400, "missing-key");
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_rule_2_3_holds_for_every_source() {
    let long = "k".repeat(256);
    for bad in ["", "caf\u{e9}", "a\tb", "line\nbreak", "\u{7f}", long.as_str()] {
        let body = serde_json::json!({ "id": bad }).to_string();
        let by_pointer = builder().key(KeySource::json_pointer("/id")).build().unwrap();
        let given = bad.to_owned();
        let by_closure = builder()
            .key(KeySource::from_fn(move |_, _| Ok(Some(given.clone()))))
            .build()
            .unwrap();
        for layer in [by_pointer, by_closure] {
            let service = telling(&layer);
            let answer = send(&service, request("POST", "/", &[], body.clone())).await;
            answer.assert_problem(400, "invalid-key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_the_preset_for_webhooks_takes_the_id_and_no_fingerprint() {
    let layer = builder().webhooks("webhooks", KeySource::webhook_id()).build().unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    let delivery = |id: &str, signature: &str, body: &'static str| {
        let headers = [
            ("webhook-id", id),
            ("webhook-signature", signature),
            ("authorization", signature),
        ];
        request("POST", "/hooks", &headers, body)
    };
    let first = send(&service, delivery("msg_1", "v1,a", r#"{"sent":1}"#)).await;
    send(&service, delivery("msg_1", "v1,b", r#"{"sent":2}"#))
        .await
        .assert_replay_of(&first);
    assert_eq!(send(&service, delivery("msg_2", "v1,c", "{}")).await.text(), "run 2");

    let layer = builder()
        .webhooks("webhooks", KeySource::json_pointer("/id"))
        .build()
        .unwrap();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    let first = send(&service, request("POST", "/", &[], r#"{"id":"evt","try":1}"#)).await;
    send(&service, request("POST", "/", &[], r#"{"id":"evt","try":2}"#))
        .await
        .assert_replay_of(&first);
    assert_eq!(runs.get(), 3);
}

/// The slot that a request with these headers is kept under.
async fn slot(scope: ScopeSource, headers: &[(&str, &str)]) -> Slot {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone()).scope(scope).build().unwrap();
    let answer = send(&telling(&layer), request("POST", "/", headers, "b")).await;
    assert_eq!(answer.outcome(), "executed", "{answer:?}");
    store.begins().last().unwrap().slot
}

#[tokio::test(start_paused = true)]
async fn contract_2_6_no_crafted_scope_and_key_collide_with_another_pair() {
    let key = |key| ("idempotency-key", key);
    let by = |value| ("authorization", value);
    let mut slots = Vec::new();
    for headers in [
        vec![key("bc"), by("a")],
        vec![key("c"), by("ab")],
        vec![key("abc")],
        vec![key("abc"), by("")],
        vec![key("c"), by("a"), by("b")],
        vec![key("c"), by("b"), by("a")],
        vec![key("c"), by("a"), by("b"), by("")],
        vec![key("\"c \""), by("ab")],
        vec![key("c:a"), by("b")],
        vec![key("a"), by("b:c")],
    ] {
        slots.push(slot(ScopeSource::default(), &headers).await);
    }
    slots.push(slot(ScopeSource::shared_by_all("ab"), &[key("c")]).await);
    slots.push(slot(ScopeSource::shared_by_all("a"), &[key("bc")]).await);
    slots.push(slot(ScopeSource::shared_by_all(""), &[key("abc")]).await);
    slots.push(slot(ScopeSource::from_head(|_| Ok("ab".into())), &[key("c")]).await);
    let distinct: std::collections::HashSet<_> = slots.iter().collect();
    assert_eq!(distinct.len(), slots.len());
    assert_eq!(Slot::LEN * 8, 256);
    // The same pair is the same slot in every layer, process and spelling.
    let pair = [key("bc"), by("a")];
    assert_eq!(slot(ScopeSource::default(), &pair).await, slots[0]);
    assert_eq!(
        slot(ScopeSource::default(), &[by("a"), key("\"bc\";v=1")]).await,
        slots[0]
    );
}

#[tokio::test(start_paused = true)]
async fn contract_2_6_the_store_sees_neither_keys_nor_credentials() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::new(store.clone());
    let headers = [
        ("idempotency-key", "secret-key"),
        ("authorization", "Bearer secret-token"),
    ];
    let service = layer.layer(inner(|_| ready(ok("answer"))));
    send(&service, request("POST", "/", &headers, "secret-body")).await;
    let mut seen = format!("{:?}", store.begins()).into_bytes();
    for begin in store.begins() {
        seen.extend(begin.slot.as_bytes());
        seen.extend(begin.fingerprint.as_bytes());
    }
    for record in store.records() {
        seen.extend(record.to_bytes());
    }
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("answer"), "what is kept was looked at");
    assert!(!seen.contains("secret"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_the_first_present_of_several_headers() {
    let layer = builder()
        .key(KeySource::headers(["Idempotency-Key", "X-Idempotency-Key"]))
        .build()
        .unwrap();
    let service = telling(&layer);
    for (headers, key) in [
        (&[("x-idempotency-key", "old")][..], "old"),
        (&[("idempotency-key", "new")], "new"),
        (&[("x-idempotency-key", "old"), ("idempotency-key", "new-2")], "new-2"),
    ] {
        let first = send(&service, request("POST", "/", headers, "")).await;
        assert_eq!((first.text(), first.outcome()), (key, "executed"));
    }
    // The same key is the same operation, whichever header carries it.
    let moved = send(&service, request("POST", "/", &[("idempotency-key", "old")], "")).await;
    assert!(moved.is_replay(), "{moved:?}");
    // One that is present and invalid is not passed over.
    for headers in [
        &[("idempotency-key", ""), ("x-idempotency-key", "k")][..],
        &[("x-idempotency-key", "a"), ("x-idempotency-key", "b")],
    ] {
        let answer = send(&service, request("POST", "/", headers, "")).await;
        answer.assert_problem(400, "invalid-key");
    }
    let none = send(&service, request("POST", "/", &[("webhook-id", "k")], "")).await;
    assert_eq!(none.text(), "no key");
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_several_pointers_are_joined_and_all_must_be_there() {
    let layer = builder()
        .key(KeySource::json_pointers(["/code", "/data/reference"]))
        .require_key(true)
        .build()
        .unwrap();
    let service = telling(&layer);
    let event = |code: &str, reference: &str| {
        let body = serde_json::json!({ "code": code, "data": { "reference": reference } });
        request("POST", "/", &[], body.to_string())
    };
    let first = send(&service, event("CAPTURE", "ref-1")).await;
    assert_eq!((first.text(), first.outcome()), ("7:CAPTURE5:ref-1", "executed"));
    assert!(send(&service, event("CAPTURE", "ref-1")).await.is_replay());
    for (code, reference) in [
        ("REFUND", "ref-1"),
        ("CAPTURE", "ref-2"),
        ("CAPTUREr", "ef-1"),
        ("CAPTURE5:", "ref-1"),
    ] {
        let other = send(&service, event(code, reference)).await;
        assert_eq!(other.outcome(), "executed", "{code} {reference}");
    }
    for (body, slug) in [
        (r#"{"code":"CAPTURE"}"#, "missing-key"),
        (r#"{"data":{"reference":"ref-1"}}"#, "missing-key"),
        (r#"{"code":"CAPTURE","data":{"reference":""}}"#, "invalid-key"),
        (r#"{"code":"CAPTURE","data":{"reference":null}}"#, "invalid-key"),
        (r#"{"code":"CAPTURE","data":{"reference":"undefined"}}"#, "invalid-key"),
        (r#"{"data":{"reference":"a","reference":"b"}}"#, "invalid-key"),
    ] {
        let answer = send(&service, request("POST", "/", &[], body)).await;
        answer.assert_problem(400, slug);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_a_closure_over_the_head_buffers_nothing() {
    let source = KeySource::from_head(|parts| match parts.uri.path() {
        "/refuse" => Err(InvalidKey::new("the event has no number")),
        _ => Ok(parts.uri.query().map(str::to_owned)),
    });
    let layer = builder().key(source).max_request_body(4).build().unwrap();
    let service = telling(&layer);
    assert_eq!(send(&service, request("POST", "/?e1", &[], "b")).await.text(), "e1");
    assert!(send(&service, request("POST", "/?e1", &[], "b")).await.is_replay());
    let refused = send(&service, request("POST", "/refuse", &[], "b")).await;
    refused.assert_problem(400, "invalid-key");
    assert_eq!(refused.json()["detail"], "the event has no number");
    // Without a key the body streams, whatever its size.
    let passed = send(&service, request("POST", "/", &[], "a body above the limit")).await;
    assert_eq!((passed.text(), passed.outcome()), ("no key", "none"));
}

#[tokio::test(start_paused = true)]
async fn contract_2_5_a_body_that_cannot_be_read_is_invalid_never_without_a_key() {
    let gzip: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0];
    for (encoding, body, reason) in [
        ("gzip", gzip, "Content-Encoding"),
        ("br", br#"{"id":"k"}"#, "Content-Encoding"),
        ("identity, zstd", br#"{"id":"k"}"#, "Content-Encoding"),
        ("", b"not json", "not JSON"),
        ("", b" ", "not JSON"),
        ("", b"{\"id\":\"k\"", "not JSON"),
        ("", br#"{"note\ud800":1,"id":"k"}"#, "line 1"),
        ("", b"{\"note\xff\":1,\"id\":\"k\"}", "line 1"),
        ("", br#"{"id":"\udc00"}"#, "string"),
        ("", br#"{"id":"k","id":"k"}"#, "more than once"),
    ] {
        for require in [false, true] {
            let layer = builder()
                .key(KeySource::json_pointer("/id"))
                .require_key(require)
                .build()
                .unwrap();
            let service = telling(&layer);
            let mut request = request("POST", "/", &[], body);
            if !encoding.is_empty() {
                let encoding = HeaderValue::from_static(encoding);
                request.headers_mut().insert("content-encoding", encoding);
            }
            let answer = send(&service, request).await;
            answer.assert_problem(400, "invalid-key");
            let problem = answer.json();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(reason), "{detail}");
        }
    }
    let service = telling(&builder().key(KeySource::json_pointer("/id")).build().unwrap());
    for (encoding, body) in [
        ("identity", r#"{"id":"k"}"#),
        ("Identity", r#"{"id":"k"}"#),
        ("gzip", ""),
    ] {
        let answer = send(&service, request("POST", "/", &[("content-encoding", encoding)], body)).await;
        assert_eq!(answer.status.as_u16(), 200, "{encoding} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_7_placeholders_are_invalid_from_every_source() {
    for placeholder in [
        "undefined",
        "NULL",
        "None",
        "nil",
        "NaN",
        "[object Object]",
        "{{key}}",
        "${key}",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-ffff-ffff-ffff-ffffffffffff",
    ] {
        let body = serde_json::json!({ "id": placeholder }).to_string();
        let quoted = format!("\"{placeholder}\"");
        let headers = [("idempotency-key", quoted.as_str()), ("x-key", quoted.as_str())];
        let (of_head, of_body) = (placeholder.to_owned(), placeholder.to_owned());
        for source in [
            KeySource::default(),
            KeySource::headers(["x-other", "x-key"]),
            KeySource::json_pointer("/id"),
            KeySource::from_head(move |_| Ok(Some(of_head.clone()))),
            KeySource::from_fn(move |_, _| Ok(Some(of_body.clone()))),
        ] {
            for format in [KeyFormat::Any, KeyFormat::Structured, KeyFormat::Uuid] {
                let layer = builder().key(source.clone()).key_format(format).build().unwrap();
                let answer = send(&telling(&layer), request("POST", "/", &headers, body.clone())).await;
                answer.assert_problem(400, "invalid-key");
            }
        }
        let detail = send(
            &telling(&builder().build().unwrap()),
            request("POST", "/", &headers, ""),
        )
        .await;
        assert!(detail.text().contains("placeholder"), "{}", detail.text());
    }
    let service = telling(&builder().build().unwrap());
    for key in [
        "undefined-1",
        "nullable",
        "{key}",
        "00000000-0000-0000-0000-000000000001",
    ] {
        assert_eq!(send(&service, post("/", key, "")).await.text(), key);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_2_6_the_slot_of_a_key_obeys_the_rules_for_a_requests_key() {
    let sent = |layer: &IdempotencyLayer<Scripted>, store: &Scripted, line: &str| {
        let (service, store) = (telling(layer), store.clone());
        let request = request(
            "POST",
            "/",
            &[("idempotency-key", line), ("authorization", "Bearer a")],
            "b",
        );
        async move {
            send(&service, request).await;
            store.begins().last().unwrap().slot
        }
    };
    for (format, line, spellings) in [
        (
            KeyFormat::Any,
            "order-17",
            &["order-17", "\"order-17\"", "\"order-17\";v=1"][..],
        ),
        (KeyFormat::Any, "\"a b,c\"", &["a b,c", "\"a b,c\""]),
        (KeyFormat::Structured, "\"k\"", &["k", "\"k\""]),
        (
            KeyFormat::Uuid,
            UUID,
            &[
                UUID,
                "8E03978E-40D5-43DD-BC93-6894A57F9324",
                "\"8E03978E-40D5-43DD-bc93-6894a57f9324\"",
            ],
        ),
    ] {
        let store = Scripted::default();
        let layer = IdempotencyLayer::builder(store.clone())
            .key_format(format)
            .build()
            .unwrap();
        let slot = sent(&layer, &store, line).await;
        for spelling in spellings {
            assert_eq!(
                layer.slot(Some("Bearer a"), spelling),
                Ok(slot),
                "{format:?} {spelling}"
            );
        }
    }
    let uuids = builder()
        .key_format(KeyFormat::Uuid)
        .max_key_length(36)
        .build()
        .unwrap();
    for refused in [
        "",
        "\"\"",
        "order-17",
        "caf\u{e9}",
        "undefined",
        "\"k",
        UUID.replace('-', "").as_str(),
    ] {
        assert!(uuids.slot(None, refused).is_err(), "{refused}");
    }
    // A key in the body is taken as it is, quotes included.
    let by_pointer = builder().key(KeySource::json_pointer("/id")).build().unwrap();
    assert_ne!(by_pointer.slot(None, "k"), by_pointer.slot(None, "\"k\""));
}
