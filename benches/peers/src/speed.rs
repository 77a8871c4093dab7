//! Multiples of the bare router, as medians of interleaved rounds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::Request;
use tokio::runtime::Runtime;

use crate::peers::Peer;
use crate::requests::numbered;
use crate::support::{router, send};

/// The number of requests that each worker sends in a round.
const REQUESTS: u64 = 1_000;
/// The number of keys in a store before its first requests are timed, so that its map does not grow
/// from nothing meanwhile.
const HELD: u64 = 10_000;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A request with a key that no other request has, so that bare and guarded do the same work.
fn first(_: u64) -> Request<Body> {
    numbered(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn again(_: u64) -> Request<Body> {
    numbered(u64::MAX)
}

/// One line of the table.
pub struct Line {
    pub name: String,
    pub bare: Duration,
    /// The peers' times, as multiples of the bare time.
    pub peers: Vec<f64>,
}

pub fn measure(runtime: &Runtime, workers: u64, rounds: usize, peers: &[Peer]) -> [Line; 2] {
    let bare = router();
    let replaying: Vec<Router> = peers
        .iter()
        .map(|peer| {
            runtime.block_on(async {
                let service = (peer.guard)(router());
                send(&service, again(0)).await;
                service
            })
        })
        .collect();
    let mut bare_times = Vec::new();
    let mut firsts = vec![Vec::new(); peers.len()];
    let mut replays = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        bare_times.push(timed(runtime, workers, &bare, first));
        for (peer, times) in peers.iter().zip(&mut firsts) {
            let service = runtime.block_on(used(peer));
            times.push(timed(runtime, workers, &service, first));
            runtime.block_on(async {
                drop(service);
                // A store's task ends now, not in the time of the next store.
                tokio::time::sleep(Duration::from_millis(5)).await;
            });
        }
        for (service, times) in replaying.iter().zip(&mut replays) {
            times.push(timed(runtime, workers, service, again));
        }
    }
    let bare = median(bare_times);
    let line = |name: &str, times: Vec<Vec<Duration>>| Line {
        name: format!("{name}, {workers} worker{}", if workers == 1 { "" } else { "s" }),
        bare,
        peers: times
            .into_iter()
            .map(|times| median(times).as_secs_f64() / bare.as_secs_f64())
            .collect(),
    };
    [line("first request", firsts), line("replay", replays)]
}

/// What a first request costs as a session, or another place where a peer keeps keys, fills up:
/// with this many keys of one caller in the store.
pub fn of_one_caller(runtime: &Runtime, held: u64, rounds: usize, peers: &[Peer]) -> Line {
    let one_session = |n: u64| {
        let mut request = numbered(n);
        let session = crate::requests::session(0);
        request.headers_mut().insert(http::header::COOKIE, session);
        request
    };
    let bare = router();
    let services: Vec<Router> = peers
        .iter()
        .map(|peer| {
            runtime.block_on(async {
                let service = (peer.guard)(router());
                for n in 0..held {
                    send(&service, one_session(n)).await;
                }
                service
            })
        })
        .collect();
    let mut times = vec![Vec::new(); peers.len() + 1];
    let next = AtomicU64::new(held);
    for _ in 0..rounds {
        for (service, times) in std::iter::once(&bare).chain(&services).zip(&mut times) {
            let time = runtime.block_on(async {
                // Only a few, because they add to the keys in the store.
                const FEW: u32 = 20;
                let start = Instant::now();
                for _ in 0..FEW {
                    std::hint::black_box(send(service, one_session(next.fetch_add(1, Ordering::Relaxed))).await);
                }
                start.elapsed() / FEW
            });
            times.push(time);
        }
    }
    let mut medians = times.into_iter().map(median);
    let bare = medians.next().expect("the bare router's");
    Line {
        name: format!("first request, one caller has {held} keys"),
        bare,
        peers: medians.map(|time| time.as_secs_f64() / bare.as_secs_f64()).collect(),
    }
}

async fn used(peer: &Peer) -> Router {
    let service = (peer.guard)(router());
    for _ in 0..HELD {
        send(&service, first(0)).await;
    }
    service
}

/// The time of a request, with all workers sending at once.
fn timed(runtime: &Runtime, workers: u64, service: &Router, make: fn(u64) -> Request<Body>) -> Duration {
    let start = Instant::now();
    runtime.block_on(async {
        if workers == 1 {
            return send_all(service.clone(), make).await;
        }
        let tasks: Vec<_> = (0..workers)
            .map(|_| tokio::spawn(send_all(service.clone(), make)))
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    start.elapsed().div_f64((REQUESTS * workers) as f64)
}

async fn send_all(service: Router, make: fn(u64) -> Request<Body>) {
    for n in 0..REQUESTS {
        std::hint::black_box(send(&service, make(n)).await);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
