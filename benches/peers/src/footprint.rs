//! Allocations and bytes, measured by a counting allocator.

use std::alloc::System;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::requests::numbered;
use crate::support::{router, send};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts the allocations of one request. A reallocation is one allocation. The result is the
/// smallest of many, because maps grow now and then. It runs on one thread, so that tasks that a
/// peer spawns are included.
pub async fn allocations(service: Router, make: fn(u64) -> Request<Body>) -> usize {
    let mut least = usize::MAX;
    for n in 0..3_000 {
        let request = make(n);
        let region = Region::new(ALLOCATOR);
        std::hint::black_box(send(&service, request).await);
        let change = region.change();
        if n >= 2_000 {
            least = least.min(change.allocations + change.reallocations);
        }
    }
    least
}

pub fn a_replay(_: u64) -> Request<Body> {
    numbered(7)
}

/// The bytes that remain for each key, with this many keys.
pub async fn bytes_kept(guard: fn(Router) -> Router, keys: u64) -> f64 {
    let service = guard(router());
    let (_, answer) = send(&service, numbered(u64::MAX)).await;
    assert_eq!(answer.len(), 200, "the answer that the figures are about");
    settle().await;
    let region = Region::new(ALLOCATOR);
    for n in 0..keys {
        send(&service, numbered(n)).await;
    }
    settle().await;
    let change = region.change();
    (change.bytes_allocated as f64 - change.bytes_deallocated as f64) / keys as f64
}

/// Lets the stores' tasks come to rest.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
