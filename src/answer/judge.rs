//! Judges a response for a policy: by its head if the head is enough, otherwise by the complete
//! response.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::verdict::Verdict;
use crate::request::content::is_encoded;

const GRPC_STATUS: &str = "grpc-status";

/// A complete response, for a policy that needs more than the status and headers.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct WholeResponse<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The complete body.
    pub body: &'a Bytes,
    /// The trailers, if any.
    pub trailers: Option<&'a HeaderMap>,
}

impl<'a> WholeResponse<'a> {
    /// Creates a response without trailers, for testing a policy.
    #[must_use]
    pub fn new(status: StatusCode, headers: &'a HeaderMap, body: &'a Bytes) -> Self {
        Self {
            status,
            headers,
            body,
            trailers: None,
        }
    }
}

type HeadFn = dyn Fn(StatusCode, &HeaderMap) -> Verdict + Send + Sync;
type WholeFn = dyn Fn(&WholeResponse<'_>) -> Verdict + Send + Sync;

#[derive(Clone)]
pub(super) enum Judge {
    Success,
    Everything,
    Cautious,
    Stripe,
    GraphQl,
    Grpc,
    Head(Arc<HeadFn>),
    Whole(Arc<WholeFn>),
    /// The second judge judges the responses that the first judge releases.
    Either(Arc<(Judge, Judge)>),
}

impl Judge {
    /// Judges the response by its head. Returns `None` if the head is not enough.
    pub(super) fn by_head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Verdict> {
        let store_if = |stored| if stored { Verdict::Store } else { Verdict::Release };
        Some(match self {
            Self::Success => store_if(is_success(status)),
            Self::Everything => Verdict::Store,
            Self::Cautious if status.is_server_error() => Verdict::Reopen,
            Self::Cautious => store_if(is_success(status)),
            Self::Stripe => store_if(
                status.is_success()
                    || status == StatusCode::PAYMENT_REQUIRED
                    || status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE,
            ),
            Self::GraphQl if is_success(status) && is_readable_json(headers) => return None,
            Self::GraphQl => store_if(is_success(status)),
            Self::Grpc => match grpc_status(headers) {
                Some(status) => store_if(status == b"0"),
                None if status == StatusCode::OK => return None,
                None => Verdict::Release,
            },
            Self::Head(judge) => judge(status, headers),
            Self::Whole(_) => return None,
            Self::Either(both) => match both.0.by_head(status, headers)? {
                Verdict::Release => return both.1.by_head(status, headers),
                verdict => verdict,
            },
        })
    }

    /// Whether the trailers, but not the body, are needed in addition to the head.
    pub(super) fn needs_trailers_alone(&self) -> bool {
        self.needs_trailers() && !self.needs_body()
    }

    fn needs_trailers(&self) -> bool {
        match self {
            Self::Grpc => true,
            Self::Either(both) => both.0.needs_trailers() || both.1.needs_trailers(),
            _ => false,
        }
    }

    fn needs_body(&self) -> bool {
        match self {
            Self::Whole(_) | Self::GraphQl => true,
            Self::Either(both) => both.0.needs_body() || both.1.needs_body(),
            _ => false,
        }
    }

    pub(super) fn by_whole(&self, response: &WholeResponse<'_>) -> Verdict {
        let store_if = |stored| if stored { Verdict::Store } else { Verdict::Release };
        match self {
            Self::Whole(judge) => judge(response),
            Self::GraphQl if is_success(response.status) && is_readable_json(response.headers) => {
                store_if(!has_graphql_errors(response.body))
            }
            Self::Grpc => {
                let status = grpc_status(response.headers);
                let status = status.or_else(|| response.trailers.and_then(grpc_status));
                store_if(response.status == StatusCode::OK && status == Some(b"0"))
            }
            Self::Either(both) => match both.0.by_whole(response) {
                Verdict::Release => both.1.by_whole(response),
                verdict => verdict,
            },
            by_head => by_head
                .by_head(response.status, response.headers)
                .unwrap_or(Verdict::Release),
        }
    }
}

/// Returns whether the status is a success. `303 See Other` is a success because it is the usual
/// response to a form submission that created something (RFC 9110, section 15.4.4).
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SEE_OTHER
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence
            .get(essence.len().saturating_sub(5)..)
            .is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
}

/// Returns whether the body is JSON that is not compressed. The success of a compressed response is
/// judged by its status alone: if the response were not stored, a successful operation would run
/// again.
fn is_readable_json(headers: &HeaderMap) -> bool {
    is_json(headers) && !is_encoded(headers)
}

/// Returns whether a response reports a failure, by its status or by its gRPC status.
pub(crate) fn is_failure(status: StatusCode, headers: &HeaderMap, trailers: Option<&HeaderMap>) -> bool {
    let grpc = || grpc_status(headers).or_else(|| trailers.and_then(grpc_status));
    status.is_client_error() || status.is_server_error() || grpc().is_some_and(|status| status != b"0")
}

/// Returns whether the top-level `errors` of a GraphQL response contains an element. In a batch,
/// returns whether this is true of all responses, because the other operations must not run again.
/// Any other body is treated as a GraphQL failure.
fn has_graphql_errors(body: &[u8]) -> bool {
    if let Ok(batch) = serde_json::from_slice::<Vec<&RawValue>>(body) {
        return batch.iter().all(|response| has_errors(response.get().as_bytes()));
    }
    has_errors(body)
}

fn has_errors(body: &[u8]) -> bool {
    let Ok(members) = serde_json::from_slice::<HashMap<String, &RawValue>>(body) else {
        return true;
    };
    let errors = members
        .get("errors")
        .map(|raw| serde_json::from_str::<Option<Vec<IgnoredAny>>>(raw.get()));
    match errors {
        None | Some(Ok(None)) => false,
        Some(Ok(Some(errors))) => !errors.is_empty(),
        Some(Err(_)) => true,
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(GRPC_STATUS).map(|value| value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn whole(
        judge: &Judge,
        status: StatusCode,
        headers: &HeaderMap,
        body: &str,
        trailers: Option<&HeaderMap>,
    ) -> Verdict {
        judge.by_whole(&WholeResponse {
            status,
            headers,
            body: &Bytes::copy_from_slice(body.as_bytes()),
            trailers,
        })
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn contract_4_10_graphql_errors_are_not_stored() {
        let json = headers("content-type", "application/graphql-response+json; charset=utf-8");
        let judge = Judge::GraphQl;
        assert_eq!(judge.by_head(StatusCode::OK, &json), None);
        for (body, expected) in [
            (r#"{"data":{"pay":1}}"#, Verdict::Store),
            (r#"{"data":{"pay":1},"errors":[]}"#, Verdict::Store),
            (r#"{"data":{"pay":1},"errors":null}"#, Verdict::Store),
            (r#"{"data":{"errors":[1]}}"#, Verdict::Store),
            (r#"{"errors":[{"message":"no"}],"data":null}"#, Verdict::Release),
            (r#"{"errors":"no"}"#, Verdict::Release),
            ("not JSON", Verdict::Release),
        ] {
            assert_eq!(whole(&judge, StatusCode::OK, &json, body, None), expected, "{body}");
        }
        assert_eq!(judge.by_head(StatusCode::BAD_REQUEST, &json), Some(Verdict::Release));
        let text = headers("content-type", "text/plain");
        assert_eq!(judge.by_head(StatusCode::OK, &text), Some(Verdict::Store));
    }

    #[test]
    fn contract_7_3_grpc_judges_by_its_status_in_headers_or_trailers() {
        let judge = Judge::Grpc;
        let grpc = headers("content-type", "application/grpc");
        assert_eq!(
            judge.by_head(StatusCode::OK, &headers("grpc-status", "0")),
            Some(Verdict::Store)
        );
        assert_eq!(
            judge.by_head(StatusCode::OK, &headers("grpc-status", "14")),
            Some(Verdict::Release)
        );
        assert_eq!(judge.by_head(StatusCode::BAD_GATEWAY, &grpc), Some(Verdict::Release));
        assert_eq!(judge.by_head(StatusCode::OK, &grpc), None);
        let (good, bad) = (headers("grpc-status", "0"), headers("grpc-status", "14"));
        assert_eq!(whole(&judge, StatusCode::OK, &grpc, "", Some(&good)), Verdict::Store);
        assert_eq!(whole(&judge, StatusCode::OK, &grpc, "", Some(&bad)), Verdict::Release);
        assert_eq!(whole(&judge, StatusCode::OK, &grpc, "", None), Verdict::Release);
    }

    #[test]
    fn contract_7_3_trailers_are_enough_unless_another_policy_needs_the_body() {
        let either = |first, second| Judge::Either(Arc::new((first, second)));
        for (judge, enough) in [
            (Judge::Grpc, true),
            (either(Judge::Success, Judge::Grpc), true),
            (either(Judge::Grpc, Judge::GraphQl), false),
            (Judge::GraphQl, false),
            (Judge::Whole(Arc::new(|_| Verdict::Store)), false),
            (Judge::Everything, false),
        ] {
            assert_eq!(judge.needs_trailers_alone(), enough);
        }
    }

    #[test]
    fn contract_4_2_a_second_policy_is_asked_also_when_the_first_needs_the_whole() {
        let judge = Judge::Either(Arc::new((Judge::Grpc, Judge::Everything)));
        assert_eq!(judge.by_head(StatusCode::OK, &HeaderMap::new()), None);
        assert_eq!(
            whole(&judge, StatusCode::OK, &HeaderMap::new(), "", None),
            Verdict::Store
        );
        let judge = Judge::Either(Arc::new((Judge::Success, Judge::Grpc)));
        assert_eq!(
            judge.by_head(StatusCode::CREATED, &HeaderMap::new()),
            Some(Verdict::Store)
        );
    }
}
