//! What a store keeps of an operation that is done: the answer, or a tombstone; one flat blob.
//!
//! Layout, version 1 (integers are LEB128 unless said otherwise):
//!
//! ```text
//! version u8 │ kind u8 │ status u16 BE │ fingerprint 16 bytes │        every record
//! flags u8 │ headers │ trailers if flagged │ body to the end           kind 0, a response
//! headers:  count, then for each: name code u8 (0: length, name), length << 1 | sensitive, value
//!           or a code of 128 and above: name and value are both in the table
//! ```
//!
//! `Content-Length` is a flag: it is computed anew, so that it is right whatever the handler said.

mod headers;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use headers::{Reader, corrupt, put_headers};

const VERSION: u8 = 1;
const RESPONSE: u8 = 0;
const NOT_RETAINED: u8 = 1;
const UNKNOWN: u8 = 2;

const HAD_CONTENT_LENGTH: u8 = 1;
const HAS_TRAILERS: u8 = 2;

const FINGERPRINT_AT: usize = 4;
const HEAD: usize = FINGERPRINT_AT + Fingerprint::LEN;
/// Bytes of the checksum that the stored form ends with.
const CHECKSUM: usize = 8;

/// Buffers up to this size are kept for the thread's next record.
const SCRATCH: usize = 16 * 1024;

/// The outcome of an operation as stores keep it. Cloning is cheap: the bytes are shared.
///
/// A store treats it as opaque: [`to_bytes`](Self::to_bytes) to write it, and
/// [`from_bytes`](Self::from_bytes), which checks it, to read it.
///
/// ```
/// use tower_idempotency::{Fingerprint, store::Record};
///
/// let record = Record::outcome_unknown(Fingerprint::from_bytes([7; 16]));
/// let stored = record.to_bytes();
/// assert_eq!(Record::from_bytes(&stored)?.fingerprint(), record.fingerprint());
/// assert!(Record::from_bytes(&stored[1..]).is_err());
/// # Ok::<(), tower_idempotency::store::StoreError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Arc<[u8]>);

/// A record opened for an answer.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the common one, and never stored"
)]
pub(crate) enum Opened {
    /// Replay this.
    Response(Replay),
    /// The operation is done, and its answer was not kept.
    NotRetained(StatusCode),
    /// Whether the operation was done is not known.
    Unknown,
}

/// The stored response, its values being slices of the record.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) head: Response<()>,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Record {
    /// A response. `skip` names the headers that are not kept.
    pub(crate) fn response(
        fingerprint: Fingerprint,
        status: StatusCode,
        headers: &HeaderMap,
        skip: impl Fn(&HeaderName) -> bool,
        body: &[u8],
        trailers: Option<&HeaderMap>,
    ) -> Self {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|out| {
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
            out.extend_from_slice(body);
            let record = Self(Arc::from(out.as_slice()));
            out.shrink_to(SCRATCH);
            record
        })
    }

    /// A response, as an application that settles an operation itself makes it. All its headers
    /// are kept but `Content-Length`, which is computed.
    #[must_use]
    pub fn of_response(fingerprint: Fingerprint, response: &Response<Bytes>) -> Self {
        let (status, headers) = (response.status(), response.headers());
        Self::response(fingerprint, status, headers, |_| false, response.body(), None)
    }

    /// A tombstone: the operation was done and answered with `status`; the answer was not kept.
    #[must_use]
    pub fn response_not_retained(fingerprint: Fingerprint, status: StatusCode) -> Self {
        Self::tombstone(NOT_RETAINED, status.as_u16(), fingerprint)
    }

    /// A tombstone: the operation may or may not have been done, and is not to run again.
    #[must_use]
    pub fn outcome_unknown(fingerprint: Fingerprint) -> Self {
        Self::tombstone(UNKNOWN, 0, fingerprint)
    }

    fn tombstone(kind: u8, status: u16, fingerprint: Fingerprint) -> Self {
        let mut out = Vec::with_capacity(HEAD);
        put_head(&mut out, kind, status, fingerprint);
        Self(out.into())
    }

    /// The fingerprint of the request whose outcome this is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut print = [0; Fingerprint::LEN];
        // No record is shorter than its head: constructors write it, `from_bytes` checks it.
        if let Some(bytes) = self.0.get(FINGERPRINT_AT..HEAD) {
            print.copy_from_slice(bytes);
        }
        Fingerprint::from_bytes(print)
    }

    /// Whether this is a response, and not a tombstone.
    pub(crate) fn is_response(&self) -> bool {
        self.0.get(1) == Some(&RESPONSE)
    }

    /// Bytes that the record takes in memory.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a record is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes to store: the record and a checksum.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() + CHECKSUM);
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&checksum(&self.0));
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Corrupt`](crate::store::StoreErrorKind::Corrupt) if the bytes were cut or changed, or a newer version of this
    /// crate wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let (record, sum) = bytes
            .split_last_chunk::<CHECKSUM>()
            .ok_or_else(|| corrupt("the stored record is cut short"))?;
        match record.first() {
            Some(&VERSION) => {}
            Some(_) => {
                return Err(corrupt(
                    "the stored record is of a version that this build does not know; was it written by a newer release?",
                ));
            }
            None => return Err(corrupt("the stored record is empty")),
        }
        if *sum != checksum(record) {
            return Err(corrupt("the stored record is damaged: its checksum does not match"));
        }
        let record = Self(record.into());
        record.open().map(|_| record)
    }

    /// The fingerprint and the length of a record of which a store has read the first 20 bytes or
    /// more, and how many bytes it stores. The checksum is not looked at.
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
                "the stored record is cut short, or of a version that this build does not know",
            )),
        }
    }

    /// Decodes the record for an answer.
    pub(crate) fn open(&self) -> Result<Opened, StoreError> {
        let blob = &*self.0;
        if blob.len() < HEAD || blob[0] != VERSION {
            return Err(corrupt("the stored record has no valid head"));
        }
        let status = u16::from_be_bytes([blob[2], blob[3]]);
        let status = || StatusCode::from_u16(status).map_err(|_| corrupt("the stored record has no valid status"));
        match blob[1] {
            RESPONSE => self.open_response(status()?).map(Opened::Response),
            NOT_RETAINED => status().map(Opened::NotRetained),
            UNKNOWN => Ok(Opened::Unknown),
            _ => Err(corrupt("the stored record is of a kind that this build does not know")),
        }
    }

    fn open_response(&self, status: StatusCode) -> Result<Replay, StoreError> {
        /// Lets `Bytes` share the record without copying it.
        struct Shared(Arc<[u8]>);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let mut reader = Reader {
            blob: Bytes::from_owner(Shared(Arc::clone(&self.0))),
            at: HEAD,
        };
        let flags = reader.byte()?;
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = reader.headers()?;
        let trailers = if flags & HAS_TRAILERS != 0 {
            Some(reader.headers()?)
        } else {
            None
        };
        let body = reader.blob.split_off(reader.at);
        // Trailers exclude it on HTTP/1.1, whose framing they need.
        if flags & HAD_CONTENT_LENGTH != 0 && trailers.is_none() {
            head.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Replay { head, body, trailers })
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the contents: they are somebody's data.
        f.debug_struct("Record")
            .field("bytes", &self.0.len())
            .finish_non_exhaustive()
    }
}

fn checksum(record: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Sha256::digest(record).into();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

fn put_head(out: &mut Vec<u8>, kind: u8, status: u16, fingerprint: Fingerprint) {
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&status.to_be_bytes());
    out.extend_from_slice(fingerprint.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreErrorKind;
    use http::HeaderValue;

    const PRINT: Fingerprint = Fingerprint::from_bytes([0xAB; 16]);

    fn sample() -> (HeaderMap, HeaderMap) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("999"));
        headers.append(header::LINK, HeaderValue::from_static("</a>"));
        headers.append(header::LINK, HeaderValue::from_static("</b>"));
        headers.insert("x-raw", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let mut secret = HeaderValue::from_static("hush");
        secret.set_sensitive(true);
        headers.insert("x-secret", secret);
        headers.insert(header::DATE, HeaderValue::from_static("now"));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        (headers, trailers)
    }

    fn record(body: &[u8]) -> Record {
        let (headers, trailers) = sample();
        Record::response(
            PRINT,
            StatusCode::CREATED,
            &headers,
            |name| *name == header::DATE,
            body,
            Some(&trailers),
        )
    }

    #[test]
    fn contract_5_1_a_response_comes_back_as_it_was() {
        let Opened::Response(replay) = record(b"{\"a\":1}").open().unwrap() else {
            panic!("a response")
        };
        let (mut expected, trailers) = sample();
        expected.remove(header::DATE);
        expected.remove(header::CONTENT_LENGTH);
        assert_eq!(replay.head.status(), StatusCode::CREATED);
        assert_eq!(replay.head.headers(), &expected);
        assert!(replay.head.headers()["x-secret"].is_sensitive());
        assert!(!replay.head.headers()["x-raw"].is_sensitive());
        assert_eq!(replay.body, "{\"a\":1}");
        assert_eq!(replay.trailers, Some(trailers));
    }

    #[test]
    fn contract_5_1_content_length_is_computed_anew() {
        let (headers, _) = sample();
        let record = Record::response(PRINT, StatusCode::OK, &headers, |_| false, b"{\"a\":1}", None);
        let Opened::Response(replay) = record.open().unwrap() else {
            panic!("a response")
        };
        assert_eq!(replay.head.headers()[header::CONTENT_LENGTH], "7");
    }

    /// A record of this release must be read by every later one. If this test fails, the format
    /// changed: give it a new version number and keep reading the old one.
    #[test]
    fn golden_bytes_of_version_1() {
        let golden = [
            "010000c9",
            "abababababababababababababababab",
            "03",
            "05",
            "80",
            "09083c2f613e",
            "09083c2f623e",
            "0005782d726177",
            "08636166e9",
            "0008782d736563726574",
            "0968757368",
            "01",
            "000b677270632d737461747573",
            "0230",
            "6869",
        ]
        .concat();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let stored = record(b"hi").to_bytes();
        assert_eq!(hex(&stored[..stored.len() - CHECKSUM]), golden);
        assert_eq!(hex(&stored[stored.len() - CHECKSUM..]), "b339a46a7f24141a");
        let tombstone = Record::response_not_retained(PRINT, StatusCode::CREATED).to_bytes();
        assert_eq!(hex(&tombstone[..HEAD]), "010100c9abababababababababababababababab");
        let unknown = Record::outcome_unknown(PRINT).to_bytes();
        assert_eq!(hex(&unknown[..HEAD]), "01020000abababababababababababababababab");
    }

    #[test]
    fn contract_6_5_no_damage_goes_unnoticed() {
        let stored = record(b"a body").to_bytes();
        assert_eq!(Record::from_bytes(&stored).unwrap(), record(b"a body"));
        for cut in 0..stored.len() {
            let error = Record::from_bytes(&stored[..cut]).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Corrupt, "cut at {cut}");
        }
        for at in 0..stored.len() {
            for bit in 0..8 {
                let mut damaged = stored.clone();
                damaged[at] ^= 1 << bit;
                assert!(Record::from_bytes(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn contract_6_5_a_newer_version_is_told_from_damage() {
        let mut newer = vec![VERSION + 1, 9, 9];
        let sum = checksum(&newer);
        newer.extend(sum);
        let error = Record::from_bytes(&newer).unwrap_err();
        assert!(error.to_string().contains("newer release"), "{error}");
    }

    #[test]
    fn a_well_summed_record_with_nonsense_inside_is_corrupt_and_does_not_panic() {
        for blob in [
            vec![VERSION, RESPONSE],
            [&[VERSION, 9, 0, 200][..], &[0; 16]].concat(),
            [&[VERSION, RESPONSE, 0, 1][..], &[0; 16], &[0, 0]].concat(),
            [
                &[VERSION, RESPONSE, 0, 200][..],
                &[0; 16],
                &[0, 0xff, 0xff, 0xff, 0xff, 0x7f],
            ]
            .concat(),
            [&[VERSION, RESPONSE, 0, 200][..], &[0; 16], &[0, 1, 0xff]].concat(),
            [&[VERSION, RESPONSE, 0, 200][..], &[0; 16], &[0, 1, 0, 1, b' ', 0]].concat(),
            [&[VERSION, RESPONSE, 0, 200][..], &[0; 16], &[0, 1, 1, 2, 0]].concat(),
        ] {
            let mut stored = blob.clone();
            stored.extend(checksum(&blob));
            assert_eq!(
                Record::from_bytes(&stored).unwrap_err().kind(),
                StoreErrorKind::Corrupt,
                "{blob:?}"
            );
        }
    }

    #[test]
    fn debug_shows_no_contents() {
        assert_eq!(
            format!("{:?}", Record::outcome_unknown(PRINT)),
            "Record { bytes: 20, .. }"
        );
    }
}
