//! A response body that reports how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};

/// How a stream ended.
pub(crate) enum StreamEnd<B> {
    /// The stream was read to its end, and had these trailers.
    Complete(Option<Box<HeaderMap>>),
    /// The stream failed.
    Failed,
    /// The stream panicked.
    Panicked,
    /// The stream was dropped before it ended.
    Dropped {
        /// The rest of the stream.
        rest: Pin<Box<B>>,
        /// Whether all data was read. A server that knows the length of a body might not poll the
        /// body again after the last byte. Any trailers are unknown.
        was_read: bool,
    },
}

pub(crate) type OnEnd<B> = Box<dyn FnOnce(StreamEnd<B>) + Send + Sync>;

/// Reports once how its body ended.
pub(super) struct WatchedStream<B: Body> {
    body: Option<Pin<Box<B>>>,
    /// The number of bytes that are missing, if the response declares its length.
    missing: Option<u64>,
    on_end: Option<OnEnd<B>>,
}

impl<B: Body<Data = Bytes>> WatchedStream<B> {
    pub(super) fn new(body: Pin<Box<B>>, missing: Option<u64>, on_end: OnEnd<B>) -> Self {
        Self {
            body: Some(body),
            missing,
            on_end: Some(on_end),
        }
    }

    pub(super) fn body(&self) -> Option<&B> {
        self.body.as_deref()
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx))) {
            Ok(poll) => {
                let frame = ready!(poll);
                match &frame {
                    None => self.end(StreamEnd::Complete(None)),
                    Some(Err(_)) => self.end(StreamEnd::Failed),
                    // Trailers are the last frame, and a server might not poll again after them.
                    Some(Ok(frame)) => {
                        if let (Some(missing), Some(data)) = (&mut self.missing, frame.data_ref()) {
                            *missing = missing.saturating_sub(data.len() as u64);
                        }
                        if let Some(trailers) = frame.trailers_ref().cloned() {
                            self.end(StreamEnd::Complete(Some(Box::new(trailers))));
                        }
                    }
                }
                Poll::Ready(frame)
            }
            Err(panic) => {
                self.end(StreamEnd::Panicked);
                resume_unwind(panic)
            }
        }
    }
}

impl<B: Body> WatchedStream<B> {
    fn end(&mut self, end: StreamEnd<B>) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
    }
}

impl<B: Body> Drop for WatchedStream<B> {
    fn drop(&mut self) {
        if self.on_end.is_none() {
            return;
        }
        let Some(body) = self.body.take() else { return };
        // A server that can tell where the body ends does not poll the body again.
        if body.is_end_stream() {
            self.end(StreamEnd::Complete(None));
        } else {
            let was_read = self.missing == Some(0) || body.size_hint().exact() == Some(0);
            self.end(StreamEnd::Dropped { rest: body, was_read });
        }
    }
}
