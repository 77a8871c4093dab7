//! What single calls do: their round trips, locked rows, and looking in.

use super::*;
use sqlx::PgPool;

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

/// Nobody knows whether such a key is in flight.
#[tokio::test]
async fn a_claim_on_a_locked_table_fails_and_names_the_lock() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let lapsed = claim(2).token(1).lease(Duration::ZERO);
    store.begin(&claim(1).token(1)).await.unwrap();
    store.begin(&lapsed).await.unwrap();
    let other = pool(&url, 1).await;
    for mode in ["ACCESS EXCLUSIVE", "SHARE"] {
        let mut lock = other.begin().await.unwrap();
        let statement = sqlx::AssertSqlSafe(format!("LOCK TABLE idempotency_keys IN {mode} MODE"));
        sqlx::query(statement).execute(&mut *lock).await.unwrap();
        // A new key, and one to take over; alone and in a batch.
        for slots in [&[3][..], &[2], &[2, 3, 4, 5, 6]] {
            let begun = slots.iter().map(|slot| claim(*slot).token(2));
            let begun: Vec<_> = begun.collect();
            let begun = futures_util::future::join_all(begun.iter().map(|claim| store.begin(claim))).await;
            for begun in begun {
                let error = begun.expect_err("the table is locked");
                assert_told(
                    &error,
                    StoreErrorKind::Unavailable,
                    &["postgres: begin: ", "LOCK TABLE"],
                );
            }
        }
        lock.rollback().await.unwrap();
        assert_eq!(store.begin(&claim(3).token(3)).await.unwrap(), ClaimOutcome::started(1));
        assert_eq!(store.release(&claim(3).slot, Token(3)).await.unwrap(), Held::Yes);
    }
}

/// Another request's claim that is being committed is that request's. One's own, sent before on a
/// connection that broke, must not be taken for another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_claim_that_meets_its_own_lock_is_not_in_flight() {
    let Some((server, url)) = database().await else { return };
    let direct = pool(&url, 2).await;
    let proxy = Proxy::start(server.port()).await;
    let through = server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1);
    let store = open(&through, 1).await.connections(1).unwrap();
    store.begin(&claim(9).token(9)).await.unwrap();
    commits_dawdle(&direct, "INSERT").await;
    let claiming = {
        let store = store.clone();
        tokio::spawn(async move { store.begin(&claim(1).token(1)).await })
    };
    until_a_commit_dawdles(&direct).await;
    let other = open(&url, 1).await;
    let duplicate = other.begin(&claim(1).token(2)).await.unwrap();
    assert!(matches!(duplicate, ClaimOutcome::InFlight { .. }), "{duplicate:?}");
    proxy.cut_all().await;
    let error = claiming
        .await
        .unwrap()
        .expect_err("the first try may have taken effect");
    assert!(!error.had_no_effect());
    // What the layer does next.
    eventually("the claim is found", async || {
        store
            .begin(&claim(1).token(1))
            .await
            .is_ok_and(|begun| begun == ClaimOutcome::started(1))
    })
    .await;
}

/// Two seconds for each commit of such a change.
async fn commits_dawdle(direct: &PgPool, change: &str) {
    let trigger = format!(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER dawdles AFTER {change} ON idempotency_keys DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION dawdle()"
    );
    let trigger = sqlx::raw_sql(sqlx::AssertSqlSafe(trigger));
    trigger.execute(direct).await.unwrap();
}

async fn until_a_commit_dawdles(direct: &PgPool) {
    eventually("a commit is being made", async || {
        let dawdling = "SELECT count(*) FROM pg_stat_activity \
                        WHERE datname = current_database() AND wait_event = 'PgSleep'";
        let dawdling: i64 = sqlx::query_scalar(dawdling).fetch_one(direct).await.unwrap();
        dawdling == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_connection_breaks_during_its_commit_is_not_reported_lost() {
    let Some((server, url)) = database().await else { return };
    let direct = pool(&url, 2).await;
    let proxy = Proxy::start(server.port()).await;
    let through = server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1);
    let store = open(&through, 1).await.connections(1).unwrap();
    store.begin(&claim(1).token(1)).await.unwrap();
    commits_dawdle(&direct, "UPDATE").await;
    let completing = {
        let store = store.clone();
        tokio::spawn(async move { store.complete(&claim(1).slot, Token(1), &record(), HOUR).await })
    };
    until_a_commit_dawdles(&direct).await;
    proxy.cut_all().await;
    assert_eq!(completing.await.unwrap().unwrap(), Held::Yes);
    assert_eq!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::Done(record())
    );
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
