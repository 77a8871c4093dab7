//! Reads request bodies to their end even if no handler reads them.
//!
//! A refusal (because of an unknown API key, an invalid idempotency key, or a body over the limit)
//! is sent before the body has been read. If the server closed the connection at that moment, the
//! connection would be reset. A client that sends its complete request before it reads would then
//! see the reset instead of the response.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// How long the rest of an unwanted body is read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request's body. When it is dropped, the rest is read and discarded.
pub(crate) struct Drained(Option<Incoming>);

impl Drained {
    pub(crate) fn wrap(request: Request<Incoming>) -> Request<Self> {
        request.map(|body| Self(Some(body)))
    }
}

impl Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(mut rest) = self.0.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        // Outside a runtime, the connection is gone as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let end = async { while let Some(Ok(_)) = rest.frame().await {} };
            // The result does not matter. Afterwards, the connection is either ready for the next
            // request or closed.
            let _ = timeout(PATIENCE, end).await;
        });
    }
}
