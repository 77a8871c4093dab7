//! The memory store.

mod budget;
mod collisions;
mod sweeping;
mod tenants;
mod threads;
mod waiting;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::advance;
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, MemoryStore, Record, Store, StoreErrorKind, Token, WhenFull,
};

use crate::support::claim::{Claim, HOUR, PRINT, claim, mix, print, slot};

const BUDGET: usize = 64 * 1024;
const SECOND: Duration = Duration::from_secs(1);
/// What the store sorts expiries by.
const TICK: Duration = Duration::from_millis(1024);
/// Records that one write sweeps at most.
const SWEEP: usize = 8;

fn full(when_full: WhenFull) -> MemoryStore {
    MemoryStore::builder()
        .budget(BUDGET)
        .when_full(when_full)
        .build()
        .unwrap()
}

fn other_print(begin: ClaimRequest) -> ClaimRequest {
    begin.print(print(2))
}

/// A record of that many bytes.
fn record(bytes: usize) -> Record {
    // Version 1, a response, status 200, its fingerprint, no flags, no headers.
    let mut content = vec![1, 0, 0, 200];
    content.extend_from_slice(PRINT.as_bytes());
    content.extend_from_slice(&[0, 0]);
    content.resize(bytes, b'x');
    let sum = Sha256::digest(&content);
    content.extend_from_slice(&sum[..8]);
    Record::from_bytes(&content).unwrap()
}

/// The answer of a future that does not wait, without a runtime.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the memory store's calls are ready at once"),
    }
}

fn started(store: &MemoryStore, begin: &ClaimRequest) -> u32 {
    match now(store.begin(begin)).unwrap() {
        ClaimOutcome::Started { attempt, .. } => attempt,
        other => panic!("expected Started, got {other:?}"),
    }
}

/// Claims the slot and completes it.
fn keep(store: &MemoryStore, n: u64, record: &Record, ttl: Duration) {
    assert_eq!(started(store, &claim(n).token(n)), 1);
    assert_eq!(now(store.complete(&slot(n), Token(n), record, ttl)).unwrap(), Held::Yes);
}

/// A write to a slot of its own, which leaves nothing.
fn write(store: &MemoryStore, n: u64) {
    assert_eq!(started(store, &claim(1 << 40 | n).token(n)), 1);
    assert_eq!(now(store.release(&slot(1 << 40 | n), Token(n))).unwrap(), Held::Yes);
}

/// Whether the store knows the slot.
fn knows(store: &MemoryStore, n: u64) -> bool {
    let probe = other_print(claim(n).token(u64::MAX));
    match now(store.begin(&probe)).unwrap() {
        ClaimOutcome::Mismatch => true,
        ClaimOutcome::Started { .. } => {
            now(store.release(&probe.slot, probe.token)).unwrap();
            false
        }
        other => panic!("expected Mismatch or Started, got {other:?}"),
    }
}
