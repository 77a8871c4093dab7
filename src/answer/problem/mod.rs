//! The problems: every refusal of the layer, its status and its text.
//!
//! They are sent as `application/problem+json` (RFC 9457). The `type` of each problem is a URL that
//! ends in `#` and its slug; by default it leads to the list at [`ProblemKind`]. A client acts on the
//! `code` member, which is the slug.

mod instance;
mod kind;
mod texts;

use std::borrow::Cow;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;
use uuid::fmt::Urn;

pub use kind::ProblemKind;

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
    pub(in crate::answer) fn locations(&self) -> Option<&HeaderMap> {
        self.locations.as_deref()
    }

    /// A URN that is different for each refusal (RFC 9562, section 4).
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
