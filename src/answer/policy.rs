//! The policy: what is kept of what the handler did (contract, section 4).

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::reconcile::{Lapsed, Reconciled, Reconciler};
use super::verdict::{Fate, Verdict};
use crate::error::BoxError;
use crate::store::OnLapse;

type Judge = dyn Fn(StatusCode, &HeaderMap) -> Verdict + Send + Sync;

/// What is kept of what the handler did.
///
/// The default stores responses with a status of 2xx and releases every other, so that a request
/// that failed can be retried.
///
/// ```
/// use http::StatusCode;
/// use tower_idempotency::{Fate, Policy, Verdict};
///
/// // The draft's "success or an error", in one line.
/// let everything = Policy::everything();
///
/// // Success, and the refusals that would not change; a panic is looked at by a person.
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
    judge: Choice,
    streams: Arc<[Box<str>]>,
    pub(crate) on_panic: Fate,
    pub(crate) on_error: Fate,
    pub(crate) on_lost_body: Fate,
    pub(crate) on_lapse: OnLapse,
    pub(crate) reconciler: Option<Reconciler>,
}

#[derive(Clone)]
enum Choice {
    Success,
    Everything,
    Closure(Arc<Judge>),
    Either(Arc<(Choice, Choice)>),
}

impl Choice {
    fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        match self {
            Self::Success if status.is_success() => Verdict::Store,
            Self::Success => Verdict::Release,
            Self::Everything => Verdict::Store,
            Self::Closure(judge) => judge(status, headers),
            Self::Either(both) => match both.0.judge(status, headers) {
                Verdict::Release => both.1.judge(status, headers),
                verdict => verdict,
            },
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::success()
    }
}

impl Policy {
    fn new(judge: Choice) -> Self {
        Self {
            judge,
            streams: Arc::new(["text/event-stream".into()]),
            on_panic: Fate::Release,
            on_error: Fate::Release,
            on_lost_body: Fate::Seal,
            on_lapse: OnLapse::RunAgain,
            reconciler: None,
        }
    }

    /// Stores responses with a status of 2xx, releases every other: the default.
    #[must_use]
    pub fn success() -> Self {
        Self::new(Choice::Success)
    }

    /// Stores every response, whatever its status, as the draft's section 2.6 has it.
    #[must_use]
    pub fn everything() -> Self {
        Self::new(Choice::Everything)
    }

    /// Asks the closure. If it panics, that is a panic of the handler.
    #[must_use]
    pub fn from_fn<F>(judge: F) -> Self
    where
        F: Fn(StatusCode, &HeaderMap) -> Verdict + Send + Sync + 'static,
    {
        Self::new(Choice::Closure(Arc::new(judge)))
    }

    /// Asks `other` about the responses that this policy releases. Everything else stays as it is
    /// in this policy.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.judge = Choice::Either(Arc::new((self.judge, other.judge)));
        self
    }

    /// The media types whose responses are streams by nature: where such a response would be
    /// stored it is sealed, and goes to the client live. Default: `text/event-stream`. Parameters
    /// and case do not count.
    #[must_use]
    pub fn stream_types<I>(mut self, types: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<Box<str>>,
    {
        self.streams = types.into_iter().map(Into::into).collect();
        self
    }

    /// When the handler panicked. Default: [`Fate::Release`].
    #[must_use]
    pub fn on_panic(mut self, fate: Fate) -> Self {
        self.on_panic = fate;
        self
    }

    /// When the inner service returned an error. Default: [`Fate::Release`].
    #[must_use]
    pub fn on_error(mut self, fate: Fate) -> Self {
        self.on_error = fate;
        self
    }

    /// When a response that would be stored is larger than `max_response_body`, or its body failed
    /// midway. Default: [`Fate::Seal`]. **With [`Fate::Release`] a success runs again.**
    #[must_use]
    pub fn on_lost_body(mut self, fate: Fate) -> Self {
        self.on_lost_body = fate;
        self
    }

    /// When a lease lapsed, because the process died: whether the operation was done is not known.
    /// Default: [`OnLapse::RunAgain`].
    #[must_use]
    pub fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self.reconciler = None;
        self
    }

    /// When a lease lapsed, asks the closure what became of the operation ("was this charge made?")
    /// before anything runs. Its answer is stored, or the handler runs as the next attempt. An
    /// error means that it could not find out: this retry gets `409` problem `outcome-unknown`, and
    /// the next one asks again. Only one retry asks at a time; the others get `409` `in-flight`.
    ///
    /// It takes the place of [`on_lapse`](Self::on_lapse).
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use tower_idempotency::{Lapsed, Policy, Reconciled};
    /// # async fn find_charge(_: uuid::Uuid) -> Result<Option<String>, std::io::Error> { Ok(None) }
    ///
    /// let policy = Policy::success().reconcile(|lapsed: Lapsed| async move {
    ///     // The provider was given the derived key, so it can be asked for the charge by it.
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

    /// Judges a response by its head.
    #[must_use]
    pub fn verdict(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        match self.judge.judge(status, headers) {
            Verdict::Store if self.is_stream(headers) => Verdict::Seal,
            verdict => verdict,
        }
    }

    fn is_stream(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()) else {
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

    fn verdict(policy: &Policy, status: u16, content_type: Option<&'static str>) -> Verdict {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        policy.verdict(StatusCode::from_u16(status).unwrap(), &headers)
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
            let verdicts = [201, 204, 302, 402, 409, 500].map(|status| verdict(&policy, status, None));
            assert_eq!(verdicts, [on_201, on_204, on_302, on_402, on_409, on_500], "{policy:?}");
        }
    }

    #[test]
    fn contract_4_8_streams_are_sealed_where_they_would_be_stored() {
        let policy = Policy::success();
        assert_eq!(verdict(&policy, 200, Some("text/event-stream")), Verdict::Seal);
        assert_eq!(
            verdict(&policy, 200, Some("Text/Event-Stream; charset=utf-8")),
            Verdict::Seal
        );
        assert_eq!(verdict(&policy, 500, Some("text/event-stream")), Verdict::Release);
        assert_eq!(verdict(&policy, 200, Some("text/event-streams")), Verdict::Store);
        let own = Policy::success().stream_types(["application/x-ndjson"]);
        assert_eq!(verdict(&own, 200, Some("application/x-ndjson")), Verdict::Seal);
        assert_eq!(verdict(&own, 200, Some("text/event-stream")), Verdict::Store);
    }
}
