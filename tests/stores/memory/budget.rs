//! The budget: what is evicted, what is refused, and what tenants leave each other.

use std::collections::HashSet;

use super::*;

#[test]
fn a_budget_that_is_too_small_is_refused() {
    let error = MemoryStore::builder().budget(BUDGET - 1).build().unwrap_err();
    assert_eq!(error.option(), "budget");
    assert!(error.to_string().contains("65535"), "{error}");
}

#[test]
fn what_is_held_is_counted() {
    let store = MemoryStore::new();
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    started(&store, &claim(1).token(1));
    let claimed = store.stats();
    assert_eq!(claimed.entries, 1);
    for again in [claim(1).token(1), claim(1).token(2), other_print(claim(1).token(3))] {
        now(store.begin(&again)).unwrap();
        assert_eq!(store.stats(), claimed, "nothing was added by {again:?}");
    }
    now(store.complete(&slot(1), Token(1), &record(10_000), HOUR)).unwrap();
    let kept = store.stats();
    assert_eq!(kept.entries, 1);
    assert!((10_000..11_000).contains(&kept.bytes), "{kept:?}");
    keep(&store, 2, &record(5_000), HOUR);
    assert_eq!(store.stats().bytes - kept.bytes, kept.bytes - 5_000);
    write(&store, 3);
    assert_eq!(store.stats().entries, 2);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_used_again_is_counted_once() {
    let store = MemoryStore::new();
    for n in 0..100 {
        let begin = claim(1).token(n).lease(SECOND).ttl(SECOND);
        assert_eq!(started(&store, &begin), 1);
        if n % 2 == 0 {
            now(store.complete(&slot(1), Token(n), &record(500), SECOND)).unwrap();
        }
        assert_eq!(store.stats().entries, 1);
        assert!(store.stats().bytes < 1000, "{:?}", store.stats());
        // Expired, and within the tick, so that nothing has swept it.
        advance(2 * SECOND).await;
    }
    advance(2 * TICK).await;
    (0..8).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_expires_first_is_evicted_first() {
    for seed in 0..50 {
        let store = full(WhenFull::EvictNearestExpiry);
        let mut kept = Vec::new();
        // As many again as there is room for; some expire in one tick, and not in order.
        for n in 0..250 {
            let dice = mix(seed * 1000 + n);
            let ttl = match dice % 4 {
                0 => Duration::from_millis(10_000 + dice / 4 % 3000),
                _ => Duration::from_secs(10 + dice / 4 % 3600),
            };
            let size = 22 + (dice >> 32) as usize % 1000;
            keep(&store, n, &record(size), ttl);
            kept.push((n, ttl));
            assert!(store.stats().bytes <= BUDGET, "{:?}", store.stats());
        }
        // Makes room for one claim, which then serves the probes below.
        write(&store, 0);
        let before = store.stats();
        assert!(before.evicted > 50, "{before:?}");
        assert_eq!(before.entries as u64 + before.evicted, 250);
        // Only those that were not there yet when others were evicted may expire before these.
        let gone: HashSet<_> = kept.iter().map(|(n, _)| *n).filter(|&n| !knows(&store, n)).collect();
        assert_eq!(gone.len() as u64, store.stats().evicted);
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for &(n, ttl) in &kept {
            if gone.contains(&n) { &mut absent } else { &mut present }.push((n, ttl));
        }
        for &(n, ttl) in &absent {
            for &(m, later) in present.iter().filter(|(m, _)| *m < n) {
                assert!(
                    later + TICK > ttl,
                    "{n} ({ttl:?}) was evicted, and {m} ({later:?}) was not"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_expired_was_not_evicted() {
    let store = full(WhenFull::EvictNearestExpiry);
    let record = record(500);
    for round in 0..20 {
        for n in 0..80 {
            keep(&store, round * 1000 + n, &record, SECOND);
        }
        advance(SECOND + TICK).await;
    }
    assert_eq!(store.stats().evicted, 0);
    assert!(store.stats().bytes <= BUDGET);
}

#[tokio::test(start_paused = true)]
async fn running_claims_are_never_evicted() {
    let store = full(WhenFull::EvictNearestExpiry);
    let claims = 0..100;
    for n in claims.clone() {
        started(&store, &claim(n).token(n));
    }
    for n in 1000..6000 {
        keep(&store, n, &record(22 + n as usize % 700), HOUR);
    }
    assert!(store.stats().evicted > 4000, "{:?}", store.stats());
    for n in claims {
        assert!(matches!(
            now(store.begin(&claim(n).token(9999))),
            Ok(ClaimOutcome::InFlight { .. })
        ));
        assert_eq!(now(store.renew(&slot(n), Token(n), HOUR)).unwrap(), Held::Yes);
        assert_eq!(
            now(store.complete(&slot(n), Token(n), &record(100), HOUR)).unwrap(),
            Held::Yes
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_in_use_again_is_not_evicted_for_what_it_was() {
    let store = full(WhenFull::EvictNearestExpiry);
    let short = Duration::from_millis(10);
    keep(&store, 1, &record(100), short);
    keep(&store, 2, &record(100), short);
    advance(short).await;
    // Expired, and used again before their first records were swept.
    keep(&store, 1, &record(100), 10 * HOUR);
    started(&store, &claim(2).token(2));
    for n in 1000..2000 {
        keep(&store, n, &record(100), HOUR);
    }
    assert!(store.stats().evicted > 500);
    assert_eq!(
        now(store.begin(&claim(1).token(9))).unwrap(),
        ClaimOutcome::Done(record(100))
    );
    assert_eq!(now(store.renew(&slot(2), Token(2), HOUR)).unwrap(), Held::Yes);
}

#[tokio::test(start_paused = true)]
async fn claims_alone_can_fill_the_budget() {
    for when_full in [WhenFull::EvictNearestExpiry, WhenFull::RefuseNew] {
        let store = full(when_full);
        let mut claimed = 0;
        let error = loop {
            match now(store.begin(&claim(claimed).token(claimed))) {
                Ok(begun) => assert_eq!(begun, ClaimOutcome::started(1)),
                Err(error) => break error,
            }
            claimed += 1;
            assert!(claimed < 1000);
        };
        assert_eq!(error.kind(), StoreErrorKind::Full);
        assert!(error.to_string().contains("budget"), "{error}");
        assert!(claimed >= 200, "{claimed}");
        let stats = store.stats();
        assert_eq!(stats.entries as u64, claimed);
        assert!(stats.bytes <= BUDGET);
        // Those that have begun are not in the way of each other.
        for n in 0..claimed {
            assert!(matches!(
                now(store.begin(&claim(n).token(9999))),
                Ok(ClaimOutcome::InFlight { .. })
            ));
            assert_eq!(now(store.renew(&slot(n), Token(n), HOUR)).unwrap(), Held::Yes);
        }
        assert_eq!(store.stats(), stats, "and a refusal leaves nothing");
        now(store.release(&slot(0), Token(0))).unwrap();
        started(&store, &claim(claimed).token(claimed));
    }
}

#[tokio::test(start_paused = true)]
async fn refusing_new_keys_keeps_the_known() {
    let store = full(WhenFull::RefuseNew);
    let running = claim(9000).token(9000);
    started(&store, &running);
    let record = record(500);
    let mut kept = 0;
    while store.stats().bytes + 1000 < BUDGET {
        keep(&store, kept, &record, HOUR);
        kept += 1;
    }
    let late = claim(9001).token(9001);
    started(&store, &late);
    let error = (5000..5010)
        .find_map(|n| now(store.begin(&claim(n).token(n))).err())
        .expect("the budget is spent");
    assert_eq!(error.kind(), StoreErrorKind::Full);

    let before = store.stats();
    for n in 0..kept {
        assert_eq!(
            now(store.begin(&claim(n).token(9999))).unwrap(),
            ClaimOutcome::Done(record.clone())
        );
        let other = other_print(claim(n).token(9999));
        assert_eq!(now(store.begin(&other)).unwrap(), ClaimOutcome::Mismatch);
    }
    assert!(matches!(
        now(store.begin(&claim(9000).token(1))),
        Ok(ClaimOutcome::InFlight { .. })
    ));
    assert_eq!(store.stats(), before);
    assert_eq!(before.evicted, 0);

    // What ran is recorded, over the budget if need be.
    let large = self::record(BUDGET);
    assert_eq!(
        now(store.complete(&slot(9001), late.token, &large, HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(
        now(store.begin(&claim(9001).token(1))).unwrap(),
        ClaimOutcome::Done(large)
    );
    assert!(store.stats().bytes > BUDGET);
    assert_eq!(
        now(store.renew(&slot(9000), running.token, 3 * HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(
        now(store.begin(&claim(6000).token(6000))).unwrap_err().kind(),
        StoreErrorKind::Full
    );

    // It recovers when records have expired, not before.
    advance(HOUR - SECOND).await;
    assert!(now(store.begin(&claim(6000).token(6000))).is_err());
    advance(SECOND + TICK).await;
    let refused = (0..10)
        .filter(|&n| now(store.begin(&claim(7000 + n).token(n))).is_err())
        .count();
    assert!(refused <= 2, "{refused} were refused although nearly all had expired");
    assert!(matches!(
        now(store.begin(&claim(9000).token(1))),
        Ok(ClaimOutcome::InFlight { .. })
    ));
    assert_eq!(store.stats().evicted, 0);
}

#[test]
fn a_flood_of_keys_stays_within_the_budget() {
    let keys = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
    let store = full(WhenFull::EvictNearestExpiry);
    let records: Vec<_> = (0..16).map(|n| record(22 + 30 * n)).collect();
    let (mut most, mut entries) = (0, 0);
    for n in 0..keys {
        keep(&store, n, &records[n as usize % records.len()], HOUR);
        let stats = store.stats();
        most = most.max(stats.bytes);
        entries = entries.max(stats.entries);
    }
    assert!(most <= BUDGET, "{most}");
    assert!((100..500).contains(&entries), "{entries}");
    let stats = store.stats();
    assert_eq!(stats.entries as u64 + stats.evicted, keys);
    assert_eq!(
        now(store.begin(&claim(keys - 1).token(1))).unwrap(),
        ClaimOutcome::Done(records[15].clone())
    );
}

/// Keeps small records until there is no room for a claim, and returns how many.
fn fill(store: &MemoryStore) -> u64 {
    let record = record(22);
    let each = {
        keep(store, 0, &record, HOUR);
        store.stats().bytes
    };
    let claim = {
        let before = store.stats().bytes;
        started(store, &claim(1 << 40).token(1));
        let claim = store.stats().bytes - before;
        now(store.release(&slot(1 << 40), Token(1))).unwrap();
        claim
    };
    let mut kept = 1;
    while store.stats().bytes + each + claim <= BUDGET {
        keep(store, kept, &record, HOUR);
        kept += 1;
    }
    while store.stats().bytes + claim <= BUDGET {
        keep(store, kept, &record, HOUR);
        kept += 1;
    }
    assert_eq!(store.stats().evicted, 0);
    kept
}

#[tokio::test(start_paused = true)]
async fn a_known_key_evicts_nothing() {
    let store = full(WhenFull::EvictNearestExpiry);
    let kept = fill(&store);
    // The first to go, should anything be evicted.
    assert_eq!(
        now(store.begin(&claim(0).token(9999))).unwrap(),
        ClaimOutcome::Done(record(22))
    );
    let other = other_print(claim(kept - 1).token(9999));
    assert_eq!(now(store.begin(&other)).unwrap(), ClaimOutcome::Mismatch);
    assert_eq!(store.stats().evicted, 0, "a duplicate needs no room");
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_forgotten_do_not_fill_the_budget_for_ever() {
    for when_full in [WhenFull::EvictNearestExpiry, WhenFull::RefuseNew] {
        let store = full(when_full);
        let dead = (0..).take_while(|&n| {
            let begin = claim(n).token(n).lease(SECOND).ttl(SECOND);
            now(store.begin(&begin)).is_ok()
        });
        let dead = dead.count();
        assert!(dead >= 200);
        advance(2 * SECOND + Duration::from_secs(60)).await;
        let refused = (0..10_000)
            .take_while(|&n| now(store.begin(&claim(1 << 40 | n).token(n))).is_err())
            .count();
        assert!(
            refused < 2 * dead,
            "{when_full:?}: {refused} were refused, and nothing but claims long forgotten is held"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_record_makes_room_for_itself() {
    let store = full(WhenFull::EvictNearestExpiry);
    let kept = fill(&store);
    started(&store, &claim(kept).token(kept));
    let large = record(BUDGET / 2);
    assert_eq!(
        now(store.complete(&slot(kept), Token(kept), &large, HOUR)).unwrap(),
        Held::Yes
    );
    let refused = (0..100)
        .filter(|&n| now(store.begin(&claim(1 << 40 | n).token(n))).is_err())
        .count();
    assert_eq!(refused, 0, "there is enough to evict");
    assert_eq!(
        now(store.begin(&claim(kept).token(9999))).unwrap(),
        ClaimOutcome::Done(large)
    );
}
