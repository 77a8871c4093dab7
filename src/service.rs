//! The service that the layer makes.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::Service;

use crate::body::ResponseBody;
use crate::collect::{declares_more_than, drain};
use crate::exchange::{Exchange, body_too_large, invalid_key, missing_key};
use crate::future::ResponseFuture;
use crate::operation::KeyText;
use crate::shared::Shared;
use crate::store::{MemoryStore, Store};

/// Makes an HTTP service's requests safe to retry; made by
/// [`IdempotencyLayer`](crate::IdempotencyLayer).
///
/// It is as ready as its inner service. Errors of the inner service go through unchanged; refusals
/// are responses.
pub struct IdempotencyService<S, St = MemoryStore> {
    inner: S,
    shared: Arc<Shared<St>>,
}

impl<S, St> IdempotencyService<S, St> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<St>>) -> Self {
        Self { inner, shared }
    }
}

impl<S: Clone, St> Clone for IdempotencyService<S, St> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.shared))
    }
}

impl<S: fmt::Debug, St> fmt::Debug for IdempotencyService<S, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService")
            .field("inner", &self.inner)
            .field("config", &*self.shared.config)
            .finish()
    }
}

impl<S, B, RB, St> Service<Request<B>> for IdempotencyService<S, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send + 'static,
    St: Store,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, RB, St>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let config = &self.shared.config;
        let through = |service: &mut Self, request| {
            service.shared.tally.report_unguarded();
            ResponseFuture::through(service.inner.call(request))
        };
        if !config.guards(request.method()) {
            return through(self, request);
        }
        let key = match config.key.in_head(request.headers()) {
            Ok(Some(key)) => Ok(Some(KeyText::from(&*key))),
            Ok(None) if config.key.source.needs_body() => Ok(None),
            Ok(None) if !config.require_key => return through(self, request),
            Ok(None) => Err(missing_key()),
            Err(invalid) => Err(invalid_key(invalid)),
        };
        // The service that was found ready goes along; its clone is for the next call.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let (parts, body) = request.into_parts();
        let mut exchange = Box::new(Exchange {
            shared: Arc::clone(&self.shared),
            inner: ready,
            parts,
            identity: None,
        });
        let named = match key {
            Ok(Some(key)) => exchange.identify(key),
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        // A body that declares itself too long is not begun to be read.
        let limit = config.max_request_body;
        let named = match named {
            Ok(()) if declares_more_than(&body, limit) => Err(body_too_large(limit)),
            named => named,
        };
        match named {
            Ok(()) => ResponseFuture::reading(exchange, body),
            Err(problem) => {
                drain(body);
                ResponseFuture::answered(exchange.refuse(problem))
            }
        }
    }
}
