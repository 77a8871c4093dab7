//! The lines of a header.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The lines of a header, in their order.
///
/// Looked for by walking: messages have few headers, and names compare faster than they hash.
pub(crate) fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h HeaderValue> {
    headers
        .iter()
        .filter(move |(other, _)| *other == name)
        .map(|(_, line)| line)
}
