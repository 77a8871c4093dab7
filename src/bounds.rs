//! The bounds that a service and its request bodies must meet, each as a named trait.
//!
//! The names exist for two reasons: each where-clause is written only once, and the compiler can
//! report which bound is missing and how to fix the error.

use std::any::Any;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::combinators::{BoxBody, UnsyncBoxBody};
use http_body_util::{BodyExt, Full};
use tower::Service;

use crate::body::{RequestBody, StreamedBody};
use crate::error::BoxError;

/// A request body that can be created from its bytes.
///
/// The layer reads the body of each request that has a key, and passes a body of the same type to
/// the service. Axum's body, tonic's body (feature `tonic`), [`Full`], [`BoxBody`] and
/// [`UnsyncBoxBody`] implement this trait, and so does [`RequestBody`] around any other body, such
/// as hyper's `Incoming`. You can also implement the trait for your own body type:
///
/// ```
/// # use std::pin::Pin;
/// # use std::task::{Context, Poll};
/// # use http_body::{Body, Frame};
/// use bytes::Bytes;
/// use tower_idempotency::GuardedBody;
///
/// struct OneChunk(Option<Bytes>);
/// # impl Body for OneChunk {
/// #     type Data = Bytes;
/// #     type Error = std::convert::Infallible;
/// #     fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
/// #         Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
/// #     }
/// # }
///
/// impl GuardedBody for OneChunk {
///     fn from_buffered(data: Bytes) -> Self {
///         Self(Some(data))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the request body of a service inside an `IdempotencyLayer`",
    label = "the layer reads the request body and cannot build this type from the bytes",
    note = "for hyper's `Incoming` and other bodies: wrap the body outside the layer, with `ServiceBuilder::new().map_request(|request: Request<_>| request.map(tower_idempotency::RequestBody::live))`",
    note = "for tonic's `Body`: enable the `tonic` feature of `tower-idempotency`",
    note = "for your own body type: implement `tower_idempotency::GuardedBody`"
)]
pub trait GuardedBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {
    /// Creates a body that yields `data` and then ends.
    fn from_buffered(data: Bytes) -> Self;

    /// Creates a body that yields the same frames as `body`, for a layer with
    /// [`stream_request_bodies`](crate::IdempotencyLayerBuilder::stream_request_bodies).
    ///
    /// The default implementation returns `None`, which means that the type cannot be created from
    /// a stream. A layer that streams bodies then refuses each request that has a key. The response
    /// is the `500` problem `misconfigured`, and the layer logs the reason. The types that can be
    /// created from a stream are Axum's body, tonic's body, [`RequestBody`], and [`BoxBody`] and
    /// [`UnsyncBoxBody`] with the error type [`BoxError`].
    fn from_streamed(body: StreamedBody) -> Option<Self>
    where
        Self: Sized,
    {
        let _ = body;
        None
    }
}

/// `Full` contains all its bytes, so it cannot be created from a stream.
impl GuardedBody for Full<Bytes> {
    fn from_buffered(data: Bytes) -> Self {
        Self::new(data)
    }
}

/// Returns `made` as a `B` if it has that type.
fn same_type<A: 'static, B: 'static>(made: A) -> Option<B> {
    let mut made = Some(made);
    let made: &mut dyn Any = &mut made;
    made.downcast_mut::<Option<B>>()?.take()
}

impl<E: Into<BoxError> + 'static> GuardedBody for BoxBody<Bytes, E> {
    fn from_buffered(data: Bytes) -> Self {
        Full::new(data).map_err(|never| match never {}).boxed()
    }

    fn from_streamed(body: StreamedBody) -> Option<Self> {
        same_type(body.boxed())
    }
}

impl<E: Into<BoxError> + 'static> GuardedBody for UnsyncBoxBody<Bytes, E> {
    fn from_buffered(data: Bytes) -> Self {
        Full::new(data).map_err(|never| match never {}).boxed_unsync()
    }

    fn from_streamed(body: StreamedBody) -> Option<Self> {
        same_type(body.boxed_unsync())
    }
}

impl<B> GuardedBody for RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn from_buffered(data: Bytes) -> Self {
        data.into()
    }

    fn from_streamed(body: StreamedBody) -> Option<Self> {
        Some(body.into())
    }
}

#[cfg(feature = "axum")]
impl GuardedBody for axum::body::Body {
    fn from_buffered(data: Bytes) -> Self {
        data.into()
    }

    fn from_streamed(body: StreamedBody) -> Option<Self> {
        Some(Self::new(body))
    }
}

#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl GuardedBody for tonic::body::Body {
    fn from_buffered(data: Bytes) -> Self {
        Self::new(Full::new(data))
    }

    fn from_streamed(body: StreamedBody) -> Option<Self> {
        Some(Self::new(body))
    }
}

/// An HTTP service that an [`IdempotencyLayer`](crate::IdempotencyLayer) can guard.
///
/// You do not need to implement this trait. It is implemented for every [`Service`] of
/// [`http::Request`]s that is `Clone + Send + 'static` and returns an [`http::Response`] whose body
/// yields [`Bytes`]. The service's future, error and body must be `Send + 'static`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be guarded by an `IdempotencyLayer`",
    label = "this service does not meet one of the bounds in the notes",
    note = "the service must be `Clone + Send + 'static`; for a service that is not `Clone`, put a `tower::buffer::BufferLayer` between the `IdempotencyLayer` and the service",
    note = "its future and its error must be `Send + 'static`; a future that holds an `Rc` or a `std::sync::MutexGuard` across an `.await` is not `Send`",
    note = "it must be a `tower::Service<http::Request<{B}>>` that returns an `http::Response` whose body is `Send + 'static` with `Data = bytes::Bytes`"
)]
pub trait GuardedService<B>:
    Service<Request<B>, Response = Response<Self::ResponseBody>, Future: Send + 'static, Error: Send + 'static>
    + Clone
    + Send
    + 'static
{
    /// The response body.
    type ResponseBody: Body<Data = Bytes, Error: Send> + Send + 'static;
}

#[diagnostic::do_not_recommend]
impl<S, B, RB> GuardedService<B> for S
where
    S: Service<Request<B>, Response = Response<RB>, Future: Send + 'static, Error: Send + 'static>
        + Clone
        + Send
        + 'static,
    RB: Body<Data = Bytes, Error: Send> + Send + 'static,
{
    type ResponseBody = RB;
}
