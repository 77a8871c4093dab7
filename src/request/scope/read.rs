//! The fields that a source finds in a request, and signs that the scope may be unsuitable.

use std::borrow::Cow;

use http::HeaderName;
use http::header;
use http::request::Parts;

use super::digest::{CLOSURE, ENDPOINT, EXTENSION, HEADER, SHARED, ScopeDigest};
use super::source::Source;
use crate::error::BoxError;
use crate::request::authorization;
use crate::request::lines::lines;
use crate::request::target::original_uri;

/// Signs that the scope does not separate callers, or does not recognize the same caller again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doubts {
    /// The request is in the anonymous scope, although a cookie identifies the sender.
    pub(crate) overlooks_cookie: bool,
    /// The scope contains credentials of this scheme, which change with every request.
    pub(crate) changing_scheme: Option<&'static str>,
}

/// The scope cannot be determined, so the request is refused with the `500` problem
/// `scope-unavailable`.
#[derive(Debug)]
pub(crate) struct ScopeUnavailable(pub(crate) BoxError);

impl Source {
    /// Writes the fields that this source finds in a request.
    pub(super) fn write(
        &self,
        parts: &Parts,
        digest: &mut ScopeDigest,
        doubts: &mut Doubts,
    ) -> Result<(), ScopeUnavailable> {
        match self {
            Self::Header(Err(error)) => return Err(ScopeUnavailable(error.clone().into())),
            Self::Header(Ok(name)) => {
                let mut lines = lines(&parts.headers, name).peekable();
                if *name == header::AUTHORIZATION {
                    match lines.peek() {
                        Some(line) => doubts.changing_scheme = authorization::changing_scheme(line.as_bytes()),
                        None => doubts.overlooks_cookie = parts.headers.contains_key(header::COOKIE),
                    }
                }
                // All lines are included, so whichever line the application trusts is in the scope.
                for line in lines {
                    digest.field(HEADER, &comparable(name, line.as_bytes()));
                }
            }
            Self::Host => match parts.uri.authority() {
                Some(authority) => {
                    let host = authority.as_str();
                    digest.host(host.rsplit_once('@').map_or(host, |(_, host)| host).as_bytes());
                }
                None => parts
                    .headers
                    .get_all(header::HOST)
                    .iter()
                    .for_each(|line| digest.host(line.as_bytes())),
            },
            Self::Endpoint => {
                let endpoint = format!("{} {}", parts.method, original_uri(parts).path());
                digest.field(ENDPOINT, endpoint.as_bytes());
            }
            Self::Extension(name, read) => {
                let scope = read(&parts.extensions).ok_or_else(|| {
                    let missing = format!(
                        "the request has no extension `{name}`; make sure that the layer that sets it is outside the idempotency layer"
                    );
                    ScopeUnavailable(missing.into())
                })?;
                digest.field(EXTENSION, scope.as_bytes());
            }
            Self::Head(scope) => {
                let scope = scope(parts).map_err(ScopeUnavailable)?;
                digest.field(CLOSURE, scope.as_bytes());
            }
            Self::Shared(name) => digest.field(SHARED, name.as_bytes()),
            // `and` flattens these scopes.
            Self::All(_) => {}
        }
        Ok(())
    }

    /// Writes the field that this source would write if it found this value in a request.
    pub(super) fn write_value(&self, value: Option<&str>, digest: &mut ScopeDigest) {
        match (self, value) {
            (Self::Shared(name), _) => digest.field(SHARED, name.as_bytes()),
            (_, None) => {}
            (Self::Header(Ok(name)), Some(value)) => digest.field(HEADER, &comparable(name, value.as_bytes())),
            (Self::Host, Some(value)) => digest.host(value.as_bytes()),
            (Self::Endpoint, Some(value)) => digest.field(ENDPOINT, value.as_bytes()),
            (Self::Extension(..), Some(value)) => digest.field(EXTENSION, value.as_bytes()),
            (Self::Head(_), Some(value)) => digest.field(CLOSURE, value.as_bytes()),
            // An invalid name was reported when the layer was built.
            (Self::Header(Err(_)) | Self::All(_), Some(_)) => {}
        }
    }
}

/// Returns a header's value in the spelling that is used for comparisons.
fn comparable<'v>(name: &HeaderName, value: &'v [u8]) -> Cow<'v, [u8]> {
    match *name == header::AUTHORIZATION {
        true => authorization::with_scheme_in_one_case(value),
        false => Cow::Borrowed(value),
    }
}
