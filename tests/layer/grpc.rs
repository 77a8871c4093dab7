//! A tonic server and a tonic client over TCP, with the layer in `Server::builder().layer(…)`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use http::uri::PathAndQuery;
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::server::NamedService;
use tonic::service::{InterceptorLayer, LayerExt, Routes};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming, client, server};
use tonic_prost::ProstCodec;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, MemoryStore, ScopeSource, Store, Verdict,
};

use crate::support::store::Scripted;
use crate::support::wait::watched;
use crate::support::{Count, Gate, ScriptedBody, Step, counted, eventually};

const PAY: &str = "/ledger.Ledger/Pay";
const REFUND: &str = "/ledger.Ledger/Refund";
const UPLOAD: &str = "/ledger.Ledger/Upload";
const STATEMENT: &str = "/ledger.Ledger/Statement";
const CHAT: &str = "/ledger.Ledger/Chat";

/// What both ends send.
#[derive(Clone, PartialEq, prost::Message)]
struct Line {
    #[prost(string, tag = "1")]
    text: String,
}

fn line(text: impl Into<String>) -> Line {
    Line { text: text.into() }
}

/// What a run does.
#[derive(Default)]
enum Act {
    #[default]
    Answer,
    /// Answers, and says what becomes of the answer.
    Judge(Verdict),
    Fail(Code),
    Panic,
    /// Waits at the gate; a stream does so after its first message.
    Stop(Gate),
    /// The same, and fails then.
    StopAndFail(Gate, Code),
}

/// A service as `tonic-prost-build` generates it, with a method of each kind.
#[derive(Clone, Default)]
struct Ledger {
    runs: Count,
    acts: Arc<Mutex<VecDeque<Act>>>,
}

impl NamedService for Ledger {
    const NAME: &'static str = "ledger.Ledger";
}

impl Service<http::Request<Body>> for Ledger {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ledger = self.clone();
        let mut grpc = server::Grpc::new(ProstCodec::<Line, Line>::default())
            .accept_compressed(Gzip)
            .send_compressed(Gzip);
        Box::pin(async move {
            Ok(match request.uri().path() {
                UPLOAD => {
                    let method = service_fn(|lines| ledger.upload(lines));
                    grpc.client_streaming(method, request).await
                }
                STATEMENT => {
                    let method = service_fn(|line| ledger.statement(line));
                    grpc.server_streaming(method, request).await
                }
                CHAT => grpc.streaming(service_fn(|lines| ledger.chat(lines)), request).await,
                _ => {
                    let response = grpc.unary(service_fn(|line| ledger.pay(line)), request).await;
                    let receipt = ledger.runs.get();
                    response.map(|body| Body::new(body.map_frame(move |frame| with_receipt(frame, receipt))))
                }
            })
        })
    }
}

/// Adds a trailer of the application's own.
fn with_receipt(frame: http_body::Frame<bytes::Bytes>, receipt: usize) -> http_body::Frame<bytes::Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            trailers.insert("x-receipt", HeaderValue::from(receipt));
            http_body::Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

impl Ledger {
    /// What the next runs do, in turn.
    fn acts(&self, acts: impl IntoIterator<Item = Act>) {
        self.acts.lock().unwrap().extend(acts);
    }

    /// A run has begun.
    fn begin(&self) -> (usize, Act) {
        (
            self.runs.up(),
            self.acts.lock().unwrap().pop_front().unwrap_or_default(),
        )
    }

    fn pay(&self, request: Request<Line>) -> impl Future<Output = Result<Response<Line>, Status>> + use<> {
        let (run, act) = self.begin();
        async move {
            let mut verdict = None;
            match act {
                Act::Answer => {}
                Act::Judge(own) => verdict = Some(own),
                Act::Fail(code) => return Err(Status::new(code, "as the test wants")),
                Act::Panic => panic!("a method panics, as the test wants"),
                Act::Stop(gate) => gate.pass().await,
                Act::StopAndFail(gate, code) => {
                    gate.pass().await;
                    return Err(Status::new(code, "as the test wants"));
                }
            }
            let attempt = request
                .extensions()
                .get::<IdempotencyKey>()
                .map(IdempotencyKey::attempt);
            let mut response = Response::new(line(format!("{} {run}", request.get_ref().text)));
            response.metadata_mut().insert("x-run", run.into());
            response.metadata_mut().insert("x-attempt", attempt.unwrap_or(0).into());
            if let Some(verdict) = verdict {
                response.extensions_mut().insert(verdict);
            }
            Ok(response)
        }
    }

    async fn upload(&self, request: Request<Streaming<Line>>) -> Result<Response<Line>, Status> {
        let (run, _) = self.begin();
        let mut lines = request.into_inner();
        let mut all = String::new();
        while let Some(line) = lines.next().await {
            all.push_str(&line?.text);
        }
        Ok(Response::new(line(format!("{all} {run}"))))
    }

    /// Each character of the request is a message of the response.
    async fn statement(
        &self,
        request: Request<Line>,
    ) -> Result<Response<ReceiverStream<Result<Line, Status>>>, Status> {
        let (run, act) = self.begin();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let (gate, end) = match act {
                Act::Stop(gate) => (Some(gate), None),
                Act::StopAndFail(gate, code) => (Some(gate), Some(code)),
                Act::Fail(code) => (None, Some(code)),
                Act::Answer | Act::Judge(_) | Act::Panic => (None, None),
            };
            for (index, character) in request.get_ref().text.chars().enumerate() {
                if let Some(gate) = gate.as_ref().filter(|_| index == 1) {
                    gate.pass().await;
                }
                let _ = sender.send(Ok(line(format!("{character} {run}")))).await;
            }
            if let Some(code) = end {
                let _ = sender.send(Err(Status::new(code, "as the test wants"))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn chat(
        &self,
        request: Request<Streaming<Line>>,
    ) -> Result<Response<impl Stream<Item = Result<Line, Status>> + use<>>, Status> {
        let (run, _) = self.begin();
        let echoes = request
            .into_inner()
            .map(move |said| said.map(|said| line(format!("{} {run}", said.text))));
        Ok(Response::new(echoes))
    }
}

/// A server on a port of its own, and a client of it.
struct Served {
    address: SocketAddr,
    ledger: Ledger,
    client: Client,
}

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new()).grpc()
}

async fn serve<St: Store>(builder: IdempotencyLayerBuilder<St>) -> Served {
    serve_layer(builder.build().unwrap()).await
}

async fn serve_layer<St: Store>(layer: IdempotencyLayer<St>) -> Served {
    let (address, incoming) = listen().await;
    let ledger = Ledger::default();
    let server = Server::builder().layer(layer).add_service(ledger.clone());
    tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    Served {
        address,
        ledger,
        client: Client::to(address),
    }
}

async fn listen() -> (SocketAddr, TcpIncoming) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), TcpIncoming::from(listener))
}

/// Calls methods, on one connection.
#[derive(Clone)]
struct Client(Channel);

type Sender = mpsc::Sender<Line>;

impl Client {
    fn to(address: SocketAddr) -> Self {
        Self(
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy(),
        )
    }

    async fn grpc(&self) -> client::Grpc<Channel> {
        let mut grpc = client::Grpc::new(self.0.clone());
        grpc.ready().await.unwrap();
        grpc
    }

    async fn send(&self, method: &'static str, request: Request<Line>) -> Result<Response<Line>, Status> {
        let call = async {
            let path = PathAndQuery::from_static(method);
            self.grpc().await.unary(request, path, ProstCodec::default()).await
        };
        watched(Duration::from_secs(60), call).await
    }

    async fn call(&self, method: &'static str, key: &str, text: &str) -> Result<Response<Line>, Status> {
        self.send(method, keyed(key, line(text))).await
    }

    /// Calls `Statement` and reads its response to the end.
    async fn statement(&self, key: &str, text: &str) -> Result<Vec<String>, Status> {
        let mut lines = self.open_statement(key, text).await?;
        let mut texts = Vec::new();
        while let Some(line) = lines.next().await {
            texts.push(line?.text);
        }
        Ok(texts)
    }

    async fn open_statement(&self, key: &str, text: &str) -> Result<Streaming<Line>, Status> {
        let request = keyed(key, line(text));
        let path = PathAndQuery::from_static(STATEMENT);
        let opened = self
            .grpc()
            .await
            .server_streaming(request, path, ProstCodec::default())
            .await;
        opened.map(Response::into_inner)
    }

    async fn upload(&self, key: &str, texts: &[&str]) -> Result<Response<Line>, Status> {
        let lines: Vec<_> = texts.iter().copied().map(line).collect();
        let request = keyed(key, tokio_stream::iter(lines));
        let path = PathAndQuery::from_static(UPLOAD);
        self.grpc()
            .await
            .client_streaming(request, path, ProstCodec::default())
            .await
    }

    /// Opens `Chat`. The request goes on for as long as the sender lives.
    async fn chat(&self, key: &str) -> (Sender, Result<Streaming<Line>, Status>) {
        let (sender, receiver) = mpsc::channel(1);
        sender.send(line("hello")).await.unwrap();
        (sender, self.open_chat(key, receiver).await)
    }

    async fn open_chat(&self, key: &str, lines: mpsc::Receiver<Line>) -> Result<Streaming<Line>, Status> {
        let request = keyed(key, ReceiverStream::new(lines));
        let path = PathAndQuery::from_static(CHAT);
        let mut grpc = self.grpc().await;
        let call = grpc.streaming(request, path, ProstCodec::default());
        watched(Duration::from_secs(60), call).await.map(Response::into_inner)
    }
}

/// A request with that key; none if it is empty.
fn keyed<M>(key: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    }
    request
}

async fn next(lines: &mut Streaming<Line>) -> String {
    let next = watched(Duration::from_secs(60), lines.next()).await;
    next.expect("one more message").unwrap().text
}

/// Says hello, then two lines more, each after the answer to the one before.
async fn assert_interleaves(client: &Client, key: &str) {
    let (sender, lines) = client.chat(key).await;
    let mut lines = lines.unwrap();
    let hello = next(&mut lines).await;
    assert!(hello.starts_with("hello "), "{hello}");
    for text in ["a", "b"] {
        sender.send(line(text)).await.unwrap();
        assert!(next(&mut lines).await.starts_with(text));
    }
    drop(sender);
    assert!(lines.next().await.is_none());
}

fn text<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    status.metadata().get(name).map(|value| value.to_str().unwrap())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(refused: Result<T, Status>, code: Code, problem: &str, push_back: &str) {
    let status = refused.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(!status.message().is_empty());
    assert_eq!(text(&status, "idempotency-problem"), Some(problem), "{status}");
    assert_eq!(text(&status, "grpc-retry-pushback-ms"), Some(push_back), "{status}");
}

fn is_replay<T>(response: &Response<T>) -> bool {
    response.metadata().get("idempotency-replayed").is_some()
}

#[tokio::test]
async fn contract_7_3_a_call_runs_once_and_its_retry_gets_metadata_message_and_trailers() {
    let Served { ledger, client, .. } = serve(builder()).await;
    let first = client.call(PAY, "k", "10").await.unwrap();
    let retry = client.call(PAY, "k", "10").await.unwrap();
    assert_eq!(ledger.runs.get(), 1);
    assert!(!is_replay(&first));
    assert_eq!(retry.metadata().get("idempotency-replayed").unwrap(), "true");
    for response in [&first, &retry] {
        assert_eq!(response.get_ref().text, "10 1");
        assert_eq!(response.metadata().get("x-run").unwrap(), "1");
        assert_eq!(response.metadata().get("x-attempt").unwrap(), "1");
        assert_eq!(response.metadata().get("x-receipt").unwrap(), "1", "it is a trailer");
        assert_eq!(response.metadata().get("grpc-status").unwrap(), "0");
    }
    // Another caller's key is another operation.
    let mut other = keyed("k", line("10"));
    other
        .metadata_mut()
        .insert("authorization", "Bearer b".parse().unwrap());
    let other = client.send(PAY, other).await.unwrap();
    assert_eq!((other.get_ref().text.as_str(), ledger.runs.get()), ("10 2", 2));
}

#[tokio::test]
async fn contract_7_3_another_message_or_method_under_the_key_is_a_failed_precondition() {
    let Served { ledger, client, .. } = serve(builder()).await;
    client.call(PAY, "k", "10").await.unwrap();
    let other = client.call(PAY, "k", "11").await;
    assert!(
        other.as_ref().unwrap_err().message().contains("a different request"),
        "{other:?}"
    );
    assert_refused(other, Code::FailedPrecondition, "key-reused", "-1");
    assert_refused(
        client.call(REFUND, "k", "10").await,
        Code::FailedPrecondition,
        "key-reused",
        "-1",
    );
    assert!(is_replay(&client.call(PAY, "k", "10").await.unwrap()));
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_a_duplicate_in_flight_is_aborted_and_told_when_to_retry() {
    let Served { ledger, client, .. } = serve(builder()).await;
    let gate = Gate::default();
    ledger.acts([Act::Stop(gate.clone())]);
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.call(PAY, "k", "10").await }
    });
    gate.arrival().await;
    assert_refused(client.call(PAY, "k", "10").await, Code::Aborted, "in-flight", "1000");
    gate.open();
    assert!(!is_replay(&first.await.unwrap().unwrap()));
    assert!(is_replay(&client.call(PAY, "k", "10").await.unwrap()));
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_a_status_other_than_0_is_not_stored() {
    let Served { ledger, client, .. } = serve(builder()).await;
    for (number, code) in [Code::Unavailable, Code::Internal, Code::InvalidArgument]
        .into_iter()
        .enumerate()
    {
        ledger.acts([Act::Fail(code)]);
        let key = number.to_string();
        // Headers alone.
        assert_eq!(client.call(PAY, &key, "10").await.unwrap_err().code(), code);
        assert!(!is_replay(&client.call(PAY, &key, "10").await.unwrap()));
        assert!(is_replay(&client.call(PAY, &key, "10").await.unwrap()));
        // In trailers, after a message.
        ledger.acts([Act::Fail(code)]);
        let key = format!("s{number}");
        let failed = client.call(STATEMENT, &key, "a").await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (code, "as the test wants"));
        let runs = ledger.runs.get();
        assert_eq!(client.statement(&key, "a").await.unwrap(), [format!("a {}", runs + 1)]);
        assert_eq!(client.statement(&key, "a").await.unwrap(), [format!("a {}", runs + 1)]);
    }
}

#[tokio::test]
async fn contract_4_2_a_method_of_tonic_overrides_the_policy() {
    let Served { ledger, client, .. } = serve(builder()).await;
    ledger.acts([Act::Judge(Verdict::Release), Act::Judge(Verdict::Seal)]);
    for run in ["10 1", "10 2"] {
        assert_eq!(client.call(PAY, "k", "10").await.unwrap().get_ref().text, run);
    }
    assert_refused(
        client.call(PAY, "k", "10").await,
        Code::AlreadyExists,
        "response-not-retained",
        "-1",
    );
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test]
async fn contract_7_3_a_call_that_panicked_runs_again() {
    let Served { ledger, client, .. } = serve(builder()).await;
    ledger.acts([Act::Panic]);
    client.call(PAY, "k", "10").await.unwrap_err();
    let retry = eventually("the key is free", async || client.call(PAY, "k", "10").await.ok()).await;
    assert_eq!((retry.get_ref().text.as_str(), ledger.runs.get()), ("10 2", 2));
}

#[tokio::test]
async fn contract_7_3_a_call_without_a_key_passes_or_is_refused_as_configured() {
    let layer = builder().build().unwrap();
    let Served { ledger, client, .. } = serve_layer(layer.clone()).await;
    for run in ["10 1", "10 2"] {
        let response = client.call(PAY, "", "10").await.unwrap();
        assert_eq!(response.get_ref().text, run);
        assert_eq!(response.metadata().get("x-attempt").unwrap(), "0", "it has no key");
    }
    assert_eq!((ledger.runs.get(), counted(&layer, "unguarded")), (2, 2));

    let Served { ledger, client, .. } = serve(builder().require_key(true)).await;
    assert_refused(
        client.call(PAY, "", "10").await,
        Code::InvalidArgument,
        "missing-key",
        "-1",
    );
    assert_refused(
        client.call(PAY, "null", "10").await,
        Code::InvalidArgument,
        "invalid-key",
        "-1",
    );
    assert_eq!(ledger.runs.get(), 0);
}

#[tokio::test]
async fn contract_7_3_a_store_that_is_down_is_unavailable() {
    let store = Scripted::default();
    let Served { ledger, client, .. } = serve(IdempotencyLayer::builder(store.clone()).grpc()).await;
    store.down(true);
    assert_refused(
        client.call(PAY, "k", "10").await,
        Code::Unavailable,
        "store-unavailable",
        "1000",
    );
    store.down(false);
    client.call(PAY, "k", "10").await.unwrap();
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_a_message_that_is_too_large_is_resource_exhausted() {
    let Served { ledger, client, .. } = serve(builder().max_request_body(1000)).await;
    let large = "x".repeat(100_000);
    assert_refused(
        client.call(PAY, "k", &large).await,
        Code::ResourceExhausted,
        "body-too-large",
        "-1",
    );
    assert_eq!(ledger.runs.get(), 0);
    // Without a key the layer has no limit.
    client.call(PAY, "", &large).await.unwrap();
}

#[tokio::test]
async fn contract_7_3_a_response_that_is_too_large_already_exists() {
    let Served { ledger, client, .. } = serve(builder().max_response_body(1000)).await;
    let large = "x".repeat(10_000);
    let first = client.call(PAY, "k", &large).await.unwrap();
    assert_eq!(first.metadata().get("x-receipt").unwrap(), "1");
    let retry = client.call(PAY, "k", &large).await;
    assert_refused(retry, Code::AlreadyExists, "response-not-retained", "-1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_a_compressed_call_is_replayed_compressed() {
    let Served { ledger, client, .. } = serve(builder()).await;
    let long = "10 ".repeat(1000);
    for replay in [false, true] {
        let mut grpc = client.grpc().await.send_compressed(Gzip).accept_compressed(Gzip);
        let path = PathAndQuery::from_static(PAY);
        let response = grpc.unary(keyed("k", line(&long)), path, ProstCodec::default()).await;
        let response: Response<Line> = response.unwrap();
        assert_eq!(response.metadata().get("grpc-encoding").unwrap(), "gzip");
        assert_eq!(response.get_ref().text, format!("{long} 1"));
        assert_eq!(is_replay(&response), replay);
    }
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_streams_without_a_key_pass_untouched() {
    let layer = builder().build().unwrap();
    let Served { ledger, client, .. } = serve_layer(layer.clone()).await;
    assert_interleaves(&client, "").await;
    assert_eq!(client.upload("", &["a", "b"]).await.unwrap().get_ref().text, "ab 2");
    // The first message is there before the second is made.
    let gate = Gate::default();
    ledger.acts([Act::Stop(gate.clone())]);
    let mut lines = client.open_statement("", "ab").await.unwrap();
    assert_eq!(next(&mut lines).await, "a 3");
    gate.open();
    assert_eq!(next(&mut lines).await, "b 3");
    assert_eq!(counted(&layer, "unguarded"), 3);
}

#[tokio::test]
async fn contract_7_3_streaming_methods_that_are_named_pass_also_with_a_key() {
    let layer = builder().pass_when(|head| [CHAT, UPLOAD, STATEMENT].contains(&head.uri.path()));
    let Served { ledger, client, .. } = serve(layer).await;
    assert_interleaves(&client, "k").await;
    assert_interleaves(&client, "k").await;
    assert_eq!(client.upload("k", &["a"]).await.unwrap().get_ref().text, "a 3");
    assert_eq!(client.statement("k", "ab").await.unwrap(), ["a 4", "b 4"]);
    // The others are guarded.
    client.call(PAY, "k", "10").await.unwrap();
    assert!(is_replay(&client.call(PAY, "k", "10").await.unwrap()));
    assert_eq!(ledger.runs.get(), 5);
}

#[tokio::test]
async fn contract_7_3_a_stream_with_a_key_that_waits_for_an_answer_is_refused_and_does_not_run() {
    let layer = builder()
        .grpc_request_within(Duration::from_millis(200))
        .build()
        .unwrap();
    let Served { ledger, client, .. } = serve_layer(layer.clone()).await;
    let (_sender, refused) = client.chat("k").await;
    let status = refused.unwrap_err();
    assert!(status.message().contains("200ms"), "{status}");
    assert_refused::<()>(Err(status), Code::InvalidArgument, "invalid-key", "-1");
    // A client that waits for a greeting.
    let (_silent, lines) = mpsc::channel(1);
    assert_refused(
        client.open_chat("k", lines).await,
        Code::InvalidArgument,
        "invalid-key",
        "-1",
    );
    // A client that goes on speaking.
    let (sender, lines) = mpsc::channel(1);
    let speaking = tokio::spawn(async move {
        while sender.send(line("a")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_refused(
        client.open_chat("k", lines).await,
        Code::InvalidArgument,
        "invalid-key",
        "-1",
    );
    speaking.abort();
    assert_eq!((ledger.runs.get(), counted(&layer, "invalid-key")), (0, 3));
    // The key is free, and the connection as good as before.
    client.call(PAY, "k", "10").await.unwrap();
}

#[tokio::test]
async fn contract_7_3_streams_that_end_in_time_are_guarded_as_unary_calls() {
    let Served { ledger, client, .. } = serve(builder()).await;
    for replay in [false, true] {
        let uploaded = client.upload("up", &["a", "b", "c"]).await.unwrap();
        assert_eq!(
            (uploaded.get_ref().text.as_str(), is_replay(&uploaded)),
            ("abc 1", replay)
        );
    }
    assert_refused(
        client.upload("up", &["a", "b"]).await,
        Code::FailedPrecondition,
        "key-reused",
        "-1",
    );
    for _ in 0..2 {
        assert_eq!(client.statement("down", "xyz").await.unwrap(), ["x 2", "y 2", "z 2"]);
    }
    for _ in 0..2 {
        // Everything is said before anything is read.
        let (sender, lines) = mpsc::channel(2);
        sender.send(line("a")).await.unwrap();
        drop(sender);
        let mut lines = client.open_chat("both", lines).await.unwrap();
        assert_eq!(next(&mut lines).await, "a 3");
        assert!(lines.next().await.is_none());
    }
    assert_eq!(ledger.runs.get(), 3);
}

#[tokio::test]
async fn contract_7_3_a_long_response_goes_on_live_and_is_judged_when_it_ends() {
    let Served { ledger, client, .. } = serve(builder().response_body_within(Duration::from_millis(100))).await;
    let gate = Gate::default();
    ledger.acts([
        Act::StopAndFail(gate.clone(), Code::Unavailable),
        Act::Stop(gate.clone()),
    ]);
    // It fails in the end: the retry runs.
    let mut lines = client.open_statement("k", "ab").await.unwrap();
    assert_eq!(next(&mut lines).await, "a 1");
    assert_refused(client.statement("k", "ab").await, Code::Aborted, "in-flight", "1000");
    gate.open_once();
    assert_eq!(next(&mut lines).await, "b 1");
    assert_eq!(lines.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    // It succeeds in the end: it is done.
    let mut lines = client.open_statement("k", "ab").await.unwrap();
    assert_eq!(next(&mut lines).await, "a 2");
    gate.open_once();
    assert_eq!(next(&mut lines).await, "b 2");
    assert!(lines.next().await.is_none());
    assert_refused(
        client.statement("k", "ab").await,
        Code::AlreadyExists,
        "response-not-retained",
        "-1",
    );
    // Its client leaves midway: nobody knows.
    ledger.acts([Act::Stop(gate.clone())]);
    drop(client.open_statement("left", "ab").await.unwrap());
    let refused = eventually("the server sees that its client left", async || {
        let refused = client.statement("left", "ab").await.unwrap_err();
        (refused.code() != Code::Aborted).then_some(refused)
    });
    assert_refused::<()>(Err(refused.await), Code::FailedPrecondition, "outcome-unknown", "-1");
    assert_eq!(ledger.runs.get(), 3);
}

#[tokio::test]
async fn contract_7_3_a_drained_response_is_judged_by_its_trailers() {
    let layer = builder()
        .response_body_within(Duration::from_millis(100))
        .drain_streams(true);
    let Served { ledger, client, .. } = serve(layer).await;
    let gate = Gate::default();
    ledger.acts([
        Act::StopAndFail(gate.clone(), Code::Unavailable),
        Act::Stop(gate.clone()),
    ]);
    drop(client.open_statement("k", "ab").await.unwrap());
    gate.arrival().await;
    assert_refused(client.statement("k", "ab").await, Code::Aborted, "in-flight", "1000");
    gate.open_once();
    let retry = eventually("the failed call frees its key", async || {
        client.open_statement("k", "ab").await.ok()
    });
    drop(retry.await);
    gate.arrival().await;
    gate.open_once();
    let done = eventually("the second call ends", async || {
        let refused = client.statement("k", "ab").await.unwrap_err();
        (refused.code() != Code::Aborted).then_some(refused)
    });
    assert_refused::<()>(Err(done.await), Code::AlreadyExists, "response-not-retained", "-1");
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn contract_7_3_a_slow_first_message_is_not_taken_for_a_stream() {
    let layer = builder().build().unwrap();
    let ledger = Ledger::default();
    let service = layer.layer(ledger.clone());
    let (before, after) = (Gate::default(), Gate::default());
    let body = ScriptedBody::new([
        Step::Data(b"\0\0\0\0\x04\x0a".as_slice().into()),
        Step::Stop(before.clone()),
        Step::Data(b"\x0210".as_slice().into()),
        Step::Stop(after.clone()),
    ]);
    let request = http::Request::post(PAY)
        .header("content-type", "application/grpc")
        .header("idempotency-key", "k")
        .body(Body::new(body))
        .unwrap();
    let call = tokio::spawn(service.oneshot(request));
    before.arrival().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    before.open();
    after.arrival().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!call.is_finished());
    after.open();
    let response = call.await.unwrap().unwrap();
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn contract_7_3_a_call_goes_on_after_its_deadline_and_the_retry_gets_its_answer() {
    let Served { ledger, client, .. } = serve(builder()).await;
    let gate = Gate::default();
    ledger.acts([Act::Stop(gate.clone())]);
    let mut request = keyed("k", line("10"));
    request.set_timeout(Duration::from_secs(1));
    let late = client.send(PAY, request).await.unwrap_err();
    assert!(
        matches!(late.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{late}"
    );
    gate.arrival().await;
    assert_refused(client.call(PAY, "k", "10").await, Code::Aborted, "in-flight", "1000");
    gate.open();
    let answer = eventually("the call ends", async || client.call(PAY, "k", "10").await.ok()).await;
    assert!(is_replay(&answer));
    assert_eq!((answer.get_ref().text.as_str(), ledger.runs.get()), ("10 1", 1));
}

/// Forwards connections until it is told to cut them.
async fn forward(to: SocketAddr, cut: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let cut = Arc::clone(&cut);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    () = cut.notified() => {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn contract_7_3_a_retry_after_a_lost_connection_gets_the_first_answer() {
    let Served { address, ledger, .. } = serve(builder()).await;
    let cut = Arc::new(Notify::new());
    // The channel connects again by itself.
    let client = Client::to(forward(address, Arc::clone(&cut)).await);
    let gate = Gate::default();
    ledger.acts([Act::Stop(gate.clone())]);
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.call(PAY, "k", "10").await }
    });
    gate.arrival().await;
    cut.notify_waiters();
    first.await.unwrap().unwrap_err();
    gate.open();
    let retry = eventually("the call ends", async || client.call(PAY, "k", "10").await.ok()).await;
    assert!(is_replay(&retry));
    assert_eq!((retry.get_ref().text.as_str(), ledger.runs.get()), ("10 1", 1));
}

#[derive(Clone)]
struct Tenant(String);

/// Knows callers by their tokens, which change.
fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let token = request
        .metadata()
        .get("authorization")
        .and_then(|token| token.to_str().ok());
    let tenant = token.and_then(|token| token.strip_prefix("Bearer ")?.split('.').next());
    let tenant = Tenant(tenant.ok_or_else(|| Status::unauthenticated("no token"))?.to_owned());
    request.extensions_mut().insert(tenant);
    Ok(request)
}

#[tokio::test]
async fn contract_7_3_an_interceptor_outside_says_whose_key_it_is() {
    let scope = ScopeSource::extension(|tenant: &Tenant| tenant.0.clone());
    let layer = builder().scope(scope).build().unwrap();
    let ledger = Ledger::default();
    let (address, incoming) = listen().await;
    // The first layer is the outermost.
    let mut server = Server::builder()
        .layer(InterceptorLayer::new(authenticate))
        .layer(layer);
    tokio::spawn(server.add_service(ledger.clone()).serve_with_incoming(incoming));
    let client = Client::to(address);
    let pay = async |token: &str| {
        let mut request = keyed("k", line("10"));
        if !token.is_empty() {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        client.send(PAY, request).await
    };
    assert_eq!(pay("Bearer acme.1").await.unwrap().get_ref().text, "10 1");
    assert_eq!(pay("").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(pay("Bearer acme.2").await.unwrap().get_ref().text, "10 1");
    assert_eq!(pay("Bearer other.1").await.unwrap().get_ref().text, "10 2");
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test]
async fn contract_7_3_the_layer_goes_around_all_routes_or_around_one_service() {
    let layer = builder().build().unwrap();
    let ledger = Ledger::default();
    for server in [
        // All: beside other layers, in a stack.
        {
            let mut server = Server::builder().layer(ServiceBuilder::new().layer(layer.clone()).into_inner());
            let routes = Routes::new(ledger.clone());
            let (address, incoming) = listen().await;
            tokio::spawn(server.add_routes(routes).serve_with_incoming(incoming));
            address
        },
        // One.
        {
            let one = ServiceBuilder::new().layer(layer.clone()).named_layer(ledger.clone());
            let (address, incoming) = listen().await;
            tokio::spawn(Server::builder().add_service(one).serve_with_incoming(incoming));
            address
        },
    ] {
        let client = Client::to(server);
        assert_eq!(client.call(PAY, "k", "10").await.unwrap().get_ref().text, "10 1");
        assert!(is_replay(&client.call(PAY, "k", "10").await.unwrap()));
    }
    assert_eq!(ledger.runs.get(), 1, "both have one store");
}
