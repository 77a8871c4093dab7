//! Records above 16 KiB.

use super::*;

fn large(bytes: usize) -> Record {
    Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; bytes])))
}

async fn complete(store: &RedisStore, n: u64, record: &Record) {
    let begin = claim(n);
    assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
    let held = store.complete(&slot(n), begin.token, record, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}

#[tokio::test]
async fn golden_form_of_a_large_record_and_what_may_be_done_with_it() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let record = large(1 << 20);
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    let held = store.complete(&slot(1), begin.token, &record, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    let key = store.key(&slot(1));
    assert_eq!(query::<String>(&mut raw, &format!("TYPE {key}")).await, "hash");
    let held: Vec<u8> = query(&mut raw, &format!("HGET {key} record")).await;
    assert_eq!(held, record.to_bytes());
    assert_eq!(
        query::<u32>(&mut raw, "DBSIZE").await,
        1,
        "one key, which expires as one"
    );
    let left: u64 = query(&mut raw, &format!("PTTL {key}")).await;
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");

    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record.clone())
    );
    let other = claim(1).print(print(1));
    assert_eq!(store.begin(&other).await.unwrap(), ClaimOutcome::Mismatch);
    let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
    assert_eq!(
        (entry.fingerprint, entry.phase),
        (PRINT, Phase::Done { bytes: record.len() })
    );
    assert_eq!(store.count().await.unwrap(), Census::new(0, 0, 1));
    for held in [
        store.renew(&slot(1), begin.token, HOUR).await,
        store.release(&slot(1), begin.token).await,
        store.complete(&slot(1), begin.token, &record, HOUR).await,
        store.complete(&slot(1), begin.token, &large(1), HOUR).await,
    ] {
        assert_eq!(held.unwrap(), Held::Lost, "it has ended");
    }
    assert!(store.forget(&slot(1)).await.unwrap());
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
}

#[tokio::test]
async fn a_large_record_whose_answer_was_lost_is_found_again() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    // The script is known, so that the answer that is lost is that of the operation.
    complete(&store, 1, &large(1 << 16)).await;
    let begin = claim(2);
    store.begin(&begin).await.unwrap();
    tally.proxy.cut_after_requests(1);
    let held = store.complete(&slot(2), begin.token, &large(1 << 16), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    tally.proxy.cut_after_requests(2);
    assert_eq!(
        store.begin(&claim(2)).await.unwrap(),
        ClaimOutcome::Done(large(1 << 16))
    );
}

#[tokio::test]
async fn a_large_record_that_is_damaged_is_never_claimed_over() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    complete(&store, 1, &large(1 << 16)).await;
    let key = store.key(&slot(1));
    for bytes in [&large(1 << 16).to_bytes()[..100], b"somebody else's", b""] {
        let mut set = cmd("HSET");
        let () = set
            .arg(&key)
            .arg("record")
            .arg(bytes)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Corrupt, "redis: begin: ");
        assert_eq!(query::<u32>(&mut raw, "DBSIZE").await, 1);
    }
    // Another application's hash.
    let () = query(&mut raw, &format!("DEL {key}")).await;
    let () = query(&mut raw, &format!("HSET {key} field 1")).await;
    assert_fails(
        store.begin(&claim(1)).await,
        StoreErrorKind::Corrupt,
        "another application",
    );
}

/// Whatever is on its way over the connection for large records, a claim does not wait for it.
#[tokio::test]
async fn claims_do_not_wait_behind_large_records() {
    let Some(server) = Redis::start() else { return };
    let proxy = Proxy::start(server.port()).await;
    let plain = store(&server).await;
    complete(&plain, 1, &large(1 << 20)).await;
    let slow = raw(&format!("redis://127.0.0.1:{}", proxy.port())).await;
    let store = RedisStore::new(raw(&server.url()).await).large_records_over(slow);
    proxy.black_hole(true);
    let replay = {
        let store = store.clone();
        tokio::spawn(async move { store.begin(&claim(1)).await })
    };
    let written = claim(2);
    store.begin(&written).await.unwrap();
    let completing = {
        let store = store.clone();
        tokio::spawn(async move { store.complete(&slot(2), written.token, &large(1 << 20), HOUR).await })
    };
    for n in 10..60 {
        complete(&plain, n, &record(b"small")).await;
        assert_eq!(
            store.begin(&claim(n)).await.unwrap(),
            ClaimOutcome::Done(record(b"small"))
        );
    }
    assert!(!replay.is_finished() && !completing.is_finished());
    proxy.black_hole(false);
    assert_eq!(replay.await.unwrap().unwrap(), ClaimOutcome::Done(large(1 << 20)));
    assert_eq!(completing.await.unwrap().unwrap(), Held::Yes);
}

#[tokio::test]
async fn a_store_that_connects_has_a_connection_for_large_records() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    complete(&store, 1, &record(b"small")).await;
    assert_eq!(tally.proxy.counts().connections, 1, "it is made when it is needed");
    complete(&store, 2, &large(1 << 20)).await;
    assert_eq!(tally.proxy.counts().connections, 2);
    let small = tally.proxy.counts();
    assert_eq!(
        store.begin(&claim(2)).await.unwrap(),
        ClaimOutcome::Done(large(1 << 20))
    );
    let now = tally.proxy.counts();
    assert_eq!((now.connections, now.requests - small.requests), (2, 2));
}
