//! The service that the layer creates.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower::Service;

use super::future::ResponseFuture;
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::run::called;
use crate::run::guard::Guard;
use crate::store::{MemoryStore, Store};

/// Makes requests to an HTTP service safe to retry. Created by
/// [`IdempotencyLayer`](crate::IdempotencyLayer).
///
/// The service is ready when its inner service is ready. Errors from the inner service are passed
/// on unchanged. Refusals are returned as responses.
pub struct IdempotencyService<S, St = MemoryStore> {
    inner: S,
    guard: Arc<Guard<St>>,
}

impl<S, St> IdempotencyService<S, St> {
    pub(super) fn new(inner: S, guard: Arc<Guard<St>>) -> Self {
        Self { inner, guard }
    }
}

impl<S: Clone, St> Clone for IdempotencyService<S, St> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.guard))
    }
}

impl<S: fmt::Debug, St> fmt::Debug for IdempotencyService<S, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService")
            .field("inner", &self.inner)
            .field("config", &*self.guard.config)
            .finish()
    }
}

impl<S, B, St> Service<Request<B>> for IdempotencyService<S, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    type Response = Response<ResponseBody<S::ResponseBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, St>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        called(&self.guard, &mut self.inner, request).into()
    }
}
