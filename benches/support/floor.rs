//! The least that a guard does: claim, hash, store, replay. It lacks the reasons for this crate:
//! nothing expires or is bounded, a handler that dies blocks its key, and there are no trailers,
//! events or problems. It shows which part of a multiple is the task's own cost, and which part is
//! this crate's.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use dashmap::{DashMap, Entry};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tower::{Service, ServiceExt};

#[derive(Clone)]
enum Kept {
    Running,
    Done {
        fingerprint: [u8; 32],
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    },
}

#[derive(Clone)]
pub struct Floor<S> {
    inner: S,
    slots: Arc<DashMap<[u8; 32], Kept>>,
}

impl<S> Floor<S> {
    pub fn new(inner: S) -> Self {
        let slots = Arc::default();
        Self { inner, slots }
    }
}

impl<S> Service<Request<Body>> for Floor<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, slots) = (self.inner.clone(), Arc::clone(&self.slots));
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let of = |name: &str| head.headers.get(name).map_or(&b""[..], |value| value.as_bytes());
            let slot = Sha256::new()
                .chain_update(of(header::AUTHORIZATION.as_str()))
                .chain_update([0])
                .chain_update(of("idempotency-key"))
                .finalize()
                .into();
            let body = body.collect().await.expect("a whole body").to_bytes();
            let fingerprint: [u8; 32] = Sha256::new()
                .chain_update(head.method.as_str())
                .chain_update(head.uri.path())
                .chain_update(&body)
                .finalize()
                .into();
            match slots.entry(slot) {
                Entry::Occupied(there) => {
                    let (status, headers, body) = match there.get().clone() {
                        Kept::Done {
                            fingerprint: of,
                            status,
                            headers,
                            body,
                        } if of == fingerprint => (status, headers, body),
                        Kept::Done { .. } => (StatusCode::UNPROCESSABLE_ENTITY, HeaderMap::new(), Bytes::new()),
                        Kept::Running => (StatusCode::CONFLICT, HeaderMap::new(), Bytes::new()),
                    };
                    let mut response = Response::new(Body::from(body));
                    (*response.status_mut(), *response.headers_mut()) = (status, headers);
                    return Ok(response);
                }
                Entry::Vacant(place) => drop(place.insert(Kept::Running)),
            }
            let response = inner.oneshot(Request::from_parts(head, Body::from(body))).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            let done = Kept::Done {
                fingerprint,
                status: head.status,
                headers: head.headers.clone(),
                body: body.clone(),
            };
            slots.insert(slot, done);
            Ok(Response::from_parts(head, Body::from(body)))
        })
    }
}
