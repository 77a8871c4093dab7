//! The instructions of the paths that every request takes, counted by Valgrind. They are the same
//! on every run except for the seeds of hash maps, so that a change of one percent shows.
//! `scripts/instructions` compares them with the committed ones.
//!
//! Only the public interface is used. Private functions are measured as the difference of two
//! requests, such as a replay whose fingerprint covers the request and one whose fingerprint covers
//! nothing.

#[path = "../../support/mod.rs"]
mod support;

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use gungraun::prelude::*;
use http::{HeaderValue, Request, Response, header};
use support::{get_session, guarded, key, post_session, router, send};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service};
use tower_idempotency::store::Record;
use tower_idempotency::{Fingerprint, FingerprintSource, IdempotencyLayer, MemoryStore, Slot};

/// How many times each operation is done. `scripts/instructions` divides by this number.
const TIMES: u64 = 100;
/// The number of keys that are already in the store, so that hardly any part of its map grows
/// meanwhile.
const HELD: u64 = 10_000;

type Layered = IdempotencyLayer<MemoryStore>;
/// The layer around the router as a whole.
type Around = <Layered as Layer<Router>>::Service;

/// Requests that are made but not sent.
struct Prepared<S> {
    runtime: Runtime,
    service: S,
    requests: Vec<Request<Body>>,
}

impl<S, B> Prepared<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = std::convert::Infallible> + Clone,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    fn new(service: S, before: u64, make: impl Fn(u64) -> Request<Body>) -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut prepared = Self {
            runtime,
            service,
            requests: (0..before).map(&make).collect(),
        };
        prepared.send_all();
        prepared.requests = (before..before + TIMES).map(make).collect();
        prepared
    }

    /// Nothing here waits, so one poll is enough and no scheduler is counted.
    fn send_all(&mut self) {
        let _within = self.runtime.enter();
        for request in self.requests.drain(..) {
            let sent = pin!(send(&self.service, request));
            let Poll::Ready(answer) = sent.poll(&mut Context::from_waker(Waker::noop())) else {
                unreachable!("a store in memory answers at once");
            };
            black_box(answer);
        }
    }

    /// Returns itself, so that freeing its memory is not counted.
    fn counted(mut self) -> Self {
        self.send_all();
        self
    }
}

fn layer() -> Layered {
    IdempotencyLayer::new(MemoryStore::new())
}

fn covering(fingerprint: FingerprintSource) -> Around {
    let layer = IdempotencyLayer::builder(MemoryStore::new()).fingerprint(fingerprint);
    layer.build().expect("a valid layer").layer(router())
}

fn first(n: u64) -> Request<Body> {
    post_session(Some(key(n)))
}

fn again(_: u64) -> Request<Body> {
    post_session(Some(key(7)))
}

fn again_quoted(_: u64) -> Request<Body> {
    let text = format!("\"{}\"", key(7).to_str().expect("text"));
    post_session(Some(HeaderValue::try_from(text).expect("a header value")))
}

fn without_key(_: u64) -> Request<Body> {
    post_session(None)
}

/// The first request has a different body from the others.
fn another_body(n: u64) -> Request<Body> {
    let mut request = again(n);
    if n == 0 {
        *request.body_mut() = Body::from(Bytes::from_static(br#"{"user_id":"usr_0","workflow_id":"wkf_0"}"#));
    }
    request
}

const WARM: u64 = 200;

#[library_benchmark]
#[bench::get_bare(Prepared::new(router(), WARM, |_| get_session()))]
#[bench::post_bare(Prepared::new(router(), WARM, first))]
#[bench::get_passes(Prepared::new(guarded(layer()), WARM, |_| get_session()))]
#[bench::post_without_key_passes(Prepared::new(guarded(layer()), WARM, without_key))]
#[bench::first(Prepared::new(guarded(layer()), HELD, first))]
#[bench::replay(Prepared::new(guarded(layer()), WARM, again))]
fn in_the_router(prepared: Prepared<Router>) -> Prepared<Router> {
    prepared.counted()
}

#[library_benchmark]
#[bench::post_without_key_passes(Prepared::new(layer().layer(router()), WARM, without_key))]
#[bench::first(Prepared::new(layer().layer(router()), HELD, first))]
#[bench::replay(Prepared::new(layer().layer(router()), WARM, again))]
#[bench::replay_key_in_quotes(Prepared::new(layer().layer(router()), WARM, again_quoted))]
#[bench::replay_fingerprint_of_nothing(Prepared::new(covering(FingerprintSource::none()), WARM, again))]
#[bench::replay_fingerprint_of_canonical_json(Prepared::new(
    covering(FingerprintSource::canonical_json()),
    WARM,
    again
))]
#[bench::refusal_of_another_body(Prepared::new(layer().layer(router()), WARM, another_body))]
fn around_the_router(prepared: Prepared<Around>) -> Prepared<Around> {
    prepared.counted()
}

const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; Fingerprint::LEN]);

/// A response of 200 bytes with the headers that Axum gives it.
fn answer() -> Response<Bytes> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, "200")
        .body(Bytes::from_static(&[b'x'; 200]))
        .expect("a response")
}

fn record() -> Record {
    // Whatever the thread keeps for its next record is made now.
    Record::of_response(FINGERPRINT, &answer())
}

#[library_benchmark]
#[bench::a_key(layer())]
fn slot(layer: Layered) -> (Layered, Vec<Slot>) {
    let mut slots = Vec::with_capacity(TIMES as usize);
    for _ in 0..TIMES {
        let scope = black_box(Some("Bearer sk_test_acme"));
        let slot = layer.slot(scope, black_box("8e03978e-40d5-43dd-bc93-000000000007"));
        slots.push(slot.expect("a valid key"));
    }
    (layer, slots)
}

#[library_benchmark]
#[bench::encode((answer(), record()).0)]
fn record_of(answer: Response<Bytes>) -> (Response<Bytes>, Vec<Record>) {
    let mut records = Vec::with_capacity(TIMES as usize);
    for _ in 0..TIMES {
        records.push(Record::of_response(FINGERPRINT, black_box(&answer)));
    }
    (answer, records)
}

#[library_benchmark]
#[bench::to_bytes(record())]
fn record_to(record: Record) -> Vec<Vec<u8>> {
    let mut stored = Vec::with_capacity(TIMES as usize);
    for _ in 0..TIMES {
        stored.push(black_box(&record).to_bytes());
    }
    stored
}

#[library_benchmark]
#[bench::from_bytes(record().to_bytes())]
fn record_from(stored: Vec<u8>) -> Vec<Record> {
    let mut records = Vec::with_capacity(TIMES as usize);
    for _ in 0..TIMES {
        records.push(Record::from_bytes(black_box(&stored)).expect("what was written"));
    }
    records
}

library_benchmark_group!(name = requests, benchmarks = [in_the_router, around_the_router]);
library_benchmark_group!(name = pure, benchmarks = [slot, record_of, record_to, record_from]);

main!(library_benchmark_groups = [requests, pure]);
