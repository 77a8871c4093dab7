//! The record codec, on its own and through answers: what decodes encodes back and opens, a response
//! comes back as it was, damage is found, and decoding takes memory in proportion.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use sha2::{Digest, Sha256};
use stats_alloc::INSTRUMENTED_SYSTEM;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, StoreError, StoreErrorKind, Token,
};
use tower_idempotency::{Fingerprint, IdempotencyLayer, Outcome, Policy, ProblemKind};

use super::body::{Script, Step};
use super::input::{Input, at_once};

/// One record, whatever the slot and the fingerprint.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Option<Record>>>);

impl Shelf {
    fn with(record: Record) -> Self {
        Self(Arc::new(Mutex::new(Some(record))))
    }

    fn record(&self) -> Option<Record> {
        self.0.lock().expect("nothing panics under it").clone()
    }
}

impl Store for Shelf {
    const IN_PROCESS: bool = true;

    async fn begin(&self, _: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        Ok(self.record().map_or(ClaimOutcome::started(1), ClaimOutcome::Done))
    }

    async fn renew(&self, _: &Slot, _: Token, _: Duration) -> Result<Held, StoreError> {
        Ok(Held::Yes)
    }

    async fn complete(&self, _: &Slot, _: Token, record: &Record, _: Duration) -> Result<Held, StoreError> {
        *self.0.lock().expect("nothing panics under it") = Some(record.clone());
        Ok(Held::Yes)
    }

    async fn release(&self, _: &Slot, _: Token) -> Result<Held, StoreError> {
        Ok(Held::Yes)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Told {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte() % 4;
    let stored = match kind {
        0 => input.rest().to_vec(),
        1 => summed(input.rest().to_vec()),
        2 => {
            // A head that makes sense, so that the fuzzer need not find one.
            let mut blob = vec![1, 0, 0, 200];
            blob.extend([7; Fingerprint::LEN]);
            blob.extend(input.rest());
            summed(blob)
        }
        _ => return there_and_back(&mut input),
    };
    let before = INSTRUMENTED_SYSTEM.stats().bytes_allocated;
    let decoded = Record::from_bytes(&stored);
    let taken = INSTRUMENTED_SYSTEM.stats().bytes_allocated - before;
    // A header of one byte takes some two hundred in a map, and trailers have a map of their own.
    assert!(taken < 8192 + 512 * stored.len(), "{taken} bytes for {}", stored.len());
    let record = match decoded {
        Ok(record) => record,
        Err(error) => return assert_eq!(error.kind(), StoreErrorKind::Corrupt),
    };
    assert_eq!(record.to_bytes(), stored);
    assert_eq!(record.len() + 8, stored.len());
    assert_eq!(record.fingerprint().as_bytes()[..], stored[4..20]);
    let (outcome, told) = answer(&Shelf::with(record), None);
    match stored[1] {
        0 => {
            assert_eq!(outcome, Outcome::Replayed);
            // What was read is written the same way, however it was written at first.
            again(&told);
        }
        1 | 2 => {
            assert!(matches!(outcome, Outcome::NotRetained), "{outcome:?}");
            assert_eq!(told.status, 409);
        }
        3 => assert_eq!(outcome, Outcome::Refused(ProblemKind::StoreUnavailable)),
        kind => panic!("kind {kind} is not known"),
    }
    damage(&stored, data.len());
}

/// A response of the input's choice is kept, and comes back.
fn there_and_back(input: &mut Input<'_>) {
    let status = 200 + (u16::from(input.byte()) << 8 | u16::from(input.byte())) % 800;
    let headers = headers(input);
    let trailers = input.is_odd().then(|| self::headers(input));
    let told = Told {
        status: StatusCode::from_u16(status).expect("from 200 to 999"),
        headers,
        trailers,
        body: Bytes::copy_from_slice(input.rest()),
    };
    let record = again(&told);
    let stored = record.to_bytes();
    let decoded = Record::from_bytes(&stored).expect("what was encoded decodes");
    assert_eq!(decoded, record);
    damage(&stored, told.body.len());
    let of_response = Record::of_response(record.fingerprint(), &{
        let mut response = Response::new(told.body.clone());
        *response.status_mut() = told.status;
        *response.headers_mut() = told.headers.clone();
        response
    });
    let (_, again) = answer(&Shelf::with(of_response), None);
    let mut expected = told.headers.clone();
    if expected.remove("content-length").is_some() {
        expected.insert("content-length", told.body.len().into());
    }
    assert_eq!(without_marker(again.headers), without_marker(expected));
}

/// Lets a handler answer so, and compares what is kept of it.
fn again(told: &Told) -> Record {
    let shelf = Shelf::default();
    let (outcome, first) = answer(&shelf, Some(told));
    assert_eq!(outcome, Outcome::Executed);
    let expected = Told {
        headers: without_marker(told.headers.clone()),
        ..told.clone()
    };
    assert_eq!(first, expected, "the first client gets what the handler said");
    let record = shelf.record().expect("kept");
    let (outcome, replay) = answer(&shelf, None);
    assert_eq!(outcome, Outcome::Replayed);
    assert_eq!(
        replay.headers.get("idempotency-replayed").map(HeaderValue::as_bytes),
        Some(&b"true"[..])
    );
    assert_eq!(
        (replay.status, &replay.body, &replay.trailers),
        (told.status, &told.body, &told.trailers)
    );
    assert_eq!(without_marker(replay.headers), without_marker(kept(told)));
    record
}

fn without_marker(mut headers: HeaderMap) -> HeaderMap {
    headers.remove("idempotency-replayed");
    headers
}

/// What of the headers is kept where nothing is left out by choice: hop-by-hop ones are not.
fn kept(told: &Told) -> HeaderMap {
    let mut headers = told.headers.clone();
    let named: Vec<String> = told
        .headers
        .get_all("connection")
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "te",
        "transfer-encoding",
        "upgrade",
    ]
    .into_iter()
    .chain(named.iter().map(String::as_str))
    {
        headers.remove(name);
    }
    if told.trailers.is_none() {
        headers.remove("trailer");
    }
    if told.headers.contains_key("content-length") {
        headers.remove("content-length");
        if told.trailers.is_none() {
            headers.insert("content-length", told.body.len().into());
        }
    }
    headers
}

/// One request. Without a handler's answer it must be answered from the shelf.
fn answer(shelf: &Shelf, handler: Option<&Told>) -> (Outcome, Told) {
    let layer = IdempotencyLayer::builder(shelf.clone())
        .policy(Policy::everything().stream_types([""; 0]))
        .unreplayed_headers([""; 0])
        .build()
        .expect("valid options");
    let handler = handler.cloned();
    let service = layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
        let told = handler.clone().expect("the record answers");
        let trailers = told.trailers.map(Step::Trailers);
        let body = Script::new([Step::Data(told.body)].into_iter().chain(trailers), None);
        let mut response = Response::new(body);
        *response.status_mut() = told.status;
        *response.headers_mut() = told.headers;
        ready(Ok::<_, Infallible>(response))
    }));
    let request = Request::post("/").header("idempotency-key", "k").body(Full::default());
    let response = at_once(service.oneshot(request.expect("a valid request"))).expect("it never fails");
    let (head, body) = response.into_parts();
    let collected = at_once(body.collect()).expect("a whole body");
    let trailers = collected.trailers().cloned();
    let told = Told {
        status: head.status,
        headers: head.headers,
        trailers,
        body: collected.to_bytes(),
    };
    (*head.extensions.get().expect("a guarded request"), told)
}

/// One byte is changed, or the end is cut: never another record.
fn damage(stored: &[u8], seed: usize) {
    let at = seed % stored.len();
    for bit in [1, 0x80, 0xff] {
        let mut damaged = stored.to_vec();
        damaged[at] ^= bit;
        assert!(Record::from_bytes(&damaged).is_err(), "byte {at} was changed");
    }
    assert!(Record::from_bytes(&stored[..at]).is_err(), "cut at {at}");
}

fn summed(mut blob: Vec<u8>) -> Vec<u8> {
    let sum: [u8; 32] = Sha256::digest(&blob).into();
    blob.extend(&sum[..8]);
    blob
}

/// Any names and values that HTTP allows, some of them with a meaning to the layer.
fn headers(input: &mut Input<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..input.below(8) {
        let name = match input.byte() {
            choice @ 0..32 => {
                const KNOWN: [&str; 16] = [
                    "content-type",
                    "content-length",
                    "set-cookie",
                    "date",
                    "connection",
                    "keep-alive",
                    "trailer",
                    "transfer-encoding",
                    "idempotency-replayed",
                    "location",
                    "etag",
                    "x-request-id",
                    "te",
                    "upgrade",
                    "link",
                    "x-a",
                ];
                HeaderName::from_static(KNOWN[usize::from(choice) % 16])
            }
            _ => match HeaderName::from_bytes(input.bytes()) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        let value = match input.byte() {
            0..8 => Ok(HeaderValue::from_static("application/json")),
            8..16 => Ok(HeaderValue::from_static("x-a, close")),
            _ => HeaderValue::from_bytes(input.bytes()),
        };
        let Ok(mut value) = value else { continue };
        value.set_sensitive(input.byte() == 7);
        // More than once, and now and then very often.
        let times = match input.byte() {
            255 => 300,
            times => usize::from(times % 3) + 1,
        };
        for _ in 0..times {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}
