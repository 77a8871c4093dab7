//! Section 8 of the contract: what of a streamed body counts, and the digests that clients declare.

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256, Sha512};
use tower::Layer;
use tower_idempotency::{FingerprintSource, IdempotencyLayer, IdempotencyService, MemoryStore};

use crate::support::{Answer, Count, Inner, ScriptedBody, Step, inner, ok, request, send, settle};

const MIB: usize = 1024 * 1024;

/// A service whose bodies are streamed, or held.
#[derive(Clone)]
struct Service {
    service: IdempotencyService<Inner>,
    runs: Count,
    /// How often a body failed while the handler read it.
    failures: Count,
    store: MemoryStore,
}

impl Service {
    fn new(source: FingerprintSource, streams: bool) -> Self {
        let store = MemoryStore::new();
        let builder = IdempotencyLayer::builder(store.clone()).fingerprint(source);
        let builder = if streams {
            // The limit of what is held is for JSON alone.
            builder.stream_request_bodies(4 * MIB).max_request_body(MIB)
        } else {
            builder.max_request_body(4 * MIB)
        };
        let (runs, failures) = (Count::default(), Count::default());
        let (counts, fails) = (runs.clone(), failures.clone());
        let service = builder.build().unwrap().layer(inner(move |request: Request<Body>| {
            let (run, fails) = (counts.up(), fails.clone());
            async move {
                match request.into_body().collect().await {
                    Ok(body) => ok(format!("run {run} of {}", body.to_bytes().len())),
                    Err(_) => ok(format!("failure {}", fails.up())),
                }
            }
        }));
        Self {
            service,
            runs,
            failures,
            store,
        }
    }

    fn streaming() -> Self {
        Self::new(FingerprintSource::request(), true)
    }

    async fn send(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let headers = [&[("idempotency-key", "k")], headers].concat();
        send(&self.service, request("POST", "/files", &headers, body)).await
    }
}

/// A body in frames of that many bytes.
fn frames(body: &[u8], of: usize) -> Body {
    let frames = body.chunks(of).map(Bytes::copy_from_slice);
    Body::new(ScriptedBody::new(frames.map(Step::Data).collect::<Vec<_>>()))
}

/// Headers, and a body.
type Message = (Vec<(&'static str, String)>, Vec<u8>);

fn message(content_type: &str, body: impl AsRef<[u8]>) -> Message {
    (vec![("content-type", content_type.into())], body.as_ref().into())
}

/// Whether both count as one request, and by what the layer answers.
async fn are_one(source: &FingerprintSource, streams: bool, one: &Message, other: &Message) -> bool {
    let service = Service::new(source.clone(), streams);
    let send = async |message: &Message, of| {
        let headers: Vec<_> = message.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        service.send(&headers, frames(&message.1, of)).await
    };
    let first = send(one, 7).await;
    assert_eq!(first.outcome(), "executed", "{first:?}");
    for of in [4096, 1] {
        send(one, of.min(one.1.len().max(1))).await.assert_replay_of(&first);
    }
    let retry = send(other, 5).await;
    assert_eq!(service.runs.get(), 1);
    match retry.outcome() {
        "replayed" => true,
        "key-reused" => false,
        outcome => panic!("{outcome}"),
    }
}

fn form(boundary: &str, parts: &[(&str, &str)]) -> Message {
    let mut body = String::new();
    for (headers, content) in parts {
        body += &format!("--{boundary}\r\n{headers}\r\n\r\n{content}\r\n");
    }
    body += &format!("--{boundary}--\r\n");
    message(&format!("multipart/form-data; boundary={boundary}"), body)
}

const NAME: &str = r#"Content-Disposition: form-data; name="kind""#;
const CSRF: &str = r#"Content-Disposition: form-data; name="csrf""#;
const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\nContent-Type: image/png";

#[tokio::test]
async fn contract_8_5_multipart_is_compared_by_its_parts() {
    let request = FingerprintSource::request();
    let without = FingerprintSource::request().without(["/csrf"]);
    let content = "bytes\r\n--other\r\n--one";
    let first = form("one-1", &[(NAME, "passport"), (FILE, content)]);
    let gif = FILE.replace("png", "gif");
    for streams in [true, false] {
        for source in [&request, &without] {
            let again = form(
                "----WebKitFormBoundary7MA4YWxkTrZu0gW",
                &[(NAME, "passport"), (FILE, content)],
            );
            assert!(are_one(source, streams, &first, &again).await);
            for other in [
                form("one-1", &[(NAME, "selfie"), (FILE, content)]),
                form("one-1", &[(NAME, "passport"), (FILE, "bytes")]),
                form("one-1", &[(NAME, "passport"), (&gif, content)]),
                form("one-1", &[(FILE, content), (NAME, "passport")]),
                form("one-1", &[(NAME, "passport")]),
                message("text/plain", &first.1),
            ] {
                assert!(!are_one(source, streams, &first, &other).await, "{other:?}");
            }
        }
        let with = |token| form("b", &[(CSRF, token), (NAME, "passport"), (FILE, content)]);
        assert!(are_one(&without, streams, &with("x"), &with("y")).await);
        assert!(are_one(&without, streams, &first, &with("y")).await);
        assert!(!are_one(&request, streams, &with("x"), &with("y")).await);
    }
}

#[tokio::test]
async fn contract_8_5_multipart_that_cannot_be_read_counts_by_its_bytes() {
    let one = form("one", &[(NAME, "1")]);
    let text = |message: &Message| String::from_utf8(message.1.clone()).unwrap();
    let replaced = |from: &str, to: &str| message(&one.0[0].1, text(&one).replace(from, to));
    let longest = "y".repeat(MIB);
    let many = vec![(NAME, "1"); 10_001];
    for broken in [
        replaced("--one--\r\n", ""),
        replaced("--one--\r\n", "--one--\r\nmore"),
        replaced("\r\n", "\n"),
        replaced(NAME, &format!("{NAME}\r\n{NAME}")),
        replaced(NAME, &format!("{NAME}\r\nX: {longest}")),
        message("multipart/form-data", &one.1),
        message("multipart/form-data; boundary=other", &one.1),
        message("multipart/form-data; boundary=", &one.1),
        message(&format!("multipart/form-data; boundary={}", "b".repeat(71)), &one.1),
        form("one", &many),
    ] {
        let mut other = broken.clone();
        let last = other.1.len() - 1;
        other.1[last] ^= 1;
        let source = FingerprintSource::request().without(["/kind"]);
        let service = Service::new(source, true);
        let headers: Vec<_> = broken.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let first = service.send(&headers, broken.1.clone()).await;
        service
            .send(&headers, frames(&broken.1, 4095))
            .await
            .assert_replay_of(&first);
        service.send(&headers, other.1).await.assert_problem(422, "key-reused");
    }
}

#[tokio::test]
async fn contract_8_5_a_part_that_never_ends_is_bounded_by_the_limit() {
    let service = Service::streaming();
    let head = Step::Data(format!("--b\r\n{FILE}\r\n\r\n").into());
    let endless = std::iter::repeat_n(Step::Data(Bytes::from(vec![b'x'; MIB])), 5);
    let body = Body::new(ScriptedBody::new(std::iter::once(head).chain(endless)));
    let headers = [("content-type", "multipart/form-data; boundary=b")];
    service.send(&headers, body).await.assert_problem(413, "body-too-large");
    assert_eq!(service.store.stats().entries, 0);
}

#[tokio::test]
async fn contract_8_5_fields_of_forms_can_be_left_out() {
    let source = FingerprintSource::request().without(["/csrf"]);
    let form = |body: &str| message("application/x-www-form-urlencoded", body);
    for streams in [true, false] {
        for same in [
            "csrf=y&a=1&b=2",
            "a=1&csrf=&b=2",
            "a=1&b=2&csrf",
            "a=1&%63srf=x&b=2&csrf=z",
        ] {
            assert!(
                are_one(&source, streams, &form("csrf=x&a=1&b=2"), &form(same)).await,
                "{same}"
            );
        }
        for other in [
            "a=1",
            "a=1&b=3",
            "b=2&a=1",
            "a=1&b=2&csrf2=x",
            "a=1&b=2&",
            "a=1&&b=2",
            "a=1%26b=2",
        ] {
            assert!(
                !are_one(&source, streams, &form("csrf=x&a=1&b=2"), &form(other)).await,
                "{other}"
            );
        }
        let long = |name: &str| form(&format!("{}=1", name.repeat(10_000)));
        assert!(!are_one(&source, streams, &long("a"), &long("b")).await);
    }
}

#[tokio::test]
async fn contract_8_5_json_is_compared_by_its_meaning_up_to_the_limit_of_what_is_held() {
    let json = |body: &str| message("application/json", body);
    let (one, other_order) = (
        json(r#"{"a":1,"b":[2],"at":1}"#),
        json(r#"{ "b": [2], "a": 1, "at": 1 }"#),
    );
    let (other_time, other_value) = (json(r#"{"a":1,"b":[2],"at":2}"#), json(r#"{"a":2,"b":[2],"at":1}"#));
    for streams in [true, false] {
        for (source, order, time, value) in [
            (FingerprintSource::request(), false, false, false),
            (FingerprintSource::body(), false, false, false),
            (FingerprintSource::canonical_json(), true, false, false),
            (FingerprintSource::request().without(["/at"]), true, true, false),
            (FingerprintSource::canonical_json().without(["/at"]), true, true, false),
            (FingerprintSource::json_fields(["/b"]), true, true, true),
        ] {
            assert_eq!(are_one(&source, streams, &one, &other_order).await, order, "{source:?}");
            assert_eq!(are_one(&source, streams, &one, &other_time).await, time, "{source:?}");
            assert_eq!(are_one(&source, streams, &one, &other_value).await, value, "{source:?}");
            let broken = json("{\"a\":1");
            assert!(
                !are_one(&source, streams, &broken, &json("{\"a\":1,")).await,
                "{source:?}"
            );
        }
    }
    // A text that is not held counts by its bytes.
    let long = |space: &str| json(&format!(r#"{{"a":{space}"{}"}}"#, "x".repeat(MIB)));
    let source = FingerprintSource::canonical_json();
    assert!(!are_one(&source, true, &long(""), &long(" ")).await);
    assert!(are_one(&source, true, &long(" "), &long(" ")).await);
}

#[tokio::test]
async fn contract_8_5_the_head_counts_as_the_source_says() {
    for (source, path_counts) in [(FingerprintSource::request(), true), (FingerprintSource::body(), false)] {
        let service = Service::new(source, true);
        let first = service.send(&[], "one").await;
        let headers = [("idempotency-key", "k")];
        let other = send(&service.service, request("POST", "/other", &headers, "one")).await;
        match path_counts {
            true => other.assert_problem(422, "key-reused"),
            false => other.assert_replay_of(&first),
        }
    }
}

#[tokio::test]
async fn contract_8_5_of_encoded_bodies_the_bytes_that_arrive_count() {
    let (plain, gzip) = ("{\"a\":1}", "\x1f\x08not really");
    for streams in [true, false] {
        let source = FingerprintSource::canonical_json();
        let encoded: Message = (
            vec![
                ("content-type", "application/json".into()),
                ("content-encoding", "gzip".into()),
            ],
            gzip.into(),
        );
        let identity = message("application/json", plain);
        // One content, and two encodings of it: other bytes.
        assert!(!are_one(&source, streams, &encoded, &identity).await);
        assert!(!are_one(&source, streams, &identity, &encoded).await);
        assert!(are_one(&source, streams, &encoded, &encoded).await);
        // An encoded form is not read.
        let mut form = form("b", &[(NAME, "1")]);
        form.0.push(("content-encoding", "gzip".into()));
        let mut other = form.clone();
        other.1 = String::from_utf8(form.1.clone()).unwrap().replace("--b", "--c").into();
        other.0[0].1 = form.0[0].1.replace("=b", "=c");
        assert!(!are_one(&source, streams, &form, &other).await);
    }
}

fn sha256(body: &str) -> String {
    format!("sha-256=:{}:", BASE64.encode(Sha256::digest(body)))
}

fn sha512(body: &str) -> String {
    format!("sha-512=:{}:", BASE64.encode(Sha512::digest(body)))
}

/// A body that nobody may read: the client waits for `100 Continue`.
fn unread(polled: &Count) -> Body {
    Body::new(ScriptedBody::new([Step::Hang]).counting(polled))
}

#[tokio::test]
async fn contract_8_3_a_duplicate_with_the_verified_digest_is_answered_before_its_body_is_read() {
    for name in ["content-digest", "repr-digest"] {
        for digest in [sha256, sha512, |body: &str| {
            format!("{}, {}", sha512(body), sha256(body))
        }] {
            let service = Service::streaming();
            let digest = digest("one");
            let first = service.send(&[(name, &digest)], "one").await;
            assert_eq!(first.outcome(), "executed");
            let polled = Count::default();
            for again in ["content-digest", "repr-digest"] {
                let headers = [(again, digest.as_str()), ("expect", "100-continue")];
                service.send(&headers, unread(&polled)).await.assert_replay_of(&first);
            }
            settle().await;
            assert_eq!(polled.get(), 0);
            // Without a digest, or with another, the body is read.
            service.send(&[], "one").await.assert_replay_of(&first);
            service.send(&[], "two").await.assert_problem(422, "key-reused");
            service
                .send(&[(name, &sha256("two"))], "two")
                .await
                .assert_problem(422, "key-reused");
            service
                .send(&[(name, &sha256("two"))], "one")
                .await
                .assert_problem(400, "digest-mismatch");
            assert_eq!(service.runs.get(), 1);
        }
    }
}

#[tokio::test]
async fn contract_8_3_a_digest_that_the_first_did_not_declare_is_checked_by_reading() {
    let service = Service::streaming();
    let first = service.send(&[("content-digest", &sha256("one"))], "one").await;
    service
        .send(&[("content-digest", &sha512("one"))], "one")
        .await
        .assert_replay_of(&first);
    let service = Service::streaming();
    let first = service.send(&[], "one").await;
    service
        .send(&[("content-digest", &sha256("one"))], "one")
        .await
        .assert_replay_of(&first);
    // The same bytes under another type are not the same parts.
    let service = Service::streaming();
    let (kind, body) = form("b", &[(NAME, "1")]);
    let digest = sha256(std::str::from_utf8(&body).unwrap());
    let headers = [("content-type", kind_of(&kind)), ("content-digest", digest.as_str())];
    service.send(&headers, body.clone()).await;
    let headers = [("content-type", "text/plain"), ("content-digest", digest.as_str())];
    service.send(&headers, body).await.assert_problem(422, "key-reused");
}

fn kind_of<'a>(headers: &'a [(&'static str, String)]) -> &'a str {
    headers[0].1.as_str()
}

#[tokio::test]
async fn contract_8_3_a_body_that_does_not_match_its_digest_is_400_and_nothing_is_stored() {
    for streams in [true, false] {
        for name in ["content-digest", "repr-digest"] {
            for digest in [
                sha256("two"),
                sha512("two"),
                format!("{}, {}", sha256("one"), sha512("two")),
            ] {
                let service = Service::new(FingerprintSource::request(), streams);
                let answer = service.send(&[(name, &digest)], "one").await;
                answer.assert_problem(400, "digest-mismatch");
                assert_eq!(answer.json()["retryable"], false);
                assert_eq!(service.store.stats().entries, 0);
                // The handler of a streamed body sees an error where the end would be.
                assert_eq!(service.failures.get(), usize::from(streams));
                assert_eq!(service.runs.get(), usize::from(streams));
                let first = service.send(&[(name, &sha256("one"))], "one").await;
                assert_eq!(first.outcome(), "executed");
                service.send(&[], "one").await.assert_replay_of(&first);
            }
        }
    }
}

#[tokio::test]
async fn contract_8_3_a_digest_that_is_malformed_is_400_and_an_unknown_algorithm_is_passed_over() {
    let (other, short) = (sha256("two"), format!("sha-256=:{}:", BASE64.encode("short")));
    let one = sha256("one");
    for streams in [true, false] {
        for header in [
            "sha-256",
            "sha-256=abc",
            "=",
            "sha-256=:a b:",
            "\"",
            "sha-256=(:aaaa:)",
            &short,
            "sha-512=1",
        ] {
            for name in ["content-digest", "repr-digest"] {
                let service = Service::new(FingerprintSource::request(), streams);
                let answer = service.send(&[(name, header)], "one").await;
                answer.assert_problem(400, "digest-mismatch");
                assert_eq!((service.runs.get(), service.store.stats().entries), (0, 0), "{header}");
            }
        }
        for passed_over in ["md5=:AAAA:", "unixsum=:AQ==:", "crc32c=:AAAAAA==:, x=1", "", "a, b"] {
            let service = Service::new(FingerprintSource::request(), streams);
            let first = service.send(&[("content-digest", passed_over)], "one").await;
            assert_eq!(first.outcome(), "executed", "{passed_over}");
        }
        let service = Service::new(FingerprintSource::request(), streams);
        let contradictory = [("content-digest", one.as_str()), ("repr-digest", other.as_str())];
        let answer = service.send(&contradictory, "one").await;
        answer.assert_problem(400, "digest-mismatch");
        assert!(answer.text().contains("different digests"));
        assert_eq!(service.runs.get(), 0);
        // Of a part, the digest of the whole says nothing.
        let part = [("content-range", "bytes 0-2/9"), ("repr-digest", other.as_str())];
        assert_eq!(service.send(&part, "one").await.outcome(), "executed");
        // Two lines are one dictionary, of which the last value of a name counts.
        let service = Service::new(FingerprintSource::request(), streams);
        let lines = [("content-digest", other.as_str()), ("content-digest", one.as_str())];
        assert_eq!(service.send(&lines, "one").await.outcome(), "executed");
    }
}

#[tokio::test]
async fn contract_8_3_digests_of_requests_that_are_not_guarded_are_none_of_the_layer() {
    for streams in [true, false] {
        let service = Service::new(FingerprintSource::request(), streams);
        let headers = [("content-digest", "sha-256=:broken")];
        let answer = send(&service.service, request("POST", "/", &headers, "one")).await;
        assert_eq!(answer.text(), "run 1 of 3");
    }
}
