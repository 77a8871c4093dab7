//! A length-prefixed, domain-separated SHA-256 digest, used to compute slots, fingerprints and
//! derived keys.
//!
//! Short inputs (about 90 and 250 bytes for a small JSON request) are digested with SHA-256. For
//! these two lengths, SHA-256 took 89 and 211 ns with the processor's own instructions, and BLAKE3
//! took 165 and 309 ns (measured on the machine described in `docs/benchmarks.md`). BLAKE3 is
//! faster for inputs of 4 KiB or more, so those are digested with BLAKE3.

use sha2::{Digest as _, Sha256};

/// The length, in bytes, at which BLAKE3 becomes faster than SHA-256.
pub(crate) const BY_BLAKE3: usize = 4096;

/// The bit that is set in the tag of a field whose content is replaced by its BLAKE3 digest.
const LONG: u8 = 0x80;

/// A digest under construction. A tag and the length precede each field, so that two different
/// lists of fields never produce the same input.
pub(crate) struct Digest(Sha256);

impl Digest {
    /// Starts a digest. `domain` separates the different uses of the hash.
    pub(crate) fn new(domain: &'static [u8; 8]) -> Self {
        let mut digest = Self(Sha256::new());
        digest.0.update(domain);
        digest
    }

    /// Adds a field. `tag` identifies the field.
    pub(crate) fn field(&mut self, tag: u8, bytes: &[u8]) {
        let mut prefix = [tag; 9];
        prefix[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.update(prefix);
        self.0.update(bytes);
    }

    /// Like [`field`](Self::field), for input that may be long.
    pub(crate) fn content(&mut self, tag: u8, bytes: &[u8]) {
        if bytes.len() < BY_BLAKE3 {
            self.field(tag, bytes);
        } else {
            self.field(tag | LONG, blake3::hash(bytes).as_bytes());
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// A BLAKE3 digest of bytes that arrive in pieces of any size, used for streamed bodies.
///
/// The hash is fast only on whole blocks. It was four times slower on pieces of 1000 bytes, and
/// took 50% longer on pieces of 64 KiB at arbitrary offsets. The bytes of an incomplete block are
/// therefore collected until the block is complete.
pub(crate) struct StreamDigest {
    hasher: blake3::Hasher,
    /// The bytes of an incomplete block.
    rest: Vec<u8>,
}

impl StreamDigest {
    /// Twice the number of bytes that the hash processes at once with AVX2.
    const BLOCK: usize = 16 * 1024;

    pub(crate) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            rest: Vec::new(),
        }
    }

    pub(crate) fn update(&mut self, mut data: &[u8]) {
        if !self.rest.is_empty() {
            let missing = (Self::BLOCK - self.rest.len()).min(data.len());
            let (more, after) = data.split_at(missing);
            self.keep(more);
            data = after;
            if self.rest.len() < Self::BLOCK {
                return;
            }
            self.hasher.update(&self.rest);
            self.rest.clear();
        }
        let (blocks, rest) = data.split_at(data.len() - data.len() % Self::BLOCK);
        self.hasher.update(blocks);
        self.keep(rest);
    }

    fn keep(&mut self, more: &[u8]) {
        let length = self.rest.len() + more.len();
        if length > self.rest.capacity() {
            // The capacity doubles each time, up to one block.
            let capacity = (2 * length).min(Self::BLOCK);
            self.rest.reserve_exact(capacity - self.rest.len());
        }
        self.rest.extend_from_slice(more);
    }

    pub(crate) fn finish(mut self) -> [u8; 32] {
        self.hasher.update(&self.rest);
        *self.hasher.finalize().as_bytes()
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Formats bytes in hexadecimal, for slots and key names.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}

/// Appends bytes in hexadecimal to text that a store builds.
#[cfg(feature = "redis")]
pub(crate) fn push_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    let at = text.len();
    text.resize(at + 2 * bytes.len(), 0);
    for (digits, byte) in text[at..].chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[&[u8]]) -> [u8; 32] {
        let mut digest = Digest::new(b"ti.test.");
        for field in fields {
            digest.field(1, field);
        }
        digest.finish()
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_digest() {
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"ab"]), of(&[b"ab", b""]));
        assert_ne!(of(&[b"", b"ab"]), of(&[b"ab", b""]));
    }

    #[test]
    fn a_crafted_field_cannot_imitate_a_length_prefix() {
        let mut crafted = b"a".to_vec();
        crafted.push(1);
        crafted.extend(1u64.to_le_bytes());
        crafted.push(b'b');
        assert_ne!(of(&[&crafted]), of(&[b"a", b"b"]));
    }

    #[test]
    fn the_digest_does_not_depend_on_how_a_stream_is_split() {
        let data: Vec<u8> = (0..100_000).map(|n: usize| (n * 31 % 251) as u8).collect();
        for length in [0, 1, 1000, 16_383, 16_384, 16_385, 32_768, 100_000] {
            let expected = *blake3::hash(&data[..length]).as_bytes();
            for pieces in [1, 999, 16_383, 16_384, 16_385, 40_000, 100_000] {
                let mut digest = StreamDigest::new();
                data[..length].chunks(pieces).for_each(|piece| digest.update(piece));
                assert!(digest.rest.capacity() <= StreamDigest::BLOCK);
                assert_eq!(digest.finish(), expected, "{length} in pieces of {pieces}");
            }
        }
    }

    #[test]
    fn hexadecimal_has_two_digits_for_each_byte() {
        for byte in 0..=u8::MAX {
            assert_eq!(hex(&[byte]), format!("{byte:02x}"));
        }
        assert_eq!(hex(&[]), "");
        assert_eq!(hex(b"\x00\x7f\xff"), "007fff");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn appended_hexadecimal_has_the_same_digits() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        let mut text = b"before ".to_vec();
        push_hex(&mut text, &bytes);
        assert_eq!(text, format!("before {}", hex(&bytes)).into_bytes());
    }
}
