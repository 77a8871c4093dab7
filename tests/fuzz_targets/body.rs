//! A body by script, for requests and responses.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending once.
    Yield,
    Fail,
    Panic,
    /// Pending forever.
    Hang,
}

/// What tells a planned panic apart. It is raised without the panic hook, since a fuzzer's ends the
/// process.
#[derive(Debug)]
pub(crate) struct Planned;

pub(crate) fn planned_panic() -> ! {
    std::panic::resume_unwind(Box::new(Planned))
}

#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body broke off")
    }
}

impl std::error::Error for Broken {}

#[derive(Debug, Default)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    declared: Option<u64>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>, declared: Option<u64>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            declared,
        }
    }
}

impl tower_idempotency::GuardedBody for Script {
    fn from_buffered(data: Bytes) -> Self {
        let length = data.len() as u64;
        Self::new([Step::Data(data)], Some(length))
    }
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                let left = |declared: u64| declared.saturating_sub(data.len() as u64);
                self.declared = self.declared.map(left);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Yield) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Fail) => Poll::Ready(Some(Err(Broken))),
            Some(Step::Panic) => planned_panic(),
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.declared.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
