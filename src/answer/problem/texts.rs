//! The `detail` text of each problem.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::{Problem, ProblemKind};
use crate::request::InvalidKey;
use crate::request::integrity::InvalidDigest;

impl Problem {
    pub(crate) fn missing_key() -> Self {
        Self::new(
            ProblemKind::MissingKey,
            "This operation requires an idempotency key. Send a key that identifies the operation, and send the same \
             key with each retry.",
        )
    }

    pub(crate) fn invalid_key(invalid: InvalidKey) -> Self {
        Self::new(ProblemKind::InvalidKey, invalid.into_detail())
    }

    /// A gRPC call whose request continues after its first message.
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

    /// A limit outside this layer stopped the body before its end.
    pub(crate) fn body_cut_off() -> Self {
        Self::new(
            ProblemKind::BodyTooLarge,
            "The request body is larger than the server accepts. Nothing was stored.",
        )
    }

    pub(crate) fn digest_mismatch() -> Self {
        Self::new(
            ProblemKind::DigestMismatch,
            "The request body does not match the digest that its header declares. Nothing was stored; send the body \
             again.",
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
                    "The `Content-Digest` and `Repr-Digest` headers declare different digests for the same body.",
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
            "This key was used with a different request. Use a new key for a new operation.",
        )
    }

    pub(crate) fn in_flight() -> Self {
        Self::new(
            ProblemKind::InFlight,
            "The first request with this key is still running. Retry later.",
        )
    }

    /// The operation completed with the status `original`. Its result may be available at
    /// `locations`.
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
            "The server cannot look up the key right now, so the operation did not run. Retry later.",
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

    /// Atomic mode: another attempt holds the claim, so this attempt's effect is rolled back.
    pub(crate) fn taken_over() -> Self {
        Self::new(
            ProblemKind::InFlight,
            "Another attempt has taken over this operation, so the effect of this attempt was rolled back. Retry \
             later.",
        )
    }

    /// Atomic mode: the effect and the record are rolled back.
    pub(crate) fn rolled_back() -> Self {
        Self::new(
            ProblemKind::StoreUnavailable,
            "The operation could not be committed and was rolled back. Retry with the same key.",
        )
    }

    /// Atomic mode: the handler itself ended the transaction.
    pub(crate) fn transaction_broken() -> Self {
        Self {
            status: Some(StatusCode::INTERNAL_SERVER_ERROR),
            ..Self::new(
                ProblemKind::OutcomeUnknown,
                "A server error left the outcome of the operation unknown. The operation does not run again under this \
                 key; find out whether it was done.",
            )
        }
    }

    /// Atomic mode: the database's response to the commit was lost.
    pub(crate) fn commit_unknown() -> Self {
        Self::new(
            ProblemKind::StoreUnavailable,
            "The server lost the connection to its database while it was committing the operation. Retry with the same \
             key to learn the outcome.",
        )
    }
}
