//! The body of a guarded request, before the handler receives the body.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::upload::{Arrival, Upload};
use crate::body::{Tee, let_go};
use crate::bounds::GuardedBody;

/// The body of a guarded request.
pub(crate) enum Received<B> {
    /// The complete body, in memory.
    Whole(Bytes),
    /// The body has not been read yet and will not be held in memory. If it is streamed, `arrival`
    /// observes it.
    Unread { body: B, arrival: Option<Box<Arrival>> },
}

/// The service's body type cannot be made from a stream.
pub(crate) struct Unstreamable;

impl<B: GuardedBody> Received<B> {
    /// Returns the body, if it is held in memory.
    pub(crate) fn held(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(data) => Some(data),
            Self::Unread { .. } => None,
        }
    }

    /// Returns the body as the type that the service accepts.
    pub(crate) fn into_body(self) -> B {
        match self {
            Self::Whole(data) => B::from_buffered(data),
            Self::Unread { body, .. } => body,
        }
    }

    /// Returns the body for a handler that runs under a claim, and the handle through which the
    /// claim inspects a streamed body.
    pub(crate) fn start(self) -> Result<(Self, Option<Arc<dyn Upload>>), Unstreamable> {
        let Self::Unread {
            body,
            arrival: Some(arrival),
        } = self
        else {
            return Ok((self, None));
        };
        let tee = arrival.meet(body);
        let body = B::from_streamed(Tee::reader(&tee)).ok_or(Unstreamable)?;
        Ok((Self::Unread { body, arrival: None }, Some(tee)))
    }

    /// Disposes of the body of a refused request.
    pub(crate) fn refuse(self, headers: &HeaderMap) {
        if let Self::Unread { body, .. } = self {
            let_go(headers, body);
        }
    }
}
