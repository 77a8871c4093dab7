//! The response body that the layer sends to the client.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::stream::{OnEnd, WatchedStream};

pin_project! {
    /// The response body of [`IdempotencyService`](crate::IdempotencyService): either the inner
    /// service's own body, or a body that the layer has stored or rendered.
    pub struct ResponseBody<B: Body> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<B: Body> {
        Live { #[pin] body: B },
        Kept { data: Bytes, trailers: Option<Box<HeaderMap>> },
        // A response that could not be buffered completely. It yields the part that was read, then
        // the rest of the body or the error.
        Partial { read: VecDeque<Bytes>, error: Option<B::Error>, rest: Option<Pin<Box<B>>> },
        // A stream whose end the layer watches for. It yields the part that was read, then the rest
        // of the stream.
        Stream { read: VecDeque<Bytes>, rest: WatchedStream<B> },
    }
}

impl<B: Body<Data = Bytes>> ResponseBody<B> {
    pub(crate) fn live(body: B) -> Self {
        Self {
            inner: Inner::Live { body },
        }
    }

    pub(crate) fn kept(data: Bytes, trailers: Option<Box<HeaderMap>>) -> Self {
        Self {
            inner: Inner::Kept { data, trailers },
        }
    }

    /// Yields `read`, then the rest of the body.
    pub(crate) fn overflowed(read: [Bytes; 2], rest: Pin<Box<B>>) -> Self {
        Self {
            inner: Inner::Partial {
                read: read.into_iter().filter(|data| !data.is_empty()).collect(),
                error: None,
                rest: Some(rest),
            },
        }
    }

    /// Yields `read`, then the rest of the body, and reports how the body ended.
    /// `length` is the length that the response declares, if any.
    pub(crate) fn stream(read: [Bytes; 2], rest: Pin<Box<B>>, length: Option<u64>, on_end: OnEnd<B>) -> Self {
        let was_read = read.iter().map(|data| data.len() as u64).sum();
        let missing = length.map(|length| length.saturating_sub(was_read));
        Self {
            inner: Inner::Stream {
                read: read.into_iter().filter(|data| !data.is_empty()).collect(),
                rest: WatchedStream::new(rest, missing, on_end),
            },
        }
    }

    /// Yields `read`, then the error that ended the body.
    pub(crate) fn failed(read: Bytes, error: B::Error) -> Self {
        Self {
            inner: Inner::Partial {
                read: std::iter::once(read).filter(|data| !data.is_empty()).collect(),
                error: Some(error),
                rest: None,
            },
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProj::Live { body } => body.poll_frame(cx),
            InnerProj::Kept { data, trailers } => {
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))));
                }
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            InnerProj::Partial { read, error, rest } => {
                if let Some(data) = read.pop_front() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if let Some(error) = error.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                match rest {
                    Some(rest) => rest.as_mut().poll_frame(cx),
                    None => Poll::Ready(None),
                }
            }
            InnerProj::Stream { read, rest } => match read.pop_front() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => rest.poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Live { body } => body.is_end_stream(),
            Inner::Kept { data, trailers } => data.is_empty() && trailers.is_none(),
            Inner::Partial { read, error, rest } => {
                read.is_empty() && error.is_none() && rest.as_ref().is_none_or(|rest| rest.is_end_stream())
            }
            Inner::Stream { read, rest } => read.is_empty() && rest.body().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Live { body } => body.size_hint(),
            Inner::Kept { data, trailers: None } => SizeHint::with_exact(data.len() as u64),
            // With an exact length, HTTP/1.1 would use Content-Length, which does not allow
            // trailers (RFC 9112, section 7.1.2).
            Inner::Kept { data, .. } => {
                let mut hint = SizeHint::new();
                hint.set_lower(data.len() as u64);
                hint
            }
            Inner::Partial { read, rest, .. } => both(read, rest.as_deref()),
            Inner::Stream { read, rest } => both(read, rest.body()),
        }
    }
}

/// The combined size of the part that was read and the rest of the body.
fn both(read: &VecDeque<Bytes>, rest: Option<&impl Body>) -> SizeHint {
    let read: u64 = read.iter().map(|data| data.len() as u64).sum();
    let mut hint = SizeHint::new();
    let rest = rest.map(Body::size_hint).unwrap_or_default();
    hint.set_lower(read.saturating_add(rest.lower()));
    if let Some(upper) = rest.upper() {
        hint.set_upper(read.saturating_add(upper));
    }
    hint
}

impl<B: Body> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner {
            Inner::Live { .. } => "ResponseBody(live)",
            Inner::Kept { .. } => "ResponseBody(kept)",
            Inner::Partial { .. } => "ResponseBody(partial)",
            Inner::Stream { .. } => "ResponseBody(stream)",
        })
    }
}
