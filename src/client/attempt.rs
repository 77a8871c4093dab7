//! One attempt: reading a complete response within a time limit and a size limit.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::response::Parts;
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::time::{Instant, timeout_at};

use crate::error::BoxError;

/// The reason why an attempt did not return a complete response.
#[derive(Debug)]
pub(super) enum AttemptError<E> {
    /// The client returned an error.
    Client(E),
    /// No response arrived in time.
    NoResponse(Duration),
    /// The response began, but its complete body could not be read.
    Body(Response<()>, BodyError),
}

#[derive(Debug)]
pub(super) enum BodyError {
    /// The body did not arrive completely in time.
    Endless(Duration),
    BrokenOff(BoxError),
    /// The body is larger than allowed.
    TooLarge(usize),
}

/// Awaits the head of a response, then reads the complete body.
pub(super) async fn whole<E, B>(
    head: impl Future<Output = Result<Response<B>, E>>,
    time: Duration,
    max_body: usize,
) -> Result<Response<Full<Bytes>>, AttemptError<E>>
where
    B: Body<Error: Into<BoxError>>,
{
    // A thousand years. The runtime's clock cannot represent much later times.
    const FOREVER: Duration = Duration::from_secs(1 << 35);
    let deadline = Instant::now() + time.min(FOREVER);
    let response = match timeout_at(deadline, head).await {
        Ok(result) => result.map_err(AttemptError::Client)?,
        Err(_) => return Err(AttemptError::NoResponse(time)),
    };
    let (parts, body) = response.into_parts();
    let collecting = std::pin::pin!(Limited::new(body, max_body).collect());
    match timeout_at(deadline, collecting).await {
        Ok(Ok(collected)) => Ok(Response::from_parts(parts, Full::new(collected.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(without_body(parts, BodyError::TooLarge(max_body))),
        Ok(Err(error)) => Err(without_body(parts, BodyError::BrokenOff(error))),
        Err(_) => Err(without_body(parts, BodyError::Endless(time))),
    }
}

fn without_body<E>(head: Parts, error: BodyError) -> AttemptError<E> {
    AttemptError::Body(Response::from_parts(head, ()), error)
}

impl<E> fmt::Display for AttemptError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(_) => f.write_str("the request failed"),
            Self::NoResponse(after) => write!(f, "no response within {after:?}"),
            Self::Body(head, error) => write!(f, "the body of the response ({}) {error}", head.status()),
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endless(after) => write!(f, "did not end within {after:?}"),
            Self::BrokenOff(_) => f.write_str("broke off"),
            Self::TooLarge(limit) => write!(f, "is larger than `max_response_body` ({limit} bytes)"),
        }
    }
}
