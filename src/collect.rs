//! Reads a body to its end, up to a limit, without copying a body of one frame.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

pin_project! {
    /// Reads a body to its end.
    pub(crate) struct Collect<B> {
        #[pin]
        body: B,
        limit: usize,
        read: Read,
        // Boxed, being rare: this is a part of the future of each request.
        trailers: Option<Box<HeaderMap>>,
    }
}

/// What was read so far: a single frame as it came, or several copied together. Frames are not
/// kept apart, since a body of a million one-byte frames must not cost thirty times its size.
#[derive(Default)]
enum Read {
    #[default]
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Read {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, more: Bytes) {
        if more.is_empty() {
            return;
        }
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(more),
            Self::One(first) => {
                let mut both = BytesMut::with_capacity(first.len() + more.len());
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

/// How reading ended. What was read is never lost.
pub(crate) enum Collected<E> {
    Whole {
        data: Bytes,
        trailers: Option<Box<HeaderMap>>,
    },
    /// Longer than the limit: `data` was read, and then the frame `next` came.
    TooLarge {
        data: Bytes,
        next: Bytes,
    },
    Failed {
        data: Bytes,
        error: E,
    },
}

pin_project! {
    /// A body that was not read yet. One whose length is not declared is boxed, so that the rest
    /// can be taken out when it turns out too long.
    #[project = UnreadProj]
    pub(crate) enum Unread<B> {
        Declared { #[pin] body: B },
        Boxed { body: Option<Pin<Box<B>>> },
    }
}

impl<B: Body> Unread<B> {
    pub(crate) fn new(body: B) -> Self {
        if body.size_hint().exact().is_some() {
            Self::Declared { body }
        } else {
            Self::Boxed {
                body: Some(Box::pin(body)),
            }
        }
    }

    /// The rest of a body whose length was not declared.
    pub(crate) fn take(self: Pin<&mut Self>) -> Option<Pin<Box<B>>> {
        match self.project() {
            UnreadProj::Declared { .. } => None,
            UnreadProj::Boxed { body } => body.take(),
        }
    }
}

impl<B: Body> Body for Unread<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project() {
            UnreadProj::Declared { body } => body.poll_frame(cx),
            UnreadProj::Boxed { body: Some(body) } => body.as_mut().poll_frame(cx),
            UnreadProj::Boxed { body: None } => Poll::Ready(None),
        }
    }
}

/// Whether a body says itself that it is longer. What it declares is believed only when it refuses:
/// memory is taken as data comes.
pub(crate) fn declares_more_than(body: &impl Body, limit: usize) -> bool {
    body.size_hint().lower() > limit as u64
}

impl<B: Body<Data = Bytes>> Collect<B> {
    pub(crate) fn new(body: B, limit: usize) -> Self {
        Self {
            body,
            limit,
            read: Read::Nothing,
            trailers: None,
        }
    }

    /// What was read and not handed out yet, and the rest of the body.
    pub(crate) fn into_parts(mut self) -> (Bytes, B) {
        (self.read.take(), self.body)
    }

    /// The rest of the body, in place.
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
                Ok(data) => this.read.push(data),
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

/// How much of an unwanted body is read at most, and for how long.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Reads what is left of a request's body that was refused, in the background and within bounds.
///
/// A server that closes a connection while the client still sends resets it, and a client that
/// sends its whole request before it reads then never sees the refusal. The client that reads at
/// once has its answer at once.
pub(crate) fn drain<B>(body: B)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    if body.is_end_stream() || body.size_hint().lower() > DRAIN_BYTES {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(async move {
        let mut body = pin!(body);
        let mut left = DRAIN_BYTES;
        let end = poll_fn(|cx| {
            while let Some(Ok(frame)) = ready!(body.as_mut().poll_frame(cx)) {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if left == 0 {
                    break;
                }
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(DRAIN_TIME, end).await;
    });
}
