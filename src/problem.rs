//! The problems: every refusal of the layer, as `application/problem+json` (RFC 9457).
//!
//! The `type` of each problem is a URL that ends in `#` and its slug; by default it leads to this
//! page. A client acts on the `code` member, which is the slug.
//!
//! # missing-key
//!
//! `400`. The operation requires an idempotency key and the request has none. Send the key header
//! with a value that names the operation, such as a UUID, and the same one with each retry.
//!
//! # invalid-key
//!
//! `400`. The key breaks a rule, which `detail` names: it is empty, too long, has characters that
//! are not allowed, stands twice, or is not in the form that the server demands.
//!
//! # scope-unavailable
//!
//! `500`. The server could not tell whose key it is. The server's log says why.
//!
//! # body-too-large
//!
//! `413`. The request body is larger than the server buffers for a request with a key.
//!
//! # body-unreadable
//!
//! `400`. The request body broke off or could not be read. Nothing was kept; send it again.
//!
//! # key-reused
//!
//! `422`. The key was used with another request: another method, path, query or body. A new
//! operation needs a new key. Do not retry.
//!
//! # in-flight
//!
//! `409`. The first request with this key is still running. Retry after the time in `Retry-After`.
//!
//! # response-not-retained
//!
//! `409`. The operation was done, with the status in `original_status`, but its response was not
//! kept: it was too large, it broke off, or it was a stream. It will not run again. Read its result
//! by other means.
//!
//! # outcome-unknown
//!
//! `409`. The first request ended without a response that could be kept, and whether the operation
//! was done is not known. It will not run again under this key. Find out before you use a new key.
//!
//! # store-unavailable
//!
//! `503`. The server cannot look the key up, so it did not run the operation. Retry later.
//!
//! # overloaded
//!
//! `503`. Too much work goes on whose clients have left. The operation did not run; retry later.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName, HeaderValue, LINK, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode, Uri};
use serde_json::json;

use crate::error::ConfigError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const DOCUMENTATION: &str = "https://docs.rs/tower-idempotency/latest/tower_idempotency/problem/index.html";

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// `400`: a key is required and there is none.
    MissingKey,
    /// `400`: the key breaks a rule.
    InvalidKey,
    /// `500`: the scope cannot be determined.
    ScopeUnavailable,
    /// `413`: the request body is larger than `max_request_body`.
    BodyTooLarge,
    /// `400`: the request body failed while it was read.
    BodyUnreadable,
    /// `422`: the key was used with another request.
    KeyReused,
    /// `409`: the first request still runs.
    InFlight,
    /// `409`: done, but the response was not kept.
    ResponseNotRetained,
    /// `409`: it is not known whether it was done.
    OutcomeUnknown,
    /// `503`: the store failed, and the layer fails closed.
    StoreUnavailable,
    /// `503`: `max_detached` is reached.
    Overloaded,
}

impl ProblemKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: &'static [Self] = &[
        Self::MissingKey,
        Self::InvalidKey,
        Self::ScopeUnavailable,
        Self::BodyTooLarge,
        Self::BodyUnreadable,
        Self::KeyReused,
        Self::InFlight,
        Self::ResponseNotRetained,
        Self::OutcomeUnknown,
        Self::StoreUnavailable,
        Self::Overloaded,
    ];

    /// Slug, status and title.
    fn facts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::MissingKey => ("missing-key", StatusCode::BAD_REQUEST, "Idempotency key is missing"),
            Self::InvalidKey => ("invalid-key", StatusCode::BAD_REQUEST, "Idempotency key is invalid"),
            Self::ScopeUnavailable => (
                "scope-unavailable",
                StatusCode::INTERNAL_SERVER_ERROR,
                "Idempotency scope is unavailable",
            ),
            Self::BodyTooLarge => (
                "body-too-large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "Request body is too large",
            ),
            Self::BodyUnreadable => (
                "body-unreadable",
                StatusCode::BAD_REQUEST,
                "Request body cannot be read",
            ),
            Self::KeyReused => (
                "key-reused",
                StatusCode::UNPROCESSABLE_ENTITY,
                "Idempotency key was used with another request",
            ),
            Self::InFlight => (
                "in-flight",
                StatusCode::CONFLICT,
                "A request with this idempotency key is in flight",
            ),
            Self::ResponseNotRetained => (
                "response-not-retained",
                StatusCode::CONFLICT,
                "The operation is done, its response was not retained",
            ),
            Self::OutcomeUnknown => (
                "outcome-unknown",
                StatusCode::CONFLICT,
                "The outcome of the operation is unknown",
            ),
            Self::StoreUnavailable => (
                "store-unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "Idempotency store is unavailable",
            ),
            Self::Overloaded => (
                "overloaded",
                StatusCode::SERVICE_UNAVAILABLE,
                "Too much work is going on",
            ),
        }
    }

    /// The slug: the problem's `code`, the fragment of its `type`, and the outcome it counts under.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.facts().0
    }

    /// The status it is answered with.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.facts().1
    }

    /// A short summary that is the same for each occurrence.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.facts().2
    }

    /// Seconds for `Retry-After`, where retrying helps.
    #[must_use]
    pub fn retry_after(self) -> Option<u32> {
        matches!(self, Self::InFlight | Self::StoreUnavailable | Self::Overloaded).then_some(1)
    }

    /// For SDKs that retry by status alone unless `x-should-retry` tells them otherwise.
    fn should_retry(self) -> Option<bool> {
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
    original_status: Option<StatusCode>,
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            original_status: None,
        }
    }

    pub(crate) fn not_retained(original: StatusCode) -> Self {
        Self {
            original_status: Some(original),
            ..Self::new(
                ProblemKind::ResponseNotRetained,
                "The operation was done, but its response was not kept. It will not run again under this key.",
            )
        }
    }

    /// What kind of refusal it is.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// What happened, for a person to read. It never holds the key, the scope or a body.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status that the operation was answered with, for
    /// [`ResponseNotRetained`](ProblemKind::ResponseNotRetained).
    #[must_use]
    pub fn original_status(&self) -> Option<StatusCode> {
        self.original_status
    }
}

type ProblemFn = dyn Fn(&Problem, &Parts) -> Response<Bytes> + Send + Sync;

/// How refusals are rendered.
#[derive(Clone, Default)]
pub(crate) enum Rendering {
    #[default]
    Standard,
    Documented {
        url: Arc<str>,
        link: HeaderValue,
    },
    Stripe,
    Closure(Arc<ProblemFn>),
}

impl Rendering {
    /// RFC 9457 with `type` under that URL, which is also linked.
    pub(crate) fn documented(url: &str) -> Result<Self, ConfigError> {
        let invalid = |why: &str| ConfigError::new("problem_documentation", format!("{url:?} {why}"));
        let parsed: Uri = url.parse().map_err(|_| invalid("is not a URL"))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none_or(str::is_empty) {
            return Err(invalid("must be an absolute http or https URL"));
        }
        if url.contains(['#', '>', '"', '<']) {
            return Err(invalid(
                "must not have a fragment (each problem's slug becomes it) or any of <>\"",
            ));
        }
        let link = HeaderValue::from_str(&format!("<{url}>; rel=\"describedby\"; type=\"text/html\""))
            .map_err(|_| invalid("cannot stand in a header"))?;
        Ok(Self::Documented { url: url.into(), link })
    }

    pub(crate) fn render(&self, problem: &Problem, parts: &Parts) -> Response<Bytes> {
        match self {
            Self::Standard => standard(problem, DOCUMENTATION),
            Self::Documented { url, link } => {
                let mut response = standard(problem, url);
                response.headers_mut().insert(LINK, link.clone());
                response
            }
            Self::Stripe => stripe(problem),
            Self::Closure(render) => render(problem, parts),
        }
    }
}

impl fmt::Debug for Rendering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("Standard"),
            Self::Documented { url, .. } => write!(f, "Documented({url})"),
            Self::Stripe => f.write_str("Stripe"),
            Self::Closure(_) => f.write_str("Closure(..)"),
        }
    }
}

fn standard(problem: &Problem, documentation: &str) -> Response<Bytes> {
    let kind = problem.kind;
    let mut body = json!({
        "type": format!("{documentation}#{}", kind.slug()),
        "title": kind.title(),
        "status": kind.status().as_u16(),
        "detail": problem.detail,
        "code": kind.slug(),
    });
    if let Some(original) = problem.original_status {
        body["original_status"] = original.as_u16().into();
    }
    respond(kind, kind.status(), "application/problem+json", &body)
}

/// Stripe's error body: statuses, types and codes as Stripe's API reference lists them under
/// "Errors" and "Idempotent requests".
fn stripe(problem: &Problem) -> Response<Bytes> {
    let kind = problem.kind;
    let (status, r#type, code) = match kind {
        ProblemKind::KeyReused => (StatusCode::BAD_REQUEST, "idempotency_error", None),
        ProblemKind::InFlight => (kind.status(), "idempotency_error", Some("idempotency_key_in_use")),
        ProblemKind::ResponseNotRetained | ProblemKind::OutcomeUnknown => {
            (kind.status(), "idempotency_error", Some(kind.slug()))
        }
        _ if kind.status().is_server_error() => (kind.status(), "api_error", Some(kind.slug())),
        _ => (kind.status(), "invalid_request_error", Some(kind.slug())),
    };
    let mut error = json!({ "type": r#type, "message": problem.detail });
    if let Some(code) = code {
        error["code"] = code.replace('-', "_").into();
    }
    if let Some(original) = problem.original_status {
        error["original_status"] = original.as_u16().into();
    }
    respond(kind, status, "application/json", &json!({ "error": error }))
}

fn respond(
    kind: ProblemKind,
    status: StatusCode,
    content_type: &'static str,
    body: &serde_json::Value,
) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
    if let Some(seconds) = kind.retry_after() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(retry) = kind.should_retry() {
        headers.insert(
            SHOULD_RETRY,
            HeaderValue::from_static(if retry { "true" } else { "false" }),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(rendering: &Rendering, problem: &Problem) -> (Response<Bytes>, serde_json::Value) {
        let (parts, ()) = http::Request::new(()).into_parts();
        let response = rendering.render(problem, &parts);
        let body = serde_json::from_slice(response.body()).unwrap();
        (response, body)
    }

    #[test]
    fn contract_7_every_problem_is_documented_under_its_slug() {
        let source = include_str!("problem.rs");
        for kind in ProblemKind::ALL.iter().copied() {
            let heading = format!("\n//! # {}\n//!\n//! `{}`", kind.slug(), kind.status().as_u16());
            assert!(source.contains(&heading), "{kind:?}");
        }
    }

    #[test]
    fn the_guide_names_every_problem_to_clients() {
        let guide = include_str!("../docs/guide.md");
        for kind in ProblemKind::ALL.iter().copied() {
            let listed = format!("\n            - {}\n", kind.slug());
            assert!(guide.contains(&listed), "the OpenAPI fragment lacks {}", kind.slug());
        }
    }

    #[test]
    fn contract_7_every_problem_has_the_members_of_rfc_9457() {
        let documented = Rendering::documented("https://example.com/idempotency").unwrap();
        for kind in ProblemKind::ALL.iter().copied() {
            let problem = Problem::new(kind, "why");
            let (response, body) = render(&Rendering::Standard, &problem);
            assert_eq!(response.status(), kind.status());
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers()[CONTENT_LANGUAGE], "en");
            assert!(!response.headers().contains_key(LINK));
            assert_eq!(body["type"], format!("{DOCUMENTATION}#{}", kind.slug()));
            assert_eq!(body["title"], kind.title());
            assert_eq!(body["status"], kind.status().as_u16());
            assert_eq!(body["detail"], "why");
            assert_eq!(body["code"], kind.slug());
            let (response, body) = render(&documented, &problem);
            assert_eq!(body["type"], format!("https://example.com/idempotency#{}", kind.slug()));
            let link = r#"<https://example.com/idempotency>; rel="describedby"; type="text/html""#;
            assert_eq!(response.headers()[LINK], link);
        }
    }

    #[test]
    fn contract_4_7_5_3_and_5_4_what_clients_are_told_about_retrying() {
        let told = |kind| {
            let (response, _) = render(&Rendering::Standard, &Problem::new(kind, ""));
            let text = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
            };
            (text("retry-after"), text("x-should-retry"))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told(ProblemKind::InFlight), (some("1"), some("true")));
        assert_eq!(told(ProblemKind::KeyReused), (None, some("false")));
        assert_eq!(told(ProblemKind::ResponseNotRetained), (None, some("false")));
        assert_eq!(told(ProblemKind::OutcomeUnknown), (None, some("false")));
        assert_eq!(told(ProblemKind::StoreUnavailable), (some("1"), None));
        assert_eq!(told(ProblemKind::Overloaded), (some("1"), None));
        assert_eq!(told(ProblemKind::InvalidKey), (None, None));
        let (_, body) = render(&Rendering::Standard, &Problem::not_retained(StatusCode::CREATED));
        assert_eq!(body["original_status"], 201);
    }

    #[test]
    fn contract_7_stripe_answers_as_stripe_does() {
        let (response, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::KeyReused, "why"));
        assert_eq!(response.status(), 400);
        assert_eq!(body, json!({"error": {"type": "idempotency_error", "message": "why"}}));
        let (response, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::InFlight, "why"));
        assert_eq!(response.status(), 409);
        assert_eq!(body["error"]["code"], "idempotency_key_in_use");
        let (_, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::StoreUnavailable, "why"));
        assert_eq!(body["error"]["type"], "api_error");
        let (_, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::MissingKey, "why"));
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["code"], "missing_key");
    }

    #[test]
    fn a_documentation_url_that_cannot_be_one_is_an_error() {
        for url in [
            "",
            "idempotency",
            "/docs",
            "ftp://example.com/x",
            "https://",
            "https://example.com/#x",
            "https://a b/",
        ] {
            assert!(Rendering::documented(url).is_err(), "{url:?}");
        }
    }
}
