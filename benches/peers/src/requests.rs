//! The requests, the same for all, bare and guarded.

use axum::body::Body;
use http::{HeaderValue, Request, header};

use crate::support::{key, post_session};

/// One of the peers keeps keys in sessions, and goes through all keys of a session at each write.
/// Its keys are spread over as many as its store keeps by default, one tenth.
const SESSIONS: u64 = 1_000;

/// A request with a key and a session of its own.
pub fn numbered(n: u64) -> Request<Body> {
    let mut request = post_session(Some(key(n)));
    request.headers_mut().insert(header::COOKIE, session(n % SESSIONS));
    request
}

/// 22 characters of unpadded base64, which is what a session's id is there.
pub fn session(n: u64) -> HeaderValue {
    HeaderValue::try_from(format!("session={n:021}A")).expect("a header value")
}
