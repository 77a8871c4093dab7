//! A request body that has not been read yet.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame};
use pin_project_lite::pin_project;

pin_project! {
    /// A body that has not been read yet. A body without a declared length is boxed, so that its
    /// unread rest can be moved elsewhere if the body is too long.
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

    /// Returns the rest of a body whose length was not declared.
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

/// Returns whether a body declares more than `limit` bytes. The declared length is used only to
/// refuse a body. Memory is allocated as data arrives.
pub(crate) fn declares_more_than(body: &impl Body, limit: usize) -> bool {
    body.size_hint().lower() > limit as u64
}
