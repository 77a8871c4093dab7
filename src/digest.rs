//! Length-prefixed, domain-separated SHA-256: what slots, fingerprints and derived keys are made of.
//!
//! SHA-256 for what is short (about 90 and 250 bytes for a small JSON request): with the processor's own
//! instructions it took 89 and 211 ns there, BLAKE3 165 and 309 ns (measured on the machine of
//! `docs/benchmarks.md`). From 4 KiB on, BLAKE3 is faster, and it digests what is long. Neither needs a C
//! compiler.

use sha2::{Digest as _, Sha256};

/// Bytes from which on BLAKE3 is faster.
pub(crate) const BY_BLAKE3: usize = 4096;

/// Set in the tag of a field whose content stands for itself by its BLAKE3.
const LONG: u8 = 0x80;

/// A digest under construction. Each field is preceded by a tag and its length, so that no two
/// different lists of fields give the same input.
pub(crate) struct Digest(Sha256);

impl Digest {
    /// `domain` separates the uses of the hash from each other.
    pub(crate) fn new(domain: &'static [u8; 8]) -> Self {
        let mut digest = Self(Sha256::new());
        digest.0.update(domain);
        digest
    }

    /// `tag` says what the field is.
    pub(crate) fn field(&mut self, tag: u8, bytes: &[u8]) {
        let mut prefix = [tag; 9];
        prefix[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.update(prefix);
        self.0.update(bytes);
    }

    /// As [`field`](Self::field), for bytes of which there may be many.
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

/// Bytes in hexadecimal, as slots and names of keys are shown.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
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
    fn hexadecimal_is_two_digits_for_each_byte() {
        for byte in 0..=u8::MAX {
            assert_eq!(hex(&[byte]), format!("{byte:02x}"));
        }
        assert_eq!(hex(&[]), "");
        assert_eq!(hex(b"\x00\x7f\xff"), "007fff");
    }
}
