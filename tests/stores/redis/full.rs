//! A server without memory, which refuses to write and evicts nothing.

use super::*;

async fn is_full(raw: &mut MultiplexedConnection, full: bool) {
    let limit = if full { "1" } else { "0" };
    let () = query(raw, &format!("CONFIG SET maxmemory {limit}")).await;
}

fn long(body: &'static [u8]) -> Record {
    assert!(record(body).to_bytes().len() > 64);
    record(body)
}

const LONG: &[u8] = &[b'a'; 200];

#[tokio::test]
async fn a_full_server_refuses_new_keys_and_replays() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let (done, running) = (claim(1), claim(2));
    store.begin(&done).await.unwrap();
    let held = store.complete(&slot(1), done.token, &record(b"answer"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    store.begin(&running).await.unwrap();
    is_full(&mut raw, true).await;
    assert_fails(store.begin(&claim(3)).await, StoreErrorKind::Full, "maxmemory");
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );
    assert!(matches!(
        store.begin(&claim(2)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    assert_eq!(store.renew(&slot(2), running.token, HOUR).await.unwrap(), Held::Yes);
    assert_eq!(store.release(&slot(2), running.token).await.unwrap(), Held::Yes);
}

#[tokio::test]
async fn an_operation_whose_record_has_no_room_does_not_run_again() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let lease = Duration::from_millis(200);
    for (n, answer) in [
        (1, long(LONG)),
        (
            2,
            Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; 1 << 20]))),
        ),
    ] {
        let begin = claim(n).lease(lease);
        store.begin(&begin).await.unwrap();
        is_full(&mut raw, true).await;
        for _ in 0..2 {
            assert_fails(
                store.complete(&slot(n), begin.token, &answer, HOUR).await,
                StoreErrorKind::Full,
                "outcome-unknown",
            );
        }
        // Neither the end of the lease nor a late renewal brings it back.
        assert_eq!(store.renew(&slot(n), begin.token, lease).await.unwrap(), Held::Yes);
        assert_eq!(
            store.begin(&claim(n)).await.unwrap(),
            ClaimOutcome::OutcomeUnknown,
            "whatever is to be done with a lapsed claim"
        );
        assert_eq!(
            store.begin(&claim(n).print(print(1))).await.unwrap(),
            ClaimOutcome::Mismatch
        );
        let left: u64 = query(&mut raw, &format!("PTTL {}", store.key(&slot(n)))).await;
        assert!(left > 3_500_000, "kept as long as its record would be: {left}");
        assert_eq!(store.count().await.unwrap().lapsed, 1);
        // There is room again, and the record is stored late.
        is_full(&mut raw, false).await;
        let held = store.complete(&slot(n), begin.token, &answer, HOUR).await;
        assert_eq!(held.unwrap(), Held::Yes);
        assert_eq!(store.begin(&claim(n)).await.unwrap(), ClaimOutcome::Done(answer));
    }
}

#[tokio::test]
async fn a_tombstone_takes_no_more_than_its_claim_and_is_stored() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    is_full(&mut raw, true).await;
    let tombstone = Record::outcome_unknown(PRINT);
    let held = store.complete(&slot(1), begin.token, &tombstone, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(tombstone));
}

#[tokio::test]
async fn an_operation_whose_record_has_no_room_can_be_settled_and_forgotten() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let (one, two) = (claim(1), claim(2));
    for (n, begin) in [(1, &one), (2, &two)] {
        store.begin(begin).await.unwrap();
        is_full(&mut raw, true).await;
        let answer = store.complete(&slot(n), begin.token, &long(LONG), HOUR).await;
        assert_fails(answer, StoreErrorKind::Full, "maxmemory");
        is_full(&mut raw, false).await;
    }
    let answer = Response::new(Bytes::from_static(b"charged"));
    assert!(store.settle(&slot(1), &answer, HOUR).await.unwrap());
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"charged"))
    );
    let held = store.complete(&slot(1), one.token, &long(LONG), HOUR).await;
    assert_eq!(held.unwrap(), Held::Lost, "its holder is fenced off");
    assert!(store.forget(&slot(2)).await.unwrap());
    assert_eq!(store.begin(&claim(2)).await.unwrap(), STARTED);
}

#[tokio::test]
async fn an_operation_whose_record_has_no_room_can_be_settled_through_stores_that_wrap_others() {
    use std::sync::Arc;
    use tower_idempotency::store::{DynStore, KeyRing, Sealed, Tiered};

    async fn check(store: impl Inspect, n: u64, raw: &mut MultiplexedConnection) {
        let begin = claim(n);
        store.begin(&begin).await.unwrap();
        is_full(raw, true).await;
        let answer = store.complete(&slot(n), begin.token, &long(LONG), HOUR).await;
        assert_fails(answer, StoreErrorKind::Full, "maxmemory");
        is_full(raw, false).await;
        assert_eq!(
            store.begin(&claim(n)).await.unwrap(),
            ClaimOutcome::OutcomeUnknown,
            "of {n}"
        );
        let answer = Response::new(Bytes::from_static(b"charged"));
        assert!(store.settle(&slot(n), &answer, HOUR).await.unwrap(), "of {n}");
        assert_eq!(
            store.begin(&claim(n)).await.unwrap(),
            ClaimOutcome::Done(record(b"charged")),
            "of {n}"
        );
    }

    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let sealed = Sealed::new(store.clone(), KeyRing::new([1; 32])).unwrap();
    check(Arc::new(store.clone()), 1, &mut raw).await;
    check(Tiered::new(store.clone()), 2, &mut raw).await;
    check(sealed.clone(), 3, &mut raw).await;
    check(DynStore::new(store), 4, &mut raw).await;
    check(Tiered::new(Arc::new(sealed)), 5, &mut raw).await;
}

#[tokio::test]
async fn contract_6_4_what_a_full_server_could_not_store_does_not_run_again_after_settle_within() {
    let Some(server) = Redis::start() else { return };
    let mut raw = raw(&server.url()).await;
    let layer = IdempotencyLayer::builder(store(&server).await)
        .lease(Duration::from_millis(600))
        .settle_within(Duration::from_millis(300))
        .build()
        .unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let filler = raw.clone();
    let service = layer.layer(inner(move |_| {
        counter.up();
        let mut filler = filler.clone();
        async move {
            is_full(&mut filler, true).await;
            ok("charged, and said so at length: the record is longer than a claim, which has some sixty bytes")
        }
    }));
    assert_eq!(send(&service, post("/", "k", "b")).await.status, StatusCode::OK);
    layer.background().wait().await;
    is_full(&mut raw, false).await;
    // The lease is over when another claim of the same length, made later, is.
    let plain = RedisStore::connect(&server.url()).await.unwrap();
    plain
        .begin(&claim(1).lease(Duration::from_millis(600)).ttl(Duration::ZERO))
        .await
        .unwrap();
    eventually("a lease is over", async || {
        plain.look_up(&slot(1)).await.unwrap().is_none()
    })
    .await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "outcome-unknown");
    assert_eq!(runs.get(), 1);
}

/// A process that dies before it writes a record.
struct Dying(RedisStore);

impl Store for Dying {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.0.begin(begin).await
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.0.renew(slot, token, lease).await
    }

    async fn complete(&self, _: &Slot, _: Token, _: &Record, _: Duration) -> Result<Held, StoreError> {
        std::future::pending().await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.0.release(slot, token).await
    }
}

impl Inspect for Dying {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        self.0.look_up(slot).await
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        self.0.forget(slot).await
    }

    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        self.0.forget_scope(scope).await
    }

    async fn count(&self) -> Result<Census, StoreError> {
        self.0.count().await
    }
}

#[tokio::test]
async fn an_operation_known_to_be_done_does_not_run_again_if_its_settlement_is_cut_off() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    is_full(&mut raw, true).await;
    let held = store.complete(&slot(1), begin.token, &long(LONG), HOUR).await;
    assert_fails(held, StoreErrorKind::Full, "maxmemory");
    is_full(&mut raw, false).await;
    let dying = Dying(store.clone());
    let settling = tokio::spawn(async move {
        let answer = Response::new(Bytes::from_static(b"charged"));
        dying.settle(&slot(1), &answer, HOUR).await
    });
    eventually("the settlement has claimed the slot", async || {
        let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
        !matches!(entry.phase, Phase::Running { attempt: 1, .. })
    })
    .await;
    settling.abort();
    let retry = store.begin(&claim(1)).await.unwrap();
    assert_eq!(retry, ClaimOutcome::OutcomeUnknown);
}
