//! Calls the application's reconciler to find out what happened to an operation whose attempt died.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use crate::error::BoxError;
use crate::request::IdempotencyKey;

/// An operation whose earlier attempt died, or that was reopened. It is unknown how far the earlier
/// attempt got. The layer passes the operation to the reconciler.
#[derive(Debug)]
#[non_exhaustive]
pub struct Lapsed {
    /// The key, with the number of the attempt that would run now.
    pub key: IdempotencyKey,
    /// The head of the retry. The retry is the same request as the first one.
    pub request: http::request::Parts,
    /// The body of the retry. It is empty if the layer does not hold the body in memory; see
    /// [`has_body`](Self::has_body).
    pub body: Bytes,
    /// Whether `body` contains the retry's body. This is `false` if the layer does not hold bodies
    /// in memory ([`stream_request_bodies`](crate::IdempotencyLayerBuilder::stream_request_bodies),
    /// or a fingerprint that does not cover the body). The body then goes directly to the handler.
    pub has_body: bool,
}

/// The result that a reconciler returns.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reconciled {
    /// The operation did not happen, or can safely run again. The handler runs as the next attempt.
    Run,
    /// The operation completed with this response. The response is stored and sent to this retry
    /// and to every later retry.
    Done(Response<Bytes>),
}

type Answer = Pin<Box<dyn Future<Output = Result<Reconciled, BoxError>> + Send>>;

/// The application's closure that reports what happened to a lapsed operation.
#[derive(Clone)]
pub(crate) struct Reconciler(Arc<dyn Fn(Lapsed) -> Answer + Send + Sync>);

impl Reconciler {
    pub(super) fn new<F, Fut>(reconcile: F) -> Self
    where
        F: Fn(Lapsed) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reconciled, BoxError>> + Send + 'static,
    {
        Self(Arc::new(move |lapsed| Box::pin(reconcile(lapsed))))
    }

    pub(crate) fn ask(&self, lapsed: Lapsed) -> Answer {
        (self.0)(lapsed)
    }
}
