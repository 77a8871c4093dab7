//! The service that the benches measure, bare and guarded.
#![allow(dead_code, reason = "each bench uses a part")]

use std::convert::Infallible;

use axum::body::Body;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

/// A small JSON request.
pub const BODY: &[u8] = br#"{"user_id":"usr_4f1a9c27","workflow_id":"wkf_kyc_full"}"#;

#[derive(Deserialize)]
struct NewSession {
    user_id: String,
    workflow_id: String,
}

#[derive(Serialize)]
struct Session {
    session_id: &'static str,
    user_id: String,
    workflow_id: String,
    status: &'static str,
    created_at: &'static str,
    note: &'static str,
}

async fn create(Json(new): Json<NewSession>) -> Json<Session> {
    Json(Session {
        session_id: "ses_0198f3a2c4d17b6e9a5f",
        user_id: new.user_id,
        workflow_id: new.workflow_id,
        status: "in_review",
        created_at: "2026-01-01T00:00:00Z",
        note: "this answer of the bench has 200 bytes",
    })
}

async fn echo(body: bytes::Bytes) -> bytes::Bytes {
    body
}

/// An Axum router. One route takes JSON and returns 200 bytes of JSON. Another sends back what it
/// receives.
pub fn router() -> Router {
    Router::new()
        .route("/v1/verification/sessions", post(create))
        .route("/v1/verification/sessions/{id}", get(|| async { "a session" }))
        .route("/v1/echo", post(echo).layer(axum::extract::DefaultBodyLimit::disable()))
}

/// The router, guarded as in the README.
pub fn guarded(layer: IdempotencyLayer<MemoryStore>) -> Router {
    router().layer(layer)
}

/// The same layer around the router as a whole, so that replays are not routed at all.
pub fn around(
    layer: IdempotencyLayer<MemoryStore>,
) -> impl Service<
    Request<Body>,
    Response = Response<impl http_body::Body<Data = bytes::Bytes, Error = axum::Error>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send {
    layer.layer(router())
}

/// A key that no other request has.
pub fn key(n: u64) -> HeaderValue {
    let text = format!("8e03978e-40d5-43dd-bc93-{n:012x}");
    HeaderValue::try_from(text).expect("a header value")
}

/// A request as it arrives from a client: with a parsed head, and the body in one piece.
pub fn request(method: Method, path: &'static str, key: Option<HeaderValue>, body: bytes::Bytes) -> Request<Body> {
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer sk_test_acme"));
    if let Some(key) = key {
        headers.insert("idempotency-key", key);
    }
    request
}

pub fn post_session(key: Option<HeaderValue>) -> Request<Body> {
    request(
        Method::POST,
        "/v1/verification/sessions",
        key,
        bytes::Bytes::from_static(BODY),
    )
}

pub fn get_session() -> Request<Body> {
    request(
        Method::GET,
        "/v1/verification/sessions/ses_1",
        None,
        bytes::Bytes::new(),
    )
}

/// Sends a request and reads the response to its end.
pub async fn send<S, B>(service: &S, request: Request<Body>) -> (http::response::Parts, bytes::Bytes)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let Ok(response) = service.clone().oneshot(request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head, body)
}
