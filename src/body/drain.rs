//! Reads the rest of a refused request body, within limits.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body;

/// The limits on how many bytes of an unwanted body are read, and for how long.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Disposes of an unwanted body that has not been read at all.
///
/// A client that waits for `100 Continue` (RFC 9110, section 10.1.1) receives the refusal instead
/// and never sends the body. Reading the body would make the server send `100 Continue`.
pub(crate) fn let_go<B>(headers: &HeaderMap, body: B)
where
    B: Body<Data = Bytes> + Send + 'static,
{
    if !expects_continue(headers) {
        drain(body);
    }
}

/// Returns whether the client waits for `100 Continue` before it sends the body.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads the rest of a refused request body in the background, within limits.
///
/// If a server closes a connection while the client is still sending, the connection is reset. A
/// client that sends its whole request before it reads the response would then never see the
/// refusal. Draining does not delay the response to a client that reads immediately.
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
