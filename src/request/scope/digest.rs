//! The digest of a scope and a key.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::LazyLock;

use super::source::Source;
use crate::digest::Digest;
use crate::request::slot::{ScopeTag, Slot};

// The tags of the fields; part of what stored slots mean, so never to be changed.
const KEY: u8 = 0;
pub(super) const HEADER: u8 = 1;
pub(super) const EXTENSION: u8 = 2;
pub(super) const CLOSURE: u8 = 3;
pub(super) const SHARED: u8 = 4;
pub(super) const HOST: u8 = 5;
/// Before the fields of each source that is combined with others.
pub(super) const PART: u8 = 6;
pub(super) const NAMESPACE: u8 = 7;
pub(super) const ENDPOINT: u8 = 8;

/// The slot's digest and the scope's tag, made of the same fields.
pub(super) struct ScopeDigest {
    digest: Digest,
    tag: DefaultHasher,
}

impl ScopeDigest {
    pub(super) fn new() -> Self {
        // By a seed of this process, so that no client can make scopes that share a tag.
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self {
            digest: Digest::new(b"ti.slot1"),
            tag: SEED.build_hasher(),
        }
    }

    pub(super) fn field(&mut self, tag: u8, bytes: &[u8]) {
        self.digest.field(tag, bytes);
        self.tag.write(bytes);
        self.tag.write_u8(tag);
    }

    /// Where the fields of the next source begin. A simple scope has no such mark: its slots are
    /// older than combined ones.
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

    pub(super) fn finish(mut self, key: &[u8]) -> (Slot, ScopeTag) {
        self.digest.field(KEY, key);
        (
            Slot::from_bytes(self.digest.finish()),
            ScopeTag::new(self.tag.finish() as u32),
        )
    }
}
