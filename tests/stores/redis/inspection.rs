//! Looking into the store.

use super::*;

#[tokio::test]
async fn looking_up_and_counting_and_forgetting() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    assert_eq!(store.look_up(&slot(1)).await.unwrap(), None);
    assert!(!store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.count().await.unwrap(), Census::default());

    let running = claim(1);
    store.begin(&running).await.unwrap();
    let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
    assert_eq!(entry.fingerprint, PRINT);
    let Phase::Running { attempt: 1, lease_left } = entry.phase else {
        panic!("{entry}")
    };
    assert!(
        lease_left <= HOUR && lease_left > HOUR - Duration::from_secs(60),
        "{entry}"
    );
    assert!(entry.forgotten_in <= 2 * HOUR && entry.forgotten_in > 2 * HOUR - Duration::from_secs(60));

    let lapsed = claim(2);
    store.begin(&lapsed).await.unwrap();
    store.renew(&slot(2), lapsed.token, Duration::ZERO).await.unwrap();
    let entry = store.look_up(&slot(2)).await.unwrap().unwrap();
    assert_eq!(
        entry.phase,
        Phase::Running {
            attempt: 1,
            lease_left: Duration::ZERO
        }
    );

    let done = claim(3);
    store.begin(&done).await.unwrap();
    store
        .complete(&slot(3), done.token, &record(b"answer"), HOUR)
        .await
        .unwrap();
    let entry = store.look_up(&slot(3)).await.unwrap().unwrap();
    assert_eq!(entry.fingerprint, PRINT);
    assert_eq!(
        entry.phase,
        Phase::Done {
            bytes: record(b"answer").len()
        }
    );
    assert!(entry.forgotten_in <= HOUR && entry.forgotten_in > HOUR - Duration::from_secs(60));

    // More than one batch, and keys that are none of ours.
    let mut raw = raw(&server.url()).await;
    for n in 0..1500_u32 {
        let mut bytes = [9; Slot::LEN];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        store.begin(&claim(Slot::from_bytes(bytes))).await.unwrap();
        let () = query(&mut raw, &format!("SET other:{n} 1")).await;
    }
    let () = query(&mut raw, &format!("HSET {} a 1", store.key(&slot(200)))).await;
    let () = query(&mut raw, "SET idempotency:short 1").await;
    assert_eq!(store.count().await.unwrap(), Census::new(1501, 1, 1));

    assert!(store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.look_up(&slot(1)).await.unwrap(), None);
    let held = store
        .complete(&slot(1), running.token, &record(b""), HOUR)
        .await
        .unwrap();
    assert_eq!(held, Held::Lost, "the holder is fenced off");
    let other = claim(1).print(print(1));
    assert_eq!(store.begin(&other).await.unwrap(), STARTED);
}

#[tokio::test]
async fn what_nobody_knows_is_settled() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    let lapsed = claim(1);
    let answer = Response::new(Bytes::from_static(b"charged"));
    assert!(!store.settle(&slot(1), &answer, HOUR).await.unwrap(), "vacant");
    store.begin(&lapsed).await.unwrap();
    assert!(!store.settle(&slot(1), &answer, HOUR).await.unwrap(), "running");
    store.renew(&slot(1), lapsed.token, Duration::ZERO).await.unwrap();
    assert!(store.settle(&slot(1), &answer, HOUR).await.unwrap());
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"charged"))
    );
}
