//! What the layer holds of the heap while it streams request bodies.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use stats_alloc::Region;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{FingerprintSource, IdempotencyLayer, MemoryStore};

use super::super::{ALLOCATOR, EMPTY, Heap, MIB, SCALE};

/// No multiple of what is digested at once.
const FRAME: usize = 16 * 1024 - 7;
/// JSON alone is held, up to a limit.
const JSON_HELD: usize = 64 * 1024;
/// What the layer may hold for an upload: what is known of the request, and two digests with a block each.
const UPLOAD: usize = 48 * 1024;

/// A body of so many frames, each of which is allocated when it is asked for.
struct Frames {
    left: usize,
    /// What it begins with.
    head: &'static [u8],
    /// Whether it waits forever in the place of its end.
    hangs: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return match self.hangs {
                true => Poll::Pending,
                false => Poll::Ready(None),
            };
        }
        self.left -= 1;
        let mut data = std::mem::take(&mut self.head).to_vec();
        data.resize(FRAME, b'x');
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(data)))))
    }
}

/// A rule, and a body that it reads.
struct Case {
    source: FingerprintSource,
    content_type: &'static str,
    head: &'static [u8],
    /// What of a text is held.
    held: usize,
}

fn cases() -> [Case; 5] {
    let case = |source, content_type, head: &'static str| Case {
        source,
        content_type,
        head: head.as_bytes(),
        held: 0,
    };
    [
        case(FingerprintSource::request(), "image/png", ""),
        case(
            FingerprintSource::request(),
            "multipart/form-data; boundary=b",
            "--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n",
        ),
        case(
            FingerprintSource::request().without(["/x"]),
            "application/x-www-form-urlencoded",
            "",
        ),
        Case {
            // The text grows by doubling.
            held: 4 * JSON_HELD,
            ..case(FingerprintSource::canonical_json(), "application/json", "\"")
        },
        case(FingerprintSource::none(), "image/png", ""),
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap()
}

impl Case {
    fn layer(&self) -> IdempotencyLayer {
        let builder = IdempotencyLayer::builder(MemoryStore::new()).fingerprint(self.source.clone());
        let builder = builder.stream_request_bodies(usize::MAX).max_request_body(JSON_HELD);
        builder.build().unwrap()
    }

    fn request(&self, key: usize, frames: usize, hangs: bool) -> Request<Body> {
        let body = Frames {
            left: frames,
            head: self.head,
            hangs,
        };
        let request = Request::post("/").header("idempotency-key", format!("key-{key}"));
        let request = request.header("content-type", self.content_type);
        request.body(Body::new(body)).unwrap()
    }
}

#[test]
fn contract_8_1_the_memory_of_an_upload_does_not_grow_with_its_body() {
    let frames = 4 * MIB * usize::try_from(SCALE).unwrap() / FRAME;
    for case in cases() {
        let heap = Heap::measure();
        let most = Arc::new(AtomicUsize::new(0));
        let (seen, region) = (Arc::clone(&most), Arc::new(Region::new(ALLOCATOR)));
        let service = case.layer().layer(service_fn(move |request: Request<Body>| {
            let (seen, region) = (Arc::clone(&seen), Arc::clone(&region));
            async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    let change = region.change();
                    let held = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
                    seen.fetch_max(held, Ordering::Relaxed);
                    drop(frame);
                }
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }));
        let runtime = runtime();
        let send = || {
            runtime
                .block_on(service.clone().oneshot(case.request(0, frames, false)))
                .unwrap()
        };
        drop(send());
        let (peak, bound) = (most.load(Ordering::Relaxed), EMPTY + FRAME + UPLOAD + case.held);
        assert!(
            peak < bound,
            "{} of {bound} for {} bytes of {}",
            peak,
            frames * FRAME,
            case.content_type
        );
        // A duplicate is read by the layer alone.
        let before = heap.bytes();
        assert!(send().headers().contains_key("idempotency-replayed"));
        assert!(heap.bytes() < before + UPLOAD, "{}", case.content_type);
    }
}

#[test]
fn contract_8_1_four_hundred_uploads_at_once_hold_little() {
    const UPLOADS: usize = 400;
    for case in cases() {
        let heap = Heap::measure();
        let service = case.layer().layer(service_fn(|request: Request<Body>| async {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                drop(frame);
            }
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        let runtime = runtime();
        let _entered = runtime.enter();
        let mut uploads: Vec<_> = (0..UPLOADS)
            .map(|key| Box::pin(service.clone().oneshot(case.request(key, 2, true))))
            .collect();
        for upload in &mut uploads {
            let upload = pin!(upload);
            assert!(upload.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let (held, bound) = (heap.bytes(), EMPTY + UPLOADS * (UPLOAD + case.held));
        assert!(held < bound, "{held} of {bound} for {}", case.content_type);
        std::mem::forget(uploads);
        std::mem::forget(runtime);
    }
}
