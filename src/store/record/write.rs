//! Creates records: responses and tombstones.

use std::cell::RefCell;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Response, StatusCode};

use super::blob::{APART, Blob};
use super::headers::put_headers;
use super::{HAD_CONTENT_LENGTH, HAS_TRAILERS, HEAD, NOT_RETAINED, RESPONSE, Record, UNKNOWN, VERSION};
use crate::request::Fingerprint;

/// The maximum size, in bytes, of a buffer that is kept for the thread's next record.
const SCRATCH: usize = 16 * 1024;

impl Record {
    /// Creates a record for a response. `skip` selects the headers to leave out. A large body is
    /// shared, not copied.
    pub(crate) fn response(
        fingerprint: Fingerprint,
        status: StatusCode,
        headers: &HeaderMap,
        skip: impl Fn(&HeaderName) -> bool,
        body: &Bytes,
        trailers: Option<&HeaderMap>,
    ) -> Self {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|out| {
            // The buffer is already empty, unless encoding the last record panicked.
            out.clear();
            put_head(out, RESPONSE, status.as_u16(), fingerprint);
            let mut flags = 0;
            if headers.keys().any(|name| name == header::CONTENT_LENGTH) {
                flags |= HAD_CONTENT_LENGTH;
            }
            if trailers.is_some() {
                flags |= HAS_TRAILERS;
            }
            out.push(flags);
            put_headers(out, headers, |name| *name == header::CONTENT_LENGTH || skip(name));
            if let Some(trailers) = trailers {
                put_headers(out, trailers, |_| false);
            }
            let record = Self(if Self::shares_body(body.len()) {
                Blob::apart(Bytes::copy_from_slice(out), body.clone())
            } else {
                out.extend_from_slice(body);
                Blob::from(out.as_slice())
            });
            // Emptied first, because a buffer does not shrink below the size of its content.
            out.clear();
            out.shrink_to(SCRATCH);
            record
        })
    }

    /// Returns whether a record shares a response body of this length instead of copying it.
    pub(crate) fn shares_body(length: usize) -> bool {
        length >= APART
    }

    /// Creates a record for the response to a `HEAD` request. The response's `Content-Length`
    /// declares a body that is not sent, so it is stored unchanged instead of being computed.
    pub(crate) fn of_head(
        fingerprint: Fingerprint,
        status: StatusCode,
        headers: &HeaderMap,
        skip: impl Fn(&HeaderName) -> bool,
    ) -> Self {
        let mut out = Vec::with_capacity(SCRATCH / 16);
        put_head(&mut out, RESPONSE, status.as_u16(), fingerprint);
        out.push(0);
        put_headers(&mut out, headers, skip);
        Self(out.into())
    }

    /// Creates a record from a response. Use this method if your application settles operations
    /// itself. The record keeps all headers except `Content-Length`, which is computed.
    #[must_use]
    pub fn of_response(fingerprint: Fingerprint, response: &Response<Bytes>) -> Self {
        let (status, headers) = (response.status(), response.headers());
        Self::response(fingerprint, status, headers, |_| false, response.body(), None)
    }

    /// Creates a tombstone for a completed operation whose response, with the given `status`, was
    /// not stored.
    #[must_use]
    pub fn response_not_retained(fingerprint: Fingerprint, status: StatusCode) -> Self {
        Self::tombstone(NOT_RETAINED, status.as_u16(), fingerprint)
    }

    /// Like [`response_not_retained`](Self::response_not_retained), but also stores the `Location`
    /// and `Content-Location` headers from `headers`. Retries then receive these headers.
    #[must_use]
    pub fn response_not_retained_at(fingerprint: Fingerprint, status: StatusCode, headers: &HeaderMap) -> Self {
        let is_location = |name: &HeaderName| *name == header::LOCATION || *name == header::CONTENT_LOCATION;
        if !headers.keys().any(is_location) {
            return Self::response_not_retained(fingerprint, status);
        }
        let mut out = Vec::with_capacity(2 * HEAD);
        put_head(&mut out, NOT_RETAINED, status.as_u16(), fingerprint);
        put_headers(&mut out, headers, |name| !is_location(name));
        Self(out.into())
    }

    /// Creates a tombstone for an operation that may or may not have completed and must not run
    /// again.
    #[must_use]
    pub fn outcome_unknown(fingerprint: Fingerprint) -> Self {
        Self::tombstone(UNKNOWN, 0, fingerprint)
    }

    fn tombstone(kind: u8, status: u16, fingerprint: Fingerprint) -> Self {
        let mut out = Vec::with_capacity(HEAD);
        put_head(&mut out, kind, status, fingerprint);
        Self(out.into())
    }
}

pub(super) fn put_head(out: &mut Vec<u8>, kind: u8, status: u16, fingerprint: Fingerprint) {
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&status.to_be_bytes());
    out.extend_from_slice(fingerprint.as_bytes());
}
