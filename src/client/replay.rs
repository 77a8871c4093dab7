//! Request bodies that can be sent again, and bodies that cannot.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Empty, Full};
use pin_project_lite::pin_project;

/// A request body that may be able to return an identical copy of itself before it is sent.
///
/// If [`replay`](Self::replay) returns `None`, the body can be sent only once. The request is then
/// not retried, and the error (or [`Operation::stopped`](super::Operation::stopped)) reports the
/// reason. [`Full`], [`Empty`] and `String` can be sent again. [`Once`] cannot be sent again.
/// [`Either`] behaves like the body inside it.
pub trait ReplayableBody: Sized {
    /// Returns a copy of the body, or `None` if the body can be sent only once.
    fn replay(&self) -> Option<Self>;
}

impl<D: Buf + Clone> ReplayableBody for Full<D> {
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<D> ReplayableBody for Empty<D> {
    fn replay(&self) -> Option<Self> {
        Some(Self::new())
    }
}

impl ReplayableBody for String {
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<L: ReplayableBody, R: ReplayableBody> ReplayableBody for Either<L, R> {
    fn replay(&self) -> Option<Self> {
        match self {
            Self::Left(left) => left.replay().map(Self::Left),
            Self::Right(right) => right.replay().map(Self::Right),
        }
    }
}

/// Returns a copy of the request, or `None` if its body can be sent only once.
pub(super) fn replay<B: ReplayableBody>(request: &Request<B>) -> Option<Request<B>> {
    let mut again = Request::new(request.body().replay()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

pin_project! {
    /// A body that can be sent only once, such as a stream. A request with this body is not
    /// retried.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http_body_util::{Either, Full};
    /// use tower_idempotency::client::{Once, ReplayableBody};
    ///
    /// # fn example<Stream: http_body::Body>(stream: Stream) {
    /// // One client for both kinds.
    /// type Body<Stream> = Either<Full<Bytes>, Once<Stream>>;
    /// let small: Body<Stream> = Either::Left(Full::from("EUR 10"));
    /// let upload: Body<Stream> = Either::Right(Once::new(stream));
    /// assert!(small.replay().is_some() && upload.replay().is_none());
    /// # }
    /// ```
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Once<B> {
        #[pin]
        body: B,
    }
}

impl<B> Once<B> {
    /// Wraps a body that can be sent only once.
    pub fn new(body: B) -> Self {
        Self { body }
    }
}

impl<B> ReplayableBody for Once<B> {
    fn replay(&self) -> Option<Self> {
        None
    }
}

impl<B: Body> Body for Once<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
