//! Streamed request bodies: what two bodies are, in whatever frames they come and wherever they are cut, is
//! what they are to a layer that holds them; and no operation runs twice.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    FingerprintSource, IdempotencyLayer, IdempotencyService, MemoryStore, Outcome, ProblemKind, RequestBody,
};

use super::body::{Script, Step};
use super::input::{Input, at_once};

/// Small, so that inputs reach it.
const LIMIT: usize = 600;
const JSON_LIMIT: usize = 200;
/// The rule that leaves fields out.
const LEAVES_OUT: usize = 1;
/// The rule that covers nothing.
const NOTHING: usize = 5;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let rule = input.below(6);
    let source = match rule {
        0 => FingerprintSource::request(),
        LEAVES_OUT => FingerprintSource::request().without(["/a", "/csrf"]),
        2 => FingerprintSource::canonical_json(),
        3 => FingerprintSource::json_fields(["/a"]),
        4 => FingerprintSource::body(),
        _ => FingerprintSource::none(),
    };
    let content_type = input.one_of(&[
        "multipart/form-data; boundary=b",
        "multipart/form-data; boundary=\"-\"",
        "application/x-www-form-urlencoded",
        "application/json",
        "text/plain",
    ]);
    let one = text(&mut input);
    // A second body that differs in little, or in nothing.
    let mut other = one.clone();
    for _ in 0..input.below(3) {
        let at = input.below(256).min(other.len());
        match input.below(3) {
            0 => drop(other.drain(at..(at + 1).min(other.len()))),
            1 => other.insert(at, input.byte()),
            _ => other.splice(at..at, text(&mut input)).for_each(drop),
        }
    }
    other.truncate(LIMIT);
    let streamed = compare(&mut input, &source, content_type, true, &one, &other);
    let held = compare(&mut input, &source, content_type, false, &one, &other);
    // What is one request to the strict reader is one to the other. The readers of forms, fields and JSON are
    // the same; JSON beyond its limit counts by its bytes.
    assert!(held || !streamed, "one to the stream alone");
    if !content_type.starts_with("multipart") && one.len().max(other.len()) <= JSON_LIMIT {
        assert_eq!(held, streamed, "{source:?}");
    }
    cut(&mut input, &source, content_type, &one);
    rebuilt(&mut input, &source, rule);
}

/// A body that is made of what readers look for.
fn text(input: &mut Input<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..input.below(12) {
        match input.below(16) {
            0 => text.extend_from_slice(b"--b\r\n"),
            1 => text.extend_from_slice(b"\r\n--b"),
            2 => text.extend_from_slice(b"\r\n--b--\r\n"),
            3 => text.extend_from_slice(b"Content-Disposition: form-data; name=\"csrf\"\r\n\r\n"),
            4 => text.extend_from_slice(b"Content-Type: a/b\r\n"),
            5 => text.extend_from_slice(b"\r\n"),
            6 => text.extend_from_slice(b"\r\n---\r\n"),
            7 => text.extend_from_slice(b"csrf=1&"),
            8 => text.extend_from_slice(b"a=%20&"),
            9 => text.extend_from_slice(br#"{"a":1,"csrf":2}"#),
            10 => text.extend_from_slice(br#"{"b":[1, 2],"a":"x"}"#),
            11 => text.extend_from_slice(b"\r"),
            12 => text.extend_from_slice(b"-"),
            _ => text.extend_from_slice(input.bytes()),
        }
    }
    text.truncate(LIMIT);
    text
}

/// The body in frames of the input's choice.
fn frames(input: &mut Input<'_>, mut body: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    while !body.is_empty() {
        let length = match input.byte() {
            0 => body.len(),
            length => usize::from(length).min(body.len()),
        };
        let (frame, rest) = body.split_at(length);
        steps.push(Step::Data(Bytes::copy_from_slice(frame)));
        body = rest;
    }
    steps
}

/// A part of a form.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    name: &'static str,
    file_name: Option<&'static str>,
    content_type: Option<&'static str>,
    content: Vec<u8>,
}

impl Part {
    fn draw(input: &mut Input<'_>) -> Self {
        Self {
            name: input.one_of(&["kind", "csrf", "file", "", "a;b"]),
            file_name: input.one_of(&[None, Some("p.jpg"), Some(""), Some("a b; c=d.png")]),
            content_type: input.one_of(&[None, Some("image/jpeg"), Some("text/plain; charset=utf-8")]),
            content: text(input),
        }
    }
}

/// The form as a client sends it that has this boundary. Some write the names of headers in small letters, some
/// put the type of the content first, and some end with a line break.
fn written(input: &mut Input<'_>, parts: &[Part], boundary: &str) -> Vec<u8> {
    let mut form = Vec::new();
    let (is_small, type_first) = (input.is_odd(), input.is_odd());
    for part in parts {
        let mut disposition = format!("Content-Disposition: form-data; name=\"{}\"", part.name);
        if let Some(file_name) = part.file_name {
            disposition += &format!("; filename=\"{file_name}\"");
        }
        let mut headers = vec![disposition];
        headers.extend(
            part.content_type
                .map(|content_type| format!("Content-Type: {content_type}")),
        );
        if type_first {
            headers.reverse();
        }
        if is_small {
            for header in &mut headers {
                let colon = header.find(':').expect("a header");
                header[..colon].make_ascii_lowercase();
            }
        }
        form.extend(format!("--{boundary}\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes());
        form.extend(&part.content);
        form.extend(b"\r\n");
    }
    form.extend(format!("--{boundary}--{}", input.one_of(&["", "\r\n"])).into_bytes());
    form
}

/// A client that builds its form anew for the retry gets the first answer. With another part it does not.
fn rebuilt(input: &mut Input<'_>, source: &FingerprintSource, rule: usize) {
    let parts: Vec<Part> = (0..1 + input.below(3)).map(|_| Part::draw(input)).collect();
    let one = written(input, &parts, "boundary-of-one");
    let again = written(input, &parts, "another");
    let mut changed = parts.clone();
    let at = input.below(parts.len());
    changed[at] = Part::draw(input);
    let other = written(input, &changed, "another");
    let is_within = |form: &[u8]| form.len() <= LIMIT;
    let has = |text: &[u8], boundary: &str| text.windows(boundary.len()).any(|window| window == boundary.as_bytes());
    let mixes = |part: &Part| has(&part.content, "--boundary-of-one") || has(&part.content, "--another");
    if !(is_within(&one) && is_within(&again) && is_within(&other)) || parts.iter().chain(&changed).any(mixes) {
        return;
    }
    // A form has no JSON fields, and so counts whole under that rule too.
    let counts = |parts: &[Part]| -> Vec<Part> {
        let is_left_out = |part: &&Part| part.name == "csrf" && rule == LEAVES_OUT;
        parts.iter().filter(|part| !is_left_out(part)).cloned().collect()
    };
    let is_same = rule == NOTHING || counts(&parts) == counts(&changed);
    let expected = if is_same {
        Outcome::Replayed
    } else {
        Outcome::Refused(ProblemKind::KeyReused)
    };
    for streams in [true, false] {
        let service = Service::new(
            source,
            "multipart/form-data; boundary=boundary-of-one",
            streams,
            usize::MAX,
        );
        assert_eq!(service.send(frames(input, &one)), Outcome::Executed);
        let service = Service {
            content_type: "multipart/form-data; boundary=another",
            ..service
        };
        assert_eq!(service.send(frames(input, &again)), Outcome::Replayed, "{parts:?}");
        let answered = service.send(frames(input, &other));
        assert_eq!(service.runs(), 1);
        assert_eq!(answered, expected, "{source:?}: {parts:?} and {changed:?}");
    }
}

struct Service {
    service: IdempotencyService<Handler>,
    runs: Arc<AtomicUsize>,
    store: MemoryStore,
    content_type: &'static str,
}

type Handler = tower::util::BoxCloneSyncService<Request<RequestBody<Script>>, Response<Full<Bytes>>, Infallible>;

impl Service {
    /// `reads`: how many frames the handler reads before it answers.
    fn new(source: &FingerprintSource, content_type: &'static str, streams: bool, reads: usize) -> Self {
        let store = MemoryStore::new();
        let builder = IdempotencyLayer::builder(store.clone()).fingerprint(source.clone());
        let builder = if streams {
            builder.stream_request_bodies(LIMIT).max_request_body(JSON_LIMIT)
        } else {
            builder.max_request_body(LIMIT)
        };
        let runs = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&runs);
        let handler = service_fn(move |request: Request<RequestBody<Script>>| {
            counts.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut body = request.into_body();
                for _ in 0..reads {
                    match body.frame().await {
                        Some(Ok(_)) => {}
                        // It does not mind how the body ends.
                        Some(Err(_)) | None => break,
                    }
                }
                Ok(Response::new(Full::from("done")))
            }
        });
        Self {
            service: builder
                .build()
                .expect("a valid configuration")
                .layer(Handler::new(handler)),
            runs,
            store,
            content_type,
        }
    }

    fn send(&self, steps: Vec<Step>) -> Outcome {
        let request = Request::post("/").header("idempotency-key", "k");
        let request = request.header("content-type", self.content_type);
        let body = RequestBody::live(Script::new(steps, None));
        let request = request.body(body).expect("a valid request");
        let response = at_once(self.service.clone().oneshot(request)).expect("no error");
        assert!(response.body().size_hint().exact().is_some());
        *response.extensions().get().expect("guarded")
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

/// Whether two bodies are one request.
fn compare(
    input: &mut Input<'_>,
    source: &FingerprintSource,
    content_type: &'static str,
    streams: bool,
    one: &[u8],
    other: &[u8],
) -> bool {
    let service = Service::new(source, content_type, streams, usize::MAX);
    assert_eq!(service.send(frames(input, one)), Outcome::Executed);
    assert_eq!(service.send(frames(input, one)), Outcome::Replayed, "in other frames");
    let answered = service.send(frames(input, other));
    assert_eq!(service.runs(), 1);
    match answered {
        Outcome::Replayed => true,
        Outcome::Refused(ProblemKind::KeyReused) => {
            assert_ne!(one, other);
            false
        }
        answered => panic!("{answered}"),
    }
}

/// An upload that breaks off leaves nothing, or a tombstone if the handler had answered before.
fn cut(input: &mut Input<'_>, source: &FingerprintSource, content_type: &'static str, body: &[u8]) {
    let reads = input.one_of(&[usize::MAX, 0, 1, 2]);
    let service = Service::new(source, content_type, true, reads);
    let mut steps = frames(input, body);
    steps.truncate(input.below(256));
    let frames_before = steps.len();
    steps.push(Step::Fail);
    let broken = service.send(steps);
    let retried = service.send(frames(input, body));
    let was_read = reads > frames_before;
    match (was_read, broken) {
        (true, Outcome::Refused(ProblemKind::BodyUnreadable)) => {
            assert_eq!((service.runs(), retried), (2, Outcome::Executed));
        }
        (false, Outcome::Sealed) => assert_eq!((service.runs(), retried), (1, Outcome::NotRetained)),
        (_, broken) => panic!("{broken} after {reads} of {frames_before} frames"),
    }
    assert_eq!(service.store.stats().entries, 1);
}
