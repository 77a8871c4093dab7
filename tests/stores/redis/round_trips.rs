//! What goes over the network.

use super::*;

#[tokio::test]
async fn a_replay_is_one_round_trip_and_a_first_request_two() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let layer = IdempotencyLayer::new(store.clone());
    let runs = Count::default();
    let counted = runs.clone();
    let service = layer.layer(inner(move |_: Request<Body>| {
        counted.up();
        async { ok("answer") }
    }));
    // The server has no script yet.
    send(&service, post("/", "warm", "{}")).await;
    tally.take();

    let first = send(&service, post("/", "one", "{}")).await;
    assert_eq!((first.status, tally.take().0), (StatusCode::OK, 2));
    let replay = send(&service, post("/", "one", "{}")).await;
    replay.assert_replay_of(&first);
    assert_eq!(tally.take().0, 1);
    let mismatch = send(&service, post("/", "one", "{\"other\":1}")).await;
    assert_eq!((mismatch.status.as_u16(), tally.take().0), (422, 1));
    assert_eq!(runs.get(), 2);

    let running = claim(1);
    store.begin(&running).await.unwrap();
    assert_eq!(tally.take().0, 1);
    store.renew(&slot(1), running.token, HOUR).await.unwrap();
    // That script is new to the server.
    assert_eq!(tally.take().0, 2);
    store.renew(&slot(1), running.token, HOUR).await.unwrap();
    assert_eq!(tally.take().0, 1);
}

#[tokio::test]
async fn a_look_up_transfers_no_body_and_a_refusal_no_record() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    let large = Record::of_response(PRINT, &Response::new(Bytes::from(vec![7; 1 << 20])));
    assert_eq!(
        store.complete(&slot(1), begin.token, &large, HOUR).await.unwrap(),
        Held::Yes
    );
    tally.take();
    let entry = store.look_up(&slot(1)).await.unwrap().unwrap();
    assert_eq!(entry.phase, Phase::Done { bytes: large.len() });
    assert_eq!(
        store.complete(&slot(1), begin.token, &large, HOUR).await.unwrap(),
        Held::Lost
    );
    assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Lost);
    let (_, bytes) = tally.take();
    assert!(bytes < 1000, "{bytes} bytes");
    assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(large));
}
