//! Streamed uploads, compared with the bare router: in process, where a bare upload only moves
//! pointers, and over loopback, with the client and the server on one thread.

use std::convert::Infallible;
use std::time::Instant;

use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_idempotency::{IdempotencyLayer, MemoryStore};

use super::median::median;
use super::support::key;

/// Roughly the size of the frames that hyper hands out.
const FRAME: usize = 64 * 1024;
const ROUNDS: usize = 9;

/// Counts the bytes of a body.
async fn receive(mut body: Body) -> Result<String, StatusCode> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(length.to_string())
}

fn router() -> axum::Router {
    axum::Router::new().route("/", post(receive).layer(DefaultBodyLimit::disable()))
}

fn guarded() -> axum::Router {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .stream_request_bodies(4 << 30)
        .build()
        .expect("a valid layer");
    router().layer(layer)
}

fn upload(uri: &str, number: u64, size: usize) -> Request<Body> {
    let frame = Bytes::from(vec![b'x'; FRAME.min(size)]);
    let frames = (0..size / frame.len()).map(move |_| Ok::<_, Infallible>(Frame::data(frame.clone())));
    let mut request = Request::post(uri)
        .body(Body::new(StreamBody::new(tokio_stream::iter(frames))))
        .expect("a request");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_LENGTH, size.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    headers.insert("idempotency-key", key(number));
    request
}

/// Reads the response, which must say that everything has arrived.
async fn check<B>(response: http::Response<B>, size: usize)
where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, size.to_string());
}

/// Measures the nanoseconds of one pass of the digest over this many bytes, one frame at a time.
fn digest(size: usize) -> f64 {
    let frame = vec![b'x'; FRAME.min(size)];
    let start = Instant::now();
    let mut digest = blake3::Hasher::new();
    for _ in 0..size / frame.len() {
        digest.update(&frame);
    }
    std::hint::black_box(digest.finalize());
    start.elapsed().as_nanos() as f64
}

/// The times of uploads of one size, including a first request and its replay.
struct Times {
    bare: f64,
    first: f64,
    replay: f64,
    digest: f64,
}

fn times(size: usize, mut send: impl FnMut(&str, u64) -> f64) -> Times {
    let [mut bare, mut first, mut replay, mut pass] = [(); 4].map(|()| Vec::new());
    for round in 0..ROUNDS as u64 {
        bare.push(send("bare", round));
        first.push(send("guarded", round));
        replay.push(send("guarded", round));
        pass.push(digest(size));
    }
    let [bare, first, replay, digest] = [bare, first, replay, pass].map(|mut times| median(&mut times));
    Times {
        bare,
        first,
        replay,
        digest,
    }
}

fn print(name: &str, size: usize, times: &Times) {
    let gib = |time: f64| size as f64 / time * 1e9 / f64::from(1 << 30);
    println!(
        "| {name} | {:.2} | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.2} | {:.2} | {:.2} |",
        gib(times.bare),
        gib(times.first),
        times.bare / times.first,
        gib(times.replay),
        times.bare / times.replay,
        gib(times.digest),
        times.first / times.digest,
        times.replay / times.digest,
    );
}

pub fn uploads(runtime: &Runtime) {
    println!(
        "\n| streamed upload | bare, GiB/s | first request (of bare) | replay (of bare) | digest alone, GiB/s | \
         first request, of the digest's time | replay, of the digest's time |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, size, repeat) in [("1 MiB, in process", 1 << 20, 50), ("1 GiB, in process", 1 << 30, 1)] {
        let (bare, guarded) = (router(), guarded());
        let measured = times(size, |which, round| {
            let service = if which == "bare" { &bare } else { &guarded };
            runtime.block_on(async {
                let start = Instant::now();
                for n in 0..repeat {
                    let request = upload("/", round * repeat + n, size);
                    let Ok(response) = service.clone().oneshot(request).await;
                    check(response, size).await;
                }
                start.elapsed().as_nanos() as f64 / repeat as f64
            })
        });
        print(name, size, &measured);
    }

    let size = 1 << 30;
    let origins = runtime.block_on(async {
        let mut origins = Vec::new();
        for router in [router(), guarded()] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            origins.push(format!("http://{}/", listener.local_addr().expect("an address")));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        origins
    });
    let client = Client::builder(TokioExecutor::new()).build_http();
    let measured = times(size, |which, round| {
        let origin = &origins[usize::from(which != "bare")];
        runtime.block_on(async {
            let start = Instant::now();
            let response = client.request(upload(origin, round, size)).await.expect("an answer");
            check(response, size).await;
            start.elapsed().as_nanos() as f64
        })
    });
    print("1 GiB, over loopback", size, &measured);
}
