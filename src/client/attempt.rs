//! One attempt: a whole response, within a time and a size.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::time::{Instant, timeout_at};

use crate::error::BoxError;

/// Why an attempt has no response.
#[derive(Debug)]
pub(super) enum AttemptError<E> {
    /// The client failed.
    Client(E),
    /// There was no response in time.
    NoResponse(Duration),
    /// The response began, and its body did not end in time.
    Endless(StatusCode, Duration),
    /// The response began, and its body broke off.
    BrokenOff(StatusCode, BoxError),
    /// The response's body is larger than is allowed.
    TooLarge(StatusCode, usize),
}

/// The whole response, from the future that has its head.
pub(super) async fn whole<E, B>(
    head: impl Future<Output = Result<Response<B>, E>>,
    time: Duration,
    max_body: usize,
) -> Result<Response<Full<Bytes>>, AttemptError<E>>
where
    B: Body<Error: Into<BoxError>>,
{
    // A thousand years; the runtime's clock holds no much later moment.
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
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(AttemptError::TooLarge(parts.status, max_body)),
        Ok(Err(error)) => Err(AttemptError::BrokenOff(parts.status, error)),
        Err(_) => Err(AttemptError::Endless(parts.status, time)),
    }
}

impl<E> fmt::Display for AttemptError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(_) => f.write_str("the request failed"),
            Self::NoResponse(after) => write!(f, "no response within {after:?}"),
            Self::Endless(status, after) => {
                write!(f, "the body of the response ({status}) did not end within {after:?}")
            }
            Self::BrokenOff(status, _) => write!(f, "the body of the response ({status}) broke off"),
            Self::TooLarge(status, limit) => write!(
                f,
                "the body of the response ({status}) is larger than the {limit} bytes of `max_response_body`"
            ),
        }
    }
}
