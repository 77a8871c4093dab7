//! Reads records, and decodes them into the parts of a response.

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Response, StatusCode};

use super::headers::{Reader, corrupt};
#[cfg(feature = "redis")]
use super::{CHECKSUM, FINGERPRINT_AT};
use super::{
    HAD_CONTENT_LENGTH, HAS_TRAILERS, HEAD, NOT_RETAINED, RESPONSE, Record, SEALED, UNKNOWN, VERSION, WITH_BODY,
};
#[cfg(feature = "redis")]
use crate::request::Fingerprint;
use crate::store::StoreError;

/// A record that was decoded for a response.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large variant is the common one, and is never stored"
)]
pub(crate) enum Opened {
    /// A response to replay.
    Response(Replay),
    /// The operation completed, but its response was not stored. The result may be at `locations`.
    NotRetained { status: StatusCode, locations: HeaderMap },
    /// It is unknown whether the operation completed.
    Unknown,
}

/// The stored response. Its values are slices of the record.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) head: Response<()>,
    pub(crate) body: Bytes,
    /// Boxed because trailers are rare.
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

impl Record {
    /// Returns a record's fingerprint and length, without checking the checksum. A store passes at
    /// least the first 20 bytes of the stored form, and the stored form's length in bytes.
    #[cfg(feature = "redis")]
    pub(crate) fn peek(head: &[u8], stored: usize) -> Result<(Fingerprint, usize), StoreError> {
        match (
            head.first(),
            head.get(FINGERPRINT_AT..HEAD),
            stored.checked_sub(CHECKSUM),
        ) {
            (Some(&VERSION), Some(bytes), Some(length)) if length >= HEAD => {
                let mut print = [0; Fingerprint::LEN];
                print.copy_from_slice(bytes);
                Ok((Fingerprint::from_bytes(print), length))
            }
            _ => Err(corrupt(
                "the stored record is cut short, or has a version that this build does not know",
            )),
        }
    }

    /// Decodes the record into the parts of a response.
    pub(crate) fn open(&self) -> Result<Opened, StoreError> {
        let blob = self.0.front();
        if blob.len() < HEAD || blob[0] != VERSION {
            return Err(corrupt("the stored record has no valid head"));
        }
        let status = u16::from_be_bytes([blob[2], blob[3]]);
        let status = || StatusCode::from_u16(status).map_err(|_| corrupt("the stored record has no valid status"));
        let at = HEAD + self.body_section()?;
        let kind = if at > HEAD { blob[1] & !WITH_BODY } else { blob[1] };
        match kind {
            RESPONSE => self.open_response(at, status()?).map(Opened::Response),
            NOT_RETAINED => Ok(Opened::NotRetained {
                status: status()?,
                locations: self.locations(at)?,
            }),
            UNKNOWN => Ok(Opened::Unknown),
            SEALED => Err(corrupt(
                "the stored record is sealed; wrap the store in `Sealed` (feature `sealed`) with the key that sealed it",
            )),
            _ => Err(corrupt("the stored record has a kind that this build does not know")),
        }
    }

    /// Returns a tombstone's headers, if it has any.
    fn locations(&self, at: usize) -> Result<HeaderMap, StoreError> {
        if self.0.front().len() == at {
            return Ok(HeaderMap::new());
        }
        let mut reader = Reader {
            blob: Bytes::copy_from_slice(self.0.front()),
            at,
        };
        reader.headers()
    }

    fn open_response(&self, at: usize, status: StatusCode) -> Result<Replay, StoreError> {
        let (blob, apart) = self.0.share();
        let mut reader = Reader { blob, at };
        let flags = reader.byte()?;
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = reader.headers()?;
        let trailers = if flags & HAS_TRAILERS != 0 {
            Some(Box::new(reader.headers()?))
        } else {
            None
        };
        let body = apart.unwrap_or_else(|| reader.blob.split_off(reader.at));
        // With trailers, HTTP/1.1 needs chunked framing, which rules out `Content-Length`.
        if flags & HAD_CONTENT_LENGTH != 0 && trailers.is_none() {
            head.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Replay { head, body, trailers })
    }
}
