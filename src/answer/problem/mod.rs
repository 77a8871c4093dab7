//! The problems: all of the layer's refusals, with their statuses and texts.
//!
//! Problems are sent as `application/problem+json` (RFC 9457). The `type` of each problem is a URL
//! that ends in `#` and the problem's slug. By default, the URL leads to the list at
//! [`ProblemKind`]. Clients should act on the `code` member, which contains the slug.

mod instance;
mod kind;
mod texts;

use std::borrow::Cow;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;
use uuid::fmt::Urn;

pub use kind::ProblemKind;

/// A refusal before it is rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    /// The response status, if it differs from the kind's status.
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

    /// The response status. It is the [kind's status](ProblemKind::status), except in atomic mode:
    /// if the server itself made the outcome unknown, the status is `500`.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// A human-readable explanation of what happened. It never contains the key, the scope or a
    /// body.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status of the first response. Set only for
    /// [`ResponseNotRetained`](ProblemKind::ResponseNotRetained).
    #[must_use]
    pub fn original_status(&self) -> Option<StatusCode> {
        self.original_status
    }

    /// The `Location` of the first response, or else its `Content-Location`: the place where the
    /// result can be read. Set only for [`ResponseNotRetained`](ProblemKind::ResponseNotRetained).
    #[must_use]
    pub fn original_location(&self) -> Option<&HeaderValue> {
        let locations = self.locations()?;
        locations.get(LOCATION).or_else(|| locations.get(CONTENT_LOCATION))
    }

    /// The `Location` and `Content-Location` of the first response.
    pub(in crate::answer) fn locations(&self) -> Option<&HeaderMap> {
        self.locations.as_deref()
    }

    /// A URN that is unique to this refusal (RFC 9562, section 4).
    #[must_use]
    pub fn instance(&self) -> String {
        self.urn().to_string()
    }

    pub(in crate::answer) fn urn(&self) -> Urn {
        self.instance.urn()
    }

    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            status: None,
            original_status: None,
            locations: None,
            instance: instance::next(),
        }
    }
}
