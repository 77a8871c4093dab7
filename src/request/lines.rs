//! The lines of a header.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Returns the lines of a header, in order.
///
/// This function iterates over all headers instead of looking up the name. Messages have few
/// headers, and comparing names is faster than hashing them.
pub(crate) fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h HeaderValue> {
    headers
        .iter()
        .filter(move |(other, _)| *other == name)
        .map(|(_, line)| line)
}
