//! Sealed records. A sealed record is an envelope that contains a fully encrypted inner record.

use std::borrow::Cow;

use super::write::put_head;
use super::{CIPHERTEXT_AT, HEAD, KEY_ID, NONCE, Record, SEALED, known_version};
use crate::request::Fingerprint;
use crate::store::StoreError;

/// The content of a sealed record.
pub(crate) struct Envelope<'a> {
    pub(crate) key_id: &'a [u8; KEY_ID],
    pub(crate) nonce: &'a [u8; NONCE],
    pub(crate) ciphertext: &'a [u8],
}

impl Record {
    /// Creates a sealed record.
    pub(crate) fn sealed(fingerprint: Fingerprint, envelope: &Envelope<'_>) -> Self {
        let mut out = Vec::with_capacity(CIPHERTEXT_AT + envelope.ciphertext.len());
        put_head(&mut out, SEALED, 0, fingerprint);
        out.extend_from_slice(envelope.key_id);
        out.extend_from_slice(envelope.nonce);
        out.extend_from_slice(envelope.ciphertext);
        Self(out.into())
    }

    /// Returns a sealed record's envelope, or `None` if the record is not sealed.
    pub(crate) fn envelope(&self) -> Result<Option<Envelope<'_>>, StoreError> {
        if !self.is_sealed() {
            return Ok(None);
        }
        self.whole_envelope()?;
        let parts = self.0.front()[HEAD..].split_first_chunk().and_then(|(key_id, rest)| {
            let (nonce, ciphertext) = rest.split_first_chunk()?;
            Some(Envelope {
                key_id,
                nonce,
                ciphertext,
            })
        });
        Ok(parts)
    }

    /// Returns the bytes to encrypt when the record is sealed.
    pub(crate) fn to_plaintext(&self) -> Cow<'_, [u8]> {
        match self.0.body() {
            [] => Cow::Borrowed(self.0.front()),
            body => Cow::Owned([self.0.front(), body].concat()),
        }
    }

    /// Creates a record from its decrypted bytes.
    pub(crate) fn from_plaintext(blob: &[u8]) -> Result<Self, StoreError> {
        known_version(blob)?;
        Self::checked(blob.into())
    }
}
