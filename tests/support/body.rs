//! Bodies that follow a test's script.

use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::wait::{Count, Gate};

/// One step of a body.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending once.
    Yield,
    /// Waits at the gate.
    Stop(Gate),
    Fail,
    Panic,
    /// Pending forever.
    Hang,
}

pin_project_lite::pin_project! {
    /// A body that follows a script. It is `!Unpin`, and has no declared length.
    pub(crate) struct ScriptedBody {
        steps: VecDeque<Step>,
        waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
        polled: Count,
        hint: SizeHint,
        #[pin]
        pinned: PhantomPinned,
    }
}

/// The error of a [`ScriptedBody`].
#[derive(Debug)]
pub(crate) struct BrokenBody;

impl std::fmt::Display for BrokenBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body broke off")
    }
}

impl std::error::Error for BrokenBody {}

impl ScriptedBody {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            waiting: None,
            polled: Count::default(),
            hint: SizeHint::default(),
            pinned: PhantomPinned,
        }
    }

    /// Declares a length, whether it is true or not.
    pub(crate) fn declaring(mut self, bytes: u64) -> Self {
        self.hint = SizeHint::with_exact(bytes);
        self
    }

    /// Counts how many times the body was polled.
    pub(crate) fn counting(mut self, polled: &Count) -> Self {
        self.polled = polled.clone();
        self
    }
}

impl From<Bytes> for ScriptedBody {
    fn from(data: Bytes) -> Self {
        let length = data.len() as u64;
        Self::new([Step::Data(data)]).declaring(length)
    }
}

impl tower_idempotency::GuardedBody for ScriptedBody {
    fn from_buffered(data: Bytes) -> Self {
        data.into()
    }
}

impl From<&'static str> for ScriptedBody {
    fn from(data: &'static str) -> Self {
        Self::from(Bytes::from_static(data.as_bytes()))
    }
}

impl http_body::Body for ScriptedBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.polled.up();
        let this = self.as_mut().project();
        if let Some(waiting) = this.waiting {
            ready!(waiting.as_mut().poll(cx));
            *this.waiting = None;
        }
        match this.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                if let Some(declared) = this.hint.exact() {
                    *this.hint = SizeHint::with_exact(declared.saturating_sub(data.len() as u64));
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Fail) => Poll::Ready(Some(Err(BrokenBody))),
            Some(Step::Panic) => panic!("a body panics, as the test wants"),
            Some(Step::Hang) => {
                this.steps.push_front(Step::Hang);
                Poll::Pending
            }
            Some(Step::Stop(gate)) => {
                let mut waiting = Box::pin(async move { gate.pass().await });
                if waiting.as_mut().poll(cx).is_pending() {
                    *this.waiting = Some(waiting);
                    return Poll::Pending;
                }
                self.poll_frame(cx)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
