//! Renders refusals as responses: RFC 9457, Stripe's error body, or the application's own format.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName, HeaderValue, LINK, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode, Uri};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use super::problem::{Problem, ProblemKind};
use crate::error::ConfigError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const DOCUMENTATION: &str = "https://docs.rs/tower-idempotency/latest/tower_idempotency/problem/enum.ProblemKind.html";

type ProblemFn = dyn Fn(&Problem, &Parts) -> Response<Bytes> + Send + Sync;

/// The format of refusals.
#[derive(Clone, Default)]
pub(crate) enum Rendering {
    #[default]
    Standard,
    Documented {
        url: Arc<str>,
        link: HeaderValue,
    },
    Stripe,
    Grpc,
    Closure(Arc<ProblemFn>),
}

impl Rendering {
    /// Returns the RFC 9457 format, with each `type` under the given URL and a `Link` header to
    /// that URL.
    pub(crate) fn documented(url: &str) -> Result<Self, ConfigError> {
        let invalid = |why: &str| ConfigError::new("problem_documentation", format!("{url:?} {why}"));
        let parsed: Uri = url.parse().map_err(|_| invalid("is not a URL"))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none_or(str::is_empty) {
            return Err(invalid("must be an absolute http or https URL"));
        }
        if url.contains(['#', '>', '"', '<']) {
            return Err(invalid(
                "must not contain a fragment (the problem's code becomes the fragment) or any of the characters <>\"",
            ));
        }
        let link = HeaderValue::from_str(&format!("<{url}>; rel=\"describedby\"; type=\"text/html\""))
            .map_err(|_| invalid("cannot be sent in a header"))?;
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
            Self::Grpc => grpc(problem),
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
            Self::Grpc => f.write_str("Grpc"),
            Self::Closure(_) => f.write_str("Closure(..)"),
        }
    }
}

fn standard(problem: &Problem, documentation: &str) -> Response<Bytes> {
    let body = Members { problem, documentation };
    respond(problem, problem.status(), "application/problem+json", &body)
}

/// The members of a problem (RFC 9457, section 3), in alphabetical order.
struct Members<'p> {
    problem: &'p Problem,
    documentation: &'p str,
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { problem, documentation } = self;
        let kind = problem.kind();
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("code", kind.slug())?;
        members.serialize_entry("detail", problem.detail())?;
        members.serialize_entry("instance", &format_args!("{}", problem.urn()))?;
        if let Some(location) = original_location(problem) {
            members.serialize_entry("original_location", location)?;
        }
        if let Some(status) = problem.original_status() {
            members.serialize_entry("original_status", &status.as_u16())?;
        }
        members.serialize_entry("retryable", &kind.is_retryable())?;
        members.serialize_entry("status", &problem.status().as_u16())?;
        members.serialize_entry("title", kind.title())?;
        members.serialize_entry("type", &format_args!("{documentation}#{}", kind.slug()))?;
        members.end()
    }
}

/// Renders Stripe's error body. The statuses, types and codes are those in Stripe's API reference,
/// under "Errors" and "Idempotent requests".
fn stripe(problem: &Problem) -> Response<Bytes> {
    let kind = problem.kind();
    let (status, r#type, code) = match kind {
        ProblemKind::KeyReused => (StatusCode::BAD_REQUEST, "idempotency_error", None),
        ProblemKind::InFlight => (
            problem.status(),
            "invalid_request_error",
            Some("idempotency_key_in_use"),
        ),
        ProblemKind::ResponseNotRetained | ProblemKind::OutcomeUnknown => {
            (problem.status(), "idempotency_error", Some(kind.slug()))
        }
        _ if kind.status().is_server_error() => (kind.status(), "api_error", Some(kind.slug())),
        _ => (kind.status(), "invalid_request_error", Some(kind.slug())),
    };
    let mut error = json!({ "type": r#type, "message": problem.detail() });
    if let Some(code) = code {
        error["code"] = code.replace('-', "_").into();
    }
    if let Some(status) = problem.original_status() {
        error["original_status"] = status.as_u16().into();
    }
    if let Some(location) = original_location(problem) {
        error["original_location"] = location.into();
    }
    respond(problem, status, "application/json", &json!({ "error": error }))
}

/// Renders a gRPC status as a response that has only headers ("Trailers-Only" in the protocol
/// description). A negative push-back tells clients not to retry (gRFC A6).
fn grpc(problem: &Problem) -> Response<Bytes> {
    const INVALID_ARGUMENT: u8 = 3;
    const ALREADY_EXISTS: u8 = 6;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const FAILED_PRECONDITION: u8 = 9;
    const ABORTED: u8 = 10;
    const INTERNAL: u8 = 13;
    const UNAVAILABLE: u8 = 14;
    let kind = problem.kind();
    let status = match kind {
        ProblemKind::MissingKey | ProblemKind::InvalidKey | ProblemKind::DigestMismatch => INVALID_ARGUMENT,
        ProblemKind::BodyTooLarge => RESOURCE_EXHAUSTED,
        ProblemKind::KeyReused | ProblemKind::OutcomeUnknown => FAILED_PRECONDITION,
        ProblemKind::InFlight => ABORTED,
        ProblemKind::ResponseNotRetained => ALREADY_EXISTS,
        ProblemKind::BodyUnreadable | ProblemKind::StoreUnavailable | ProblemKind::Overloaded => UNAVAILABLE,
        _ => INTERNAL,
    };
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", u16::from(status).into());
    if let Ok(message) = HeaderValue::try_from(percent_encoded(problem.detail())) {
        headers.insert("grpc-message", message);
    }
    headers.insert("idempotency-problem", HeaderValue::from_static(kind.slug()));
    let push_back = match kind.retry_after() {
        Some(seconds) => HeaderValue::from(u64::from(seconds) * 1000),
        None if kind.is_retryable() => HeaderValue::from_static("0"),
        None => HeaderValue::from_static("-1"),
    };
    headers.insert("grpc-retry-pushback-ms", push_back);
    response
}

/// Encodes a text for `grpc-message` (protocol, "Percent-Encoded").
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Returns the location of the result, as stated in the first response.
fn original_location(problem: &Problem) -> Option<&str> {
    problem.original_location()?.to_str().ok()
}

fn respond(
    problem: &Problem,
    status: StatusCode,
    content_type: &'static str,
    body: &impl Serialize,
) -> Response<Bytes> {
    // The members are only strings, numbers and Booleans, so serializing them cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
    if let Some(locations) = problem.locations() {
        headers.extend(locations.clone());
    }
    let kind = problem.kind();
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
    use http::HeaderMap;

    fn render(rendering: &Rendering, problem: &Problem) -> (Response<Bytes>, serde_json::Value) {
        let (parts, ()) = http::Request::new(()).into_parts();
        let response = rendering.render(problem, &parts);
        let body = serde_json::from_slice(response.body()).unwrap();
        (response, body)
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
        let (_, body) = render(
            &Rendering::Standard,
            &Problem::not_retained(StatusCode::CREATED, HeaderMap::new()),
        );
        assert_eq!(body["original_status"], 201);
        assert_eq!(body.get("original_location"), None);
    }

    #[test]
    fn contract_4_7_a_problem_says_where_the_result_is() {
        let mut locations = HeaderMap::new();
        locations.insert("content-location", HeaderValue::from_static("/reports/1.json"));
        let only = Problem::not_retained(StatusCode::CREATED, locations.clone());
        let (response, body) = render(&Rendering::Standard, &only);
        assert_eq!(body["original_location"], "/reports/1.json");
        assert_eq!(response.headers()["content-location"], "/reports/1.json");
        locations.insert("location", HeaderValue::from_static("/reports/1"));
        let both = Problem::not_retained(StatusCode::CREATED, locations);
        let (response, body) = render(&Rendering::Standard, &both);
        assert_eq!(body["original_location"], "/reports/1");
        assert_eq!(response.headers()["location"], "/reports/1");
    }

    #[test]
    fn contract_7_3_refusals_of_grpc_are_statuses_that_say_when_to_retry() {
        let (parts, ()) = http::Request::new(()).into_parts();
        for (kind, status, push_back) in [
            (ProblemKind::InFlight, "10", "1000"),
            (ProblemKind::KeyReused, "9", "-1"),
            (ProblemKind::StoreUnavailable, "14", "1000"),
            (ProblemKind::BodyUnreadable, "14", "0"),
            (ProblemKind::MissingKey, "3", "-1"),
            (ProblemKind::ResponseNotRetained, "6", "-1"),
            (ProblemKind::ScopeUnavailable, "13", "-1"),
        ] {
            let response = Rendering::Grpc.render(&Problem::new(kind, "100% s\u{fb}r\n"), &parts);
            let headers = response.headers();
            assert_eq!(response.status(), 200);
            assert_eq!(headers[CONTENT_TYPE], "application/grpc");
            assert_eq!(headers["grpc-status"], status, "{kind:?}");
            assert_eq!(headers["grpc-message"], "100%25 s%C3%BBr%0A");
            assert_eq!(headers["grpc-retry-pushback-ms"], push_back, "{kind:?}");
            assert_eq!(headers["idempotency-problem"], kind.slug());
        }
    }

    #[test]
    fn contract_7_stripe_answers_as_stripe_does() {
        let (response, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::KeyReused, "why"));
        assert_eq!(response.status(), 400);
        assert_eq!(body, json!({"error": {"type": "idempotency_error", "message": "why"}}));
        let (response, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::InFlight, "why"));
        assert_eq!(response.status(), 409);
        assert_eq!(body["error"]["code"], "idempotency_key_in_use");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        let (_, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::StoreUnavailable, "why"));
        assert_eq!(body["error"]["type"], "api_error");
        let (_, body) = render(&Rendering::Stripe, &Problem::new(ProblemKind::MissingKey, "why"));
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["code"], "missing_key");
    }

    #[test]
    fn an_invalid_documentation_url_is_an_error() {
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
