//! Detects unary gRPC requests, which end after one message.
//!
//! HTTP does not show whether a call is unary. A unary request ends with its first message. A
//! request that continues is a stream, and its client may wait for a response that a guarded method
//! would send only after the request has ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::time::{Instant, Sleep, sleep};

use super::exchange::Exchange;
use crate::store::Store;

/// Each message has a prefix of one byte of flags and four bytes of length.
const PREFIX: usize = 5;

/// Limits how long a request can continue after its first message.
pub(crate) struct UnaryRequest {
    within: Duration,
    late: Pin<Box<Sleep>>,
    has_message: bool,
}

impl UnaryRequest {
    fn new(within: Duration) -> Self {
        Self {
            within,
            late: Box::pin(sleep(within)),
            has_message: false,
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>, read: &[u8]) -> Poll<()> {
        if !self.has_message && starts_with_a_message(read) {
            self.has_message = true;
            self.late.as_mut().reset(Instant::now() + self.within);
        }
        // A client that sends nothing may be waiting for the server to send first. A client that
        // has begun its first message may need more time because of its network.
        if self.has_message || read.is_empty() {
            self.late.as_mut().poll(cx)
        } else {
            Poll::Pending
        }
    }
}

impl<S, St: Store> Exchange<S, St> {
    /// Returns `Ready` if the request is a gRPC stream. `read` is the part of the body that has
    /// been read so far. Call this method whenever no more data is available.
    pub(crate) fn poll_streams(
        &self,
        cx: &mut Context<'_>,
        unary: &mut Option<Box<UnaryRequest>>,
        read: &[u8],
    ) -> Poll<()> {
        match self.guard.config.grpc_request_within {
            Some(within) if is_grpc(&self.parts.headers) => {
                let unary = unary.get_or_insert_with(|| Box::new(UnaryRequest::new(within)));
                unary.poll_late(cx, read)
            }
            _ => Poll::Pending,
        }
    }
}

/// Whether the first message has arrived completely.
fn starts_with_a_message(read: &[u8]) -> bool {
    let Some((&[_, a, b, c, d], message)) = read.split_first_chunk::<PREFIX>() else {
        return false;
    };
    usize::try_from(u32::from_be_bytes([a, b, c, d])).is_ok_and(|length| message.len() >= length)
}

/// Whether the body has gRPC framing. A grpc-web body may be base64-encoded, and browsers do not
/// stream grpc-web bodies.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()) else {
        return false;
    };
    let rest = value.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_message_is_whole_when_its_prefix_and_its_length_are_there() {
        for (read, whole) in [
            (&b""[..], false),
            (b"\0\0\0\0", false),
            (b"\0\0\0\0\0", true),
            (b"\0\0\0\0\x02a", false),
            (b"\0\0\0\0\x02ab", true),
            (b"\x01\0\0\0\x02ab\0\0", true),
            (b"\0\xff\xff\xff\xffab", false),
        ] {
            assert_eq!(starts_with_a_message(read), whole, "{read:?}");
        }
    }

    #[test]
    fn only_the_framing_of_grpc_itself_is_read() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/grpc-web-text", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
