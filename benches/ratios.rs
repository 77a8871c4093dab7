//! Multiples of the bare router, as medians of interleaved rounds, so that a machine's noise
//! affects all cases alike. `cargo bench --bench ratios` prints tables in Markdown.

#[path = "support/floor.rs"]
mod floor;
#[path = "support/median.rs"]
mod median;
mod support;
#[path = "support/uploads.rs"]
mod uploads;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floor::Floor;
use http::Method;
use median::median;
use support::{around, get_session, guarded, key, post_session, request, router, send};
use tokio::runtime::{Builder, Runtime};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

const ROUNDS: usize = 61;
const REQUESTS: u64 = 2000;

/// One case, with the time of a request in each round, in nanoseconds.
struct Case<'a> {
    name: &'static str,
    round: Box<dyn FnMut(u64) -> Duration + 'a>,
    times: Vec<f64>,
}

impl<'a> Case<'a> {
    fn new(name: &'static str, round: impl FnMut(u64) -> Duration + 'a) -> Self {
        Self {
            name,
            round: Box::new(round),
            times: Vec::new(),
        }
    }

    fn median(&mut self) -> f64 {
        median(&mut self.times)
    }
}

/// Sends `REQUESTS` requests for each worker, with all workers at once.
macro_rules! timed {
    ($runtime:expr, $workers:expr, $service:expr, $make:expr) => {{
        let (service, workers, make) = ($service, $workers, $make);
        $runtime.block_on(async move {
            let start = Instant::now();
            if workers == 1 {
                for n in 0..REQUESTS {
                    std::hint::black_box(send(&service, make(n)).await);
                }
            } else {
                let tasks: Vec<_> = (0..workers as u64)
                    .map(|worker| {
                        let (service, make) = (service.clone(), make.clone());
                        tokio::spawn(async move {
                            for n in 0..REQUESTS {
                                std::hint::black_box(send(&service, make(worker * REQUESTS + n)).await);
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("no panic");
                }
            }
            start.elapsed()
        })
    }};
}

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new())
}

/// A layer whose store contains 10,000 keys, so that its map does not grow from nothing meanwhile.
fn used_layer(runtime: &Runtime) -> IdempotencyLayer<MemoryStore> {
    let layer = layer();
    let service = guarded(layer.clone());
    runtime.block_on(async {
        for n in 0..10_000 {
            send(&service, post_session(Some(key(1 << 40 | n)))).await;
        }
    });
    layer
}

fn small_requests(runtime: &Runtime, workers: usize) {
    let bare = router();
    let (inside, outside) = (guarded(layer()), around(layer()));
    let same = key(7);
    let (replay_inside, replay_outside) = (guarded(layer()), around(layer()));
    runtime.block_on(async {
        send(&replay_inside, post_session(Some(same.clone()))).await;
        send(&replay_outside, post_session(Some(same.clone()))).await;
    });
    let replay_floor = Floor::new(router());
    runtime.block_on(send(&replay_floor, post_session(Some(same.clone()))));
    let replay = move |_| post_session(Some(same.clone()));
    let blocked = layer();
    let pending = blocked_by_a_pending_request(runtime, &blocked);

    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The bare and the guarded cases do the same work: a counter and a new key.
    let first = |_| post_session(Some(key(NEXT.fetch_add(1, Ordering::Relaxed))));
    let mut cases = [
        Case::new("`GET`, bare", |_| {
            timed!(runtime, workers, bare.clone(), |_| get_session())
        }),
        Case::new("`GET`, `Router::layer`", |_| {
            timed!(runtime, workers, inside.clone(), |_| get_session())
        }),
        Case::new("`GET`, around", |_| {
            timed!(runtime, workers, outside.clone(), |_| get_session())
        }),
        Case::new("`POST` without key, bare", |_| {
            timed!(runtime, workers, bare.clone(), |_| post_session(None))
        }),
        Case::new("`POST` without key, `Router::layer`", |_| {
            timed!(runtime, workers, inside.clone(), |_| post_session(None))
        }),
        Case::new("`POST` without key, around", |_| {
            timed!(runtime, workers, outside.clone(), |_| post_session(None))
        }),
        Case::new("`POST` with key, bare", |_| {
            timed!(runtime, workers, bare.clone(), first)
        }),
        Case::new("first request, `Router::layer`", |_| {
            {
                // Each round gets a store of 10,000 keys, which is made outside the measured time.
                let service = guarded(used_layer(runtime));
                timed!(runtime, workers, service, first)
            }
        }),
        Case::new("first request, around", |_| {
            let service = around(used_layer(runtime));
            timed!(runtime, workers, service, first)
        }),
        Case::new("replay, `Router::layer`", |_| {
            timed!(runtime, workers, replay_inside.clone(), replay.clone())
        }),
        Case::new("replay, around", |_| {
            timed!(runtime, workers, replay_outside.clone(), replay.clone())
        }),
        Case::new("in-flight refusal, `Router::layer`", |_| {
            timed!(runtime, workers, pending.clone(), |_| post_session(Some(key(1))))
        }),
        Case::new("the least, first request", |_| {
            let service = Floor::new(router());
            runtime.block_on(async {
                for n in 0..10_000 {
                    send(&service, post_session(Some(key(1 << 40 | n)))).await;
                }
            });
            timed!(runtime, workers, service, first)
        }),
        Case::new("the least, replay", |_| {
            timed!(runtime, workers, replay_floor.clone(), replay.clone())
        }),
        Case::new("identity layer, `POST` with key", |_| {
            timed!(
                runtime,
                workers,
                router().layer(tower::layer::util::Identity::new()),
                first
            )
        }),
    ];
    for round in 0..ROUNDS as u64 {
        for case in &mut cases {
            let elapsed = (case.round)(round);
            case.times
                .push(elapsed.as_nanos() as f64 / (REQUESTS * workers as u64) as f64);
        }
    }
    println!("\n| {workers} thread(s), small JSON | ns a request | multiple of bare |");
    println!("|---|---|---|");
    let bases = [0, 0, 0, 3, 3, 3, 6, 6, 6, 6, 6, 6, 6, 6, 6];
    let medians: Vec<f64> = cases.iter_mut().map(Case::median).collect();
    for (case, (median, base)) in cases.iter().zip(medians.iter().zip(bases)) {
        println!("| {} | {median:.0} | {:.2} |", case.name, median / medians[base]);
    }
}

/// A service in which a request with key 1 runs and never ends.
fn blocked_by_a_pending_request(runtime: &Runtime, layer: &IdempotencyLayer<MemoryStore>) -> axum::Router {
    let path = "/v1/verification/sessions";
    let pending: axum::Router = axum::Router::new()
        .route(path, axum::routing::post(std::future::pending::<()>))
        .layer(layer.clone());
    runtime.block_on(async {
        let mut request = Box::pin(tower::ServiceExt::oneshot(pending, post_session(Some(key(1)))));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(request.as_mut().poll(cx).is_pending())).await;
        assert!(polled, "the request hangs");
        // Kept for the life of the process, as a hanging client would be.
        std::mem::forget(request);
    });
    guarded(layer.clone())
}

/// Whether the time of a first request reveals that another tenant has used the key.
fn guesses(runtime: &Runtime) {
    let by = |n: u64, tenant: &'static str| {
        let mut request = post_session(Some(key(n)));
        let tenant = http::HeaderValue::from_static(tenant);
        request.headers_mut().insert(http::header::AUTHORIZATION, tenant);
        request
    };
    let round = |first: u64, store_has: &'static str| {
        let service = guarded(layer());
        runtime.block_on(async {
            for n in 0..2 * REQUESTS {
                send(&service, by(n, store_has)).await;
            }
            let start = Instant::now();
            for n in first..first + REQUESTS {
                std::hint::black_box(send(&service, by(n, "guesser")).await);
            }
            start.elapsed().as_nanos() as f64 / REQUESTS as f64
        })
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        times[0].push(round(0, "victim"));
        times[1].push(round(2 * REQUESTS, "victim"));
        // The same measurement twice, to show the effect of the machine's noise alone.
        times[2].push(round(2 * REQUESTS, "victim"));
    }
    let [used, unused, again] = times.map(|mut times| median(&mut times));
    println!("\n| a guess at a key that | ns a request | multiple |");
    println!("|---|---|---|");
    println!("| nobody has used | {unused:.0} | 1 |");
    println!("| another tenant has used | {used:.0} | {:.3} |", used / unused);
    println!(
        "| nobody has used, measured again | {again:.0} | {:.3} |",
        again / unused
    );
}

fn body_sizes(runtime: &Runtime) {
    println!(
        "\n| body echoed | bare, µs | first request, of bare | replay, of bare | one pass of BLAKE3, µs | \
         first request, of that pass | replay, of that pass |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, size, requests) in [
        ("200 B", 200, 400u64),
        ("16 KiB", 16 << 10, 200),
        ("1 MiB", 1 << 20, 20),
    ] {
        let body = Bytes::from(vec![b'x'; size]);
        let post = |key| request(Method::POST, "/v1/echo", Some(key), body.clone());
        let bare = router();
        let replayed = guarded(layer());
        runtime.block_on(send(&replayed, post(key(1))));
        let round = |service: axum::Router, fixed: bool| {
            runtime.block_on(async {
                let start = Instant::now();
                for n in 0..requests {
                    std::hint::black_box(send(&service, post(key(if fixed { 1 } else { n }))).await);
                }
                start.elapsed().as_nanos() as f64 / requests as f64
            })
        };
        let pass = || {
            let start = Instant::now();
            for _ in 0..requests {
                std::hint::black_box(blake3::hash(&body));
            }
            start.elapsed().as_nanos() as f64 / requests as f64
        };
        let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..51 {
            times[0].push(round(bare.clone(), false));
            times[1].push(round(guarded(layer()), false));
            times[2].push(round(replayed.clone(), true));
            times[3].push(pass());
        }
        let [bare, first, replay, pass] = times.map(|mut times| median(&mut times));
        println!(
            "| {name} | {:.1} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} |",
            bare / 1000.0,
            first / bare,
            replay / bare,
            pass / 1000.0,
            first / pass,
            replay / pass
        );
    }
}

/// A store that contains this many keys, and the times measured on it.
struct Sized {
    keys: u64,
    service: axum::Router,
    next: u64,
    firsts: Vec<f64>,
    replays: Vec<f64>,
}

impl Sized {
    fn new(runtime: &Runtime, keys: u64) -> Self {
        let mut sized = Self {
            keys,
            service: router(),
            next: 0,
            firsts: Vec::new(),
            replays: Vec::new(),
        };
        sized.fill(runtime);
        sized
    }

    fn fill(&mut self, runtime: &Runtime) {
        let store = MemoryStore::builder().budget(16 << 30).build().expect("a valid budget");
        self.service = guarded(IdempotencyLayer::new(store));
        self.next = self.keys;
        runtime.block_on(async {
            for n in 0..self.keys {
                send(&self.service, post_session(Some(key(n)))).await;
            }
        });
    }

    fn round(&mut self, runtime: &Runtime, round: u64) {
        const REQUESTS: u64 = 500;
        // Otherwise a small store would not be small for long.
        if self.keys <= 100_000 {
            self.fill(runtime);
        }
        runtime.block_on(async {
            let start = Instant::now();
            for n in self.next..self.next + REQUESTS {
                std::hint::black_box(send(&self.service, post_session(Some(key(n)))).await);
            }
            self.next += REQUESTS;
            self.firsts.push(start.elapsed().as_nanos() as f64 / REQUESTS as f64);
            let start = Instant::now();
            for n in 0..REQUESTS {
                // Spread over the whole store, as clients' retries are.
                let old = (round * REQUESTS + n) * 7_919 % self.keys;
                std::hint::black_box(send(&self.service, post_session(Some(key(old)))).await);
            }
            self.replays.push(start.elapsed().as_nanos() as f64 / REQUESTS as f64);
        });
    }
}

fn store_sizes(runtime: &Runtime, sizes: &[u64]) {
    let mut stores: Vec<_> = sizes.iter().map(|&keys| Sized::new(runtime, keys)).collect();
    for round in 0..101 {
        for store in &mut stores {
            store.round(runtime, round);
        }
    }
    let mut smallest = None;
    println!("\n| keys in the store | first request, ns | of the smallest | replay, ns | of the smallest |");
    println!("|---|---|---|---|---|");
    for store in &mut stores {
        let (first, replay) = (median(&mut store.firsts), median(&mut store.replays));
        let (least_first, least_replay) = *smallest.get_or_insert((first, replay));
        println!(
            "| {} | {first:.0} | {:.2} | {replay:.0} | {:.2} |",
            store.keys,
            first / least_first,
            replay / least_replay
        );
    }
}

/// A million records expire while requests continue. The longest request is what a client would
/// notice.
fn sweeping(runtime: &Runtime) {
    const RECORDS: u64 = 1_000_000;
    let store = MemoryStore::builder().budget(4 << 30).build().expect("a valid budget");
    let short = IdempotencyLayer::builder(store.clone())
        .ttl(Duration::from_secs(10))
        .build()
        .expect("valid");
    let service = guarded(short);
    let longest = |from: u64, until: &dyn Fn(u64) -> bool| {
        let mut times = Vec::new();
        runtime.block_on(async {
            let mut n = from;
            while until(n) {
                let start = Instant::now();
                std::hint::black_box(send(&service, post_session(Some(key(n)))).await);
                times.push(start.elapsed().as_nanos() as f64 / 1000.0);
                n += 1;
            }
        });
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        (times.len(), at(0.5), at(0.999), at(1.0))
    };
    let report = |name: &str, (requests, median, p999, longest): (usize, f64, f64, f64)| {
        println!("| {name} | {requests} | {median:.1} | {p999:.1} | {longest:.0} |");
    };
    println!("\n| requests while | requests | median, µs | p99.9, µs | longest, µs |");
    println!("|---|---|---|---|---|");
    let filled = longest(0, &|n| n < RECORDS);
    report("a million records are made", filled);
    std::thread::sleep(Duration::from_secs(12));
    let before = store.stats().entries;
    let goal = before as u64 / 10;
    let swept = longest(RECORDS, &|n| {
        store.stats().entries as u64 > goal + (n - RECORDS) && n < 3 * RECORDS
    });
    report("a million records are swept", swept);
    let (bare, mut times) = (router(), Vec::new());
    runtime.block_on(async {
        for n in 0..swept.0 as u64 {
            let start = Instant::now();
            std::hint::black_box(send(&bare, post_session(Some(key(n)))).await);
            times.push(start.elapsed().as_nanos() as f64 / 1000.0);
        }
    });
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    report(
        "nothing (the bare router, for the machine's own pauses)",
        (times.len(), at(0.5), at(0.999), at(1.0)),
    );
}

fn main() {
    let one = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let two = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut arguments = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let only = arguments.next();
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("small") {
        small_requests(&one, 1);
        small_requests(&two, 2);
    }
    if wanted("guesses") {
        guesses(&one);
    }
    if wanted("bodies") {
        body_sizes(&one);
    }
    if wanted("uploads") {
        uploads::uploads(&one);
    }
    if wanted("sizes") {
        // `-- sizes 1000 10000000` measures other sizes.
        let asked: Vec<u64> = arguments.map(|keys| keys.parse().expect("a number of keys")).collect();
        let sizes = if asked.is_empty() {
            vec![1_000, 100_000, 5_000_000]
        } else {
            asked
        };
        store_sizes(&one, &sizes);
    }
    if wanted("sweep") {
        sweeping(&one);
    }
}
