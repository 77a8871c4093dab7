//! Streamed request bodies over real TCP, on HTTP/1.1 and HTTP/2, with plain hyper and with `axum::serve`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_idempotency::store::Inspect;
use tower_idempotency::{IdempotencyLayer, IdempotencyLayerBuilder, MemoryStore, RequestBody};

use super::tcp::Raw;
use crate::support::{Answer, BrokenBody, Count, Gate, drain, eventually, read};

const LIMIT: usize = 8 * 1024 * 1024;
const PIECE: usize = 64 * 1024;

/// What serves.
#[derive(Debug, Clone, Copy)]
enum With {
    Hyper,
    Axum,
}

const EACH: &[With] = &[With::Hyper, With::Axum];

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    Http1,
    Http2,
}

/// The application; the path says what it does with the body.
#[derive(Clone, Default)]
struct Application {
    runs: Count,
    frames: Count,
    failures: Count,
    gate: Gate,
}

impl Application {
    async fn handle<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Debug,
    {
        let run = self.runs.up();
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        let (mut length, mut trailers, mut failed) = (0, 0, false);
        if path == "/wait" {
            self.gate.pass().await;
        }
        let frames = if path == "/early" { 0 } else { usize::MAX };
        for _ in 0..frames {
            match body.frame().await {
                None => break,
                Some(Ok(frame)) => {
                    self.frames.up();
                    length += frame.data_ref().map_or(0, Bytes::len);
                    trailers += frame.trailers_ref().map_or(0, HeaderMap::len);
                }
                Some(Err(_)) => {
                    self.failures.up();
                    failed = true;
                    break;
                }
            }
        }
        let mut response = Response::new(Full::from(format!("run {run} of {length}, {trailers} trailers")));
        *response.status_mut() = match failed {
            true => StatusCode::INTERNAL_SERVER_ERROR,
            false => StatusCode::CREATED,
        };
        response
    }
}

/// A server on a port of its own.
struct Server {
    address: SocketAddr,
    application: Application,
    layer: IdempotencyLayer,
    store: MemoryStore,
}

impl Server {
    async fn start(with: With, configure: impl FnOnce(IdempotencyLayerBuilder) -> IdempotencyLayerBuilder) -> Self {
        let store = MemoryStore::new();
        let builder = IdempotencyLayer::builder(store.clone()).stream_request_bodies(LIMIT);
        let layer = configure(builder).build().unwrap();
        let application = Application::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        match with {
            With::Hyper => drop(tokio::spawn(serve_hyper(listener, layer.clone(), application.clone()))),
            With::Axum => {
                let inside = application.clone();
                let handler = move |request: axum::extract::Request| inside.clone().handle(request);
                let router = axum::Router::new().fallback(handler).layer(layer.clone());
                tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            }
        }
        Self {
            address,
            application,
            layer,
            store,
        }
    }

    async fn plain(with: With) -> Self {
        Self::start(with, |builder| builder).await
    }

    async fn connect(&self, version: Version) -> Sender {
        let stream = TokioIo::new(TcpStream::connect(self.address).await.unwrap());
        match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        }
    }

    /// How many slots are not vacant.
    async fn held(&self) -> u64 {
        let census = self.store.count().await.unwrap();
        census.running + census.lapsed + census.done
    }
}

async fn serve_hyper(listener: TcpListener, layer: IdempotencyLayer, application: Application) {
    let service = ServiceBuilder::new()
        .map_request(|request: Request<Incoming>| request.map(RequestBody::live))
        .service(layer.layer(service_fn(move |request: Request<RequestBody<Incoming>>| {
            let application = application.clone();
            async move { Ok::<_, Infallible>(application.handle(request).await) }
        })));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is what these tests are about.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What a client sends on.
enum Sender {
    Http1(http1::SendRequest<Pieces>),
    Http2(http2::SendRequest<Pieces>),
}

impl Sender {
    async fn send(&mut self, request: Request<Pieces>) -> hyper::Result<Answer> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        Ok(read(response).await)
    }
}

/// A body that a test sends piece by piece.
struct Pieces(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BrokenBody>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.0.poll_recv(cx)
    }
}

type Hand = mpsc::UnboundedSender<Result<Frame<Bytes>, BrokenBody>>;

fn piece() -> Result<Frame<Bytes>, BrokenBody> {
    Ok(Frame::data(Bytes::from(vec![b'x'; PIECE])))
}

/// A `POST`, and the hand that sends its body.
fn upload(path: &str, key: &str) -> (Hand, Request<Pieces>) {
    let (hand, pieces) = mpsc::unbounded_channel();
    let request = Request::post(format!("http://localhost{path}"))
        .header("host", "localhost")
        .header("idempotency-key", key)
        .body(Pieces(pieces))
        .unwrap();
    (hand, request)
}

/// A `POST` of so many pieces.
fn upload_of(path: &str, key: &str, pieces: usize) -> Request<Pieces> {
    let (hand, request) = upload(path, key);
    for _ in 0..pieces {
        hand.send(piece()).unwrap();
    }
    request
}

/// Each server, in each version of HTTP.
fn each() -> impl Iterator<Item = (With, Version)> {
    let versions = [Version::Http1, Version::Http2];
    EACH.iter()
        .flat_map(move |&with| versions.map(|version| (with, version)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_read_as_it_arrives_and_its_retry_is_replayed() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        let mut client = server.connect(version).await;
        let (hand, request) = upload("/", "k");
        let first = tokio::spawn(async move { (client.send(request).await.unwrap(), client) });
        hand.send(piece()).unwrap();
        eventually("the handler reads", async || server.application.frames.get() > 0).await;
        // The rest is not sent yet.
        let mut other = server.connect(version).await;
        let duplicate = other.send(upload_of("/", "k", 1)).await.unwrap();
        duplicate.assert_problem(409, "in-flight");
        hand.send(piece()).unwrap();
        drop(hand);
        let (first, mut client) = first.await.unwrap();
        assert_eq!(
            first.text(),
            format!("run 1 of {}, 0 trailers", 2 * PIECE),
            "{with:?} {version:?}"
        );
        let retry = client.send(upload_of("/", "k", 2)).await.unwrap();
        assert!(retry.is_replay());
        assert_eq!(retry.body, first.body);
        let other = client.send(upload_of("/", "k", 3)).await.unwrap();
        other.assert_problem(422, "key-reused");
        assert_eq!(server.application.runs.get(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cut_leaves_nothing_and_its_retry_runs() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        // Cut at several places: before, at and after the first frames.
        for (cuts, pieces) in (1..).zip([0, 1, 2, 7]) {
            let mut client = server.connect(version).await;
            let (hand, request) = upload("/", "k");
            let sending = tokio::spawn(async move { client.send(request).await });
            for _ in 0..pieces {
                hand.send(piece()).unwrap();
            }
            eventually("the handler runs", async || server.application.runs.get() == cuts).await;
            hand.send(Err(BrokenBody)).unwrap();
            assert!(sending.await.unwrap().is_err());
            eventually("the handler sees it", async || {
                server.application.failures.get() == cuts
            })
            .await;
            eventually("nothing is kept", async || server.held().await == 0).await;
        }
        let mut client = server.connect(version).await;
        let whole = client.send(upload_of("/", "k", 3)).await.unwrap();
        assert_eq!(
            whole.text(),
            format!("run 5 of {}, 0 trailers", 3 * PIECE),
            "{with:?} {version:?}"
        );
        assert!(client.send(upload_of("/", "k", 3)).await.unwrap().is_replay());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_answers_early_leaves_the_connection_usable() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        let mut client = server.connect(version).await;
        let first = client.send(upload_of("/early", "k", 10)).await.unwrap();
        assert_eq!(
            (first.status.as_u16(), first.text()),
            (201, "run 1 of 0, 0 trailers"),
            "{with:?} {version:?}"
        );
        assert!(client.send(upload_of("/early", "k", 10)).await.unwrap().is_replay());
        let other = client.send(upload_of("/early", "k", 9)).await.unwrap();
        other.assert_problem(422, "key-reused");
        assert!(client.send(upload_of("/early", "k", 10)).await.unwrap().is_replay());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_beyond_the_limit_is_413_over_tcp() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        let mut client = server.connect(version).await;
        let answer = client.send(upload_of("/", "k", LIMIT / PIECE + 1)).await.unwrap();
        answer.assert_problem(413, "body-too-large");
        assert_eq!(server.held().await, 0);
        let mut client = server.connect(version).await;
        let whole = client.send(upload_of("/", "k", LIMIT / PIECE)).await.unwrap();
        assert_eq!(whole.text(), format!("run 2 of {LIMIT}, 0 trailers"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_an_upload_reach_the_handler() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        let mut client = server.connect(version).await;
        let (hand, mut request) = upload("/", "k");
        request
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-sum"));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("abc"));
        hand.send(piece()).unwrap();
        hand.send(Ok(Frame::trailers(trailers))).unwrap();
        drop(hand);
        let first = client.send(request).await.unwrap();
        assert_eq!(
            first.text(),
            format!("run 1 of {PIECE}, 1 trailers"),
            "{with:?} {version:?}"
        );
        // They are not a part of the content.
        assert!(client.send(upload_of("/", "k", 1)).await.unwrap().is_replay());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_goes_on_without_its_client_once_its_upload_is_whole() {
    for (with, version) in each() {
        let server = Server::plain(with).await;
        let mut client = server.connect(version).await;
        let (hand, request) = upload("/wait", "k");
        hand.send(piece()).unwrap();
        drop(hand);
        let sending = tokio::spawn(async move { client.send(request).await });
        server.application.gate.arrival().await;
        // The body is on the connection, and the server may not have read it: it is the handler that asks for it.
        let mut watcher = server.connect(version).await;
        let duplicate = watcher.send(upload_of("/wait", "k", 1)).await.unwrap();
        duplicate.assert_problem(409, "in-flight");
        sending.abort();
        server.application.gate.open();
        drain(&server.layer).await;
        eventually("the handler has ended", async || {
            server.store.count().await.unwrap().running == 0
        })
        .await;
        // Whole or cut off, a retry is never refused for a run that nobody waits for.
        let retry = watcher.send(upload_of("/wait", "k", 1)).await.unwrap();
        assert_eq!(retry.status, 201, "{with:?} {version:?}");
        assert!(server.application.runs.get() <= 2);
    }
}

/// A head as text, for a client that sends the body when it is told to.
fn head(path: &str, key: &str, headers: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\n{headers}content-length: {length}\r\n\r\n"
    )
}

const EXPECT: &str = "expect: 100-continue\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn sha256(body: &str) -> String {
    use base64::Engine;
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(body));
    format!("content-digest: sha-256=:{digest}:\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_continue_sends_only_what_is_wanted() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let digest = sha256("hello");
        let with_digest = format!("{EXPECT}{digest}");
        let mut client = Raw::connect(server.address).await;
        assert!(client.send(head("/wait", "k", &with_digest, 5)).await);
        server.application.gate.arrival().await;
        // In flight: refused without `100 Continue`, and the next bytes are the refusal.
        for (path, key, status) in [("/wait", "k", 409), ("/other", "k", 422), ("/wait", "bad key", 400)] {
            let mut duplicate = Raw::connect(server.address).await;
            assert!(duplicate.send(head(path, key, EXPECT, 5)).await);
            let refusal = duplicate.response().await.unwrap();
            assert_eq!(refusal.status, status, "{with:?}: {}", refusal.text());
        }
        let mut duplicate = Raw::connect(server.address).await;
        assert!(duplicate.send(head("/", "large", EXPECT, LIMIT + 1)).await);
        assert_eq!(duplicate.response().await.unwrap().status, 413);
        // The first one is told to send when the handler reads.
        server.application.gate.open();
        assert!(client.take_until(CONTINUE).await.is_some());
        assert!(client.send("hello").await);
        let first = client.response().await.unwrap();
        assert_eq!((first.status, first.text()), (201, "run 1 of 5, 0 trailers"));
        // Done: with the digest that was found right it is answered at once; without, it is read.
        let mut retry = Raw::connect(server.address).await;
        assert!(retry.send(head("/wait", "k", &with_digest, 5)).await);
        let replay = retry.response().await.unwrap();
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
        assert_eq!(replay.body, first.body);
        for (body, status) in [("hello", 201), ("other", 422)] {
            let mut retry = Raw::connect(server.address).await;
            assert!(retry.send(head("/wait", "k", EXPECT, 5)).await);
            assert!(retry.take_until(CONTINUE).await.is_some());
            assert!(retry.send(body).await);
            assert_eq!(retry.response().await.unwrap().status, status);
        }
        assert_eq!(server.application.runs.get(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_lies_leaves_nothing() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let chunked = "transfer-encoding: chunked\r\n";
        let chunked = format!("POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\n{chunked}\r\n");
        let half = format!("{}hello", head("/", "k", "", 10));
        let cases = [
            (half.clone(), true),
            // Reset instead of closed.
            (half, false),
            (format!("{chunked}5\r\nhel"), true),
            (format!("{chunked}5\r\nhello\r\n"), true),
            (format!("{chunked}nonsense\r\n"), false),
        ];
        for (runs, (text, orderly)) in (1..).zip(cases) {
            let mut client = Raw::connect(server.address).await;
            assert!(client.send(&text).await);
            eventually("the handler runs", async || server.application.runs.get() == runs).await;
            if orderly {
                client.stream.shutdown().await.unwrap();
            } else {
                client.stream.set_zero_linger().unwrap();
            }
            drop(client);
            eventually("the handler sees it", async || {
                server.application.failures.get() == runs
            })
            .await;
            eventually("nothing is kept", async || server.held().await == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_one_byte_at_a_time_is_served() {
    let server = Server::plain(EACH[0]).await;
    let mut client = Raw::connect(server.address).await;
    assert!(client.send(head("/", "k", "", 5)).await);
    for (byte, sent) in "hello".bytes().zip(1..) {
        assert!(client.send([byte]).await);
        eventually("it has arrived", async || server.application.frames.get() == sent).await;
    }
    let first = client.response().await.unwrap();
    assert_eq!(first.text(), "run 1 of 5, 0 trailers");
    assert!(client.send(head("/", "k", "", 5) + "hello").await);
    assert_eq!(client.response().await.unwrap().body, first.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_that_waits_gets_the_replay_over_tcp() {
    for (with, version) in each() {
        let server = Server::start(with, |builder| builder.wait(Duration::from_secs(120))).await;
        let mut client = server.connect(version).await;
        let (hand, request) = upload("/", "k");
        let first = tokio::spawn(async move { client.send(request).await.unwrap() });
        hand.send(piece()).unwrap();
        eventually("the handler reads", async || server.application.frames.get() > 0).await;
        let mut other = server.connect(version).await;
        let second = tokio::spawn(async move { other.send(upload_of("/", "k", 1)).await.unwrap() });
        drop(hand);
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(!first.is_replay() && second.is_replay(), "{with:?} {version:?}");
        assert_eq!(first.body, second.body);
    }
}
