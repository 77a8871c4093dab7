//! What has expired is swept by writes.

use super::*;

#[tokio::test(start_paused = true)]
async fn each_write_sweeps_a_few_that_expired() {
    let store = MemoryStore::new();
    for n in 0..1000 {
        keep(&store, n, &record(100), SECOND + Duration::from_millis(n % 7));
    }
    keep(&store, 5000, &record(100), HOUR);
    write(&store, 0);
    assert_eq!(store.stats().entries, 1001, "nothing has expired");
    advance(2 * SECOND + TICK).await;
    for written in 1..=1000_usize.div_ceil(SWEEP) {
        write(&store, 10 + written as u64);
        assert_eq!(store.stats().entries, 1 + 1000_usize.saturating_sub(SWEEP * written));
    }
    assert!(knows(&store, 5000), "what lives is not swept");
    assert_eq!(store.stats().evicted, 0);
    assert!(store.stats().bytes < 1000, "{:?}", store.stats());
}

#[tokio::test(start_paused = true)]
async fn reading_sweeps_nothing_and_finds_nothing_that_expired() {
    let store = MemoryStore::new();
    keep(&store, 1, &record(100), SECOND);
    advance(SECOND).await;
    // Not swept before its tick is over, and yet gone.
    assert!(!knows(&store, 1));
    assert_eq!(store.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn claims_whose_holders_died_are_swept_after_lease_and_ttl() {
    let store = MemoryStore::new();
    let dead = 0..1000_u64;
    for n in dead.clone() {
        started(&store, &claim(n).token(n).lease(SECOND).ttl(10 * SECOND));
    }
    started(&store, &claim(5000).token(5000));
    advance(10 * SECOND).await;
    (0..5000).for_each(|n| write(&store, n));
    assert_eq!(store.stats().entries, 1001, "a lapsed claim is remembered for its ttl");
    advance(SECOND).await;
    let mut writes = 0;
    while store.stats().entries > 1 {
        let before = store.stats().entries;
        write(&store, writes);
        assert!(store.stats().entries + 1 >= before, "one at most for each write");
        writes += 1;
        assert!(writes < 5000, "{:?}", store.stats());
    }
    assert_eq!(now(store.renew(&slot(5000), Token(5000), HOUR)).unwrap(), Held::Yes);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_renewed_and_then_died_is_swept_too() {
    let store = MemoryStore::new();
    let lease = 10 * SECOND;
    started(&store, &claim(1).token(1).lease(lease).ttl(lease));
    for n in 0..100 {
        advance(5 * SECOND).await;
        assert_eq!(now(store.renew(&slot(1), Token(1), lease)).unwrap(), Held::Yes);
        (0..20).for_each(|m| write(&store, n * 100 + m));
        assert_eq!(store.stats().entries, 1);
    }
    advance(2 * lease + Duration::from_secs(60)).await;
    (0..20).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn cycles_of_one_key_leave_nothing_behind() {
    let store = MemoryStore::new();
    for n in 0..50_000 {
        started(&store, &claim(1).token(n));
        now(store.release(&slot(1), Token(n))).unwrap();
    }
    for n in 0..50_000 {
        keep_again(&store, n).await;
    }
    // Had the book kept a line of each, it would take as many writes to get to these.
    started(&store, &claim(2).token(2).lease(SECOND).ttl(SECOND));
    keep(&store, 3, &record(100), SECOND);
    advance(2 * SECOND + TICK).await;
    (0..20).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn waves_of_dead_claims_leave_nothing_behind() {
    let store = MemoryStore::new();
    let wave = |from: u64, count: u64| {
        for n in from..from + count {
            let begin = claim(n).token(n).lease(SECOND).ttl(SECOND);
            started(&store, &begin);
        }
    };
    for n in 0..50 {
        wave(n * 1000, 100);
        advance(2 * SECOND).await;
        (0..400).for_each(|n| write(&store, n));
        assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    }
    // Had each left its line in the book, it would take thousands of writes to come round.
    wave(100_000, 1);
    advance(2 * SECOND).await;
    (0..400).for_each(|n| write(&store, n));
    assert_eq!(store.stats().entries, 0);
}

async fn keep_again(store: &MemoryStore, n: u64) {
    started(store, &claim(1).token(n));
    let ttl = Duration::from_millis(100);
    now(store.complete(&slot(1), Token(n), &record(22), ttl)).unwrap();
    advance(ttl).await;
}
