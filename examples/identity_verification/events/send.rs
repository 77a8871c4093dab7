//! Sends one event once.

use std::fmt;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout_at};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::super::data::Causes;
use super::event::Outgoing;
use super::sign::Secret;

/// How much of a response's body is read, so that the connection can be reused. The content of the
/// body does not matter.
const READ_AT_MOST: usize = 64 * 1024;
const READ_WITHIN: Duration = Duration::from_secs(1);

/// The client that sends requests to the subscriber. It must not follow redirects, because only the
/// configured subscriber may see the event.
pub(crate) type HttpClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, BoxError>;

/// Sends events to the subscriber.
#[derive(Clone)]
pub(crate) struct Sender {
    url: Uri,
    secret: Secret,
    timeout: Duration,
    client: HttpClient,
}

/// Why an event is treated as not delivered, although the subscriber may have accepted it.
#[derive(Debug)]
pub(crate) struct NotDelivered {
    cause: Cause,
    /// How long the subscriber asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Debug)]
enum Cause {
    Answer(StatusCode),
    NoAnswer(Duration),
    Connection(String),
}

pub(crate) fn http_client() -> HttpClient {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build_http::<Full<Bytes>>()
        .map_response(|response| response.map(Body::new))
        .map_err(BoxError::from);
    BoxCloneSyncService::new(client)
}

impl Sender {
    /// Creates a sender. `timeout` applies to the whole response.
    pub(super) fn new(url: Uri, secret: Secret, timeout: Duration, client: HttpClient) -> Self {
        Self {
            url,
            secret,
            timeout,
            client,
        }
    }

    /// Returns the longest time that [`send`](Self::send) can take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns the subscriber for the log, without the path and the query, because they may contain
    /// a token.
    pub(crate) fn subscriber(&self) -> &str {
        self.url.authority().map_or("", |authority| authority.as_str())
    }

    /// Posts the event. If the future is dropped, the event may or may not have been sent.
    pub(crate) async fn send(&self, event: &Outgoing) -> Result<(), NotDelivered> {
        let request = self.request(event)?;
        let deadline = Instant::now() + self.timeout;
        let answer = timeout_at(deadline, self.client.clone().oneshot(request));
        let response = match answer.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Cause::Connection(Causes(&*error).to_string()).into()),
            Err(_) => return Err(Cause::NoAnswer(self.timeout).into()),
        };
        let (head, body) = response.into_parts();
        drain(body, deadline.min(Instant::now() + READ_WITHIN)).await;
        if head.status.is_success() {
            Ok(())
        } else {
            Err(NotDelivered {
                cause: Cause::Answer(head.status),
                retry_after: retry_after(&head.headers),
            })
        }
    }

    fn request(&self, event: &Outgoing) -> Result<Request<Full<Bytes>>, NotDelivered> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let timestamp = now.map_or(0, |since| since.as_secs());
        let signature = self.secret.sign(&event.id, timestamp, &event.body);
        Request::post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "identity_verification")
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(event.body.clone()))
            .map_err(|error| Cause::Connection(error.to_string()).into())
    }
}

/// Reads the rest of the body. The result depends only on the status, so the body does not have to
/// end.
async fn drain(mut body: Body, deadline: Instant) {
    let mut left = READ_AT_MOST;
    let end = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = timeout_at(deadline, end).await;
}

/// Parses `Retry-After` in seconds, which is the only form that does not need a clock.
fn retry_after(headers: &HeaderMap<HeaderValue>) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

impl NotDelivered {
    /// Returns whether the subscriber refused the event: it responded, and the response does not
    /// mean that it only needs more time.
    pub(crate) fn is_refusal(&self) -> bool {
        match &self.cause {
            Cause::Answer(status) => {
                let needs_time = [
                    StatusCode::REQUEST_TIMEOUT,
                    StatusCode::TOO_EARLY,
                    StatusCode::TOO_MANY_REQUESTS,
                ];
                !status.is_server_error() && !needs_time.contains(status)
            }
            Cause::NoAnswer(_) | Cause::Connection(_) => false,
        }
    }
}

impl From<Cause> for NotDelivered {
    fn from(cause: Cause) -> Self {
        Self {
            cause,
            retry_after: None,
        }
    }
}

impl fmt::Display for NotDelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Answer(status) => write!(f, "the subscriber responded with {status}"),
            Cause::NoAnswer(within) => write!(f, "no response within {within:?}"),
            Cause::Connection(error) => f.write_str(error),
        }
    }
}
