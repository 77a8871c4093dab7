//! Over real TCP: connections that break, protocols that must stay in step, and many at once; with
//! plain hyper and with `axum::serve`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceBuilder, service_fn};
use tower_http::body::Limited;
use tower_http::limit::RequestBodyLimitLayer;
use tower_idempotency::{IdempotencyLayer, IdempotencyLayerBuilder, MemoryStore, Policy, RequestBody};

use crate::support::{Answer, Count, Gate, ScriptedBody, Step, counted, drain, eventually, poll_once, read};

/// What serves.
#[derive(Debug, Clone, Copy)]
enum With {
    Hyper,
    Axum,
}

const EACH: &[With] = &[With::Hyper, With::Axum];

/// The application that is served; the path says what a request does.
#[derive(Clone, Default)]
struct Application {
    runs: Count,
    ended: Count,
    gate: Gate,
}

impl Application {
    async fn handle<B>(self, mut request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let run = self.runs.up();
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let mut response = Response::builder()
            .status(201)
            .header("x-run", run)
            .header("link", "</a>")
            .header("link", "</b>")
            .header("set-cookie", "sid=1")
            .header("x-path", head.uri.path());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        let body = match head.uri.path() {
            "/wait" => {
                self.gate.pass().await;
                Body::from(format!("run {run}"))
            }
            "/frames" => stream([Step::Data("one ".into()), Step::Yield, Step::Data("two".into())]),
            "/trailers" => {
                response = response.header("trailer", "x-checksum");
                stream([
                    Step::Data("one ".into()),
                    Step::Yield,
                    Step::Data("two".into()),
                    Step::Trailers(trailers),
                ])
            }
            "/breaks" => stream([Step::Data("half".into()), Step::Yield, Step::Fail]),
            "/empty" => Body::empty(),
            "/sse" | "/ndjson" => {
                response = response.header(
                    "content-type",
                    match head.uri.path() {
                        "/sse" => "text/event-stream",
                        _ => "application/x-ndjson",
                    },
                );
                stream([
                    Step::Data("first\n".into()),
                    Step::Stop(self.gate.clone()),
                    Step::Data("last\n".into()),
                ])
            }
            // As a `HEAD` is often answered: the length of a body that is not made.
            "/declared" => {
                response = response.header("content-length", 12345);
                Body::empty()
            }
            "/upgrade" => {
                tokio::spawn(echo_in_capitals(upgrade));
                response = response
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "shout");
                Body::empty()
            }
            "/large" => Body::from(vec![b'x'; 300_000]),
            _ => Body::from([b"echo ".as_slice(), &body].concat()),
        };
        self.ended.up();
        response.body(body).expect("a valid response")
    }
}

/// What is spoken on an upgraded connection.
async fn echo_in_capitals(upgrade: hyper::upgrade::OnUpgrade) {
    let mut upgraded = TokioIo::new(upgrade.await.expect("an upgraded connection"));
    let mut buffer = [0; 100];
    while let Ok(length @ 1..) = upgraded.read(&mut buffer).await {
        buffer[..length].make_ascii_uppercase();
        upgraded
            .write_all(&buffer[..length])
            .await
            .expect("a client that reads");
    }
}

fn stream(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::new(ScriptedBody::new(steps).map_err(axum::Error::new))
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
        let layer = configure(IdempotencyLayer::builder(store.clone())).build().unwrap();
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

    async fn connect(&self) -> Raw {
        Raw::connect(self.address).await
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// A `POST` on a connection of its own.
    async fn post(&self, path: &str, key: &str, body: &str) -> Answer {
        let mut sender = self.http1().await;
        read(sender.send_request(post(path, key, body)).await.unwrap()).await
    }

    /// Waits until so many handlers go on without their clients.
    async fn detached(&self, work: usize) {
        eventually("the handlers go on", async || self.layer.background().len() == work).await;
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
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn post(path: &str, key: &str, body: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://localhost{path}"))
        .header("host", "localhost")
        .header("idempotency-key", key)
        .body(Full::from(body.to_owned()))
        .unwrap()
}

/// A connection on which each byte is the test's own.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
    read: Vec<u8>,
}

/// One response as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawResponse {
    pub(super) status: u16,
    /// Lower-case names, in the order of the wire.
    headers: Vec<(String, String)>,
    /// As it came, chunks and trailers included.
    wire: Vec<u8>,
    pub(super) body: Vec<u8>,
    trailers: String,
}

impl RawResponse {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.iter().filter(|(n, _)| n == name);
        let value = lines.next().map(|(_, value)| value.as_str());
        assert!(lines.next().is_none(), "{name} stands twice in {self:?}");
        value
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The header lines but for these, sorted.
    fn lines_without(&self, names: &[&str]) -> Vec<(String, String)> {
        let kept = |(name, _): &&(String, String)| !names.contains(&name.as_str());
        let mut lines: Vec<_> = self.headers.iter().filter(kept).cloned().collect();
        lines.sort();
        lines
    }
}

impl Raw {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Sends as much as the peer takes; whether it took all.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.read.extend_from_slice(&buffer[..length]);
                true
            }
        }
    }

    /// The bytes up to and with that mark.
    pub(super) async fn take_until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|window| window == mark) {
                return Some(self.read.drain(..at + mark.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.read.drain(..length).collect())
    }

    /// The next response, or none if the connection was closed.
    pub(super) async fn response(&mut self) -> Option<RawResponse> {
        self.response_to("POST").await
    }

    async fn response_to(&mut self, method: &str) -> Option<RawResponse> {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n").await?).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap();
        assert!(status.starts_with("HTTP/1.1 "), "out of step: {head:?}");
        let status: u16 = status[9..12].parse().unwrap();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut response = RawResponse {
            status,
            headers,
            wire: Vec::new(),
            body: Vec::new(),
            trailers: String::new(),
        };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return Some(response);
        }
        if let Some(length) = response.header("content-length") {
            response.body = self.take(length.parse().unwrap()).await?;
            response.wire = response.body.clone();
            return Some(response);
        }
        assert_eq!(response.header("transfer-encoding"), Some("chunked"), "{head}");
        loop {
            let size = self.take_until(b"\r\n").await?;
            response.wire.extend_from_slice(&size);
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
            if size == 0 {
                break;
            }
            let chunk = self.take(size + 2).await?;
            response.body.extend_from_slice(&chunk[..size]);
            response.wire.extend_from_slice(&chunk);
        }
        loop {
            let line = self.take_until(b"\r\n").await?;
            response.wire.extend_from_slice(&line);
            if line == b"\r\n" {
                return Some(response);
            }
            response.trailers.push_str(std::str::from_utf8(&line).unwrap());
        }
    }

    /// Waits until the peer has closed.
    pub(super) async fn closed(&mut self) {
        while self.fill().await {}
    }
}

/// A request as text, its length declared.
fn raw_post(path: &str, key: &str, body: &str) -> String {
    raw_post_with(path, key, "", body)
}

fn raw_post_with(path: &str, key: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

/// A request as text, its body in chunks.
fn raw_chunked(path: &str, key: &str, chunks: &[&str]) -> String {
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    text + "0\r\n\r\n"
}

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Fin,
    Rst,
    HalfClose,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_in_mid_handler_does_not_cancel_it() {
    for &with in EACH {
        for leaves in [Leaves::Fin, Leaves::Rst, Leaves::HalfClose] {
            let server = Server::plain(with).await;
            let mut client = server.connect().await;
            assert!(client.send(raw_post("/wait", "k", "b")).await);
            server.application.gate.arrival().await;
            let kept = match leaves {
                Leaves::Fin => None,
                Leaves::Rst => {
                    client.stream.set_zero_linger().unwrap();
                    None
                }
                Leaves::HalfClose => {
                    client.stream.shutdown().await.unwrap();
                    Some(())
                }
            };
            if kept.is_some() {
                // hyper takes it for a client that has left, and closes.
                client.closed().await;
            }
            drop(client);
            server.detached(1).await;
            server.post("/wait", "k", "b").await.assert_problem(409, "in-flight");
            server.application.gate.open();
            drain(&server.layer).await;
            assert_eq!(
                server.application.ended.get(),
                1,
                "{with:?} {leaves:?}: it runs to its end"
            );
            let retry = server.post("/wait", "k", "b").await;
            assert!(retry.is_replay(), "{with:?} {leaves:?}: {retry:?}");
            assert_eq!((retry.status.as_u16(), retry.text()), (201, "run 1"));
            assert_eq!(server.application.runs.get(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_stream_that_is_reset_does_not_cancel_its_handler_nor_its_connection() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.http2().await;
        {
            let mut request = pin!(client.send_request(post("/wait", "k", "b")));
            while poll_once(pin!(server.application.gate.arrival())).await.is_pending() {
                assert!(poll_once(request.as_mut()).await.is_pending());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        server.detached(1).await;
        let duplicate = client.send_request(post("/wait", "k", "b")).await.unwrap();
        assert_eq!(duplicate.status().as_u16(), 409);
        server.application.gate.open();
        drain(&server.layer).await;
        let retry = read(client.send_request(post("/wait", "k", "b")).await.unwrap()).await;
        assert!(retry.is_replay(), "{with:?}: {retry:?}");
        assert_eq!((retry.text(), server.application.runs.get()), ("run 1", 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_connection_that_breaks_cancels_none_of_its_handlers() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.set_zero_linger().unwrap();
        // The client has no hand on the socket, so that it cannot say goodbye.
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let wire = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut far).await });
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(near));
        let (client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let requests: Vec<_> = (0..5)
            .map(|n| {
                let mut client = client.clone();
                tokio::spawn(async move { client.send_request(post("/wait", &n.to_string(), "b")).await })
            })
            .collect();
        for _ in 0..5 {
            server.application.gate.arrival().await;
        }
        wire.abort();
        for request in requests {
            assert!(request.await.unwrap().is_err());
        }
        server.detached(5).await;
        server.application.gate.open();
        drain(&server.layer).await;
        for n in 0..5 {
            let retry = server.post("/wait", &n.to_string(), "b").await;
            assert!(retry.is_replay(), "{with:?}: {retry:?}");
        }
        assert_eq!(server.application.runs.get(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_runs_nothing_and_keeps_nothing() {
    let declared = "POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ncontent-length: 100\r\n\r\nonly this";
    let chunked = "POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo";
    for &with in EACH {
        for (text, half_close) in [(declared, true), (declared, false), (chunked, true), (chunked, false)] {
            let server = Server::plain(with).await;
            let mut client = server.connect().await;
            assert!(client.send(text).await);
            if half_close {
                client.stream.shutdown().await.unwrap();
                // Answered, or closed without an answer.
                if let Some(response) = client.response().await {
                    assert_eq!(response.status, 400, "{response:?}");
                    assert!(response.text().contains("body-unreadable"), "{response:?}");
                }
                client.closed().await;
            } else {
                client.stream.set_zero_linger().unwrap();
            }
            drop(client);
            // The key is free, for whatever body, and nothing has run.
            let whole = server.post("/", "k", "whole").await;
            assert_eq!(whole.text(), "echo whole", "{with:?} {half_close}");
            assert_eq!(server.application.runs.get(), 1);
            assert_eq!(server.store.stats().entries, 1);
        }
    }
}

/// Sends a request that is refused, then another on the same connection: that is answered rightly, or the
/// connection is closed.
async fn refused_then_next(server: &Server, refused: &str, status: u16) {
    let mut client = server.connect().await;
    assert!(client.send(refused).await);
    let response = client.response().await.expect("it is small: the refusal can be read");
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let key = format!("next{}", server.application.runs.get());
    if client.send(raw_post("/next", &key, "second")).await
        && let Some(next) = client.response().await
    {
        assert_eq!((next.status, next.text()), (201, "echo second"), "{next:?}");
        assert_eq!(next.header("x-path"), Some("/next"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_leaves_its_connection_in_step_or_closed() {
    // What looks like a request in a body that nobody reads must not become one.
    let smuggled = raw_post("/smuggled", "smuggled", "");
    for &with in EACH {
        let limit = smuggled.len();
        let server = Server::start(with, |builder| builder.max_request_body(limit)).await;
        let large = format!("{smuggled}{smuggled}");
        for (text, status) in [
            (raw_post("/", "k", &large), 413),
            (raw_chunked("/", "k", &[&smuggled, &smuggled]), 413),
            (raw_post("/", "a,b", &smuggled), 400),
            (raw_chunked("/", "a,b", &[&smuggled]), 400),
            (raw_post("/", "", &large), 400),
            (raw_post_with("/", "k", "idempotency-key: k\r\n", &smuggled), 400),
        ] {
            refused_then_next(&server, &text, status).await;
        }
        // In flight, and with another body.
        let mut first = server.connect().await;
        assert!(first.send(raw_post("/wait", "wait", "b")).await);
        server.application.gate.arrival().await;
        refused_then_next(&server, &raw_post("/wait", "wait", "b"), 409).await;
        refused_then_next(&server, &raw_post("/wait", "wait", &smuggled), 422).await;
        server.application.gate.open();
        assert_eq!(first.response().await.unwrap().status, 201);
        // Whatever ran was asked for.
        let smuggled = server.post("/smuggled", "smuggled", "").await;
        assert!(!smuggled.is_replay(), "{smuggled:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_far_over_the_limit_is_refused_before_it_is_sent() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.max_request_body(1000)).await;
        for chunked in [false, true] {
            let mut client = server.connect().await;
            let head = if chunked {
                "transfer-encoding: chunked\r\n\r\n400\r\n"
            } else {
                "content-length: 10000000\r\n\r\n"
            };
            let head = format!("POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\n{head}");
            assert!(client.send(head).await);
            if chunked {
                // A chunk that is over the limit alone.
                assert!(client.send("x".repeat(0x400)).await);
            }
            let refused = client.response().await.expect("answered, though the body is not there");
            assert_eq!(refused.status, 413, "{refused:?}");
            assert_eq!(server.application.runs.get(), 0);
            // The rest is not taken for requests: read and thrown away, or the connection is closed.
            let rest = raw_post("/smuggled", "smuggled", "");
            let _ = client.send(rest.repeat(100)).await;
            client.stream.shutdown().await.ok();
            if let Some(more) = client.response().await {
                panic!("out of step: {more:?}");
            }
            assert_eq!(server.application.runs.get(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_continue_is_refused_without_it() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.max_request_body(10)).await;
        let expecting = |key: &str, length: usize| {
            format!(
                "POST / HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
            )
        };
        for (head, status) in [(expecting("k", 11), 413), (expecting("", 5), 400)] {
            let mut client = server.connect().await;
            assert!(client.send(head).await);
            assert_eq!(client.response().await.unwrap().status, status);
        }
        let mut client = server.connect().await;
        assert!(client.send(expecting("k", 5)).await);
        let interim = client.take_until(b"\r\n\r\n").await.unwrap();
        assert!(interim.starts_with(b"HTTP/1.1 100 "), "{interim:?}");
        assert!(client.send("hello").await);
        assert_eq!(client.response().await.unwrap().text(), "echo hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_the_first_answer_byte_for_byte() {
    for &with in EACH {
        let server = Server::plain(with).await;
        for path in ["/", "/frames", "/empty", "/large"] {
            // On one connection, and each on its own.
            let mut client = server.connect().await;
            let text = raw_post(path, path, "request");
            assert!(client.send(&text).await);
            let first = client.response().await.unwrap();
            assert_eq!(first.header("idempotency-replayed"), None);
            assert!(first.headers.iter().any(|(name, _)| name == "set-cookie"));
            let mut other = server.connect().await;
            for client in [&mut client, &mut other] {
                assert!(client.send(&text).await);
                let replay = client.response().await.unwrap();
                assert_eq!(replay.status, first.status);
                assert_eq!(replay.body, first.body, "{with:?} {path}");
                assert_eq!(replay.wire, first.wire, "{with:?} {path}: framed the same way");
                assert_eq!(
                    replay.lines_without(&["date", "idempotency-replayed"]),
                    first.lines_without(&["date", "set-cookie"]),
                    "{with:?} {path}"
                );
                assert_eq!(replay.header("idempotency-replayed"), Some("true"));
                let length = replay.body.len().to_string();
                assert_eq!(
                    replay.header("content-length"),
                    Some(length.as_str()),
                    "{with:?} {path}"
                );
                assert!(replay.header("date").is_some(), "a date of its own");
            }
        }
        assert_eq!(server.application.runs.get(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_survive_on_http2() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.http2().await;
        let first = read(client.send_request(post("/trailers", "k", "b")).await.unwrap()).await;
        assert_eq!(first.text(), "one two");
        let trailers = first.trailers.clone().expect("the first has trailers");
        assert_eq!(trailers["x-checksum"], "abc");
        let replay = read(client.send_request(post("/trailers", "k", "b")).await.unwrap()).await;
        assert!(replay.is_replay());
        assert_eq!((replay.text(), &replay.trailers), ("one two", &Some(trailers)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_survive_on_http1_in_the_first_answer() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.connect().await;
        assert!(
            client
                .send(raw_post_with("/trailers", "k", "te: trailers\r\n", "b"))
                .await
        );
        let first = client.response().await.unwrap();
        assert_eq!(
            (first.text(), first.trailers.as_str()),
            ("one two", "x-checksum: abc\r\n"),
            "{with:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_survive_on_http1_in_the_replay() {
    for &with in EACH {
        let server = Server::plain(with).await;
        server.post("/trailers", "k", "b").await;
        let mut client = server.connect().await;
        assert!(
            client
                .send(raw_post_with("/trailers", "k", "te: trailers\r\n", "b"))
                .await
        );
        let replay = client.response().await.unwrap();
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
        assert_eq!(
            (replay.text(), replay.trailers.as_str()),
            ("one two", "x-checksum: abc\r\n"),
            "{with:?}"
        );
    }
}

/// Without the layer, the same application sends them: it is no fault of the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_an_unguarded_request_pass_on_http1() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.connect().await;
        let text = "POST /trailers HTTP/1.1\r\nhost: localhost\r\nte: trailers\r\ncontent-length: 1\r\n\r\nb";
        assert!(client.send(text).await);
        let first = client.response().await.unwrap();
        assert_eq!(
            (first.text(), first.trailers.as_str()),
            ("one two", "x-checksum: abc\r\n"),
            "{with:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_breaks_off_at_its_client_and_is_a_tombstone() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.connect().await;
        assert!(client.send(raw_post("/breaks", "k", "b")).await);
        assert_eq!(client.response().await, None, "{with:?}: not taken for a whole one");
        server
            .post("/breaks", "k", "b")
            .await
            .assert_problem(409, "response-not-retained");
        assert_eq!(server.application.runs.get(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_over_the_limit_arrives_whole() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.max_response_body(1000)).await;
        let mut client = server.connect().await;
        for path in ["/large", "/"] {
            assert!(client.send(raw_post(path, path, &"y".repeat(2000))).await);
            let first = client.response().await.unwrap();
            assert_eq!(first.status, 201);
            assert_eq!(first.body.len(), if path == "/" { 2005 } else { 300_000 }, "{with:?}");
        }
        let retry = server.post("/large", "/large", &"y".repeat(2000)).await;
        retry.assert_problem(409, "response-not-retained");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_and_head_are_untouched() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.connect().await;
        for (method, run) in [("GET", 1), ("HEAD", 2), ("GET", 3), ("HEAD", 4)] {
            let text = format!("{method} /frames HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\n\r\n");
            assert!(client.send(text).await);
            let answer = client.response_to(method).await.unwrap();
            assert_eq!(answer.header("x-run"), Some(run.to_string().as_str()));
            assert_eq!(answer.header("idempotency-replayed"), None);
            assert_eq!(answer.header("content-length"), None, "it streams");
            assert_eq!(answer.text(), if method == "GET" { "one two" } else { "" });
        }
        assert_eq!(counted(&server.layer, "unguarded"), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_their_order() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.connect().await;
        let requests: String = (0..10)
            .map(|n| raw_post("/", &(n / 2).to_string(), &format!("body {}", n / 2)))
            .collect();
        assert!(client.send(requests).await);
        for n in 0..10 {
            let response = client.response().await.unwrap();
            assert_eq!(response.text(), format!("echo body {}", n / 2), "{with:?}");
            assert_eq!(response.header("idempotency-replayed").is_some(), n % 2 == 1);
        }
        assert_eq!(server.application.runs.get(), 5);
    }
}

const MANY: usize = 200;

/// All at once, each on a connection of its own.
async fn many(server: &Arc<Server>, key: impl Fn(usize) -> String) -> Vec<tokio::task::JoinHandle<Answer>> {
    let barrier = Arc::new(tokio::sync::Barrier::new(MANY));
    let mut requests = Vec::new();
    for n in 0..MANY {
        let (server, barrier, key) = (server.clone(), barrier.clone(), key(n));
        requests.push(tokio::spawn(async move {
            let mut client = server.http1().await;
            barrier.wait().await;
            read(client.send_request(post("/wait", &key, "b")).await.unwrap()).await
        }));
    }
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_duplicates_from_as_many_connections_exactly_one_runs() {
    for &with in EACH {
        let server = Arc::new(Server::plain(with).await);
        let requests = many(&server, |_| "k".into()).await;
        server.application.gate.arrival().await;
        let in_flight = async || counted(&server.layer, "in-flight") == MANY as u64 - 1;
        eventually("the others are refused", in_flight).await;
        server.application.gate.open();
        let mut fine = 0;
        for request in requests {
            let answer = request.await.unwrap();
            match answer.status.as_u16() {
                201 => fine += 1,
                _ => answer.assert_problem(409, "in-flight"),
            }
        }
        assert_eq!((fine, server.application.runs.get()), (1, 1), "{with:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_wait_200_duplicates_all_get_the_one_answer() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.wait(Duration::from_secs(3600))).await;
        let server = Arc::new(server);
        let requests = many(&server, |_| "k".into()).await;
        server.application.gate.arrival().await;
        server.application.gate.open();
        let mut replays = 0;
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (201, "run 1"), "{with:?}");
            replays += usize::from(answer.is_replay());
        }
        assert_eq!((replays, server.application.runs.get()), (MANY - 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_distinct_keys_at_once_all_run() {
    for &with in EACH {
        let server = Arc::new(Server::plain(with).await);
        let requests = many(&server, |n| format!("k{n}")).await;
        // All of them at the same time.
        for _ in 0..MANY {
            server.application.gate.arrival().await;
        }
        server.application.gate.open();
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.is_replay()), (201, false), "{with:?}");
        }
        assert_eq!(server.application.runs.get(), MANY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_one_http2_connection_200_duplicates_run_once() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.wait(Duration::from_secs(3600))).await;
        server.application.gate.open();
        let client = server.http2().await;
        let requests: Vec<_> = (0..MANY)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { read(client.send_request(post("/wait", "k", "b")).await.unwrap()).await })
            })
            .collect();
        for request in requests {
            assert_eq!(request.await.unwrap().text(), "run 1", "{with:?}");
        }
        assert_eq!(server.application.runs.get(), 1);
    }
}

/// A guarded `HEAD` as text.
fn raw_head(path: &str, key: &str) -> String {
    format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\nidempotency-key: {key}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_5_8_the_replay_of_a_head_has_the_first_content_length_on_http1() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.methods([http::Method::HEAD])).await;
        // hyper declares no length for a body that is empty anyway.
        for (path, length) in [
            ("/declared", Some("12345")),
            ("/large", Some("300000")),
            ("/empty", None),
        ] {
            let mut client = server.connect().await;
            assert!(client.send(raw_head(path, path)).await);
            let first = client.response_to("HEAD").await.unwrap();
            let first_length = first.header("content-length");
            assert!(length.is_none() || first_length == length, "{with:?} {path} {first:?}");
            assert_eq!(first.header("idempotency-replayed"), None);
            // On the same connection: a body that was sent would put it out of step.
            for _ in 0..2 {
                assert!(client.send(raw_head(path, path)).await);
                let replay = client.response_to("HEAD").await.unwrap();
                assert_eq!(replay.status, first.status);
                assert_eq!(replay.header("content-length"), first_length, "{with:?} {path}");
                assert_eq!(replay.header("idempotency-replayed"), Some("true"));
            }
        }
        assert_eq!(server.application.runs.get(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_5_8_the_replay_of_a_head_has_the_first_content_length_on_http2() {
    for &with in EACH {
        let server = Server::start(with, |builder| builder.methods([http::Method::HEAD])).await;
        let mut client = server.http2().await;
        let paths: &[_] = match with {
            // On HTTP/2 hyper sends what body an application gives it, also for a `HEAD`.
            With::Hyper => &[("/declared", "12345")],
            With::Axum => &[("/declared", "12345"), ("/large", "300000")],
        };
        for (path, length) in paths {
            for replayed in [false, true, true] {
                let mut head = post(path, path, "");
                *head.method_mut() = http::Method::HEAD;
                let answer = read(client.send_request(head).await.unwrap()).await;
                assert_eq!(answer.status.as_u16(), 201);
                assert_eq!(answer.header("content-length"), Some(*length), "{with:?} {path}");
                assert_eq!(answer.is_replay(), replayed);
                assert!(answer.body.is_empty());
            }
        }
        assert_eq!(server.application.runs.get(), paths.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_4_8_the_first_event_arrives_before_the_last_is_written_on_http1() {
    for &with in EACH {
        let server = Server::plain(with).await;
        for path in ["/sse", "/ndjson"] {
            let mut client = server.connect().await;
            assert!(client.send(raw_post(path, path, "b")).await);
            let read = client.take_until(b"first\n\r\n").await.expect("the first event");
            assert!(read.starts_with(b"HTTP/1.1 201 "), "{with:?}");
            server.application.gate.arrival().await;
            server.post(path, path, "b").await.assert_problem(409, "in-flight");
            server.application.gate.open_once();
            assert!(client.take_until(b"last\n\r\n0\r\n\r\n").await.is_some(), "{with:?}");
            sealed_as(&server, path, "response-not-retained").await;
        }
        assert_eq!(server.application.runs.get(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_4_8_the_first_event_arrives_before_the_last_is_written_on_http2() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.http2().await;
        for path in ["/sse", "/ndjson"] {
            let mut body = client.send_request(post(path, path, "b")).await.unwrap().into_body();
            let first = body.frame().await.unwrap().unwrap();
            assert_eq!(first.into_data().unwrap(), "first\n", "{with:?}");
            server.application.gate.arrival().await;
            server.post(path, path, "b").await.assert_problem(409, "in-flight");
            server.application.gate.open_once();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "last\n");
            sealed_as(&server, path, "response-not-retained").await;
        }
        assert_eq!(server.application.runs.get(), 2);
    }
}

/// Waits until the stream has ended for the server too. A retry then gets that problem.
async fn sealed_as(server: &Server, path: &str, code: &str) {
    let sealed = eventually("the stream is sealed", async || {
        let answer = server.post(path, path, "b").await;
        (answer.json()["code"] != "in-flight").then_some(answer)
    });
    sealed.await.assert_problem(409, code);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_4_8_a_client_that_disconnects_in_mid_stream_leaves_an_unknown_outcome() {
    for &with in EACH {
        for path in ["/sse", "/ndjson"] {
            for leaves in [Leaves::Fin, Leaves::Rst] {
                let server = Server::plain(with).await;
                let mut client = server.connect().await;
                assert!(client.send(raw_post(path, path, "b")).await);
                client.take_until(b"first\n").await.expect("the first event");
                if let Leaves::Rst = leaves {
                    client.stream.set_zero_linger().unwrap();
                }
                drop(client);
                sealed_as(&server, path, "outcome-unknown").await;
                // What was still to be sent changes nothing.
                server.application.gate.open();
                server
                    .post(path, path, "b")
                    .await
                    .assert_problem(409, "outcome-unknown");
                assert_eq!(server.application.runs.get(), 1, "{with:?} {path} {leaves:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_4_8_a_stream_that_is_reset_on_http2_leaves_an_unknown_outcome() {
    for &with in EACH {
        let server = Server::plain(with).await;
        let mut client = server.http2().await;
        let mut body = client
            .send_request(post("/sse", "/sse", "b"))
            .await
            .unwrap()
            .into_body();
        body.frame().await.unwrap().unwrap();
        drop(body);
        sealed_as(&server, "/sse", "outcome-unknown").await;
        let other = read(client.send_request(post("/", "k", "b")).await.unwrap()).await;
        assert_eq!(other.text(), "echo b", "{with:?}: the connection goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_4_1_an_upgrade_passes_through_a_guarded_route_and_is_never_stored() {
    let text = raw_post_with("/upgrade", "k", "connection: upgrade\r\nupgrade: shout\r\n", "b");
    for &with in EACH {
        let server = Server::start(with, |builder| builder.policy(Policy::everything())).await;
        for run in 1..=2 {
            let mut client = server.connect().await;
            assert!(client.send(&text).await);
            let answer = client.response().await.expect("an answer");
            assert_eq!(answer.status, 101, "{with:?}");
            assert_eq!(
                answer.header("x-run"),
                Some(run.to_string().as_str()),
                "it was not stored"
            );
            assert_eq!(answer.header("upgrade"), Some("shout"));
            assert_eq!(answer.header("connection"), Some("upgrade"));
            assert_eq!(answer.header("content-length"), None);
            assert_eq!(answer.header("idempotency-replayed"), None);
            for (said, heard) in [("hello", b"HELLO".as_slice()), ("again", b"AGAIN")] {
                assert!(client.send(said).await);
                assert_eq!(client.take(said.len()).await.as_deref(), Some(heard), "{with:?}");
            }
        }
        assert_eq!(server.store.stats().entries, 0);
        // Other responses are stored.
        server.post("/", "other", "b").await;
        assert!(server.post("/", "other", "b").await.is_replay());
    }
}

/// A server with a limit of 100 bytes outside the layer.
async fn limited_from_outside(with: With) -> Server {
    let store = MemoryStore::new();
    let layer = IdempotencyLayer::new(store.clone());
    let application = Application::default();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let inside = application.clone();
    let limit = RequestBodyLimitLayer::new(100);
    match with {
        With::Hyper => {
            let handler = service_fn(move |request: Request<RequestBody<Limited<Incoming>>>| {
                let application = inside.clone();
                async move { Ok::<_, Infallible>(application.handle(request).await) }
            });
            let service = ServiceBuilder::new()
                .layer(limit)
                .map_request(|request: Request<Limited<Incoming>>| request.map(RequestBody::live))
                .layer(layer.clone())
                .service(handler);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone()));
                    // A connection may be closed in the middle of a body that is too long.
                    tokio::spawn(async move { drop(connection.await) });
                }
            });
        }
        With::Axum => {
            let handler = move |request: axum::extract::Request| inside.clone().handle(request);
            let router = axum::Router::new().fallback(handler).layer(layer.clone()).layer(limit);
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        }
    }
    Server {
        address,
        application,
        layer,
        store,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_6_1_a_chunked_body_that_an_outer_limit_cuts_off_is_413() {
    let (half, more) = ("x".repeat(60), "y".repeat(41));
    for &with in EACH {
        let server = limited_from_outside(with).await;
        let mut client = server.connect().await;
        assert!(client.send(raw_chunked("/", "k", &[&half, &more])).await);
        let refused = client.response().await.expect("an answer, and not a reset");
        assert_eq!(refused.status, 413, "{with:?} {refused:?}");
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        let problem: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&"body-too-large".into(), &false.into())
        );
        assert_eq!((server.application.runs.get(), server.store.stats().entries), (0, 0));
        // The key is free for a body within the limit.
        let mut client = server.connect().await;
        assert!(client.send(raw_chunked("/", "k", &[&half])).await);
        let whole = client.response().await.unwrap();
        assert_eq!((whole.status, whole.text()), (201, format!("echo {half}").as_str()));
    }
}

/// Axum has a limit of its own, for its extractors and for `with_limited_body`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contract_6_1_a_chunked_body_over_axums_own_limit_is_413() {
    use axum::extract::DefaultBodyLimit;
    use axum::middleware::{Next, from_fn};
    use axum::{RequestExt, Router, extract::Request, routing::post};

    let (half, more) = ("x".repeat(60), "y".repeat(41));
    for cut_outside in [false, true] {
        let application = Application::default();
        let layer = IdempotencyLayer::new(MemoryStore::new());
        let runs = application.runs.clone();
        let extracts = move |body: Bytes| async move {
            runs.up();
            body
        };
        let mut router = Router::new().route("/", post(extracts)).layer(layer.clone());
        if cut_outside {
            let cut = |request: Request, next: Next| next.run(request.with_limited_body());
            router = router.layer(from_fn(cut));
        }
        let router = router.layer(DefaultBodyLimit::max(100));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            application,
            layer,
            store: MemoryStore::new(),
        };
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        for (chunks, status) in [(&[&half[..], &more][..], 413), (&[&half], 200)] {
            let mut client = server.connect().await;
            assert!(client.send(raw_chunked("/", "k", chunks)).await);
            let answer = client.response().await.expect("an answer, and not a reset");
            assert_eq!(answer.status, status, "cut outside: {cut_outside}: {answer:?}");
            if status == 413 {
                let is_problem = answer.header("content-type") == Some("application/problem+json");
                assert_eq!(is_problem, cut_outside, "{answer:?}");
            }
        }
        assert_eq!(server.application.runs.get(), 1);
    }
}
