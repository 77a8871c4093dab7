//! What each peer does in the cases for which idempotency keys exist. Each result is observed, not
//! looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use tokio::time::{sleep, timeout};

use crate::requests::session;
use crate::support::{request, send};

/// How long the slow handler takes.
const SLOW: Duration = Duration::from_millis(100);
/// Longer than it takes for work without a client to end.
const LATER: Duration = Duration::from_millis(1500);

/// One case: its name, and what happens behind a guard.
pub struct Case {
    pub name: &'static str,
    pub with_defaults: bool,
    /// The result that this crate must have.
    pub ours: &'static str,
    run: fn(Service) -> Observing,
}

type Observing = std::pin::Pin<Box<dyn Future<Output = String>>>;

impl Case {
    pub async fn observe(&self, guard: fn(Router) -> Router) -> String {
        (self.run)(Service::guarded_by(guard)).await
    }
}

macro_rules! case {
    ($name:literal, $run:ident, $ours:literal) => {
        Case {
            name: $name,
            with_defaults: false,
            ours: $ours,
            run: |service| Box::pin($run(service)),
        }
    };
}

pub fn cases() -> Vec<Case> {
    vec![
        case!("200 concurrent duplicates", duplicates, "1 run"),
        case!("200 concurrent distinct keys", distinct_keys, "all succeed"),
        case!("client hangs up, then retries", hangs_up, "1 run, retry: 200"),
        case!("handler panics, then a retry", panics, "panic, then 200"),
        case!("another body under the key", other_body, "422"),
        case!("quoted and bare spelling of a key", quoted, "1 run"),
        case!("a key with `/` and `:`", separators, "200"),
        Case {
            with_defaults: true,
            ..case!("another caller's key, by default", other_caller, "2 runs")
        },
        case!("response with `no-store`, then a retry", no_store, "1 run"),
        case!("response of 3 MiB, then a retry", large, "200, then 409, 1 run"),
        case!("headers of a replay", headers, "kept"),
    ]
}

/// A guarded service, and how many times its handlers ran.
#[derive(Clone)]
struct Service {
    router: Router,
    runs: Arc<AtomicUsize>,
}

impl Service {
    fn guarded_by(guard: fn(Router) -> Router) -> Self {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = |runs: &Arc<AtomicUsize>| {
            let runs = runs.clone();
            move || runs.fetch_add(1, Ordering::SeqCst) + 1
        };
        let (fast, slow, panicking, no_store, large) = (
            counted(&runs),
            counted(&runs),
            counted(&runs),
            counted(&runs),
            counted(&runs),
        );
        let router = Router::new()
            .route(
                "/fast",
                post(async move || {
                    let body = format!("run {}", fast());
                    ([(header::LOCATION, "/charges/17")], body)
                }),
            )
            .route(
                "/slow",
                // The effect comes first, like a charge that the handler then waits for.
                post(async move || {
                    let run = slow();
                    sleep(SLOW).await;
                    format!("run {run}")
                }),
            )
            .route(
                "/panics-once",
                post(async move || {
                    assert!(panicking() > 1, "this bench's handler panics at its first run");
                    "done"
                }),
            )
            .route(
                "/no-store",
                post(async move || {
                    let body = format!("run {}", no_store());
                    ([(header::CACHE_CONTROL, "no-store")], body)
                }),
            )
            .route(
                "/large",
                post(async move || {
                    large();
                    vec![b'x'; 3 << 20]
                }),
            );
        Self {
            router: guard(router),
            runs,
        }
    }

    fn runs(&self) -> String {
        match self.runs.load(Ordering::SeqCst) {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let (head, body) = send(&self.router, request).await;
        Answer {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    /// Sends as a connection does: a panic ends only the task.
    async fn send_in_a_task(&self, request: Request<Body>) -> Option<Answer> {
        let service = self.clone();
        tokio::spawn(async move { service.send(request).await }).await.ok()
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

fn post_to(path: &'static str, key: &str, body: &'static str) -> Request<Body> {
    let key = HeaderValue::try_from(key).expect("a header value");
    let mut request = request(Method::POST, path, Some(key), Bytes::from_static(body.as_bytes()));
    request.headers_mut().insert(header::COOKIE, session(1));
    request
}

async fn duplicates(service: Service) -> String {
    at_once(&service, |_| "the-same".to_owned()).await;
    service.runs()
}

async fn distinct_keys(service: Service) -> String {
    let succeeded = at_once(&service, |n| format!("key-{n}")).await;
    if succeeded == 200 {
        "all succeed".to_owned()
    } else {
        format!("{succeeded} succeed")
    }
}

/// How many of 200 concurrent requests succeed.
async fn at_once(service: &Service, key: impl Fn(usize) -> String) -> usize {
    let requests: Vec<_> = (0..200)
        .map(|n| {
            let (service, request) = (service.clone(), post_to("/slow", &key(n), "{}"));
            tokio::spawn(async move { service.send(request).await.status.is_success() })
        })
        .collect();
    let mut succeeded = 0;
    for request in requests {
        succeeded += usize::from(request.await.expect("no panic"));
    }
    succeeded
}

async fn hangs_up(service: Service) -> String {
    // Dropped halfway, as the server does when a connection is lost.
    let dropped = timeout(SLOW / 2, service.send(post_to("/slow", "key", "{}"))).await;
    assert!(dropped.is_err(), "dropped before it was answered");
    sleep(LATER).await;
    let retry = service.send(post_to("/slow", "key", "{}")).await;
    format!("{}, retry: {}", service.runs(), retry.status.as_u16())
}

async fn panics(service: Service) -> String {
    let first = service.send_in_a_task(post_to("/panics-once", "key", "{}")).await;
    sleep(LATER).await;
    let retry = service.send_in_a_task(post_to("/panics-once", "key", "{}")).await;
    let said = |answer: Option<Answer>| match answer {
        Some(answer) => answer.status.as_u16().to_string(),
        None => "panic".to_owned(),
    };
    format!("{}, then {}", said(first), said(retry))
}

async fn other_body(service: Service) -> String {
    let first = service.send(post_to("/fast", "key", "{}")).await;
    let second = service.send(post_to("/fast", "key", r#"{"cents":1000}"#)).await;
    if second.body == first.body {
        "the first body's answer".to_owned()
    } else {
        second.status.as_u16().to_string()
    }
}

async fn quoted(service: Service) -> String {
    service.send(post_to("/fast", "key", "{}")).await;
    service.send(post_to("/fast", "\"key\"", "{}")).await;
    service.runs()
}

async fn separators(service: Service) -> String {
    let answer = service.send(post_to("/fast", "order/17:charge", "{}")).await;
    answer.status.as_u16().to_string()
}

async fn other_caller(service: Service) -> String {
    service.send(post_to("/fast", "key", "{}")).await;
    let mut request = post_to("/fast", "key", "{}");
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer sk_test_other"));
    headers.insert(header::COOKIE, session(2));
    let theirs = service.send(request).await;
    if theirs.body == "run 1" {
        "gets the first caller's answer".to_owned()
    } else {
        service.runs()
    }
}

async fn no_store(service: Service) -> String {
    service.send(post_to("/no-store", "key", "{}")).await;
    service.send(post_to("/no-store", "key", "{}")).await;
    service.runs()
}

async fn large(service: Service) -> String {
    let first = service.send(post_to("/large", "key", "{}")).await;
    let second = service.send(post_to("/large", "key", "{}")).await;
    let (first, second) = (first.status.as_u16(), second.status.as_u16());
    format!("{first}, then {second}, {}", service.runs())
}

/// Which of the handler's headers does a replay have?
async fn headers(service: Service) -> String {
    let first = service.send(post_to("/fast", "key", "{}")).await;
    let replay = service.send(post_to("/fast", "key", "{}")).await;
    assert_eq!(replay.body, "run 1", "a replay");
    let lost: Vec<_> = [header::CONTENT_TYPE, header::LOCATION]
        .into_iter()
        .filter(|name| replay.headers.get(name) != first.headers.get(name))
        .map(|name| format!("`{name}`"))
        .collect();
    if lost.is_empty() {
        "kept".to_owned()
    } else {
        format!("{} lost or changed", lost.join(", "))
    }
}
