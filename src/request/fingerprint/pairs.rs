//! The fields of a streamed `application/x-www-form-urlencoded` body (WHATWG URL, section 5). The
//! fields are read as they arrive, and are not kept in memory.

use std::sync::Arc;

use super::form::name_of;
use crate::digest::StreamDigest;
use crate::request::json::Pointer;

/// Digests the fields' bytes, in order. Fields whose name is in `without` are left out.
pub(super) struct Pairs {
    digest: StreamDigest,
    without: Arc<[Pointer]>,
    /// The maximum length of the encoded name of a field that is left out. A field with a longer
    /// name is always covered.
    longest: usize,
    at: At,
}

/// The position of the reader in a field.
enum At {
    /// In the name of a field. The bytes are the name read so far.
    Name(Vec<u8>),
    /// In a field that is covered.
    Counts,
    LeftOut,
}

impl Pairs {
    pub(super) fn new(without: &Arc<[Pointer]>) -> Self {
        let names = without.iter().flat_map(|pointer| pointer.tokens());
        // An encoded byte takes at most three bytes.
        let longest = 3 * names.map(|name| name.len()).max().unwrap_or_default();
        Self {
            digest: StreamDigest::new(),
            without: Arc::clone(without),
            longest,
            at: At::Name(Vec::new()),
        }
    }

    pub(super) fn data(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            data = self.read(data);
        }
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        self.end_name();
        self.end_pair();
        self.digest.finish()
    }

    /// Reads the beginning of the data, and returns the unread rest.
    fn read<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        if let At::Name(name) = &mut self.at {
            let in_reach = &data[..data.len().min(self.longest + 1 - name.len())];
            let end = memchr::memchr2(b'=', b'&', in_reach);
            let more = &in_reach[..end.unwrap_or(in_reach.len())];
            name.extend_from_slice(more);
            if end.is_some() || name.len() > self.longest {
                self.end_name();
            }
            return &data[more.len()..];
        }
        let end = memchr::memchr(b'&', data);
        let value = &data[..end.unwrap_or(data.len())];
        if matches!(self.at, At::Counts) {
            self.digest.update(value);
        }
        match end {
            Some(end) => {
                self.end_pair();
                self.at = At::Name(Vec::new());
                &data[end + 1..]
            }
            None => &[],
        }
    }

    fn end_name(&mut self) {
        if let At::Name(name) = &self.at {
            let decoded = name_of(name);
            let is_left_out = self.without.iter().any(|pointer| pointer.is_name(&decoded));
            self.at = if is_left_out {
                At::LeftOut
            } else {
                self.digest.update(name);
                At::Counts
            };
        }
    }

    /// Ends a field with an ampersand. No field contains an ampersand, so this byte separates the
    /// fields.
    fn end_pair(&mut self) {
        if matches!(self.at, At::Counts) {
            self.digest.update(b"&");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::form;
    use super::*;

    fn without(names: &[&str]) -> Arc<[Pointer]> {
        names.iter().map(|text| Pointer::parse("", text).unwrap()).collect()
    }

    fn digest(body: &str, frames: usize, names: &[&str]) -> [u8; 32] {
        let mut pairs = Pairs::new(&without(names));
        body.as_bytes().chunks(frames).for_each(|frame| pairs.data(frame));
        pairs.finish()
    }

    #[test]
    fn contract_8_5_two_forms_are_one_for_both_readers_or_for_none() {
        let long = format!("{}=1&a=1", "n".repeat(100));
        let bodies = [
            "",
            "&",
            "&&",
            "=",
            "=&",
            "a",
            "a=",
            "a=1",
            "a=1&",
            "&a=1",
            "a=1&b=2",
            "b=2&a=1",
            "a=1&csrf=x&b=2",
            "csrf&a=1&b=2",
            "csrf=x=y&a=1&b=2",
            "a=1&b=2&csrf=",
            "a=1&%63srf=x&b=2",
            "a=1&csrf2=x&b=2",
            "a=1&cs+rf=x&b=2",
            "a=1&cs%20rf=y&b=2",
            "CSRF=x&a=1",
            "%ff=1",
            "%fe=1",
            "csr",
            "a=1%26b=2",
            &long,
        ];
        for names in [&["/csrf"][..], &["/cs rf"], &["/"], &["/csrf/0"], &["/a", "/csrf"]] {
            for one in bodies {
                let first = digest(one, 1000, names);
                for frames in [1, 2, 3, 7] {
                    assert_eq!(digest(one, frames, names), first, "{frames} {one}");
                }
                for other in bodies {
                    let buffered = |body: &str| form::digest_of(body.as_bytes(), &without(names));
                    let same = buffered(one) == buffered(other);
                    assert_eq!(digest(other, 2, names) == first, same, "{names:?} {one} {other}");
                }
            }
        }
    }

    #[test]
    fn contract_8_5_a_name_takes_no_more_memory_than_those_that_are_left_out() {
        let mut pairs = Pairs::new(&without(&["/csrf"]));
        for _ in 0..1000 {
            pairs.data(b"a long name");
            assert!(!matches!(&pairs.at, At::Name(name) if name.len() > 12));
        }
        assert!(matches!(pairs.at, At::Counts));
    }
}
