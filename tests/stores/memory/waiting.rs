//! Those who wait for a claim to end.

use std::pin::Pin;
use std::task::Wake;

use tokio::time::timeout;

use super::*;

#[test]
fn no_runtime_is_needed() {
    let store = MemoryStore::new();
    let holder = store.clone();
    std::thread::spawn(move || started(&holder, &claim(1).token(1)))
        .join()
        .unwrap();
    assert!(matches!(
        now(store.begin(&claim(1).token(2))),
        Ok(ClaimOutcome::InFlight { .. })
    ));
    let first = slot(1);
    let mut waiting = pin!(store.changed(&first, 0));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    let holder = store.clone();
    std::thread::spawn(move || now(holder.release(&slot(1), Token(1))).unwrap())
        .join()
        .unwrap();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(waiting.as_mut().poll(&mut context).is_ready());
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn one_release_wakes_all_who_wait_for_the_slot() {
    let store = MemoryStore::new();
    for n in 0..2 {
        started(&store, &claim(n).token(n));
    }
    let mut waiters = tokio::task::JoinSet::new();
    for n in (0..2).cycle().take(200) {
        let store = store.clone();
        waiters.spawn(async move {
            store.changed(&slot(n), 0).await;
            n
        });
    }
    tokio::task::yield_now().await;
    assert!(waiters.try_join_next().is_none());
    now(store.release(&slot(0), Token(0))).unwrap();
    for _ in 0..100 {
        let woken = timeout(SECOND, waiters.join_next()).await.expect("woken");
        assert_eq!(woken.unwrap().unwrap(), 0);
    }
    assert!(
        timeout(HOUR / 2, waiters.join_next()).await.is_err(),
        "slot 1 runs still"
    );
    now(store.complete(&slot(1), Token(1), &record(22), HOUR)).unwrap();
    for _ in 0..100 {
        let woken = timeout(SECOND, waiters.join_next()).await.expect("woken");
        assert_eq!(woken.unwrap().unwrap(), 1);
    }
}

fn is_ready(future: &mut Pin<&mut impl Future>) -> bool {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn no_wake_up_is_lost() {
    let (store, slot) = (MemoryStore::new(), slot(1));
    assert!(is_ready(&mut pin!(store.changed(&slot, 0))), "nothing runs");

    started(&store, &claim(1).token(1));
    let mut early = pin!(store.changed(&slot, 0));
    now(store.release(&slot, Token(1))).unwrap();
    started(&store, &claim(1).token(2));
    assert!(
        is_ready(&mut early),
        "asked about the first claim, first polled while the second runs"
    );

    let mut next = pin!(store.changed(&slot, 0));
    assert!(!is_ready(&mut next), "the second claim runs");
    drop(Box::pin(store.changed(&slot, 0)));
    now(store.complete(&slot, Token(2), &record(22), HOUR)).unwrap();
    assert!(is_ready(&mut next), "the second claim has ended");
    assert!(is_ready(&mut pin!(store.changed(&slot, 0))), "done");
}

#[test]
fn who_begins_to_wait_after_the_claim_lapsed_does_not_wait() {
    let (store, slot) = (MemoryStore::new(), slot(1));
    started(&store, &claim(1).token(1));
    assert_eq!(now(store.renew(&slot, Token(1), Duration::ZERO)).unwrap(), Held::Yes);
    assert!(is_ready(&mut pin!(store.changed(&slot, 0))));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_claim_that_lapsed_waits_for_its_successor() {
    let (store, slot) = (MemoryStore::new(), slot(1));
    started(&store, &claim(1).token(1).lease(SECOND));
    let mut waiting = pin!(store.changed(&slot, 0));
    assert!(!is_ready(&mut waiting));
    advance(SECOND).await;
    assert_eq!(started(&store, &claim(1).token(2)), 2);
    now(store.release(&slot, Token(2))).unwrap();
    assert!(is_ready(&mut waiting));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_claim_that_is_forgotten_is_woken() {
    // (what happens when lease and ttl are over)
    let again: fn(&MemoryStore) = |store| assert_eq!(started(store, &claim(1).token(2)), 1);
    let swept: fn(&MemoryStore) = |store| (0..20).for_each(|n| write(store, n));
    for (happens, what) in [(again, "the slot is claimed again"), (swept, "the claim is swept")] {
        let (store, slot) = (MemoryStore::new(), slot(1));
        started(&store, &claim(1).token(1).lease(SECOND).ttl(SECOND));
        let mut waiting = pin!(store.changed(&slot, 0));
        assert!(!is_ready(&mut waiting));
        advance(2 * SECOND).await;
        happens(&store);
        assert!(is_ready(&mut waiting), "{what}");
    }
}
