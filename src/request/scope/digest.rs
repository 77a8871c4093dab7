//! The digest of a scope and a key.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::source::Source;
use crate::digest::Digest;
use crate::error::ConfigError;
use crate::request::slot::{ScopeTag, Slot};

// The tags of the fields. Stored slots depend on these values, so they must never change.
const KEY: u8 = 0;
pub(super) const HEADER: u8 = 1;
pub(super) const EXTENSION: u8 = 2;
pub(super) const CLOSURE: u8 = 3;
pub(super) const SHARED: u8 = 4;
pub(super) const HOST: u8 = 5;
/// Precedes the fields of each source that is combined with others.
pub(super) const PART: u8 = 6;
pub(super) const NAMESPACE: u8 = 7;
pub(super) const ENDPOINT: u8 = 8;

/// The slot's digest and the scope's tag, computed from the same fields.
pub(super) struct ScopeDigest {
    digest: Digest,
    tag: SipHasher24,
}

/// The minimum length of a secret, in bytes. The key that is derived from the secret has the same
/// length.
const MIN_SECRET: usize = 16;

/// The key for scope tags. It is all zeros if the application sets no secret.
#[derive(Clone, Default)]
pub(crate) struct TagKey([u8; 16]);

impl TagKey {
    pub(crate) fn of_secret(secret: &[u8]) -> Result<Self, ConfigError> {
        if secret.len() < MIN_SECRET {
            return Err(ConfigError::new(
                "scope_tag_secret",
                format!(
                    "the secret has {} bytes; use at least {MIN_SECRET} random bytes",
                    secret.len()
                ),
            ));
        }
        let mut digest = Digest::new(b"ti.tagk1");
        digest.field(0, secret);
        let mut key = [0; 16];
        key.copy_from_slice(&digest.finish()[..16]);
        Ok(Self(key))
    }
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey(..)")
    }
}

impl ScopeDigest {
    pub(super) fn new(key: &TagKey) -> Self {
        Self {
            digest: Digest::new(b"ti.slot1"),
            tag: SipHasher24::new_with_key(&key.0),
        }
    }

    pub(super) fn field(&mut self, tag: u8, bytes: &[u8]) {
        self.digest.field(tag, bytes);
        // The length and the tag are in one word, in a byte order that is the same in all
        // processes.
        let head = (bytes.len() as u64) << 8 | u64::from(tag);
        self.tag.write(&head.to_le_bytes());
        self.tag.write(bytes);
    }

    /// Marks where the fields of the next source begin. A simple scope has no such mark, because
    /// its slots were defined before combined scopes existed.
    pub(super) fn begin(&mut self, source: &Source, of: usize) {
        if of > 1 {
            let name = match source {
                Source::Header(Ok(name)) => name.as_str(),
                _ => "",
            };
            self.field(PART, name.as_bytes());
        }
    }

    pub(super) fn host(&mut self, host: &[u8]) {
        self.field(HOST, &host.to_ascii_lowercase());
    }

    pub(super) fn tag(&self) -> ScopeTag {
        ScopeTag::from_bytes(self.tag.finish128().as_bytes())
    }

    pub(super) fn slot(mut self, key: &[u8]) -> Slot {
        self.digest.field(KEY, key);
        Slot::from_bytes(self.digest.finish())
    }
}
