//! The error from a body that exceeds its length limit. `http-body-util` uses the same error.

use std::error::Error;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{Full, LengthLimitError, Limited};

use crate::error::BoxError;

/// Returns whether a body failed because it exceeded a length limit.
pub(crate) fn is_length_limit(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Creates a [`LengthLimitError`]. The type has no public constructor, so this function reads a
/// body that exceeds its limit, and returns the error from that body.
pub(super) fn length_limit_error() -> BoxError {
    let beyond = pin!(Limited::new(Full::new(Bytes::from_static(b".")), 0));
    match beyond.poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Err(error))) => error,
        _ => "length limit exceeded".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error type of a body that wraps another body. It contains the inner body's error.
    #[derive(Debug)]
    struct Outer(BoxError);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the body failed")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn a_length_limit_error_is_recognized() {
        assert!(length_limit_error().is::<LengthLimitError>());
        assert!(is_length_limit(&*length_limit_error()));
        assert!(is_length_limit(&Outer(length_limit_error())));
        assert!(!is_length_limit(&std::io::Error::other("another error")));
    }
}
