//! What is stored, and under which rules.

use super::*;

/// What others read: a change of it needs a new word than `claim`, or a new version of the record.
#[tokio::test]
async fn golden_form_of_what_is_stored() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = claim(Slot::from_bytes([7; Slot::LEN]))
        .token(0xA1)
        .lease(Duration::from_nanos(1_000_001))
        .ttl(HOUR);
    store.begin(&begin).await.unwrap();
    let key = format!("idempotency:{}", "07".repeat(32));
    assert_eq!(store.key(&begin.slot), key);
    let held: String = query(&mut raw, &format!("GET {key}")).await;
    assert_eq!(
        held,
        "claim 00000000000000a1 abababababababababababababababab 1 3600000 00000000000000000000000000000000"
    );
    let left: u64 = query(&mut raw, &format!("PTTL {key}")).await;
    assert!((3_590_000..=3_600_002).contains(&left), "{left}");

    let record = record(b"answer");
    let minute = Duration::from_secs(60);
    assert_eq!(
        store.complete(&begin.slot, begin.token, &record, minute).await.unwrap(),
        Held::Yes
    );
    let held: Vec<u8> = query(&mut raw, &format!("GET {key}")).await;
    // Behind the record, whose it is.
    assert_eq!(held, [&record.to_bytes()[..], "0".repeat(32).as_bytes()].concat());
    let left: u64 = query(&mut raw, &format!("PTTL {key}")).await;
    assert!((50_000..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn times_without_end_and_without_length() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let forever = claim(1).lease(Duration::MAX).ttl(Duration::MAX);
    assert_eq!(store.begin(&forever).await.unwrap(), STARTED);
    let ClaimOutcome::InFlight { lease_left, .. } = store.begin(&claim(1)).await.unwrap() else {
        panic!("it runs")
    };
    assert!(lease_left > Duration::from_millis(99_999_999_000_000), "{lease_left:?}");
    assert_eq!(
        store.renew(&slot(1), forever.token, Duration::MAX).await.unwrap(),
        Held::Yes
    );
    let held = store
        .complete(&slot(1), forever.token, &record(b""), Duration::MAX)
        .await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(record(b"")));

    let nothing = claim(2).lease(Duration::ZERO).ttl(Duration::ZERO);
    assert_eq!(store.begin(&nothing).await.unwrap(), STARTED);
    assert_eq!(store.renew(&slot(2), nothing.token, HOUR).await.unwrap(), Held::Lost);
    let short = claim(2);
    assert_eq!(store.begin(&short).await.unwrap(), STARTED);
    let held = store
        .complete(&slot(2), short.token, &record(b""), Duration::ZERO)
        .await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(
        query::<u32>(&mut raw, "DBSIZE").await,
        1,
        "that record was forgotten at once"
    );
}

#[tokio::test]
async fn attempts_do_not_overflow() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let text = format!(
        "claim {:016x} {} {} 3600000 {}",
        9,
        "ab".repeat(16),
        u32::MAX - 1,
        "0".repeat(32)
    );
    let set = cmd("SET")
        .arg(store.key(&slot(1)))
        .arg(text)
        .arg("PX")
        .arg(1000)
        .to_owned();
    let () = set.query_async(&mut raw).await.unwrap();
    for _ in 0..2 {
        let begin = claim(1).lease(Duration::ZERO);
        assert_eq!(store.begin(&begin).await.unwrap(), ClaimOutcome::started(u32::MAX));
    }
    let held: String = query(&mut raw, &format!("GET {}", store.key(&slot(1)))).await;
    assert!(held.contains(&format!(" {} ", u32::MAX)), "{held}");
}

#[tokio::test]
async fn prefixes_do_not_meet() {
    let Some(server) = Redis::start() else { return };
    let one = store(&server).await.prefix("a:").unwrap();
    let two = store(&server).await.prefix("a:b:").unwrap();
    let odd = store(&server).await.prefix("{a*?[b]\\:").unwrap();
    for store in [&one, &two, &odd] {
        assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    }
    assert_eq!(two.begin(&claim(2)).await.unwrap(), STARTED);
    for (store, running) in [(&one, 1), (&two, 2), (&odd, 1)] {
        assert_eq!(store.count().await.unwrap(), Census::new(running, 0, 0), "{store:?}");
    }
    assert!(one.forget(&slot(1)).await.unwrap());
    assert_eq!(two.count().await.unwrap(), Census::new(2, 0, 0));
    for refused in ["", "a b", "a\n", "a\0", &"x".repeat(65)] {
        let error = one.clone().prefix(refused).unwrap_err();
        assert_eq!(error.option(), "prefix", "{refused:?}");
    }
    assert!(one.prefix(&"x".repeat(64)).is_ok());
}
