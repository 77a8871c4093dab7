//! What single calls do: their round trips, locked rows, and looking in.

use super::*;

#[tokio::test]
async fn one_round_trip_each() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1), 1).await;
    // Every statement is prepared.
    store.begin(&claim(9).token(9)).await.unwrap();
    store.renew(&claim(9).slot, Token(9), HOUR).await.unwrap();
    store.complete(&claim(9).slot, Token(9), &record(), HOUR).await.unwrap();
    store.begin(&claim(8).token(8)).await.unwrap();
    store.release(&claim(8).slot, Token(8)).await.unwrap();
    let trips = async |name: &str, expected: u64| {
        static BEFORE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let now = proxy.round_trips();
        let before = BEFORE.swap(now, Ordering::Relaxed);
        assert_eq!(now - before, expected, "{name}");
    };
    let start = proxy.round_trips();
    trips("so far", start).await;
    assert_eq!(store.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
    trips("claim", 1).await;
    assert!(matches!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    trips("in flight", 1).await;
    let other = claim(1).token(2).print(print(8));
    assert_eq!(store.begin(&other).await.unwrap(), ClaimOutcome::Mismatch);
    trips("mismatch", 1).await;
    assert_eq!(store.renew(&other.slot, Token(1), HOUR).await.unwrap(), Held::Yes);
    trips("renew", 1).await;
    assert_eq!(
        store.complete(&other.slot, Token(1), &record(), HOUR).await.unwrap(),
        Held::Yes
    );
    trips("complete", 1).await;
    assert_eq!(
        store.begin(&claim(1).token(3)).await.unwrap(),
        ClaimOutcome::Done(record())
    );
    trips("replay", 1).await;
    let other_rule = claim(1).token(3).print(print_under_another_rule(8));
    assert_eq!(store.begin(&other_rule).await.unwrap(), ClaimOutcome::Done(record()));
    trips("replay, under another rule", 1).await;
    store.begin(&claim(2).token(1)).await.unwrap();
    trips("claim", 1).await;
    assert_eq!(store.release(&claim(2).slot, Token(1)).await.unwrap(), Held::Yes);
    trips("release", 1).await;
}

#[tokio::test]
async fn a_row_that_is_locked_is_in_flight_at_once() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let other = open(&url, 1).await;
    for (slot, lapse) in [(1, false), (2, true)] {
        store.begin(&claim(slot).token(1)).await.unwrap();
        if lapse {
            store.renew(&claim(slot).slot, Token(1), Duration::ZERO).await.unwrap();
        }
        let mut lock = other.pool().begin().await.unwrap();
        sqlx::query("UPDATE idempotency_keys SET attempt = attempt WHERE slot = $1")
            .bind(claim(slot).slot.as_bytes().as_slice())
            .execute(&mut *lock)
            .await
            .unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(10), store.begin(&claim(slot).token(2))).await;
        assert!(matches!(
            asked.expect("it does not wait").unwrap(),
            ClaimOutcome::InFlight { .. }
        ));
        let print = claim(slot).token(3).print(print(8));
        assert_eq!(store.begin(&print).await.unwrap(), ClaimOutcome::Mismatch);
        // The sweeper passes it by.
        sqlx::query(
            "UPDATE idempotency_keys SET forget_at = now() - interval '1 day', sweep_at = now() - interval '1 day'",
        )
        .execute(&mut *lock)
        .await
        .unwrap();
        assert_eq!(store.sweep(10).await.unwrap(), 0);
        lock.rollback().await.unwrap();
        let again = store.begin(&claim(slot).token(2)).await.unwrap();
        assert_eq!(again == ClaimOutcome::started(2), lapse, "{again:?}");
    }
    // Forgotten and locked.
    let brief = claim(3).token(1).lease(Duration::ZERO).ttl(Duration::ZERO);
    store.begin(&brief).await.unwrap();
    let mut lock = other.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM idempotency_keys FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(10), store.begin(&claim(3).token(2))).await;
    assert!(matches!(
        asked.expect("it does not wait").unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    lock.rollback().await.unwrap();
    assert_eq!(store.begin(&claim(3).token(2)).await.unwrap(), ClaimOutcome::started(1));
}

/// The store has one connection here: whoever waits on it for a row holds up everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_stays_locked_is_waited_for_once_and_then_passed_by() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let through = server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1);
    let store = open(&through, 1).await.connections(1).unwrap();
    let direct = pool(&url, 2).await;
    for number in 1..=8 {
        store.begin(&claim(number).token(number)).await.unwrap();
    }
    let mut lock = direct.begin().await.unwrap();
    let locked = sqlx::query("SELECT FROM idempotency_keys FOR UPDATE").execute(&mut *lock);
    assert_eq!(locked.await.unwrap().rows_affected(), 8);
    let changes: Vec<_> = (1..=8)
        .map(|number| {
            let (store, slot, token) = (store.clone(), claim(number).slot, Token(number));
            tokio::spawn(async move {
                match number % 2 {
                    0 => store.release(&slot, token).await,
                    _ => store.complete(&slot, token, &record(), HOUR).await,
                }
            })
        })
        .collect();
    // More than all of them ask the first time, with what is prepared for it.
    let all_asked = proxy.round_trips() + 32;
    eventually("all have asked", async || proxy.round_trips() >= all_asked).await;
    let asked_again = proxy.round_trips() + 32;
    eventually("they ask again", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&direct).await.unwrap();
        assert_eq!(waiting, 0, "no connection waits for a row");
        proxy.round_trips() >= asked_again
    })
    .await;
    assert_eq!(store.begin(&claim(9).token(9)).await.unwrap(), ClaimOutcome::started(1));
    assert!(changes.iter().all(|change| !change.is_finished()));
    lock.rollback().await.unwrap();
    for change in changes {
        assert_eq!(change.await.unwrap().unwrap(), Held::Yes);
    }
    let census = store.count().await.unwrap();
    assert_eq!((census.done, census.running), (4, 1));
}

#[tokio::test]
async fn what_is_in_a_slot_is_told_and_settled() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let slot = claim(1).slot;
    assert_eq!(store.look_up(&slot).await.unwrap(), None);
    assert!(!store.forget(&slot).await.unwrap());
    store.begin(&claim(1).token(1)).await.unwrap();
    let entry = store.look_up(&slot).await.unwrap().unwrap();
    let Phase::Running { attempt: 1, lease_left } = entry.phase else {
        panic!("{entry}")
    };
    assert!(lease_left <= HOUR && lease_left > HOUR / 2, "{entry}");
    assert!(entry.forgotten_in > HOUR && entry.forgotten_in <= HOUR + HOUR);
    assert_eq!(entry.fingerprint, claim(1).token(1).fingerprint);
    let answer = Response::builder().status(201).body(Bytes::from("by hand")).unwrap();
    assert!(!store.settle(&slot, &answer, HOUR).await.unwrap(), "it runs");
    store.renew(&slot, Token(1), Duration::ZERO).await.unwrap();
    let census = store.count().await.unwrap();
    assert_eq!((census.running, census.lapsed, census.done), (0, 1, 0));
    let refuse = claim(1).token(2).on_lapse(OnLapse::Refuse);
    assert_eq!(store.begin(&refuse).await.unwrap(), ClaimOutcome::OutcomeUnknown);
    assert!(store.settle(&slot, &answer, HOUR).await.unwrap());
    assert!(!store.settle(&slot, &answer, HOUR).await.unwrap());
    assert!(matches!(store.begin(&refuse).await.unwrap(), ClaimOutcome::Done(_)));
    let entry = store.look_up(&slot).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { bytes } if bytes > 7), "{entry}");
    store.begin(&claim(2).token(1)).await.unwrap();
    let brief = claim(3).token(1).lease(Duration::ZERO).ttl(Duration::ZERO);
    store.begin(&brief).await.unwrap();
    let census = store.count().await.unwrap();
    assert_eq!((census.running, census.lapsed, census.done), (1, 0, 1));
    assert_eq!(store.look_up(&brief.slot).await.unwrap(), None);
    assert!(!store.forget(&brief.slot).await.unwrap(), "it was forgotten already");
    assert!(store.forget(&slot).await.unwrap());
    let other = claim(1).token(5).print(print(8));
    assert_eq!(store.begin(&other).await.unwrap(), ClaimOutcome::started(1));
}

#[tokio::test]
async fn a_scope_is_forgotten_a_thousand_rows_at_a_time() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let mine = ScopeTag::from_bytes([1; 16]);
    let pool = pool(&url, 1).await;
    let insert = "INSERT INTO idempotency_keys (slot, scope, fingerprint, token, attempt, lease_until, forget_at, sweep_at, record) \
         SELECT decode(md5(n::text), 'hex'), $1, '\\x00', 1, 1, now(), now() + interval '1 hour' * (n % 3 - 0.5), now(), '\\x00' \
         FROM generate_series(1, 3000) AS n";
    sqlx::query(insert)
        .bind(mine.as_bytes().as_slice())
        .execute(&pool)
        .await
        .unwrap();
    let other = claim(1).token(1);
    store.begin(&other).await.unwrap();
    store.complete(&other.slot, Token(1), &record(), HOUR).await.unwrap();
    assert_eq!(store.forget_scope(&mine).await.unwrap(), 2000, "a third had expired");
    assert_eq!(store.forget_scope(&mine).await.unwrap(), 0);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(rows, 1, "expired rows go too, and another scope's stay");
}
