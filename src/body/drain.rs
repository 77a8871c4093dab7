//! Reads the rest of a refused request body, within bounds.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body;

/// How much of an unwanted body is read at most, and for how long.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Lets go of a body that is not wanted, of which nothing was read.
///
/// A client that waits for `100 Continue` (RFC 9110, section 10.1.1) gets the refusal instead and never sends
/// the body; the server sends `100 Continue` to whoever begins to read.
pub(crate) fn let_go<B>(headers: &HeaderMap, body: B)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    if !expects_continue(headers) {
        drain(body);
    }
}

/// Whether the client sends the body only when it is told to.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads what is left of a request's body that was refused, in the background and within bounds.
///
/// A server that closes a connection while the client still sends resets it, and a client that
/// sends its whole request before it reads then never sees the refusal. The client that reads at
/// once has its answer at once.
pub(crate) fn drain<B>(body: B)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    if body.is_end_stream() || body.size_hint().lower() > DRAIN_BYTES {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(async move {
        let mut body = pin!(body);
        let mut left = DRAIN_BYTES;
        let end = poll_fn(|cx| {
            while let Some(Ok(frame)) = ready!(body.as_mut().poll_frame(cx)) {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if left == 0 {
                    break;
                }
            }
            Poll::Ready(())
        });
        let _ = tokio::time::timeout(DRAIN_TIME, end).await;
    });
}
