//! A service that answers by script and remembers what it was sent, and the two stacks that must
//! behave alike around it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use tokio::time::Instant;
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::client::{ClientLayer, IdempotencyKeyLayer, Once, Operation, RetryPolicy, Transient};

/// What the tests send.
pub(crate) type Sent = Either<Full<Bytes>, Once<Full<Bytes>>>;

type Received = UnsyncBoxBody<Bytes, BoxError>;

/// What an attempt meets.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// The connection is lost.
    Lost,
    /// No response, ever.
    Silence,
    /// A head, and a body that breaks off.
    BrokenOff(u16, Vec<(&'static str, String)>),
    /// A head, and a body that goes on forever, a byte each second.
    Endless(u16),
}

pub(crate) fn answer(status: u16) -> Step {
    Step::Answer(status, Vec::new(), "")
}

pub(crate) fn answer_with(status: u16, headers: &[(&'static str, &str)]) -> Step {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
    Step::Answer(status, headers.collect(), "")
}

/// An attempt as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Attempt {
    pub(crate) fn key(&self) -> Option<&str> {
        self.headers.get("idempotency-key").map(|key| key.to_str().unwrap())
    }
}

/// Answers step by step; the last step is repeated.
#[derive(Clone, Default)]
pub(crate) struct Script {
    steps: Arc<Mutex<VecDeque<Step>>>,
    seen: Arc<Mutex<Vec<Attempt>>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: Arc::new(Mutex::new(steps.into_iter().collect())),
            seen: Arc::default(),
        }
    }

    pub(crate) fn seen(&self) -> Vec<Attempt> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn keys(&self) -> Vec<Option<String>> {
        self.seen()
            .iter()
            .map(|attempt| attempt.key().map(str::to_owned))
            .collect()
    }

    async fn answer(self, request: Request<Sent>) -> Result<Response<Received>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.seen.lock().unwrap().push(Attempt {
            at: Instant::now(),
            method: head.method,
            uri: head.uri,
            headers: head.headers,
            body,
        });
        let step = {
            let mut steps = self.steps.lock().unwrap();
            if steps.len() > 1 {
                steps.pop_front().unwrap()
            } else {
                steps.front().expect("a script").clone()
            }
        };
        let response = |status, headers: Vec<(&'static str, String)>, body: Received| {
            let mut response = Response::new(body);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            response
        };
        Ok(match step {
            Step::Answer(status, headers, body) => {
                let body = Full::from(body).map_err(|never| match never {});
                response(status, headers, body.boxed_unsync())
            }
            Step::Lost => return Err("the connection was lost".into()),
            Step::Silence => std::future::pending().await,
            Step::BrokenOff(status, headers) => response(status, headers, Drip::until_it_breaks().boxed_unsync()),
            Step::Endless(status) => response(status, Vec::new(), Drip::for_ever().boxed_unsync()),
        })
    }

    /// The service.
    pub(crate) fn service(
        &self,
    ) -> impl Service<
        Request<Sent>,
        Response = Response<Received>,
        Error = BoxError,
        Future = impl Future<Output = Result<Response<Received>, BoxError>> + Send,
    > + Clone
    + Send
    + 'static {
        let script = self.clone();
        service_fn(move |request| script.clone().answer(request))
    }
}

/// A byte each second, forever or until it breaks after the third.
struct Drip {
    then_break: bool,
    tick: Option<(u32, Pin<Box<tokio::time::Sleep>>)>,
}

impl Drip {
    fn until_it_breaks() -> Self {
        Self {
            then_break: true,
            tick: None,
        }
    }

    fn for_ever() -> Self {
        Self {
            then_break: false,
            tick: None,
        }
    }
}

impl Body for Drip {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let second = || Box::pin(tokio::time::sleep(std::time::Duration::from_secs(1)));
        let (count, tick) = self.tick.get_or_insert_with(|| (0, second()));
        std::task::ready!(tick.as_mut().poll(cx));
        *count += 1;
        *tick = second();
        if *count > 3 && self.then_break {
            return Poll::Ready(Some(Err("the body broke off".into())));
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b".")))))
    }
}

/// A `POST` with a body.
pub(crate) fn post(body: &'static str) -> Request<Sent> {
    Request::post("http://server.test/charges?of=17")
        .header("content-type", "application/json")
        .body(Either::Left(Full::from(body)))
        .unwrap()
}

pub(crate) fn with_method(method: Method) -> Request<Sent> {
    let mut request = post("");
    *request.method_mut() = method;
    request
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Came {
    /// The status of the last response, if the last attempt had one.
    pub(crate) status: Option<u16>,
    pub(crate) operation: Operation,
    pub(crate) took: std::time::Duration,
}

/// The two ways to have the same retries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stack {
    /// `ClientLayer`.
    Whole,
    /// `IdempotencyKeyLayer`, and `tower::retry` with the policy.
    ByHand,
}

pub(crate) const STACKS: [Stack; 2] = [Stack::Whole, Stack::ByHand];

impl Stack {
    /// Sends one request through a stack of its own.
    pub(crate) async fn send<C>(
        self,
        keys: IdempotencyKeyLayer,
        policy: RetryPolicy<C>,
        script: &Script,
        mut request: Request<Sent>,
    ) -> Came
    where
        C: Transient<BoxError> + Clone + Send + Sync + 'static,
    {
        let operation = request.extensions_mut().get_or_insert_default::<Operation>().clone();
        let began = Instant::now();
        let status = match self {
            Self::Whole => {
                let layer = ClientLayer::builder(policy).keys(keys).build().unwrap();
                let client = ServiceBuilder::new().layer(layer).service(script.service());
                match client.oneshot(request).await {
                    Ok(response) => {
                        assert_eq!(operation.stopped(), None, "an answer is final");
                        Some(response.status())
                    }
                    Err(error) => {
                        assert_eq!(error.stopped(), operation.stopped());
                        let from_last_attempt = std::error::Error::source(&error).is_none() && !error.is_timeout();
                        error
                            .last_response()
                            .filter(|_| from_last_attempt)
                            .map(Response::status)
                    }
                }
            }
            Self::ByHand => {
                let client = ServiceBuilder::new()
                    .layer(keys)
                    .layer(RetryLayer::new(policy))
                    .service(script.service());
                client.oneshot(request).await.ok().map(|response| response.status())
            }
        };
        Came {
            status: status.map(|status| status.as_u16()),
            operation,
            took: began.elapsed(),
        }
    }

    /// The same with a policy that pauses for 100 ms to 10 s and has no budget.
    pub(crate) async fn run(self, script: &Script, request: Request<Sent>) -> Came {
        self.send(IdempotencyKeyLayer::new(), patient(), script, request).await
    }
}

pub(crate) fn patient() -> RetryPolicy {
    RetryPolicy::builder().without_budget().build().unwrap()
}
