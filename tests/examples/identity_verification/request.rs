//! Requests and answers, the same for both kinds of test.

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

pub(crate) const SESSIONS: &str = "/v1/verification/sessions";
pub(crate) const SCREENINGS: &str = "/v1/aml/screenings";
pub(crate) const BILLING: &str = "/v1/billing";
pub(crate) const RECORDS: &str = "/v1/idempotency-records";
pub(crate) const EVENTS: &str = "/v1/webhooks/events";

/// A request on its way to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Call {
    pub(crate) fn new(method: Method, path: &str, body: impl Into<String>) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub(crate) fn get(path: &str) -> Self {
        Self::new(Method::GET, path, "")
    }

    pub(crate) fn post(path: &str, body: impl Into<String>) -> Self {
        Self::new(Method::POST, path, body)
    }

    pub(crate) fn session(user: &str, workflow: &str) -> Self {
        let body = format!(r#"{{"user_id":"{user}","workflow_id":"{workflow}"}}"#);
        Self::post(SESSIONS, body).from("sk_test_acme")
    }

    pub(crate) fn decision(user: &str, body: &str) -> Self {
        Self::new(Method::PATCH, &format!("/v1/users/{user}/status"), body).from("sk_test_acme")
    }

    /// With that API key, in place of another.
    pub(crate) fn from(mut self, api_key: &str) -> Self {
        self.headers.retain(|(name, _)| name != AUTHORIZATION.as_str());
        self.header(AUTHORIZATION.as_str(), &format!("Bearer {api_key}"))
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The request for a server at that origin; an empty one for a service in this process.
    pub(crate) fn at(&self, origin: &str) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("{origin}{}", self.path));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::from(self.body.clone())).unwrap()
    }

    /// The request as bytes on a connection.
    pub(crate) fn on_the_wire(&self) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: localhost\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text + &format!("content-length: {}\r\n\r\n{}", self.body.len(), self.body)
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of<B>(response: Response<B>) -> Self
    where
        B: axum::body::HttpBody<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        let (head, body) = response.into_parts();
        Self {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotency-replayed") == Some("true")
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        self
    }

    /// That it is this layer's refusal.
    #[track_caller]
    pub(crate) fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert_eq!(problem["code"], code);
        assert!(problem["retryable"].is_boolean(), "{problem}");
        assert!(problem["instance"].is_string(), "{problem}");
        answer
    }

    /// That it is the application's own error, not one of the layer's.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16) -> Self {
        let answer = self.expect(status);
        assert!(answer.json()["error"].is_string(), "{:?}", answer.body);
        answer
    }
}

/// The value of an outcome's counter.
#[track_caller]
pub(crate) fn count(metrics: &Answer, outcome: &str) -> u64 {
    sample(metrics, &format!("idempotency_requests_total{{outcome=\"{outcome}\"}}"))
}

#[track_caller]
pub(crate) fn sample(metrics: &Answer, name: &str) -> u64 {
    let line = metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {}", metrics.text()))
        .parse()
        .unwrap()
}
