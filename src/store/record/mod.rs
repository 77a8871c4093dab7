//! The stored outcome of an operation: a response or a tombstone, as one flat blob.
//!
//! Layout, version 1 (integers are LEB128 unless stated otherwise):
//!
//! ```text
//! version u8 │ kind u8 │ status u16 BE │ fingerprint 16 bytes │        every record
//! flags u8 │ headers │ trailers if flagged │ body to the end           kind 0, a response
//! headers, or nothing: where the result is                            kind 1, not retained
//! (nothing more)                                                      kind 2, outcome unknown
//! count u8 │ digest 16 bytes │ count vouches, 16 bytes each │ as kind − 16   kinds 16 to 18, with what is known of
//!                                                                     the request's streamed body
//! key id 8 bytes │ nonce 24 bytes │ ciphertext and tag to the end     kind 3, a sealed record
//! headers:  count, then for each: name code u8 (0: length, name), length << 1 | sensitive, value
//!           or a code of 128 and above: name and value are both in the table
//! ```
//!
//! `Content-Length` is stored as a flag. A replay computes the header anew, so it is correct
//! whatever the handler sent.
//!
//! A sealed record contains a fully encrypted inner record. The sealed record's status is 0. Its
//! fingerprint is not encrypted, because stores compare fingerprints. See `store::sealed` for the
//! data that the ciphertext is bound to.

mod blob;
mod body;
#[cfg(feature = "sealed")]
mod envelope;
mod headers;
mod read;
mod write;

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::digest::BY_BLAKE3;
use crate::request::Fingerprint;
use crate::store::StoreError;
use blob::{APART, Blob};
use headers::corrupt;

#[cfg(feature = "sealed")]
pub(crate) use envelope::Envelope;
pub(crate) use read::Opened;

const VERSION: u8 = 1;
const RESPONSE: u8 = 0;
const NOT_RETAINED: u8 = 1;
const UNKNOWN: u8 = 2;
const SEALED: u8 = 3;
/// The number that is added to a record's kind if the record contains data about its request's
/// body.
const WITH_BODY: u8 = 16;

const HAD_CONTENT_LENGTH: u8 = 1;
const HAS_TRAILERS: u8 = 2;

const FINGERPRINT_AT: usize = 4;
const HEAD: usize = FINGERPRINT_AT + Fingerprint::LEN;

/// The length of a sealed record's key name, in bytes.
pub(crate) const KEY_ID: usize = 8;
/// The length of a sealed record's nonce, in bytes.
pub(crate) const NONCE: usize = 24;
/// The number of bytes that sealing adds to the plaintext.
const TAG: usize = 16;
const CIPHERTEXT_AT: usize = HEAD + KEY_ID + NONCE;

/// The length of the checksum at the end of the stored form, in bytes.
const CHECKSUM: usize = 8;

/// An operation's outcome, in the form in which stores save it. Cloning is cheap because the bytes
/// are shared.
///
/// A store treats a record as opaque. It writes the record with [`to_bytes`](Self::to_bytes) and
/// reads it with [`from_bytes`](Self::from_bytes), which checks the bytes.
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
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Record(Blob);

impl Record {
    /// Returns the fingerprint of the request whose outcome the record contains.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut print = [0; Fingerprint::LEN];
        // No record is shorter than its head: constructors write the head, and `from_bytes` checks
        // it.
        if let Some(bytes) = self.0.front().get(FINGERPRINT_AT..HEAD) {
            print.copy_from_slice(bytes);
        }
        Fingerprint::from_bytes(print)
    }

    /// Returns whether the record is a response rather than a tombstone.
    #[cfg(test)]
    pub(crate) fn is_response(&self) -> bool {
        self.kind() == RESPONSE
    }

    /// Returns the record's length in memory, in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a record is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the bytes to store: the record and a checksum.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() + CHECKSUM);
        bytes.extend_from_slice(self.0.front());
        bytes.extend_from_slice(self.0.body());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads a record from the bytes that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Corrupt`](crate::store::StoreErrorKind::Corrupt) if the bytes were
    /// truncated or changed, or if a newer version of this crate wrote them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        Self::checked(without_checksum(bytes)?.into())
    }

    /// Like [`from_bytes`](Self::from_bytes), but does not copy a large body: the record shares
    /// `bytes`.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`from_bytes`](Self::from_bytes).
    pub fn from_shared(bytes: Bytes) -> Result<Self, StoreError> {
        let length = without_checksum(&bytes)?.len();
        if length < APART {
            return Self::checked(bytes[..length].into());
        }
        let all = bytes.slice(..length);
        let record = Self(Blob::apart(all.clone(), Bytes::new()));
        let Some(at) = record.check()? else {
            return Self::checked(all[..].into());
        };
        Ok(Self(Blob::apart(Bytes::copy_from_slice(&all[..at]), all.slice(at..))))
    }

    /// Returns the record if its version is known and its content is valid. In a sealed record,
    /// only the envelope is checked.
    fn checked(blob: Blob) -> Result<Self, StoreError> {
        let record = Self(blob);
        record.check()?;
        Ok(record)
    }

    /// Checks whether the content is valid, and returns the body's offset if the record has a body.
    fn check(&self) -> Result<Option<usize>, StoreError> {
        if self.is_sealed() {
            self.whole_envelope()?;
            return Ok(None);
        }
        match self.open()? {
            Opened::Response(replay) => Ok(Some(self.0.len() - replay.body.len())),
            Opened::NotRetained { .. } | Opened::Unknown => Ok(None),
        }
    }

    #[cfg(test)]
    fn kind(&self) -> u8 {
        self.0.front().get(1).copied().unwrap_or_default() & !WITH_BODY
    }

    fn is_sealed(&self) -> bool {
        self.0.front().get(1) == Some(&SEALED)
    }

    fn whole_envelope(&self) -> Result<(), StoreError> {
        // The plaintext is a record, so it has a head.
        if self.0.len() < CIPHERTEXT_AT + HEAD + TAG || self.0.front()[..FINGERPRINT_AT] != [VERSION, SEALED, 0, 0] {
            return Err(corrupt("the stored record is sealed, but its envelope is damaged"));
        }
        Ok(())
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never show the contents, because they are user data.
        f.debug_struct("Record")
            .field("bytes", &self.0.len())
            .finish_non_exhaustive()
    }
}

/// Returns the record without its checksum, after checking it.
fn without_checksum(bytes: &[u8]) -> Result<&[u8], StoreError> {
    let (record, sum) = bytes
        .split_last_chunk::<CHECKSUM>()
        .ok_or_else(|| corrupt("the stored record is cut short"))?;
    known_version(record)?;
    // A large record from an older release has the same kind of checksum as a small record.
    if *sum != checksum(record) && (record.len() < BY_BLAKE3 || *sum != sha256(record)) {
        return Err(corrupt("the stored record is damaged: its checksum does not match"));
    }
    Ok(record)
}

fn known_version(blob: &[u8]) -> Result<(), StoreError> {
    match blob.first() {
        Some(&VERSION) => Ok(()),
        Some(_) => Err(corrupt(
            "the stored record has a version that this build does not know; was it written by a newer release?",
        )),
        None => Err(corrupt("the stored record is empty")),
    }
}

fn checksum(record: &[u8]) -> [u8; CHECKSUM] {
    if record.len() < BY_BLAKE3 {
        return sha256(record);
    }
    first_of(blake3::hash(record).as_bytes())
}

fn sha256(record: &[u8]) -> [u8; CHECKSUM] {
    first_of(&Sha256::digest(record).into())
}

fn first_of(digest: &[u8; 32]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::write::put_head;
    use super::*;
    use crate::store::StoreErrorKind;
    use http::HeaderValue;
    use http::StatusCode;
    use http::header::{self, HeaderMap};

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
            &Bytes::copy_from_slice(body),
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
        assert_eq!(replay.trailers.as_deref(), Some(&trailers));
    }

    #[test]
    fn contract_5_1_a_header_of_very_many_lines_comes_back() {
        // More lines than a map can have names.
        let mut headers = HeaderMap::new();
        for _ in 0..40_000 {
            headers.append(header::LINK, HeaderValue::from_static("a"));
        }
        let record = Record::response(
            PRINT,
            StatusCode::OK,
            &headers,
            |_| false,
            &Bytes::from_static(b""),
            None,
        );
        let Opened::Response(replay) = record.open().unwrap() else {
            panic!("a response")
        };
        assert_eq!(replay.head.headers(), &headers);
    }

    #[test]
    fn contract_5_1_content_length_is_computed_anew() {
        let (headers, _) = sample();
        let record = Record::response(
            PRINT,
            StatusCode::OK,
            &headers,
            |_| false,
            &Bytes::from_static(b"{\"a\":1}"),
            None,
        );
        let Opened::Response(replay) = record.open().unwrap() else {
            panic!("a response")
        };
        assert_eq!(replay.head.headers()[header::CONTENT_LENGTH], "7");
    }

    /// Every later release must be able to read records from this release. If this test fails, the
    /// format has changed. Give the new format a new version number, and keep the code that reads
    /// the old format.
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
        let sealed = stored_envelope(HEAD + TAG);
        assert_eq!(hex(&sealed[..HEAD]), "01030000abababababababababababababababab");
    }

    /// Returns the stored form of a sealed record with the given number of ciphertext bytes, built
    /// manually.
    fn stored_envelope(ciphertext: usize) -> Vec<u8> {
        let mut stored = Vec::new();
        put_head(&mut stored, SEALED, 0, PRINT);
        stored.extend([1; KEY_ID]);
        stored.extend([2; NONCE]);
        stored.extend(vec![3; ciphertext]);
        let sum = checksum(&stored);
        stored.extend(sum);
        stored
    }

    #[test]
    fn contract_6_5_a_sealed_record_is_stored_as_others_and_not_opened() {
        let stored = stored_envelope(HEAD + TAG);
        let record = Record::from_bytes(&stored).unwrap();
        assert_eq!(record.to_bytes(), stored);
        assert_eq!(record.fingerprint(), PRINT);
        assert!(!record.is_response());
        let error = record.open().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        assert!(error.to_string().contains("wrap the store in `Sealed`"), "{error}");
    }

    #[test]
    fn contract_6_5_an_envelope_that_cannot_be_whole_is_corrupt() {
        let short = Record::from_bytes(&stored_envelope(HEAD + TAG - 1)).unwrap_err();
        assert_eq!(short.kind(), StoreErrorKind::Corrupt);
        let mut blob = stored_envelope(HEAD + TAG);
        blob.truncate(blob.len() - CHECKSUM);
        blob[3] = 200;
        let sum = checksum(&blob);
        blob.extend(sum);
        let status = Record::from_bytes(&blob).unwrap_err();
        assert_eq!(status.kind(), StoreErrorKind::Corrupt);
    }

    #[cfg(feature = "sealed")]
    #[test]
    fn an_envelope_is_read_as_it_was_written() {
        let ciphertext = [3; HEAD + TAG];
        let record = Record::sealed(
            PRINT,
            &Envelope {
                key_id: &[1; KEY_ID],
                nonce: &[2; NONCE],
                ciphertext: &ciphertext,
            },
        );
        assert_eq!(record.to_bytes(), stored_envelope(HEAD + TAG));
        let envelope = record.envelope().unwrap().unwrap();
        assert_eq!(
            (envelope.key_id, envelope.nonce, envelope.ciphertext),
            (&[1; KEY_ID], &[2; NONCE], &ciphertext[..])
        );
        assert!(Record::outcome_unknown(PRINT).envelope().unwrap().is_none());
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
    fn a_record_with_a_valid_checksum_but_invalid_content_is_corrupt_and_does_not_panic() {
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

    fn large() -> Bytes {
        (0..2 * APART).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn a_large_body_is_shared_and_not_copied() {
        let body = large();
        let (headers, trailers) = sample();
        for trailers in [None, Some(&trailers)] {
            let record = Record::response(PRINT, StatusCode::OK, &headers, |_| false, &body, trailers);
            let Opened::Response(replay) = record.open().unwrap() else {
                panic!("a response")
            };
            assert_eq!(replay.body.as_ptr(), body.as_ptr());
            assert_eq!(replay.trailers.is_some(), trailers.is_some());
            assert!(record.len() > body.len() && record.len() < body.len() + 200);

            let stored = Bytes::from(record.to_bytes());
            let read = Record::from_shared(stored.clone()).unwrap();
            let Opened::Response(replay) = read.open().unwrap() else {
                panic!("a response")
            };
            assert!(stored.as_ptr_range().contains(&replay.body.as_ptr()));
            assert_eq!(replay.body, body);
            assert!(read == record && Record::from_bytes(&stored).unwrap() == record);
            assert_eq!(read.to_bytes(), stored);
        }
    }

    #[test]
    fn records_of_every_kind_are_read_from_shared_bytes() {
        let sealed = stored_envelope(2 * APART);
        assert_eq!(Record::from_shared(sealed.clone().into()).unwrap().to_bytes(), sealed);
        for record in [
            record(b"small"),
            Record::outcome_unknown(PRINT),
            record(&large()[..APART]),
        ] {
            assert_eq!(Record::from_shared(record.to_bytes().into()).unwrap(), record);
        }
        let mut damaged = record(&large()).to_bytes();
        damaged[APART] ^= 1;
        assert!(Record::from_shared(damaged.into()).is_err());
        assert!(Record::from_shared(Bytes::from_static(b"short")).is_err());
    }

    #[test]
    fn a_large_record_of_an_older_release_is_read() {
        let mut stored = record(&large()).to_bytes();
        let whole = stored.len() - CHECKSUM;
        let older = sha256(&stored[..whole]);
        assert_ne!(stored[whole..], older);
        stored[whole..].copy_from_slice(&older);
        assert_eq!(Record::from_bytes(&stored).unwrap(), record(&large()));
    }

    #[test]
    fn debug_shows_no_contents() {
        assert_eq!(
            format!("{:?}", Record::outcome_unknown(PRINT)),
            "Record { bytes: 20, .. }"
        );
    }
}
