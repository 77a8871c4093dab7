//! A guarded server on a real socket, before which requests and answers get lost.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

/// What becomes of a request; after the last one, all go through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    Through,
    /// The connection ends before the server saw the request.
    LoseRequest,
    /// The server answers; the connection ends before the answer is sent.
    LoseResponse,
    /// The connection ends in the middle of the answer's body.
    CutResponse,
    /// Nobody answers.
    Stall,
    /// `307` to the same address.
    Redirect,
    /// A body without an end.
    Endless,
}

#[derive(Debug, Default)]
struct Seen {
    fates: VecDeque<Fate>,
    runs: usize,
    keys: Vec<String>,
    bodies: Vec<Bytes>,
}

/// Ends, with its connections, when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _serving: JoinSet<()>,
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

fn lost() -> io::Error {
    io::Error::other("by script")
}

impl Server {
    pub(crate) async fn start(fates: impl IntoIterator<Item = Fate>) -> Self {
        let seen = Arc::new(Mutex::new(Seen {
            fates: fates.into_iter().collect(),
            ..Seen::default()
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let runs = Arc::clone(&seen);
        let app = service_fn(move |_: Request<Full<Bytes>>| {
            runs.lock().unwrap().runs += 1;
            async {
                Ok::<_, Infallible>(
                    Response::builder()
                        .status(201)
                        .body(Full::from("charged: 1000 cents"))
                        .unwrap(),
                )
            }
        });
        let app = ServiceBuilder::new()
            .layer(IdempotencyLayer::new(MemoryStore::new()))
            .service(app);

        let state = Arc::clone(&seen);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (app, state) = (app.clone(), Arc::clone(&state));
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                let fate = {
                    let mut seen = state.lock().unwrap();
                    let key = head.headers.get("idempotency-key").map(|key| key.to_str().unwrap());
                    seen.keys.push(key.unwrap_or_default().to_owned());
                    seen.bodies.push(body.clone());
                    seen.fates.pop_front().unwrap_or(Fate::Through)
                };
                let request = Request::from_parts(head, Full::from(body));
                let run = async {
                    let answer = app.oneshot(request).await.unwrap_or_else(|never| match never {});
                    answer.map(|body| body.map_err(io::Error::other).boxed_unsync())
                };
                let answer: Answer = match fate {
                    Fate::Through => run.await,
                    Fate::LoseRequest => return Err(lost()),
                    Fate::LoseResponse => {
                        run.await;
                        return Err(lost());
                    }
                    Fate::CutResponse => run.await.map(|body| Cut { body, sent: false }.boxed_unsync()),
                    Fate::Stall => std::future::pending().await,
                    Fate::Redirect => Response::builder()
                        .status(307)
                        .header("location", "/charges")
                        .body(Full::from("").map_err(|never| match never {}).boxed_unsync())
                        .unwrap(),
                    Fate::Endless => Response::new(Zeros.boxed_unsync()),
                };
                Ok(answer)
            }
        });

        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn(async move {
                    // That it ends with an error is what the test wants.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            seen,
            _serving: serving,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/charges", self.address)
    }

    /// How often the operation ran.
    pub(crate) fn runs(&self) -> usize {
        self.seen.lock().unwrap().runs
    }

    /// Panics unless that many requests came, all with one key and that body.
    #[track_caller]
    pub(crate) fn assert_same_attempts(&self, count: usize, body: &'static str) {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.keys.len(), count, "{seen:?}");
        assert!(!seen.keys[0].is_empty(), "{seen:?}");
        assert!(seen.keys.iter().all(|key| *key == seen.keys[0]), "{seen:?}");
        assert!(seen.bodies.iter().all(|sent| sent == body), "{seen:?}");
    }
}

/// A body's first five bytes, and then the end of the connection.
struct Cut {
    body: UnsyncBoxBody<Bytes, io::Error>,
    sent: bool,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.sent {
            return Poll::Ready(Some(Err(lost())));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.sent = true;
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| data.slice(..5)))))
    }
}

/// Zeros as fast as they are taken.
struct Zeros;

impl Body for Zeros {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}
