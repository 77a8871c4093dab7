//! The requests, which are the same for all peers, bare and guarded.

use axum::body::Body;
use http::{HeaderValue, Request, header};

use crate::support::{key, post_session};

/// One of the peers keeps keys in sessions, and goes through all of a session's keys at each write.
/// Its keys are spread over one tenth of the sessions that its store keeps by default.
const SESSIONS: u64 = 1_000;

/// A request with its own key and session.
pub fn numbered(n: u64) -> Request<Body> {
    let mut request = post_session(Some(key(n)));
    request.headers_mut().insert(header::COOKIE, session(n % SESSIONS));
    request
}

/// 22 characters of unpadded base64, the format of this peer's session IDs.
pub fn session(n: u64) -> HeaderValue {
    HeaderValue::try_from(format!("session={n:021}A")).expect("a header value")
}
