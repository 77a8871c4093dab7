//! The parts of a streamed `multipart/form-data` body (RFC 7578). The parts are read as they
//! arrive, and are not kept in memory.

use std::sync::Arc;

use http::HeaderMap;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use memchr::memmem::{self, Finder};

use super::multipart::{CONTENT_TRANSFER_ENCODING, MAX_PARTS, boundary_of, name_in};
use crate::digest::StreamDigest;
use crate::request::json::Pointer;

/// The maximum size of a part's headers. No client sends a form with longer headers.
const MAX_HEADERS: usize = 16 * 1024;
/// The maximum number of header lines. The parser for buffered forms has the same limit.
const MAX_HEADER_LINES: usize = 32;
const END_OF_HEADERS: &[u8] = b"\r\n\r\n";

// The tags of the fields. Stored records depend on these values, so they must never change.
const DISPOSITION: u8 = 1;
const TYPE: u8 = 2;
const TRANSFER_ENCODING: u8 = 3;
const CONTENT: u8 = 4;

/// Digests the parts in order, without the boundary. For each part, the digest covers the content
/// and the headers that name and describe the part. Parts whose name is in `without` are left out.
///
/// The reader is strict: a body is malformed if any of its text would have to be skipped.
pub(super) struct Parts {
    digest: StreamDigest,
    /// A line break, two hyphens and the boundary. The only carriage return is the first byte.
    delimiter: Finder<'static>,
    without: Arc<[Pointer]>,
    at: At,
    parts: usize,
    /// The number of content bytes that were digested for the current part. `None` if the part is
    /// left out.
    content: Option<u64>,
}

/// The position of the reader in the body.
enum At {
    /// In the first delimiter, of which `matched` bytes have been read.
    Opening {
        matched: usize,
    },
    /// In the content of a part. The last `matched` bytes may be the beginning of a delimiter.
    Content {
        matched: usize,
    },
    /// After a delimiter. A line break follows or, after the last delimiter, two hyphens.
    AfterDelimiter {
        first: Option<u8>,
    },
    /// In the headers of a part. `block` contains the headers read so far.
    Headers {
        block: Vec<u8>,
    },
    /// After the last delimiter, and after `matched` bytes of a line break.
    End {
        matched: usize,
    },
    Malformed,
}

impl Parts {
    /// Returns `None` if the headers do not name a valid boundary, or if they declare a body that
    /// cannot be read as parts.
    pub(super) fn of(headers: &HeaderMap, without: &Arc<[Pointer]>) -> Option<Self> {
        let boundary = boundary_of(headers)?;
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        Some(Self {
            digest: StreamDigest::new(),
            delimiter: Finder::new(&delimiter).into_owned(),
            without: Arc::clone(without),
            // The body begins as if a line had just ended.
            at: At::Opening { matched: 2 },
            parts: 0,
            content: None,
        })
    }

    pub(super) fn data(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            data = self.read(data);
        }
    }

    /// Returns the digest, if the body was well-formed to its end.
    pub(super) fn finish(self) -> Option<[u8; 32]> {
        match self.at {
            At::End { matched: 0 | 2 } => Some(self.digest.finish()),
            _ => None,
        }
    }

    /// Reads the beginning of the data, and returns the unread rest.
    fn read<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        match &mut self.at {
            At::Opening { matched } => {
                let missing = &self.delimiter.needle()[*matched..];
                let common = common_prefix(missing, data);
                if common == missing.len() {
                    self.at = At::AfterDelimiter { first: None };
                } else if common == data.len() {
                    *matched += common;
                } else {
                    self.at = At::Malformed;
                }
                &data[common..]
            }
            At::Content { matched: 0 } => self.read_content(data),
            At::Content { matched } => {
                let matched = *matched;
                self.read_delimiter(matched, data)
            }
            At::AfterDelimiter { first } => {
                let next = data[0];
                match (*first, next) {
                    (None, b'\r' | b'-') => *first = Some(next),
                    (Some(b'\r'), b'\n') => self.begin_part(),
                    (Some(b'-'), b'-') => self.at = At::End { matched: 0 },
                    _ => self.at = At::Malformed,
                }
                &data[1..]
            }
            At::Headers { block } => {
                let block = std::mem::take(block);
                self.read_headers(block, data)
            }
            At::End { matched } => {
                match (*matched, data[0]) {
                    (0, b'\r') | (1, b'\n') => *matched += 1,
                    _ => self.at = At::Malformed,
                }
                &data[1..]
            }
            At::Malformed => &[],
        }
    }

    fn begin_part(&mut self) {
        self.parts += 1;
        self.at = if self.parts > MAX_PARTS {
            At::Malformed
        } else {
            At::Headers { block: Vec::new() }
        };
    }

    fn read_headers<'d>(&mut self, mut block: Vec<u8>, data: &'d [u8]) -> &'d [u8] {
        let data_in_reach = &data[..data.len().min(MAX_HEADERS - block.len())];
        let Some(end) = end_of_headers(&block, data_in_reach) else {
            block.extend_from_slice(data_in_reach);
            self.at = if block.len() < MAX_HEADERS {
                At::Headers { block }
            } else {
                At::Malformed
            };
            return &data[data_in_reach.len()..];
        };
        let (headers, rest) = data.split_at(end);
        let read = if block.is_empty() {
            self.headers_are(headers)
        } else {
            block.extend_from_slice(headers);
            self.headers_are(&block)
        };
        self.at = match read {
            Some(()) => At::Content { matched: 0 },
            None => At::Malformed,
        };
        rest
    }

    /// Reads the complete headers of a part. Returns `None` if they are malformed.
    fn headers_are(&mut self, block: &[u8]) -> Option<()> {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
        let Ok(httparse::Status::Complete((length, headers))) = httparse::parse_headers(block, &mut lines) else {
            return None;
        };
        // The parser accepts a bare line feed as the end of a line.
        let line_feeds = memchr::memchr_iter(b'\n', block).count();
        let line_breaks = memmem::find_iter(block, b"\r\n").count();
        if length != block.len() || line_feeds != headers.len() + 1 || line_breaks != line_feeds {
            return None;
        }
        for (at, header) in headers.iter().enumerate() {
            let is_same = |other: &httparse::Header<'_>| other.name.eq_ignore_ascii_case(header.name);
            if headers[..at].iter().any(is_same) {
                return None;
            }
        }
        let line = |name: &str| {
            let is_it = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
            headers.iter().find(is_it).map(|header| header.value)
        };
        let disposition = line(CONTENT_DISPOSITION.as_str());
        let name = disposition.and_then(name_in);
        self.content = None;
        if name.is_some_and(|name| self.without.iter().any(|pointer| pointer.is_name(name))) {
            return Some(());
        }
        self.content = Some(0);
        for (tag, value) in [
            (DISPOSITION, disposition),
            (TYPE, line(CONTENT_TYPE.as_str())),
            (TRANSFER_ENCODING, line(CONTENT_TRANSFER_ENCODING)),
        ] {
            if let Some(value) = value {
                self.digest.update(value);
                self.end_field(tag, value.len() as u64);
            }
        }
        Some(())
    }

    /// Reads content up to the next delimiter, or up to the possible beginning of a delimiter.
    fn read_content<'d>(&mut self, data: &'d [u8]) -> &'d [u8] {
        if let Some(at) = self.delimiter.find(data) {
            let length = self.delimiter.needle().len();
            self.content_is(&data[..at]);
            self.end_part();
            return &data[at + length..];
        }
        let tail = data.len() - data.len().min(self.delimiter.needle().len() - 1);
        let begins = memchr::memrchr(b'\r', &data[tail..]).map(|at| tail + at);
        let end = match begins {
            Some(at) if self.delimiter.needle().starts_with(&data[at..]) => at,
            _ => data.len(),
        };
        self.content_is(&data[..end]);
        self.at = At::Content {
            matched: data.len() - end,
        };
        &[]
    }

    /// Continues to match a possible delimiter.
    fn read_delimiter<'d>(&mut self, matched: usize, data: &'d [u8]) -> &'d [u8] {
        let missing = &self.delimiter.needle()[matched..];
        let common = common_prefix(missing, data);
        if common == missing.len() {
            self.end_part();
            &data[common..]
        } else if common == data.len() {
            self.at = At::Content {
                matched: matched + common,
            };
            &[]
        } else {
            // The bytes were content. No other delimiter begins in them, because they contain no
            // other carriage return.
            if let Some(length) = &mut self.content {
                *length += matched as u64;
                self.digest.update(&self.delimiter.needle()[..matched]);
            }
            self.at = At::Content { matched: 0 };
            data
        }
    }

    fn content_is(&mut self, content: &[u8]) {
        if let Some(length) = &mut self.content {
            *length += content.len() as u64;
            self.digest.update(content);
        }
    }

    fn end_part(&mut self) {
        if let Some(length) = self.content.take() {
            self.end_field(CONTENT, length);
        }
        self.at = At::AfterDelimiter { first: None };
    }

    /// Writes the tag and the length of a field. Both follow the field's content, because the
    /// length is not known until the content ends. Two different lists of fields never produce the
    /// same bytes, because the bytes can be parsed from the end.
    fn end_field(&mut self, tag: u8, length: u64) {
        self.digest.update(&[tag]);
        self.digest.update(&length.to_le_bytes());
    }
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Returns the position in `data` where the headers end. `block` contains the beginning of the
/// headers.
fn end_of_headers(block: &[u8], data: &[u8]) -> Option<usize> {
    let before = &block[block.len().saturating_sub(END_OF_HEADERS.len() - 1)..];
    let mut edge = [0; 2 * END_OF_HEADERS.len()];
    let after = data.len().min(END_OF_HEADERS.len() - 1);
    edge[..before.len()].copy_from_slice(before);
    edge[before.len()..before.len() + after].copy_from_slice(&data[..after]);
    if let Some(at) = memmem::find(&edge[..before.len() + after], END_OF_HEADERS) {
        return Some(at + END_OF_HEADERS.len() - before.len());
    }
    memmem::find(data, END_OF_HEADERS).map(|at| at + END_OF_HEADERS.len())
}

#[cfg(test)]
mod tests {
    use super::super::multipart;
    use super::*;
    use bytes::Bytes;

    fn headers(boundary: &str) -> HeaderMap {
        let value = format!("multipart/form-data; boundary={boundary}");
        HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())])
    }

    fn without(names: &[&str]) -> Arc<[Pointer]> {
        names.iter().map(|text| Pointer::parse("", text).unwrap()).collect()
    }

    /// Returns the digest of a body that arrives in frames of `frames` bytes.
    fn digest(boundary: &str, body: &[u8], frames: usize, names: &[&str]) -> Option<[u8; 32]> {
        let mut parts = Parts::of(&headers(boundary), &without(names))?;
        body.chunks(frames).for_each(|frame| parts.data(frame));
        parts.finish()
    }

    const NAME: &str = "Content-Disposition: form-data; name=\"a\"";
    const FILE: &str = "content-disposition:form-data; name=\"f\"; filename=\"x.png\"\r\nContent-Type: image/png";

    /// Returns bodies that nearly break each rule, and bodies that do break it.
    fn bodies() -> Vec<String> {
        let part = |headers: &str, content: &str| format!("--b\r\n{headers}\r\n\r\n{content}\r\n");
        let one = part(NAME, "1");
        let mut bodies = vec![
            "--b--".into(),
            "--b--\r\n".into(),
            "--b--\r".into(),
            format!("{one}--b--"),
            format!("{one}--b--\r\n"),
            format!("{one}{}--b--\r\n", part(FILE, "\r\n--\r\n--a\r\n-\r\r\n--\r\n--")),
            format!("{}--b--\r\n", part(FILE, "")),
            format!("{}--b--\r\n", part("X: y", "\r\n")),
            format!(
                "{}--b--\r\n",
                part(&format!("{NAME}\r\nContent-Transfer-Encoding: base64"), "1")
            ),
            format!("{}--b--\r\n", part("Content-Disposition: form-data; name=csrf", "1")),
            String::new(),
            "-".into(),
            "--b".into(),
            one.clone(),
            format!("{one}--b-"),
            format!("{one}--b--\r\nmore"),
            format!("{one}--b--\r\n\r\n"),
            format!("more{one}--b--"),
            format!("\r\n{one}--b--"),
            format!("{one}--b \r\n{NAME}\r\n\r\n1\r\n--b--"),
            format!("{one}{one}--b--").replace("\r\n", "\n"),
            format!("{}--b--", part(&format!("{NAME}\r\n{NAME}"), "1")),
            format!("{}--b--", part(&format!("{NAME}\nX: y"), "1")),
            format!("{}--b--", part(&format!("{NAME}\r\n folded: y"), "1")),
            format!("{}--b--", part("no colon", "1")),
            format!("{}--b--", part(&["X: y"; 33].join("\r\n"), "1")),
            format!(
                "{}--b--",
                part(
                    &(0..32).map(|n| format!("X{n}: y")).collect::<Vec<_>>().join("\r\n"),
                    "1"
                )
            ),
            "--b\r\n\r\n1\r\n--b--\r\n".into(),
            format!("--b\r\n{NAME}\r\n\r\n--b--"),
        ];
        let longest = "y".repeat(MAX_HEADERS - "X: ".len() - END_OF_HEADERS.len());
        bodies.push(format!("{}--b--", part(&format!("X: {longest}"), "1")));
        bodies
    }

    #[test]
    fn contract_8_5_frames_do_not_count() {
        for body in bodies() {
            let whole = digest("b", body.as_bytes(), body.len().max(1), &[]);
            for frames in [1, 2, 3, 5, 7, 11, 64, 1000] {
                assert_eq!(
                    digest("b", body.as_bytes(), frames, &[]),
                    whole,
                    "{frames}: {body:.200}"
                );
            }
        }
    }

    #[test]
    fn contract_8_5_a_streamed_form_is_as_well_formed_as_a_buffered_one() {
        for body in bodies() {
            let buffered = multipart::digest_of(&headers("b"), &Bytes::from(body.clone()), &[]);
            let streamed = digest("b", body.as_bytes(), 3, &[]);
            // The parser for buffered bodies accepts a bare line feed as the end of a header.
            let is_lax = body.contains("\nX: y") && !body.contains("\r\nX: y");
            assert_eq!(streamed.is_some(), buffered.is_some() && !is_lax, "{body:.200}");
        }
        let beyond = format!("--b\r\nX: {}\r\n\r\n1\r\n--b--", "y".repeat(MAX_HEADERS - 6));
        assert_eq!(digest("b", beyond.as_bytes(), 4096, &[]), None);
    }

    #[test]
    fn contract_8_5_two_bodies_are_one_for_both_readers_or_for_none() {
        let bodies: Vec<_> = bodies();
        for names in [&[][..], &["/a"], &["/csrf", "/f"]] {
            let digests = |body: &String| {
                let buffered = multipart::digest_of(&headers("b"), &Bytes::from(body.clone()), &without(names));
                Some((buffered?, digest("b", body.as_bytes(), 9, names)?))
            };
            let digests: Vec<_> = bodies.iter().filter_map(digests).collect();
            assert!(digests.len() > 5);
            for (one, streamed) in &digests {
                for (other, streamed_other) in &digests {
                    assert_eq!(one == other, streamed == streamed_other);
                }
            }
        }
    }

    #[test]
    fn contract_8_5_the_boundary_does_not_count() {
        let first = digest("b", bodies()[5].as_bytes(), 10, &[]);
        assert!(first.is_some());
        for boundary in ["----WebKitFormBoundary7MA4YWxkTrZu0gW", "'()+_,-./:=?"] {
            let body = bodies()[5].replace("--b", &format!("--{boundary}"));
            assert_eq!(digest(&format!("\"{boundary}\""), body.as_bytes(), 10, &[]), first);
        }
    }

    #[test]
    fn contract_8_5_moving_a_byte_between_fields_makes_another_form() {
        let part = |headers: &str, content: &str| format!("--b\r\n{headers}\r\n\r\n{content}\r\n");
        let bodies = [
            part("Content-Type: ab", "c"),
            part("Content-Type: a", "bc"),
            part("Content-Disposition: ab", "c"),
            part("X: y", "abc"),
            part("X: y", "ab") + &part("X: y", "c"),
            part("X: y", "a") + &part("X: y", "bc"),
            part("X: y", "abc") + &part("X: y", ""),
        ];
        let digests = bodies.map(|body| digest("b", format!("{body}--b--").as_bytes(), 8, &[]).unwrap());
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    /// These digests are stored, so they must never change.
    #[test]
    fn golden_parts() {
        let golden = "93fcf960d8300d87c9725e39ea5dd127";
        let digest = digest("b", bodies()[5].as_bytes(), 10, &[]).unwrap();
        assert_eq!(crate::digest::hex(&digest[..16]), golden);
    }
}
