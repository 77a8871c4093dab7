//! The request body that the handler receives if the layer streams request bodies.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::error::BoxError;

/// The source of a [`StreamedBody`].
pub(super) trait Streamed: fmt::Debug + Send + Sync {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>;
    fn is_end_stream(&self) -> bool;
    fn size_hint(&self) -> SizeHint;
    /// Called when the handler stops reading.
    fn let_go(&self);
}

/// A request body that arrives while the handler reads it. A layer with
/// [`stream_request_bodies`](crate::IdempotencyLayerBuilder::stream_request_bodies) passes this
/// body on inside the service's own body type
/// ([`GuardedBody::from_streamed`](crate::GuardedBody::from_streamed)).
///
/// The frames and trailers are those that the client sent. The body fails if the client's body
/// fails, if it is longer than the limit (with an [`http_body_util::LengthLimitError`], like every
/// length limit in that crate), if it ends before its declared length, or if it does not match the
/// digest that its headers declare (RFC 9530).
pub struct StreamedBody {
    source: Arc<dyn Streamed>,
}

impl StreamedBody {
    pub(super) fn new(source: Arc<dyn Streamed>) -> Self {
        Self { source }
    }
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.source.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.source.let_go();
    }
}

impl fmt::Debug for StreamedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamedBody(..)")
    }
}
