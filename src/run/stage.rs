//! The stages of a request: the named states of its future.

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
        // The inner service's own future, for a request that is not guarded. Its body may have been
        // buffered to look for the key.
        Through { #[pin] future: S::Future },
        // Reads the request body. If the future is dropped in this stage, nothing has happened yet.
        Reading {
            #[pin] body: Collect<Unread<B>>,
            exchange: Option<Box<Exchange<S, St>>>,
            // Present for a gRPC call whose complete request did not arrive immediately.
            unary: Option<Box<UnaryRequest>>,
        },
        // Calls the store, or waits for the outcome of another request. If the future is dropped in
        // this stage, a claim is given back.
        Admitting { asked: Admitting<St>, exchange: Option<Box<Exchange<S, St>>>, body: Option<Received<B>> },
        // The operation has completed, and the body of this request is being read and compared. If
        // the future is dropped in this stage, nothing has happened.
        Comparing { comparing: Comparing<S, St> },
        // The handler runs. If the future is dropped in this stage, the handler continues.
        Running { running: Running<S::ResponseBody, S::Error, St> },
        // A response is sent without running the handler.
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
