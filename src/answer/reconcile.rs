//! Asking the application what happened to an operation whose attempt died.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use crate::error::BoxError;
use crate::request::IdempotencyKey;

/// An operation whose lease lapsed: an earlier attempt died, and nobody knows how far it came. A reconciler is
/// asked about it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Lapsed {
    /// The key, with the attempt that would run now.
    pub key: IdempotencyKey,
    /// The head of the retry, which is the same request as the first.
    pub request: http::request::Parts,
    /// Its body. Empty if the body is not held: see [`has_body`](Self::has_body).
    pub body: Bytes,
    /// Whether `body` is the retry's body. It is not if the layer does not hold bodies
    /// ([`stream_request_bodies`](crate::IdempotencyLayerBuilder::stream_request_bodies), or a fingerprint that
    /// covers nothing of the body): the body is then on its way to the handler.
    pub has_body: bool,
}

/// What a reconciler found out.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reconciled {
    /// The operation was not done, or may be done again: the handler runs as the next attempt.
    Run,
    /// It was done. This is its response, which is stored and sent to this retry and every later one.
    Done(Response<Bytes>),
}

type Answer = Pin<Box<dyn Future<Output = Result<Reconciled, BoxError>> + Send>>;

/// Asks what happened to a lapsed operation.
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
