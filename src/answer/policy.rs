//! The policy, which decides what the layer stores about a finished operation (contract, section
//! 4).

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::judge::{Judge, WholeResponse};
use super::reconcile::{Lapsed, Reconciled, Reconciler};
use super::verdict::{Fate, Verdict};
use crate::error::BoxError;
use crate::request::lines::lines;
use crate::store::OnLapse;

const STREAMS: [&str; 5] = [
    "text/event-stream",
    "application/x-ndjson",
    "application/jsonl",
    "application/json-seq",
    "multipart/x-mixed-replace",
];

/// Decides what the layer stores after the handler has run.
///
/// The default policy stores responses with a status of 2xx or 303 and releases all others, so that
/// a failed request can be retried. A handler can override the policy for one response with a
/// [`Verdict`].
///
/// ```
/// use http::StatusCode;
/// use tower_idempotency::{Fate, Policy, Verdict};
///
/// // The draft's "success or an error", in one line.
/// let everything = Policy::everything();
///
/// // Store successes, and refusals that would not change. After a panic, a human must investigate.
/// let careful = Policy::success()
///     .or(Policy::from_fn(|status, _| match status {
///         StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT => Verdict::Store,
///         _ => Verdict::Release,
///     }))
///     .on_panic(Fate::Seal);
/// # let _ = (everything, careful);
/// ```
#[derive(Clone)]
pub struct Policy {
    judge: Judge,
    streams: Arc<[Box<str>]>,
    pub(crate) on_panic: Fate,
    pub(crate) on_error: Fate,
    pub(crate) on_lost_body: Fate,
    pub(crate) on_lapse: OnLapse,
    pub(crate) reconciler: Option<Reconciler>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::success()
    }
}

impl Policy {
    fn new(judge: Judge) -> Self {
        Self {
            judge,
            streams: STREAMS.into_iter().map(Into::into).collect(),
            on_panic: Fate::Release,
            on_error: Fate::Release,
            on_lost_body: Fate::Seal,
            on_lapse: OnLapse::RunAgain,
            reconciler: None,
        }
    }

    /// Stores responses with a status of 2xx and `303 See Other` (create, then redirect), and
    /// releases all others. This is the default.
    #[must_use]
    pub fn success() -> Self {
        Self::new(Judge::Success)
    }

    /// Stores every response, whatever its status, as in section 2.6 of the draft. The only
    /// exception is a `1xx` response, which is never stored.
    #[must_use]
    pub fn everything() -> Self {
        Self::new(Judge::Everything)
    }

    /// Like [`success`](Self::success), but reopens the operation if it is unknown whether the
    /// effect happened: after a status of 5xx, a panic, or an error from the inner service. The
    /// next attempt can see that it is not the first.
    ///
    /// Use this policy with a timeout inside the layer: the timeout's `504` does not show whether
    /// the effect happened.
    #[must_use]
    pub fn cautious() -> Self {
        Self::new(Judge::Cautious).on_panic(Fate::Reopen).on_error(Fate::Reopen)
    }

    /// Like [`success`](Self::success), but releases a JSON response whose top-level `errors` is
    /// not empty. A GraphQL server reports failures with status 200 (GraphQL specification, section
    /// 7.1).
    #[must_use]
    pub fn graphql() -> Self {
        Self::new(Judge::GraphQl)
    }

    /// Stores responses whose `grpc-status`, in the headers or trailers, is 0, and releases all
    /// others. A gRPC server reports failures with status 200. A response that cannot be held in
    /// memory, because it is too large or takes too long, leaves a tombstone if it ends with
    /// `grpc-status: 0` in its trailers.
    #[must_use]
    pub fn grpc() -> Self {
        Self::new(Judge::Grpc)
    }

    /// Stripe's policy: once the endpoint has begun to execute, its result is stored, even if the
    /// result is a failure.
    pub(crate) fn stripe() -> Self {
        Self::new(Judge::Stripe).on_panic(Fate::Seal).on_error(Fate::Seal)
    }

    /// Creates a policy from a closure that receives the status and headers. A panic in the closure
    /// is treated like a panic in the handler.
    #[must_use]
    pub fn from_fn<F>(judge: F) -> Self
    where
        F: Fn(StatusCode, &HeaderMap) -> Verdict + Send + Sync + 'static,
    {
        Self::new(Judge::Head(Arc::new(judge)))
    }

    /// Creates a policy from a closure that receives the complete response: status, headers, body
    /// and trailers.
    ///
    /// The body is buffered, as it would be if the response were stored. The closure is not called
    /// for a response that cannot be buffered: a stream is sealed, and
    /// [`on_lost_body`](Self::on_lost_body) applies to a response that is too large or ends early.
    ///
    /// ```
    /// use tower_idempotency::{Policy, Verdict};
    ///
    /// let policy = Policy::from_response(|response| {
    ///     if response.status.is_success() && !response.body.starts_with(b"ERR") {
    ///         Verdict::Store
    ///     } else {
    ///         Verdict::Release
    ///     }
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn from_response<F>(judge: F) -> Self
    where
        F: Fn(&WholeResponse<'_>) -> Verdict + Send + Sync + 'static,
    {
        Self::new(Judge::Whole(Arc::new(judge)))
    }

    /// Lets `other` judge the responses that this policy releases. This policy keeps all of its
    /// other settings.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.judge = Judge::Either(Arc::new((self.judge, other.judge)));
        self
    }

    /// Sets the media types of the responses that are treated as streams. A stream is sealed
    /// instead of stored, and is sent to its client live. If the client disconnects before the end,
    /// a retry gets `outcome-unknown`; see
    /// [`drain_streams`](crate::IdempotencyLayerBuilder::drain_streams). Parameters and case are
    /// ignored.
    ///
    /// Default: `text/event-stream`, `application/x-ndjson`, `application/jsonl`,
    /// `application/json-seq`, `multipart/x-mixed-replace`.
    #[must_use]
    pub fn stream_types<I>(mut self, types: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Box<str>>,
    {
        self.streams = types.into_iter().map(Into::into).collect();
        self
    }

    /// Sets what happens to the key if the handler panics. Default: [`Fate::Release`].
    #[must_use]
    pub fn on_panic(mut self, fate: Fate) -> Self {
        self.on_panic = fate;
        self
    }

    /// Sets what happens to the key if the inner service returns an error. Default:
    /// [`Fate::Release`].
    #[must_use]
    pub fn on_error(mut self, fate: Fate) -> Self {
        self.on_error = fate;
        self
    }

    /// Sets what happens to the key if a response that would be stored is larger than
    /// `max_response_body`, takes longer than `response_body_within`, or ends early. Default:
    /// [`Fate::Seal`]. **With [`Fate::Release`], an operation that succeeded runs again.**
    #[must_use]
    pub fn on_lost_body(mut self, fate: Fate) -> Self {
        self.on_lost_body = fate;
        self
    }

    /// Sets what happens to an operation whose lease lapsed because its process died. In that case,
    /// the operation may or may not have completed. Default: [`OnLapse::RunAgain`].
    #[must_use]
    pub fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self.reconciler = None;
        self
    }

    /// Sets a closure that finds out what happened to an operation whose lease lapsed ("was this
    /// charge made?"), before the handler runs again.
    ///
    /// If the closure returns `Reconciled::Done` with a response, the layer stores the response. If
    /// the closure returns `Reconciled::Run`, the handler runs as the next attempt. If the closure
    /// returns an error, the outcome remains unknown: this retry gets `409` problem
    /// `outcome-unknown`, and the next retry calls the closure again. Only one retry at a time
    /// calls the closure; the other retries get `409` problem `in-flight`. This setting replaces
    /// [`on_lapse`](Self::on_lapse).
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use tower_idempotency::{Lapsed, Policy, Reconciled};
    /// # async fn find_charge(_: uuid::Uuid) -> Result<Option<String>, std::io::Error> { Ok(None) }
    ///
    /// let policy = Policy::success().reconcile(|lapsed: Lapsed| async move {
    ///     // The handler gave the derived key to the provider, so look up the charge by that key.
    ///     match find_charge(lapsed.key.derive("charge")).await? {
    ///         Some(json) => Ok(Reconciled::Done(Response::new(Bytes::from(json)))),
    ///         None => Ok(Reconciled::Run),
    ///     }
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn reconcile<F, Fut>(mut self, reconcile: F) -> Self
    where
        F: Fn(Lapsed) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reconciled, BoxError>> + Send + 'static,
    {
        self.on_lapse = OnLapse::RunAgain;
        self.reconciler = Some(Reconciler::new(reconcile));
        self
    }

    /// Judges a response by its head. Returns `None` if the complete response is needed.
    pub(crate) fn verdict_on_head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Verdict> {
        self.judge.by_head(status, headers)
    }

    /// Whether a response whose head is not enough can be judged by its trailers alone, without its
    /// body.
    pub(crate) fn judges_by_trailers(&self) -> bool {
        self.judge.needs_trailers_alone()
    }

    /// Judges a complete response. Use this method to test a policy. The layer consults the policy
    /// only if the handler's response has no [`Verdict`] of its own. If the policy needs only the
    /// head, the layer judges the response before it checks whether the response is a stream.
    /// Otherwise, it checks for a stream first.
    #[must_use]
    pub fn verdict(&self, response: &WholeResponse<'_>) -> Verdict {
        self.judge.by_whole(response)
    }

    /// Whether the media type marks the response as a stream.
    pub(crate) fn is_stream(&self, headers: &HeaderMap) -> bool {
        let Some(value) = lines(headers, &CONTENT_TYPE).next().map(HeaderValue::as_bytes) else {
            return false;
        };
        self.streams.iter().any(|stream| {
            let same = value
                .get(..stream.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(stream.as_bytes()));
            same && matches!(value.get(stream.len()), None | Some(b';' | b' ' | b'\t'))
        })
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("stream_types", &self.streams)
            .field("on_panic", &self.on_panic)
            .field("on_error", &self.on_error)
            .field("on_lost_body", &self.on_lost_body)
            .field("on_lapse", &self.on_lapse)
            .field("reconciles", &self.reconciler.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn verdict(policy: &Policy, status: u16) -> Verdict {
        let status = StatusCode::from_u16(status).unwrap();
        policy.verdict_on_head(status, &HeaderMap::new()).unwrap()
    }

    #[test]
    fn contract_4_1_and_4_2_policies_judge_by_status() {
        use Verdict::{Release, Seal, Store};
        let conflict = || Policy::from_fn(|status, _| if status == StatusCode::CONFLICT { Seal } else { Release });
        for (policy, on_201, on_204, on_302, on_402, on_409, on_500) in [
            (Policy::success(), Store, Store, Release, Release, Release, Release),
            (Policy::everything(), Store, Store, Store, Store, Store, Store),
            (conflict(), Release, Release, Release, Release, Seal, Release),
            (
                Policy::success().or(conflict()),
                Store,
                Store,
                Release,
                Release,
                Seal,
                Release,
            ),
            (
                conflict().or(Policy::everything()),
                Store,
                Store,
                Store,
                Store,
                Seal,
                Store,
            ),
        ] {
            let verdicts = [201, 204, 302, 402, 409, 500].map(|status| verdict(&policy, status));
            assert_eq!(verdicts, [on_201, on_204, on_302, on_402, on_409, on_500], "{policy:?}");
        }
    }

    #[test]
    fn contract_4_1_a_created_resource_is_stored_also_when_the_answer_redirects_to_it() {
        assert_eq!(verdict(&Policy::success(), 303), Verdict::Store);
        for status in [300, 301, 302, 304, 307, 308] {
            assert_eq!(verdict(&Policy::success(), status), Verdict::Release, "{status}");
        }
    }

    #[test]
    fn contract_4_9_the_cautious_policy_reopens_what_leaves_the_effect_in_doubt() {
        let policy = Policy::cautious();
        assert_eq!((policy.on_panic, policy.on_error), (Fate::Reopen, Fate::Reopen));
        for (status, expected) in [
            (201, Verdict::Store),
            (303, Verdict::Store),
            (409, Verdict::Release),
            (500, Verdict::Reopen),
            (504, Verdict::Reopen),
        ] {
            assert_eq!(verdict(&policy, status), expected, "{status}");
        }
    }

    #[test]
    fn contract_7_1_stripe_stores_results_once_the_endpoint_began_to_execute() {
        let policy = Policy::stripe();
        for status in [200, 201, 202, 402, 500, 502, 504] {
            assert_eq!(verdict(&policy, status), Verdict::Store, "{status}");
        }
        for status in [302, 400, 401, 403, 404, 409, 422, 429, 503] {
            assert_eq!(verdict(&policy, status), Verdict::Release, "{status}");
        }
    }

    #[test]
    fn contract_4_8_streams_are_told_by_their_media_type() {
        let is_stream = |policy: &Policy, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            policy.is_stream(&headers)
        };
        let policy = Policy::success();
        for value in [
            "text/event-stream",
            "Text/Event-Stream; charset=utf-8",
            "application/x-ndjson",
            "application/jsonl",
            "application/json-seq",
            "multipart/x-mixed-replace;boundary=b",
        ] {
            assert!(is_stream(&policy, value), "{value}");
        }
        assert!(!is_stream(&policy, "text/event-streams"));
        assert!(!policy.is_stream(&HeaderMap::new()));
        let own = Policy::success().stream_types(["application/x-own"]);
        assert!(is_stream(&own, "application/x-own"));
        assert!(!is_stream(&own, "text/event-stream"));
    }
}
