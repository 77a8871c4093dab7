//! A proxy that loses requests and responses, delays them, and cuts connections.
//!
//! The fate of an attempt depends on the seed, the key, and how often the key was sent. So the same
//! seed gives the same losses, in whatever order the attempts arrive.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::options::Options;

/// The percentage of losses in which the connection stays open but silent.
const SILENT: u64 = 2;

/// The network. It stops when this value is dropped.
pub(crate) struct BadNetwork {
    state: Arc<State>,
    _serving: JoinSet<()>,
}

struct State {
    server: Uri,
    client: Client<HttpConnector, Carried>,
    seed: u64,
    loss: u64,
    delay: Duration,
    /// How often each key was sent.
    attempts: Mutex<HashMap<Vec<u8>, u64>>,
    lost: LostCounts,
}

#[derive(Default)]
struct LostCounts {
    requests: AtomicU64,
    requests_cut: AtomicU64,
    responses: AtomicU64,
    responses_cut: AtomicU64,
}

/// How many attempts were lost, and where.
pub(crate) struct Losses {
    pub(crate) requests: u64,
    /// The lost requests that were cut in the middle.
    pub(crate) requests_cut: u64,
    pub(crate) responses: u64,
    pub(crate) responses_cut: u64,
}

/// What happens to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    there: Way,
    back: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Through,
    /// The connection ends.
    Lost,
    /// The head and half of the body arrive, and then the connection ends.
    Cut,
    /// Nothing arrives, and the connection stays open.
    Silence,
}

impl BadNetwork {
    pub(crate) fn start(listener: TcpListener, server: Uri, options: &Options) -> Self {
        let state = Arc::new(State {
            server,
            client: Client::builder(TokioExecutor::new()).build_http(),
            seed: options.seed(),
            loss: u64::from(options.loss),
            delay: options.delay,
            attempts: Mutex::default(),
            lost: LostCounts::default(),
        });
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&state);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_ended) = connections.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let state = Arc::clone(&shared);
                        let service = service_fn(move |request| Arc::clone(&state).carry(request));
                        connections.spawn(async move {
                            // This ends with an error if a message is lost.
                            let http = Builder::new(TokioExecutor::new());
                            let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        });
                    }
                }
            }
        });
        Self {
            state,
            _serving: serving,
        }
    }

    pub(crate) fn losses(&self) -> Losses {
        let lost = &self.state.lost;
        Losses {
            requests: lost.requests.load(Ordering::Relaxed),
            requests_cut: lost.requests_cut.load(Ordering::Relaxed),
            responses: lost.responses.load(Ordering::Relaxed),
            responses_cut: lost.responses_cut.load(Ordering::Relaxed),
        }
    }
}

impl State {
    /// Carries one request and its response. An error ends the connection without a response.
    async fn carry(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Carried>> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let mut random = self.random_of(head.headers.get("idempotency-key").map_or(b"", |key| key.as_bytes()));
        let fate = random.fate(self.loss);

        sleep(random.up_to(self.delay)).await;
        if fate.there != Way::Through {
            self.lost.requests.fetch_add(1, Ordering::Relaxed);
        }
        let cut_at = match fate.there {
            Way::Through => None,
            Way::Lost => return Err(io::Error::other("the request was lost")),
            Way::Cut => {
                self.lost.requests_cut.fetch_add(1, Ordering::Relaxed);
                Some(body.len() / 2)
            }
            Way::Silence => return std::future::pending().await,
        };

        let mut target = self.server.clone().into_parts();
        target.path_and_query = head.uri.path_and_query().cloned();
        head.uri = Uri::from_parts(target).map_err(io::Error::other)?;
        let body = Carried {
            rest: Some(body),
            cut_at,
        };
        // Read the whole response first. From here on, a lost response is one that the server has
        // already sent.
        let response = self.client.request(Request::from_parts(head, body)).await;
        if cut_at.is_some() {
            return Err(io::Error::other("the request was cut in the middle"));
        }
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();

        sleep(random.up_to(self.delay)).await;
        let cut_at = match fate.back {
            Way::Through => None,
            Way::Cut => {
                self.lost.responses.fetch_add(1, Ordering::Relaxed);
                self.lost.responses_cut.fetch_add(1, Ordering::Relaxed);
                Some(body.len() / 2)
            }
            Way::Lost => {
                self.lost.responses.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::other("the response was lost"));
            }
            Way::Silence => {
                self.lost.responses.fetch_add(1, Ordering::Relaxed);
                return std::future::pending().await;
            }
        };
        Ok(Response::from_parts(
            head,
            Carried {
                rest: Some(body),
                cut_at,
            },
        ))
    }

    fn random_of(&self, key: &[u8]) -> Random {
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            let attempt = attempts.entry(key.to_vec()).or_default();
            *attempt += 1;
            *attempt
        };
        let mut hasher = DefaultHasher::new();
        (self.seed, key, attempt).hash(&mut hasher);
        Random(fastrand::Rng::with_seed(hasher.finish()))
    }
}

/// The random numbers for one attempt.
struct Random(fastrand::Rng);

impl Random {
    fn fate(&mut self, loss: u64) -> Fate {
        Fate {
            there: self.way(loss),
            back: self.way(loss),
        }
    }

    fn way(&mut self, loss: u64) -> Way {
        if self.0.u64(..100) >= loss {
            return Way::Through;
        }
        match self.0.u64(..100) {
            0..SILENT => Way::Silence,
            SILENT..50 => Way::Lost,
            _ => Way::Cut,
        }
    }

    fn up_to(&mut self, bound: Duration) -> Duration {
        bound.mul_f64(self.0.f64())
    }
}

/// A whole body, or half of a body and then the end of the connection.
struct Carried {
    rest: Option<Bytes>,
    cut_at: Option<usize>,
}

impl Body for Carried {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = match (self.rest.take(), self.cut_at) {
            (Some(body), None) => Some(Ok(Frame::data(body))),
            (Some(body), Some(at)) => Some(Ok(Frame::data(body.slice(..at)))),
            (None, Some(_)) => Some(Err(io::Error::other("the connection was cut"))),
            (None, None) => None,
        };
        Poll::Ready(frame)
    }
}
