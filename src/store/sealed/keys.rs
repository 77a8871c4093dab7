//! The encryption keys, and the code that seals and opens records with them.

use std::fmt;

use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};

use crate::digest::{Digest, hex};
use crate::error::{BoxError, ConfigError};
use crate::request::Fingerprint;
use crate::request::Slot;
use crate::store::record::{Envelope, KEY_ID, NONCE, Record};
use crate::store::{StoreError, StoreErrorKind};

/// The first bytes of the data that a seal is bound to. These bytes are part of the format, so they
/// must never change.
const DOMAIN: &[u8; 8] = b"ti.seal1";

/// The keys of a [`Sealed`](super::Sealed) store: one key that seals and opens records, and former
/// keys that only open them.
///
/// A key is 32 bytes from a random source that is suitable for keys, such as the output of `openssl
/// rand -out /run/secrets/idempotency.key 32`. It is neither a password nor a hexadecimal string.
/// Load the key from wherever you keep your secrets, such as a mounted file or a secret manager. If
/// the key is encoded in Base64 or hexadecimal, decode it first.
///
/// ```no_run
/// use tower_idempotency::store::KeyRing;
///
/// fn key(path: &str) -> Result<[u8; 32], Box<dyn std::error::Error>> {
///     let bytes = std::fs::read(path)?;
///     Ok(bytes.try_into().map_err(|_| format!("{path} must hold exactly 32 bytes"))?)
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyRing::new(key("/run/secrets/idempotency.key")?)
///     .with_former(key("/run/secrets/idempotency.key.former")?);
/// # let _ = keys;
/// # Ok(())
/// # }
/// ```
///
/// **To rotate** keys without `503` responses, first ensure that every host can open the records
/// that any host will seal:
///
/// 1. deploy `KeyRing::new(old).with_former(new)` everywhere;
/// 2. deploy `KeyRing::new(new).with_former(old)` everywhere;
/// 3. when the last record under the old key has expired (after the longest TTL), remove the old
///    key.
///
/// A key's name is the beginning of the key's digest, so you do not have to number keys. `Debug`
/// output and errors show names, never keys. The ring wipes its keys when it is dropped, but cannot
/// wipe the bytes that you passed in or any other copies.
pub struct KeyRing {
    current: Key,
    former: Vec<Key>,
    /// The function that generates nonces. Only tests replace it.
    random: fn() -> Result<[u8; NONCE], BoxError>,
}

struct Key {
    id: [u8; KEY_ID],
    // The cipher wipes the key when it is dropped.
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(bytes: &[u8; 32]) -> Self {
        let mut digest = Digest::new(b"ti.keyid");
        digest.field(0, bytes);
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&digest.finish()[..KEY_ID]);
        Self {
            id,
            cipher: XChaCha20Poly1305::new(bytes.into()),
        }
    }
}

impl KeyRing {
    /// Creates a ring with one key, which seals records and opens the records that it sealed.
    #[must_use]
    pub fn new(current: [u8; 32]) -> Self {
        Self {
            current: Key::new(&current),
            former: Vec::new(),
            random: || Ok(Generate::try_generate()?),
        }
    }

    /// Adds a key that opens records but never seals them. You can add any number of keys.
    #[must_use]
    pub fn with_former(mut self, key: [u8; 32]) -> Self {
        self.former.push(Key::new(&key));
        self
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("keys", reason));
        let zeros = Key::new(&[0; 32]).id;
        let mut seen = Vec::with_capacity(1 + self.former.len());
        for key in self.all() {
            if key.id == zeros {
                return refused("a key is all zeros; use 32 random bytes (was the key loaded?)".into());
            }
            if seen.contains(&key.id) {
                return refused(format!(
                    "the key named {} appears twice; the current key must not be among the former keys, \
                     and no former key may be repeated",
                    hex(&key.id)
                ));
            }
            seen.push(key.id);
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.former)
    }

    /// Seals a record for the given slot.
    pub(super) fn seal(&self, slot: &Slot, record: &Record) -> Result<Record, StoreError> {
        let failed = |message| StoreError::new(StoreErrorKind::Unavailable, message);
        let nonce = (self.random)().map_err(|error| {
            failed("sealed store: the operating system did not provide random bytes for a nonce").with_source(error)
        })?;
        let fingerprint = record.fingerprint();
        let payload = Payload {
            msg: &record.to_plaintext(),
            aad: &bound_to(slot, fingerprint, &self.current.id),
        };
        let ciphertext = self
            .current
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| failed("sealed store: the record is too large to encrypt"))?;
        Ok(Record::sealed(
            fingerprint,
            &Envelope {
                key_id: &self.current.id,
                nonce: &nonce,
                ciphertext: &ciphertext,
            },
        ))
    }

    /// Opens a record that [`seal`](Self::seal) sealed for the same slot and fingerprint.
    pub(super) fn open(
        &self,
        slot: &Slot,
        fingerprint: Fingerprint,
        envelope: &Envelope<'_>,
    ) -> Result<Record, StoreError> {
        let corrupt = |message: String| StoreError::new(StoreErrorKind::Corrupt, message);
        let Some(key) = self.all().find(|key| key.id == *envelope.key_id) else {
            return Err(corrupt(format!(
                "sealed store: the record is sealed with the key named {}, which is not in the ring; \
                 add that key with `KeyRing::with_former`, or forget the slot",
                hex(envelope.key_id)
            )));
        };
        let payload = Payload {
            msg: envelope.ciphertext,
            aad: &bound_to(slot, fingerprint, &key.id),
        };
        let plaintext = key
            .cipher
            .decrypt(&XNonce::from(*envelope.nonce), payload)
            .map_err(|_| {
                corrupt(
                    "sealed store: the record cannot be opened; it was damaged, changed, or moved from another slot. \
                     Find out who writes to the store, and forget the slot"
                        .into(),
                )
            })?;
        let record = Record::from_plaintext(&plaintext)?;
        if record.fingerprint() != fingerprint {
            return Err(corrupt(
                "sealed store: the record inside belongs to another request. Find out who writes to the store, \
                 and forget the slot"
                    .into(),
            ));
        }
        Ok(record)
    }
}

/// Returns the data that a seal is bound to. Each part has a fixed length, so different lists of
/// parts never produce the same bytes.
fn bound_to(slot: &Slot, fingerprint: Fingerprint, key_id: &[u8; KEY_ID]) -> Vec<u8> {
    [&DOMAIN[..], slot.as_bytes(), fingerprint.as_bytes(), key_id].concat()
}

/// Shows the keys' names, but no keys.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let former: Vec<_> = self.former.iter().map(|key| hex(&key.id)).collect();
        f.debug_struct("KeyRing")
            .field("current", &hex(&self.current.id))
            .field("former", &former)
            .finish()
    }
}

#[cfg(test)]
impl KeyRing {
    /// Simulates an operating system that cannot provide random bytes.
    pub(super) fn starve(&mut self) {
        self.random = || Err("no entropy".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot::from_bytes([5; 32]);
    const PRINT: Fingerprint = Fingerprint::from_bytes([0xAB; 16]);

    /// Every later release must be able to open a record that this release sealed. (An independent
    /// implementation of the specification also computed these bytes.)
    #[test]
    fn golden_bytes_of_a_sealed_record() {
        let mut keys = KeyRing::new([7; 32]);
        keys.random = || Ok([9; NONCE]);
        let record = Record::outcome_unknown(PRINT);
        let sealed = keys.seal(&SLOT, &record).unwrap();
        let golden = [
            "01030000abababababababababababababababab",
            "727202aa239b0257",
            "090909090909090909090909090909090909090909090909",
            "bf70e28ad701d2c95fb9a397c3d8ac4081581c314d8c334f8514995fe14ce03de232071e",
        ]
        .concat();
        assert_eq!(hex(&sealed.to_plaintext()), golden);
        let envelope = sealed.envelope().unwrap().unwrap();
        assert_eq!(keys.open(&SLOT, PRINT, &envelope).unwrap(), record);
    }

    #[test]
    fn contract_6_5_a_record_with_another_fingerprint_inside_is_corrupt() {
        let keys = KeyRing::new([7; 32]);
        let inside = Record::outcome_unknown(Fingerprint::from_bytes([1; 16]));
        let payload = Payload {
            msg: &inside.to_plaintext(),
            aad: &bound_to(&SLOT, PRINT, &keys.current.id),
        };
        let ciphertext = keys.current.cipher.encrypt(&XNonce::from([9; NONCE]), payload).unwrap();
        let envelope = Envelope {
            key_id: &keys.current.id,
            nonce: &[9; NONCE],
            ciphertext: &ciphertext,
        };
        let error = keys.open(&SLOT, PRINT, &envelope).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    }
}
