//! The problems: every refusal of the layer, its status and its text.
//!
//! They are sent as `application/problem+json` (RFC 9457). The `type` of each problem is a URL that
//! ends in `#` and its slug; by default it leads to the list at [`ProblemKind`]. A client acts on the
//! `code` member, which is the slug.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;

use crate::request::InvalidKey;
use crate::request::integrity::InvalidDigest;

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// After so many seconds.
    After(u32),
    /// As soon as the client likes.
    Now,
    Never,
}

/// What is the same for every problem of a kind.
struct Facts {
    slug: &'static str,
    status: StatusCode,
    title: &'static str,
    retry: Retry,
}

/// Declares each kind in one place: the enum, its documentation, and its facts come from here.
macro_rules! problem_kinds {
    ($($kind:ident, $slug:literal, $code:literal $status:ident, $title:literal, $retry:expr, $about:literal;)*) => {
        /// The kinds of refusals.
        ///
        $(#[doc = concat!("# ", $slug, "\n\n`", $code, "`. ", $about, "\n")])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ProblemKind {
            $(#[doc = concat!("`", $code, "`: ", $title, ".")] $kind,)*
        }

        impl ProblemKind {
            /// All kinds, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            fn facts(self) -> Facts {
                match self {
                    $(Self::$kind => Facts { slug: $slug, status: StatusCode::$status, title: $title, retry: $retry },)*
                }
            }
        }

        #[cfg(test)]
        const DOCUMENTED: &[(ProblemKind, &str)] = &[$((ProblemKind::$kind, $code)),*];
    };
}

problem_kinds! {
    MissingKey, "missing-key", "400" BAD_REQUEST, "The idempotency key is missing", Retry::Never,
    "The operation requires an idempotency key and the request has none. Send the key header with a value that names \
     the operation, such as a UUID, and send the same value with each retry.";

    InvalidKey, "invalid-key", "400" BAD_REQUEST, "The idempotency key is invalid", Retry::Never,
    "The key breaks a rule, which `detail` names: for example it is empty, too long, has characters that are not \
     allowed, is sent twice, or does not have the form that the server requires.";

    ScopeUnavailable, "scope-unavailable", "500" INTERNAL_SERVER_ERROR, "The idempotency scope is unavailable", Retry::Never,
    "The server could not determine who the caller is. The server's log has the reason.";

    BodyTooLarge, "body-too-large", "413" PAYLOAD_TOO_LARGE, "The request body is too large", Retry::Never,
    "The request body is larger than the server accepts for a request with a key.";

    BodyUnreadable, "body-unreadable", "400" BAD_REQUEST, "The request body cannot be read", Retry::Now,
    "The request body ended early or could not be read. Nothing was stored; send the request again.";

    KeyReused, "key-reused", "422" UNPROCESSABLE_ENTITY, "The idempotency key was used with another request", Retry::Never,
    "The key was used with another request: another method, path, query or body. A new operation needs a new key. \
     Do not retry.";

    InFlight, "in-flight", "409" CONFLICT, "A request with this idempotency key is in flight", Retry::After(1),
    "The first request with this key is still running. Retry after the time in `Retry-After`.";

    ResponseNotRetained, "response-not-retained", "409" CONFLICT, "The operation is done, but its response was not stored", Retry::Never,
    "The operation was done, with the status in `original_status`, but its response was not stored: it was too large, \
     its body broke off, or it was a stream. The operation does not run again. Read its result where `Location` or \
     `original_location` says, or by other means.";

    OutcomeUnknown, "outcome-unknown", "409" CONFLICT, "The outcome of the operation is unknown", Retry::Never,
    "The first request ended without a response that could be stored, and it is not known whether the operation was \
     done. It does not run again under this key. Find out before you use a new key. If the server itself made the \
     outcome unknown, the first request gets this problem with the status `500`.";

    StoreUnavailable, "store-unavailable", "503" SERVICE_UNAVAILABLE, "The idempotency store is unavailable", Retry::After(1),
    "The server cannot look the key up, so it did not run the operation. Retry later.";

    Misconfigured, "misconfigured", "500" INTERNAL_SERVER_ERROR, "The server is not set up for idempotency keys", Retry::Never,
    "The server cannot guard the operation, so it did not run it. The server's log has the reason.";

    Overloaded, "overloaded", "503" SERVICE_UNAVAILABLE, "The server is overloaded", Retry::After(1),
    "The server has too many operations running for disconnected clients. The operation did not run; retry later.";

    DigestMismatch, "digest-mismatch", "400" BAD_REQUEST, "The request body does not match its digest", Retry::Never,
    "The request body does not have the digest that its `Content-Digest` or `Repr-Digest` header declares, or the header \
     is not valid (RFC 9530). Nothing was stored. Send the body again, with the digest of its bytes.";
}

impl ProblemKind {
    /// The slug: the problem's `code`, the fragment of its `type`, and the outcome it is counted as.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.facts().slug
    }

    /// The status of the response.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.facts().status
    }

    /// A short summary that is the same for each occurrence.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.facts().title
    }

    /// The seconds for `Retry-After`, if a retry makes sense after a pause.
    #[must_use]
    pub fn retry_after(self) -> Option<u32> {
        match self.facts().retry {
            Retry::After(seconds) => Some(seconds),
            Retry::Now | Retry::Never => None,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.facts().retry != Retry::Never
    }

    /// The value of `x-should-retry`, for SDKs that otherwise retry by status alone.
    pub(super) fn should_retry(self) -> Option<bool> {
        match self {
            Self::InFlight => Some(true),
            Self::KeyReused | Self::ResponseNotRetained | Self::OutcomeUnknown => Some(false),
            _ => None,
        }
    }
}

/// One refusal, before it is rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    /// If it is another than the kind's.
    status: Option<StatusCode>,
    original_status: Option<StatusCode>,
    locations: Option<Box<HeaderMap>>,
    instance: Uuid,
}

impl Problem {
    /// The kind of refusal.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// The status of the response: that of its [kind](ProblemKind::status), but `500` in atomic mode where the
    /// server itself made the outcome unknown.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// What happened, for a person to read. It never has the key, the scope or a body.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status of the first response, for
    /// [`ResponseNotRetained`](ProblemKind::ResponseNotRetained).
    #[must_use]
    pub fn original_status(&self) -> Option<StatusCode> {
        self.original_status
    }

    /// The `Location` of the first response, or its `Content-Location`, for
    /// [`ResponseNotRetained`](ProblemKind::ResponseNotRetained): where the result can be read.
    #[must_use]
    pub fn original_location(&self) -> Option<&HeaderValue> {
        let locations = self.locations()?;
        locations.get(LOCATION).or_else(|| locations.get(CONTENT_LOCATION))
    }

    /// The `Location` and `Content-Location` of the first response.
    pub(super) fn locations(&self) -> Option<&HeaderMap> {
        self.locations.as_deref()
    }

    /// A URN that is different for each refusal (RFC 9562, section 4).
    #[must_use]
    pub fn instance(&self) -> String {
        self.instance.urn().to_string()
    }

    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            status: None,
            original_status: None,
            locations: None,
            instance: Uuid::new_v4(),
        }
    }
}

/// The text of each refusal.
impl Problem {
    pub(crate) fn missing_key() -> Self {
        Self::new(
            ProblemKind::MissingKey,
            "This operation requires an idempotency key. Send a key that names the operation, and send the same key with \
             each retry.",
        )
    }

    pub(crate) fn invalid_key(invalid: InvalidKey) -> Self {
        Self::new(ProblemKind::InvalidKey, invalid.into_detail())
    }

    /// A gRPC call whose request goes on after its first message.
    pub(crate) fn key_on_a_stream(within: Duration) -> Self {
        Self::new(
            ProblemKind::InvalidKey,
            format!(
                "The call has an idempotency key, but its request did not end within {within:?} of its first message, so \
                 the method did not run. End the request before you wait for a response, or call a streaming method \
                 without a key."
            ),
        )
    }

    pub(crate) fn scope_unavailable() -> Self {
        Self::new(
            ProblemKind::ScopeUnavailable,
            "The server could not determine who the caller is, so the operation did not run.",
        )
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        Self::new(
            ProblemKind::BodyTooLarge,
            format!("The request body is larger than {limit} bytes, the limit for a request with an idempotency key."),
        )
    }

    /// A limit outside this layer has cut the body off.
    pub(crate) fn body_cut_off() -> Self {
        Self::new(
            ProblemKind::BodyTooLarge,
            "The request body is larger than the server accepts. Nothing was stored.",
        )
    }

    pub(crate) fn digest_mismatch() -> Self {
        Self::new(
            ProblemKind::DigestMismatch,
            "The request body does not have the digest that its header declares. Nothing was stored; send the body again.",
        )
    }

    pub(crate) fn invalid_digest(invalid: InvalidDigest) -> Self {
        Self::new(
            ProblemKind::DigestMismatch,
            match invalid {
                InvalidDigest::Malformed(header) => Cow::Owned(format!(
                    "The `{header}` header is not valid (RFC 9530). Send a dictionary such as `sha-256=:BASE64:`, with the \
                     base64 of 32 bytes for `sha-256` and of 64 bytes for `sha-512`."
                )),
                InvalidDigest::Contradictory => Cow::Borrowed(
                    "The `Content-Digest` and `Repr-Digest` headers declare different digests of one body.",
                ),
            },
        )
    }

    pub(crate) fn body_unreadable() -> Self {
        Self::new(
            ProblemKind::BodyUnreadable,
            "The request body ended early or could not be read. Nothing was stored; send the request again.",
        )
    }

    pub(crate) fn key_reused() -> Self {
        Self::new(
            ProblemKind::KeyReused,
            "This key was used with another request. A new operation needs a new key.",
        )
    }

    pub(crate) fn in_flight() -> Self {
        Self::new(
            ProblemKind::InFlight,
            "The first request with this key is still running. Retry later.",
        )
    }

    /// The operation was done and answered with `original`; its result may be at `locations`.
    pub(crate) fn not_retained(original: StatusCode, locations: HeaderMap) -> Self {
        Self {
            original_status: Some(original),
            locations: Some(locations).filter(|locations| !locations.is_empty()).map(Box::new),
            ..Self::new(
                ProblemKind::ResponseNotRetained,
                "The operation was done, but its response was not stored. The operation does not run again under this key.",
            )
        }
    }

    pub(crate) fn outcome_unknown() -> Self {
        Self::new(
            ProblemKind::OutcomeUnknown,
            "The first request with this key ended without a response that could be stored. The operation does not run \
             again under this key; find out whether it was done.",
        )
    }

    pub(crate) fn store_unavailable() -> Self {
        Self::new(
            ProblemKind::StoreUnavailable,
            "The server cannot look the key up now, so the operation did not run. Retry later.",
        )
    }

    pub(crate) fn misconfigured() -> Self {
        Self::new(
            ProblemKind::Misconfigured,
            "The server is not set up for idempotency keys, so the operation did not run.",
        )
    }

    pub(crate) fn overloaded() -> Self {
        Self::new(
            ProblemKind::Overloaded,
            "The server has too many operations running for disconnected clients, so this operation did not run. Retry \
             later.",
        )
    }

    /// Atomic mode: another attempt holds the claim, so this one's effect is rolled back.
    pub(crate) fn taken_over() -> Self {
        Self::new(
            ProblemKind::InFlight,
            "Another attempt has taken over this operation, so the effect of this attempt is rolled back. Retry later.",
        )
    }

    /// Atomic mode: effect and record are rolled back.
    pub(crate) fn rolled_back() -> Self {
        Self::new(
            ProblemKind::StoreUnavailable,
            "The operation could not be committed and is rolled back. Retry with the same key.",
        )
    }

    /// Atomic mode: the handler ended the transaction by itself.
    pub(crate) fn transaction_broken() -> Self {
        Self {
            status: Some(StatusCode::INTERNAL_SERVER_ERROR),
            ..Self::new(
                ProblemKind::OutcomeUnknown,
                "An error of the server left the outcome of the operation unknown. The operation does not run again under \
                 this key; find out whether it was done.",
            )
        }
    }

    /// Atomic mode: the answer to the commit was lost.
    pub(crate) fn commit_unknown() -> Self {
        Self::new(
            ProblemKind::StoreUnavailable,
            "The server lost the connection to its database while it committed the operation. Retry with the same key to \
             learn the outcome.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_7_the_documented_status_of_each_problem_is_the_one_it_is_sent_with() {
        assert_eq!(DOCUMENTED.len(), ProblemKind::ALL.len());
        for (kind, code) in DOCUMENTED {
            assert_eq!(kind.status().as_str(), *code, "{kind:?}");
        }
    }

    #[test]
    fn the_guide_names_every_problem_to_clients() {
        let guide = include_str!("../../docs/guide.md");
        for kind in ProblemKind::ALL.iter().copied() {
            let listed = format!("\n            - {}\n", kind.slug());
            assert!(guide.contains(&listed), "the OpenAPI fragment lacks {}", kind.slug());
        }
    }
}
