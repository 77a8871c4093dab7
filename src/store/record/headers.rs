//! Headers and trailers in a record. The format is compact, and values are decoded without copying.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::store::{StoreError, StoreErrorKind};

/// Header names that are encoded as one byte. The order is part of the format, so add new names
/// only at the end. The list can have at most 127 names.
static NAMES: [HeaderName; 16] = [
    header::CONTENT_TYPE,
    header::LOCATION,
    header::CACHE_CONTROL,
    header::ETAG,
    header::LAST_MODIFIED,
    header::VARY,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::LINK,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::STRICT_TRANSPORT_SECURITY,
    header::RETRY_AFTER,
    header::SERVER,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
];

/// Pairs of a name and a value that are encoded as one byte: 128 plus the pair's position. Add new
/// pairs only at the end.
static PAIRS: [(HeaderName, &str); 4] = [
    (header::CONTENT_TYPE, "application/json"),
    (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_TYPE, "application/problem+json"),
];

/// The maximum number of names for which space is reserved in advance. A map with more names grows
/// automatically.
const MOST_RESERVED: usize = 1024;

pub(super) fn corrupt(message: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, message)
}

pub(super) fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap, skip: impl Fn(&HeaderName) -> bool) {
    let kept = || headers.iter().filter(|(name, _)| !skip(name));
    put_number(out, kept().count());
    for (name, value) in kept() {
        let sensitive = value.is_sensitive();
        let is_pair = |pair: &(HeaderName, &str)| pair.0 == name && pair.1.as_bytes() == value.as_bytes();
        let pair = PAIRS.iter().position(is_pair);
        if let (Some(pair), false) = (pair, sensitive) {
            out.push(0x80 | pair as u8);
            continue;
        }
        match NAMES.iter().position(|known| known == name) {
            Some(at) => out.push(at as u8 + 1),
            None => {
                out.push(0);
                put_number(out, name.as_str().len());
                out.extend_from_slice(name.as_str().as_bytes());
            }
        }
        put_number(out, value.len() << 1 | usize::from(sensitive));
        out.extend_from_slice(value.as_bytes());
    }
}

fn put_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a record from the start.
pub(super) struct Reader {
    pub(super) blob: Bytes,
    pub(super) at: usize,
}

impl Reader {
    pub(super) fn byte(&mut self) -> Result<u8, StoreError> {
        let byte = *self.blob.get(self.at).ok_or_else(cut)?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<usize, StoreError> {
        let mut number = 0;
        for shift in (0..u32::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(corrupt("the stored record has a number that is too long"))
    }

    fn bytes(&mut self, length: usize) -> Result<Bytes, StoreError> {
        let end = self
            .at
            .checked_add(length)
            .filter(|&end| end <= self.blob.len())
            .ok_or_else(cut)?;
        let bytes = self.blob.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn headers(&mut self) -> Result<HeaderMap, StoreError> {
        let invalid = || corrupt("the stored record has an invalid header");
        let count = self.number()?;
        // Each header takes at least one byte, so a wrong count cannot cause a large allocation.
        // The capacity includes room for two headers that are added later: the replay marker and
        // the length.
        if count > self.blob.len() - self.at {
            return Err(cut());
        }
        // The count is the number of lines, but a map's capacity is the number of names. A record
        // may have more lines than a map can have names, and the reader must still accept it.
        let mut headers = HeaderMap::try_with_capacity(count.min(MOST_RESERVED) + 2).map_err(|_| invalid())?;
        for _ in 0..count {
            let code = usize::from(self.byte()?);
            let (name, value) = if code & 0x80 != 0 {
                let (name, value) = PAIRS.get(code & 0x7f).ok_or_else(invalid)?;
                (name.clone(), HeaderValue::from_static(value))
            } else {
                let name = if code == 0 {
                    let length = self.number()?;
                    HeaderName::from_bytes(&self.bytes(length)?).map_err(|_| invalid())?
                } else {
                    NAMES.get(code - 1).cloned().ok_or_else(invalid)?
                };
                let length = self.number()?;
                let bytes = self.bytes(length >> 1)?;
                let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_| invalid())?;
                value.set_sensitive(length & 1 != 0);
                (name, value)
            };
            headers.try_append(name, value).map_err(|_| invalid())?;
        }
        Ok(headers)
    }
}

fn cut() -> StoreError {
    corrupt("the stored record is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_pair_of_the_tables_survives() {
        let mut headers = HeaderMap::new();
        for name in &NAMES {
            headers.append(name, HeaderValue::from_static("v"));
        }
        for (name, value) in &PAIRS {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut blob = Vec::new();
        put_headers(&mut blob, &headers, |_| false);
        let mut reader = Reader {
            blob: blob.into(),
            at: 0,
        };
        assert_eq!(reader.headers().unwrap(), headers);
        assert_eq!(reader.at, reader.blob.len());
    }
}
