//! How far a request is: the states of its future, named.

use http::Response;
use pin_project_lite::pin_project;

use super::compare::Comparing;
use super::detach::{Admitting, Running};
use super::exchange::Exchange;
use super::grpc::UnaryRequest;
use super::received::Received;
use crate::body::{Collect, ResponseBody, Unread};
use crate::bounds::{GuardedBody, GuardedService};
use crate::store::Store;

pin_project! {
    #[project = StageProj]
    pub(crate) enum Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
        St: Store,
    {
        // Not guarded, or buffered to look for the key and not guarded after all: the inner
        // service's own future.
        Through { #[pin] future: S::Future },
        // Reading the request's body. Dropped here, nothing has happened yet.
        Reading {
            #[pin] body: Collect<Unread<B>>,
            exchange: Option<Box<Exchange<S, St>>>,
            // For a gRPC call whose request did not come at once.
            unary: Option<Box<UnaryRequest>>,
        },
        // The store is asked, or the outcome of another request is awaited. Dropped here, a claim is
        // given back.
        Admitting { asked: Admitting<St>, exchange: Option<Box<Exchange<S, St>>>, body: Option<Received<B>> },
        // The operation is done, and the body of this request is read and compared. Dropped here, nothing
        // has happened.
        Comparing { comparing: Comparing<S, St> },
        // The handler runs. Dropped here, it goes on.
        Running { running: Running<S::ResponseBody, S::Error, St> },
        // Answered without running.
        Answered { response: Option<Response<ResponseBody<S::ResponseBody>>> },
    }
}

impl<S, B, St> Stage<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    pub(crate) fn reading(exchange: Box<Exchange<S, St>>, body: B) -> Self {
        let limit = exchange.guard.config.max_request_body;
        Self::Reading {
            body: Collect::new(Unread::new(body), limit),
            exchange: Some(exchange),
            unary: None,
        }
    }

    pub(crate) fn answered(response: Response<ResponseBody<S::ResponseBody>>) -> Self {
        Self::Answered {
            response: Some(response),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Through { .. } => "through",
            Self::Reading { .. } => "reading",
            Self::Admitting { .. } => "admitting",
            Self::Comparing { .. } => "comparing",
            Self::Running { .. } => "running",
            Self::Answered { .. } => "answered",
        }
    }
}
