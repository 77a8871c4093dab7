//! The memory cost of requests and keys, measured by a counting allocator. The results are
//! deterministic, so a change shows at once. `cargo bench --bench footprint` prints tables in
//! Markdown. `-- 10000000` prints only the bytes of that many keys, and takes as much memory as it
//! reports.

mod support;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{around, get_session, guarded, key, post_session, router, send};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WARM_UP: u64 = 2_000;
const ROUNDS: u64 = 1_000;

/// Counts the allocations of one request. A reallocation is one allocation. The result is the
/// smallest of many, because the map and the ledger grow now and then.
macro_rules! allocations {
    ($service:expr, $request:expr) => {{
        let service = $service;
        let mut least = usize::MAX;
        for n in 0..WARM_UP + ROUNDS {
            let key = key(n);
            let region = Region::new(ALLOCATOR);
            std::hint::black_box(send(&service, $request(key)).await);
            let change = region.change();
            if n >= WARM_UP {
                least = least.min(change.allocations + change.reallocations);
            }
        }
        least
    }};
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sizes: Vec<u64> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .map(|keys| keys.parse().expect("a number of keys"))
        .collect();
    if sizes.is_empty() {
        count_allocations().await;
        bytes(&[1_000, 10_000, 100_000, 1_000_000]).await;
    } else {
        bytes(&sizes).await;
    }
}

async fn count_allocations() {
    let layer = || IdempotencyLayer::new(MemoryStore::new());
    let same = key(7);

    println!("| allocations per request | bare router | `Router::layer` | around the router |");
    println!("|---|---|---|---|");
    let row = |name: &str, bare: usize, inside: usize, outside: usize| {
        let difference = |n: usize| format!("{n} ({:+})", n as isize - bare as isize);
        println!("| {name} | {bare} | {} | {} |", difference(inside), difference(outside));
    };
    row(
        "`GET`",
        allocations!(router(), |_| get_session()),
        allocations!(guarded(layer()), |_| get_session()),
        allocations!(around(layer()), |_| get_session()),
    );
    row(
        "`POST` without key",
        allocations!(router(), |_| post_session(None)),
        allocations!(guarded(layer()), |_| post_session(None)),
        allocations!(around(layer()), |_| post_session(None)),
    );
    row(
        "first request",
        allocations!(router(), |key| post_session(Some(key))),
        allocations!(guarded(layer()), |key| post_session(Some(key))),
        allocations!(around(layer()), |key| post_session(Some(key))),
    );
    row(
        "replay",
        allocations!(router(), |_| post_session(Some(same.clone()))),
        allocations!(guarded(layer()), |_| post_session(Some(same.clone()))),
        allocations!(around(layer()), |_| post_session(Some(same.clone()))),
    );
    row(
        "an identity layer in our place, `POST`",
        allocations!(router(), |key| post_session(Some(key))),
        allocations!(router().layer(tower::layer::util::Identity::new()), |key| post_session(
            Some(key)
        )),
        allocations!(router(), |key| post_session(Some(key))),
    );
}

async fn bytes(sizes: &[u64]) {
    println!("\n| keys | bytes kept per key | the store's own count |");
    println!("|---|---|---|");
    for &keys in sizes {
        let store = MemoryStore::builder().budget(16 << 30).build().expect("a valid budget");
        let service = guarded(IdempotencyLayer::new(store.clone()));
        let (_, answer) = send(&service, post_session(Some(key(u64::MAX)))).await;
        assert_eq!(answer.len(), 200, "the answer that the figures are about");
        let region = Region::new(ALLOCATOR);
        for n in 0..keys {
            send(&service, post_session(Some(key(n)))).await;
        }
        let change = region.change();
        let kept = (change.bytes_allocated as i64 - change.bytes_deallocated as i64) as f64 / keys as f64;
        println!(
            "| {keys} | {kept:.0} | {:.0} |",
            store.stats().bytes as f64 / keys as f64
        );
    }
}
