//! A hand-written middleware, as found in many code bases: it remembers responses by key. Nothing
//! claims a key before the handler runs, and nothing is ever forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

type Answers = Arc<Mutex<HashMap<String, (StatusCode, Bytes)>>>;

async fn remember(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("idempotency-key") else {
        return next.run(request).await;
    };
    let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
    if let Some(known) = answers.lock().unwrap().get(&key).cloned() {
        return known.into_response();
    }
    let (head, body) = next.run(request).await.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    answers.lock().unwrap().insert(key, (head.status, body.clone()));
    Response::from_parts(head, Body::from(body))
}

pub fn guard(router: Router) -> Router {
    router.layer(from_fn_with_state(Answers::default(), remember))
}
