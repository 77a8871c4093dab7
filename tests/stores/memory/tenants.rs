//! One tenant beside others.

use super::*;

/// As `keep`, for a scope.
fn keep_for(store: &MemoryStore, scope: u32, n: u64, record: &Record) {
    let begin = claim(n).token(n).scope(scope);
    assert_eq!(started(store, &begin), 1);
    assert_eq!(
        now(store.complete(&slot(n), Token(n), record, HOUR)).unwrap(),
        Held::Yes
    );
}

#[test]
fn a_million_keys_of_one_tenant_cost_the_others_nothing() {
    const BUDGET: usize = 4 * 1024 * 1024;
    let store = MemoryStore::builder().budget(BUDGET).build().unwrap();
    let record = record(200);
    // Nine tenants with a hundred keys each: an eighth of the room, together. They came first, so
    // that they are nearest to expiry, and go on while the flood lasts.
    let others: Vec<(u32, u64)> = (1..10).flat_map(|tenant| (0..100).map(move |n| (tenant, n))).collect();
    let number = |tenant: u32, n: u64| u64::from(tenant) << 48 | n;
    let (early, late): (Vec<_>, Vec<_>) = others.iter().copied().partition(|(_, n)| *n < 50);
    for (tenant, n) in early {
        keep_for(&store, tenant, number(tenant, n), &record);
    }
    let mut late = late.into_iter();
    for n in 0..1_000_000 {
        keep_for(&store, 0, n, &record);
        if n % 1000 == 0 {
            assert!(store.stats().bytes <= BUDGET, "{:?}", store.stats());
            if let Some((tenant, n)) = late.next() {
                keep_for(&store, tenant, number(tenant, n), &record);
            }
        }
    }
    assert!(late.next().is_none());
    for (tenant, n) in others {
        assert!(knows(&store, number(tenant, n)), "tenant {tenant} lost {n}");
    }
    assert!(knows(&store, 999_999) && !knows(&store, 0));
    assert!(store.stats().evicted > 900_000, "{:?}", store.stats());
}

#[test]
fn a_tenant_alone_may_fill_the_budget_and_two_alike_share_it() {
    let store = full(WhenFull::EvictNearestExpiry);
    let before = store.stats();
    // The room of the only tenant there was goes to the new one, up to where both have enough.
    let record = record(200);
    for n in 0..100_000_u64 {
        keep_for(&store, 1 + (n % 2) as u32, 1 << 50 | n, &record);
    }
    let stats = store.stats();
    assert!(stats.bytes * 10 > before.bytes * 9, "{stats:?} of {before:?}");
    let known = |parity: u64| {
        (0..100_000)
            .filter(|n| n % 2 == parity && knows(&store, 1 << 50 | n))
            .count()
    };
    let (one, other) = (known(0), known(1));
    assert!(one.abs_diff(other) <= one.max(other) / 10, "{one} and {other}");
}
