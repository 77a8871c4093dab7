//! Reads a body to its end, up to a limit. A body of one frame is not copied.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use pin_project_lite::pin_project;

pin_project! {
    /// Reads a body to its end.
    pub(crate) struct Collect<B> {
        #[pin]
        body: B,
        limit: usize,
        // The capacity to reserve when the second frame arrives.
        expected: usize,
        read: Read,
        // Boxed because trailers are rare and this struct is part of every request's future.
        trailers: Option<Box<HeaderMap>>,
    }
}

/// The data read so far: a single frame as it arrived, or several frames copied into one buffer.
/// Frames are copied rather than kept separately, because a body of a million one-byte frames would
/// otherwise take thirty times its size in memory.
#[derive(Default)]
enum Read {
    #[default]
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Read {
    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes,
        }
    }

    fn push(&mut self, more: Bytes, expected: usize) {
        if more.is_empty() {
            return;
        }
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(more),
            Self::One(first) => {
                let mut both = BytesMut::with_capacity((first.len() + more.len()).max(expected));
                both.extend_from_slice(&first);
                both.extend_from_slice(&more);
                Self::Many(both)
            }
            Self::Many(mut bytes) => {
                bytes.extend_from_slice(&more);
                Self::Many(bytes)
            }
        };
    }

    fn take(&mut self) -> Bytes {
        match std::mem::take(self) {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

/// The result of reading a body. The data that was read is never lost.
pub(crate) enum Collected<E> {
    Whole {
        data: Bytes,
        trailers: Option<Box<HeaderMap>>,
    },
    /// The body is longer than the limit. `data` was read before `next`, the frame that exceeded
    /// the limit.
    TooLarge {
        data: Bytes,
        next: Bytes,
    },
    Failed {
        data: Bytes,
        error: E,
    },
}

impl<B: Body<Data = Bytes>> Collect<B> {
    pub(crate) fn new(body: B, limit: usize) -> Self {
        Self {
            body,
            limit,
            expected: 0,
            read: Read::Nothing,
            trailers: None,
        }
    }

    /// Reserves space for the declared length in a single step, so that the buffer does not have to
    /// grow. Use this method only for the application's bodies: a client could declare a large
    /// length and send little data.
    pub(crate) fn expecting(self, declared: u64) -> Self {
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        Self {
            expected: declared.min(self.limit),
            ..self
        }
    }

    /// Returns the data that has been read but not returned yet, and the unread rest of the body.
    pub(crate) fn into_parts(mut self) -> (Bytes, B) {
        (self.read.take(), self.body)
    }

    /// The data that has been read but not returned yet.
    pub(crate) fn read(&self) -> &[u8] {
        self.read.bytes()
    }

    /// The unread rest of the body, which stays pinned in this future.
    pub(crate) fn body_mut(self: Pin<&mut Self>) -> Pin<&mut B> {
        self.project().body
    }
}

impl<B: Body<Data = Bytes>> Future for Collect<B> {
    type Output = Collected<B::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let left = this.limit.saturating_sub(this.read.len());
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                None => {
                    return Poll::Ready(Collected::Whole {
                        data: this.read.take(),
                        trailers: this.trailers.take(),
                    });
                }
                Some(Err(error)) => {
                    return Poll::Ready(Collected::Failed {
                        data: this.read.take(),
                        error,
                    });
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if data.len() > left => {
                    return Poll::Ready(Collected::TooLarge {
                        data: this.read.take(),
                        next: data,
                    });
                }
                Ok(data) => this.read.push(data, *this.expected),
                Err(frame) => {
                    if let Ok(more) = frame.into_trailers() {
                        match this.trailers {
                            Some(trailers) => trailers.extend(more),
                            None => *this.trailers = Some(Box::new(more)),
                        }
                    }
                }
            }
        }
    }
}
