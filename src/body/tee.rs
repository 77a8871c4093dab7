//! A request body that the handler reads as it arrives, while the layer observes it.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::length_limit::{is_length_limit, length_limit_error};
use super::streamed::{Streamed, StreamedBody};
use crate::error::BoxError;

/// The number of frames that are read before other tasks get a turn.
const FRAMES_AT_ONCE: usize = 64;

/// Observes a body while a reader reads it.
pub(crate) trait Witness: Send + 'static {
    fn data(&mut self, data: &[u8]);

    /// Called when the body has ended and is complete. If this method returns an error, the reader
    /// receives that error instead of the end of the body.
    fn end(&mut self) -> Result<(), BoxError>;
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    Whole,
    /// The body was complete, but the witness refused it.
    Refused,
    /// The body is longer than the limit.
    TooLong,
    /// A limit outside the layer ended the body early.
    CutOff,
    BrokenOff,
}

/// How a body ended, and who was reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) how: BodyEnd,
    /// Whether the body ended while the handler was reading it.
    pub(crate) before_handler: bool,
}

/// A body with two readers, one after the other. The handler reads first. After the handler has
/// dropped the body, the layer reads the rest.
///
/// The tee does not buffer data. It passes each frame to the witness and then to the reader. The
/// state is behind a lock, because handlers can move bodies to other tasks.
pub(crate) struct Tee<B, W> {
    state: Mutex<State<B, W>>,
}

struct State<B, W> {
    /// `None` if the body has ended or panicked.
    body: Option<Pin<Box<B>>>,
    witness: W,
    limit: u64,
    /// The length that the client declared.
    declared: Option<u64>,
    seen: u64,
    ended: Option<Ended>,
    /// The error that the handler has not received yet.
    failure: Option<BoxError>,
    /// Whether the handler can still read.
    has_reader: bool,
    /// The task that waits for the end.
    waiting: Option<Waker>,
}

impl<B, W> Tee<B, W>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    W: Witness,
{
    /// Creates a body that only the layer reads, until [`reader`](Self::reader) gives it to the
    /// handler.
    pub(crate) fn unread(body: B, witness: W, limit: usize) -> Arc<Self> {
        let declared = body.size_hint().exact();
        Arc::new(Self {
            state: Mutex::new(State {
                body: Some(Box::pin(body)),
                witness,
                limit: limit as u64,
                declared,
                seen: 0,
                ended: None,
                failure: None,
                has_reader: false,
                waiting: None,
            }),
        })
    }

    /// Returns the body for the handler.
    pub(crate) fn reader(self: &Arc<Self>) -> StreamedBody {
        self.state().has_reader = true;
        let source = Arc::clone(self);
        StreamedBody::new(source)
    }

    /// Reads the body to its end, unless the handler is still reading it. Returns `Ready(None)` if
    /// the handler is still reading and `wait_for_reader` is `false`.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>, wait_for_reader: bool) -> Poll<Option<Ended>> {
        let mut state = self.state();
        for _ in 0..FRAMES_AT_ONCE {
            if let Some(ended) = state.ended {
                return Poll::Ready(Some(ended));
            }
            if state.has_reader {
                if !wait_for_reader {
                    return Poll::Ready(None);
                }
                state.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            ready!(state.advance(cx, false));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.state().ended
    }

    pub(crate) fn witness<R>(&self, look: impl FnOnce(&W) -> R) -> R {
        look(&self.state().witness)
    }

    /// Returns the rest of the body, if the handler no longer reads it.
    pub(crate) fn take_rest(&self) -> Option<Pin<Box<B>>> {
        let mut state = self.state();
        match state.has_reader {
            true => None,
            false => state.body.take(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<B, W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B, W> State<B, W>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    W: Witness,
{
    /// Reads one frame. Returns `None` if there are no more frames.
    fn advance(&mut self, cx: &mut Context<'_>, before_handler: bool) -> Poll<Option<Frame<Bytes>>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        // A body that panics is not polled again.
        let Some(mut body) = self.body.take() else {
            let failure = "the request body panicked earlier";
            self.fail(BodyEnd::BrokenOff, failure.into(), before_handler);
            return Poll::Ready(None);
        };
        match body.as_mut().poll_frame(cx) {
            Poll::Pending => {
                self.body = Some(body);
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.end(before_handler);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                let error = error.into();
                let how = match is_length_limit(&*error) {
                    true => BodyEnd::CutOff,
                    false => BodyEnd::BrokenOff,
                };
                self.fail(how, error, before_handler);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.seen = self.seen.saturating_add(data.len() as u64);
                    if self.seen > self.limit {
                        self.body = Some(body);
                        self.fail(BodyEnd::TooLong, length_limit_error(), before_handler);
                        return Poll::Ready(None);
                    }
                    self.witness.data(data);
                }
                // A reader that can tell where the body ends does not poll the body again.
                if body.is_end_stream() {
                    self.end(before_handler);
                } else {
                    self.body = Some(body);
                }
                Poll::Ready(Some(frame))
            }
        }
    }

    fn end(&mut self, before_handler: bool) {
        if self.declared.is_some_and(|declared| self.seen < declared) {
            let failure = "the request body ended before its declared length";
            return self.fail(BodyEnd::BrokenOff, failure.into(), before_handler);
        }
        match self.witness.end() {
            Ok(()) => {
                self.ended = Some(Ended {
                    how: BodyEnd::Whole,
                    before_handler,
                });
            }
            Err(refusal) => self.fail(BodyEnd::Refused, refusal, before_handler),
        }
    }

    fn fail(&mut self, how: BodyEnd, failure: BoxError, before_handler: bool) {
        self.ended = Some(Ended { how, before_handler });
        self.failure = Some(failure);
    }
}

impl<B, W> Streamed for Tee<B, W>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    W: Witness,
{
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.state();
        let read = ready!(state.advance(cx, true));
        let waiting = state.ended.and_then(|_| state.waiting.take());
        let next = match read {
            Some(frame) => Some(Ok(frame)),
            None => state.failure.take().map(Err),
        };
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state();
        match state.ended {
            Some(_) => state.failure.is_none(),
            // The witness may still refuse the body at its end, and the reader must see that error.
            None => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state();
        match (&state.body, state.ended) {
            (Some(body), None) => body.size_hint(),
            _ if state.failure.is_some() => SizeHint::new(),
            _ => SizeHint::with_exact(0),
        }
    }

    fn let_go(&self) {
        let mut state = self.state();
        state.has_reader = false;
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl<B, W> fmt::Debug for Tee<B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tee(..)")
    }
}
