//! Slots that have the same hash.

use tower_idempotency::store::{Inspect, Machine, Millis, Slot};

use super::*;

/// Slots that every store hashes alike, whatever its seed: the hash is of the first half.
fn alike(n: u64) -> Slot {
    let mut bytes = [7; Slot::LEN];
    bytes[16..24].copy_from_slice(&n.to_le_bytes());
    Slot::from_bytes(bytes)
}

/// Claims the slot and completes it.
fn keep_alike(store: &MemoryStore, n: u64, record: &Record, ttl: Duration) {
    assert_eq!(started(store, &claim(alike(n)).token(n)), 1);
    assert_eq!(
        now(store.complete(&alike(n), Token(n), record, ttl)).unwrap(),
        Held::Yes
    );
}

#[tokio::test(start_paused = true)]
async fn each_of_them_goes_by_the_rules() {
    const SLOTS: u64 = 6;
    let store = MemoryStore::new();
    let mut machines: Vec<Machine> = (0..SLOTS).map(|_| Machine::default()).collect();
    let mut millis = 0;
    for n in 0..30_000_u64 {
        let dice = mix(n);
        let at = dice % SLOTS;
        let (slot, machine, time) = (alike(at), &mut machines[at as usize], Millis(millis));
        let token = Token(dice >> 8 & 3);
        let span = Duration::from_millis(dice >> 16 & 1023);
        match dice >> 32 & 15 {
            0..6 => {
                let begin = claim(slot).token(token.0).lease(span).ttl(span * 2);
                let begin = if dice >> 40 & 3 == 0 { other_print(begin) } else { begin };
                assert_eq!(now(store.begin(&begin)).unwrap(), machine.begin(&begin, time));
            }
            6..9 => {
                let record = record(22 + at as usize);
                assert_eq!(
                    now(store.complete(&slot, token, &record, span)).unwrap(),
                    machine.complete(token, &record, span, time)
                );
            }
            9..11 => assert_eq!(now(store.release(&slot, token)).unwrap(), machine.release(token, time)),
            11..13 => {
                let lease = if dice >> 40 & 1 == 0 { Duration::ZERO } else { span };
                assert_eq!(
                    now(store.renew(&slot, token, lease)).unwrap(),
                    machine.renew(token, lease, time)
                );
            }
            13 => {
                now(store.forget(&slot)).unwrap();
                *machine = Machine::default();
            }
            _ => {
                let passed = dice >> 16 & 255;
                advance(Duration::from_millis(passed)).await;
                millis += passed;
            }
        }
    }
    for n in 0..SLOTS {
        now(store.forget(&alike(n))).unwrap();
    }
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_that_expired_are_swept_and_no_other() {
    let store = MemoryStore::new();
    for n in 0..100 {
        keep_alike(&store, n, &record(100), if n % 5 == 0 { HOUR } else { SECOND });
        started(&store, &claim(alike(1000 + n)).token(n).lease(SECOND).ttl(SECOND));
    }
    advance(3 * SECOND + TICK).await;
    (0..200).for_each(|n| write(&store, n));
    assert_eq!(store.stats().entries, 20);
    assert_eq!(now(store.count()).unwrap().done, 20);
    for n in 0..100 {
        let held = now(store.look_up(&alike(n))).unwrap();
        assert_eq!(held.is_some(), n % 5 == 0, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_one_nearest_to_expiry_is_evicted() {
    let store = full(WhenFull::EvictNearestExpiry);
    for n in 0..1000 {
        keep_alike(&store, n, &record(300), HOUR + SECOND * n as u32);
    }
    let stats = store.stats();
    assert!(stats.evicted > 500 && stats.bytes <= BUDGET, "{stats:?}");
    assert_eq!(stats.entries as u64 + stats.evicted, 1000);
    // Each was among the last to expire when it came.
    for n in 0..1000 {
        let held = now(store.look_up(&alike(n))).unwrap();
        assert_eq!(held.is_some(), n >= stats.evicted, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_is_not_woken_by_the_end_of_another() {
    let store = MemoryStore::new();
    for n in 0..3 {
        started(&store, &claim(alike(n)).token(n));
    }
    let slot = alike(1);
    let mut waiting = pin!(store.changed(&slot, 0));
    let mut is_ready = || {
        let mut context = Context::from_waker(Waker::noop());
        waiting.as_mut().poll(&mut context).is_ready()
    };
    assert!(!is_ready());
    now(store.release(&alike(0), Token(0))).unwrap();
    now(store.complete(&alike(2), Token(2), &record(100), HOUR)).unwrap();
    assert!(!is_ready());
    now(store.release(&slot, Token(1))).unwrap();
    assert!(is_ready());
}
