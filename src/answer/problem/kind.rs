//! The kinds of refusals. Each kind has a slug, a status, a title, documentation, and a note on
//! whether a retry makes sense.

use http::StatusCode;

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// After this many seconds.
    After(u32),
    /// At any time.
    Now,
    Never,
}

/// The properties that all problems of one kind share.
struct Facts {
    slug: &'static str,
    status: StatusCode,
    title: &'static str,
    retry: Retry,
}

/// Declares each kind in one place: the enum, its documentation and its facts are generated from
/// this list.
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
            /// All kinds, in declaration order.
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
    "The operation requires an idempotency key, but the request has none. Send the key header with a value that \
     identifies the operation, such as a UUID, and send the same value with each retry.";

    InvalidKey, "invalid-key", "400" BAD_REQUEST, "The idempotency key is invalid", Retry::Never,
    "The key breaks the rule that `detail` names. For example, the key is empty or too long, contains characters that \
     are not allowed, is sent twice, or does not have the format that the server requires.";

    ScopeUnavailable, "scope-unavailable", "500" INTERNAL_SERVER_ERROR, "The idempotency scope is unavailable", Retry::Never,
    "The server could not determine who the caller is. See the server's log for the reason.";

    BodyTooLarge, "body-too-large", "413" PAYLOAD_TOO_LARGE, "The request body is too large", Retry::Never,
    "The request body is larger than the server accepts for a request with a key.";

    BodyUnreadable, "body-unreadable", "400" BAD_REQUEST, "The request body cannot be read", Retry::Now,
    "The request body ended early or could not be read. Nothing was stored; send the request again.";

    KeyReused, "key-reused", "422" UNPROCESSABLE_ENTITY, "The idempotency key was used with another request", Retry::Never,
    "The key was used with a different request: a different method, path, query or body. Use a new key for a new \
     operation. Do not retry.";

    InFlight, "in-flight", "409" CONFLICT, "A request with this idempotency key is in flight", Retry::After(1),
    "The first request with this key is still running. Retry after the time in `Retry-After`.";

    ResponseNotRetained, "response-not-retained", "409" CONFLICT, "The operation is done, but its response was not stored", Retry::Never,
    "The operation completed with the status in `original_status`, but its response was not stored. For example, the \
     response was too large, its body ended early, or it was a stream. The operation does not run again. Get its \
     result from the location in `Location` or `original_location`, or by other means.";

    OutcomeUnknown, "outcome-unknown", "409" CONFLICT, "The outcome of the operation is unknown", Retry::Never,
    "The first request ended without a response that could be stored, so it is not known whether the operation was \
     done. The operation does not run again under this key. Find out whether it was done before you use a new key. If \
     the server itself made the outcome unknown, the first request gets this problem with status `500`.";

    StoreUnavailable, "store-unavailable", "503" SERVICE_UNAVAILABLE, "The idempotency store is unavailable", Retry::After(1),
    "The server cannot look up the key, so it did not run the operation. This problem is also sent if the server could \
     not commit the operation, or does not know whether the commit succeeded; `detail` says which. Retry later with \
     the same key.";

    Misconfigured, "misconfigured", "500" INTERNAL_SERVER_ERROR, "The server is not set up for idempotency keys", Retry::Never,
    "The server cannot guard the operation, so it did not run the operation. See the server's log for the reason.";

    Overloaded, "overloaded", "503" SERVICE_UNAVAILABLE, "The server is overloaded", Retry::After(1),
    "The server has too many operations running for disconnected clients. The operation did not run; retry later.";

    DigestMismatch, "digest-mismatch", "400" BAD_REQUEST, "The request body does not match its digest", Retry::Never,
    "The request body does not match the digest in its `Content-Digest` or `Repr-Digest` header, or the header is not \
     valid (RFC 9530). Nothing was stored. Send the body again with the digest of its bytes.";
}

impl ProblemKind {
    /// The slug. It is the problem's `code`, the fragment of its `type` and the name of the outcome
    /// in the counters.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.facts().slug
    }

    /// The response status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.facts().status
    }

    /// A short summary. It is the same for every occurrence.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.facts().title
    }

    /// The number of seconds for `Retry-After`, if the client can retry after a pause.
    #[must_use]
    pub fn retry_after(self) -> Option<u32> {
        match self.facts().retry {
            Retry::After(seconds) => Some(seconds),
            Retry::Now | Retry::Never => None,
        }
    }

    /// Returns whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.facts().retry != Retry::Never
    }

    /// The value of `x-should-retry`, for SDKs that would otherwise decide by the status alone.
    pub(in crate::answer) fn should_retry(self) -> Option<bool> {
        match self {
            Self::InFlight | Self::BodyUnreadable => Some(true),
            Self::KeyReused
            | Self::ResponseNotRetained
            | Self::OutcomeUnknown
            | Self::ScopeUnavailable
            | Self::Misconfigured => Some(false),
            // The status alone leads to the right decision.
            _ => None,
        }
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
        let guide = include_str!("../../../docs/guide.md");
        for kind in ProblemKind::ALL.iter().copied() {
            let listed = format!("\n            - {}\n", kind.slug());
            assert!(guide.contains(&listed), "the OpenAPI fragment lacks {}", kind.slug());
        }
    }
}
