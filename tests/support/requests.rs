//! Requests, responses that are read to their end, and inner services.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt, service_fn};
use tower_idempotency::{IdempotencyLayer, Outcome, Store};

use super::wait::watched;

/// A `POST` with a key.
pub(crate) fn post(path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    request("POST", path, &[("idempotency-key", key)], body)
}

/// A request with exactly these headers.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).expect("a valid request")
}

/// A response that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) outcome: Option<Outcome>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("visible"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }

    /// The outcome's name, as in the counters.
    pub(crate) fn outcome(&self) -> &'static str {
        self.outcome.map_or("none", Outcome::as_str)
    }

    /// Panics unless this is the problem with this slug, complete and with its status.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, slug: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["code"], slug);
        assert_eq!(problem["status"], status);
        assert!(
            problem["type"]
                .as_str()
                .is_some_and(|url| url.ends_with(&format!("#{slug}")))
        );
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        assert!(!self.headers.contains_key("idempotency-replayed"), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_replay_of(&self, first: &Self) {
        assert!(self.is_replay(), "{self:?}");
        assert!(!first.is_replay(), "{first:?}");
        assert_eq!(self.status, first.status);
        assert_eq!(self.body, first.body);
        assert_eq!(self.trailers, first.trailers);
        let mut headers = self.headers.clone();
        headers.remove("idempotency-replayed");
        let mut expected = first.headers.clone();
        for name in ["date", "set-cookie"] {
            expected.remove(name);
        }
        assert_eq!(headers, expected);
        assert_eq!(self.outcome(), "replayed");
    }
}

/// Reads a response to its end. Panics if its body fails.
pub(crate) async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("the whole body");
    let trailers = collected.trailers().cloned();
    Answer {
        status: head.status,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
        outcome: head.extensions.get().copied(),
    }
}

/// Sends one request through a clone of the service, and reads the response to its end.
pub(crate) async fn send<S, Q, B>(service: &S, request: Request<Q>) -> Answer
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    read(respond(service, request).await).await
}

/// Like [`send`], but leaves the body to the test.
pub(crate) async fn respond<S, Q, B>(service: &S, request: Request<Q>) -> Response<B>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    S::Error: Debug,
{
    let response = watched(Duration::from_secs(300), service.clone().oneshot(request)).await;
    response.expect("no error")
}

/// Like [`send`], but in a task of its own.
pub(crate) fn spawn<S, Q, B>(service: &S, request: Request<Q>) -> JoinHandle<Answer>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Debug,
    S::Future: Send,
    Q: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Debug,
{
    let request = service.clone().oneshot(request);
    tokio::spawn(async move { read(request.await.expect("no error")).await })
}

/// Waits until no work without a client is running.
pub(crate) async fn drain<St: Store>(layer: &IdempotencyLayer<St>) {
    let background = layer.background();
    watched(Duration::from_secs(3600), background.wait()).await;
}

/// An inner service under a short name.
pub(crate) type Inner<B = Full<Bytes>> = BoxCloneSyncService<Request<Body>, Response<B>, Infallible>;

/// An inner service that never fails.
pub(crate) fn inner<F, R, B>(handler: F) -> Inner<B>
where
    F: FnMut(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: 'static,
{
    let mut handler = handler;
    BoxCloneSyncService::new(service_fn(move |request| {
        let response = handler(request);
        async move { Ok(response.await) }
    }))
}

/// Responds with `200` and this body.
pub(crate) fn ok(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}

/// How many times this outcome was counted.
#[track_caller]
pub(crate) fn counted<St: Store>(layer: &IdempotencyLayer<St>, outcome: &str) -> u64 {
    let found = layer.counts().find(|(name, _)| *name == outcome);
    found.unwrap_or_else(|| panic!("no outcome is called {outcome}")).1
}
