//! The request body that the layer passes to the handler.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::streamed::StreamedBody;
use crate::error::BoxError;

pin_project! {
    /// A request body for services whose own body type cannot be created from bytes, such as
    /// hyper's `Incoming`.
    ///
    /// The layer reads the body of a guarded request and passes on a body of the same type. The
    /// body type must therefore implement [`GuardedBody`](crate::GuardedBody), as Axum's body does.
    /// With plain hyper, wrap the body in `RequestBody` first. The error type is [`BoxError`],
    /// which contains the inner body's error.
    ///
    /// ```
    /// use http_body_util::Full;
    /// use tower::{ServiceBuilder, service_fn};
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore, RequestBody};
    ///
    /// type Incoming = http_body_util::Empty<bytes::Bytes>; // stands for hyper::body::Incoming
    ///
    /// let service = ServiceBuilder::new()
    ///     .map_request(|request: http::Request<Incoming>| request.map(RequestBody::live))
    ///     .layer(IdempotencyLayer::new(MemoryStore::new()))
    ///     .service(service_fn(|_request: http::Request<RequestBody<Incoming>>| async {
    ///         Ok::<_, std::convert::Infallible>(http::Response::new(Full::<bytes::Bytes>::from("done")))
    ///     }));
    /// # fn is_service<S: tower::Service<http::Request<Incoming>>>(_: &S) {}
    /// # is_service(&service);
    /// ```
    pub struct RequestBody<B> {
        #[pin]
        inner: Source<B>,
    }
}

pin_project! {
    #[project = SourceProj]
    enum Source<B> {
        Live { #[pin] body: B },
        Buffered { data: Bytes },
        Streamed { #[pin] body: StreamedBody },
    }
}

impl<B> RequestBody<B> {
    /// Wraps a body as it arrives from the client.
    #[must_use]
    pub fn live(body: B) -> Self {
        Self {
            inner: Source::Live { body },
        }
    }
}

impl<B> From<StreamedBody> for RequestBody<B> {
    fn from(body: StreamedBody) -> Self {
        Self {
            inner: Source::Streamed { body },
        }
    }
}

impl<B> From<Bytes> for RequestBody<B> {
    fn from(data: Bytes) -> Self {
        Self {
            inner: Source::Buffered { data },
        }
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner {
            Source::Live { .. } => "RequestBody(live)",
            Source::Buffered { .. } => "RequestBody(buffered)",
            Source::Streamed { .. } => "RequestBody(streamed)",
        })
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            SourceProj::Live { body } => body.poll_frame(cx).map_err(Into::into),
            SourceProj::Streamed { body } => body.poll_frame(cx),
            SourceProj::Buffered { data } if data.is_empty() => Poll::Ready(None),
            SourceProj::Buffered { data } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Source::Live { body } => body.is_end_stream(),
            Source::Buffered { data } => data.is_empty(),
            Source::Streamed { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Source::Live { body } => body.size_hint(),
            Source::Buffered { data } => SizeHint::with_exact(data.len() as u64),
            Source::Streamed { body } => body.size_hint(),
        }
    }
}
