//! Reads the rest of a refused request body, within bounds.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;

/// How much of an unwanted body is read at most, and for how long.
const DRAIN_BYTES: u64 = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

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
