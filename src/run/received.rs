//! The body of a guarded request, on its way to the handler.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::upload::{Arrival, Upload};
use crate::body::{Tee, let_go};
use crate::bounds::GuardedBody;

/// The body of a request that is guarded.
pub(crate) enum Received<B> {
    /// It is held.
    Whole(Bytes),
    /// It is not read yet, and is not to be held. If it is streamed, that is what looks on.
    Unread { body: B, arrival: Option<Box<Arrival>> },
}

/// The service's body type cannot be made from a stream.
pub(crate) struct Unstreamable;

impl<B: GuardedBody> Received<B> {
    /// The body, if it is held.
    pub(crate) fn held(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(data) => Some(data),
            Self::Unread { .. } => None,
        }
    }

    /// As the service takes it.
    pub(crate) fn into_body(self) -> B {
        match self {
            Self::Whole(data) => B::from_buffered(data),
            Self::Unread { body, .. } => body,
        }
    }

    /// The body for a handler that runs under a claim, and what the claim's outcome asks about it.
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

    /// The request is refused.
    pub(crate) fn refuse(self, headers: &HeaderMap) {
        if let Self::Unread { body, .. } = self {
            let_go(headers, body);
        }
    }
}
