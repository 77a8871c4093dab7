//! What the layer asks of a service and of its request bodies, each under one name.
//!
//! The names exist for two reasons: a where-clause is written once, and the compiler can say what is
//! missing and what to do about it.

use std::any::Any;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::combinators::{BoxBody, UnsyncBoxBody};
use http_body_util::{BodyExt, Full};
use tower::Service;

use crate::body::{RequestBody, StreamedBody};
use crate::error::BoxError;

/// A request body that can be made from its bytes.
///
/// The layer reads the body of a request with a key, and hands a body of the same type on to the
/// service. Axum's body, tonic's (feature `tonic`), [`Full`], [`BoxBody`] and [`UnsyncBoxBody`] are
/// such bodies, and so is every body inside a [`RequestBody`], which is the way for hyper's `Incoming`.
/// Implement the trait for a body type of your own:
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
    label = "the layer reads the request's body and cannot make this type from its bytes again",
    note = "for hyper's `Incoming` and other bodies: wrap the body outside the layer, with `ServiceBuilder::new().map_request(|request: Request<_>| request.map(tower_idempotency::RequestBody::live))`",
    note = "for tonic's `Body`: enable the feature `tonic` of `tower-idempotency`",
    note = "for a body type of your own: implement `tower_idempotency::GuardedBody`"
)]
pub trait GuardedBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {
    /// The body that yields `data` and then ends.
    fn from_buffered(data: Bytes) -> Self;

    /// The body that yields what `body` does, for a layer with
    /// [`stream_request_bodies`](crate::IdempotencyLayerBuilder::stream_request_bodies).
    ///
    /// By default `None`: the type cannot be made from a stream. Such a layer then refuses each request with a
    /// key with `500` problem `misconfigured`, and the log says why. Axum's body, tonic's, [`RequestBody`], and
    /// [`BoxBody`] and [`UnsyncBoxBody`] whose error is a [`BoxError`] can be made from one.
    fn from_streamed(body: StreamedBody) -> Option<Self>
    where
        Self: Sized,
    {
        let _ = body;
        None
    }
}

/// Holds its bytes, so that it cannot stream.
impl GuardedBody for Full<Bytes> {
    fn from_buffered(data: Bytes) -> Self {
        Self::new(data)
    }
}

/// `made` as a `B`, if it is one.
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
/// It is implemented for every [`Service`] of [`http::Request`]s that is `Clone + Send + 'static`,
/// answers with an [`http::Response`] whose body yields [`Bytes`], and whose future, error and body are
/// `Send + 'static`. There is nothing to implement.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be guarded by an `IdempotencyLayer`",
    label = "this service lacks one of the bounds in the notes",
    note = "the service must be `Clone + Send + 'static`; for a service that is not `Clone`, put a `tower::buffer::BufferLayer` between the `IdempotencyLayer` and the service",
    note = "its future and its error must be `Send + 'static`; a future that holds an `Rc`, or a guard of `std::sync::Mutex`, across an `.await` is not `Send`",
    note = "it must be a `tower::Service<http::Request<{B}>>` that answers with an `http::Response`, whose body is `Send + 'static` with `Data = bytes::Bytes`"
)]
pub trait GuardedService<B>:
    Service<Request<B>, Response = Response<Self::ResponseBody>, Future: Send + 'static, Error: Send + 'static>
    + Clone
    + Send
    + 'static
{
    /// The body of its responses.
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
