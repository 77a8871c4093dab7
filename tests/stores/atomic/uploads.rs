//! Streamed request bodies in atomic mode: the effect is there if and only if the upload is.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use super::*;
use crate::support::{Inner, inner, request};

on_both![
    an_upload_that_is_whole_is_committed_with_its_record,
    an_upload_that_fails_is_rolled_back_whatever_the_handler_answers,
    a_rest_that_is_missing_leaves_the_effect_and_a_tombstone,
    a_client_that_leaves_in_the_middle_of_an_upload,
];

const LIMIT: usize = 1000;

type Service<St> = tower_idempotency::IdempotencyService<Inner, St>;

/// Charges, and reads the body: `/careless` answers `201` whatever becomes of it, `/early` does not read it.
fn uploads<B: Base>(base: &B) -> (IdempotencyLayer<B::Store>, Service<B::Store>) {
    let builder = IdempotencyLayer::builder(base.store())
        .store_timeout(Duration::from_secs(20))
        .lease(Duration::from_secs(60))
        .stream_request_bodies(LIMIT);
    let layer = builder.build().unwrap();
    let service = layer.layer(inner(|request: Request<Body>| async move {
        let (head, mut body) = request.into_parts();
        let key = head.extensions.get::<IdempotencyKey>().unwrap().clone();
        let transaction = head.extensions.get::<Transaction<B::Db>>().unwrap().clone();
        let mut work = transaction.begin().await.unwrap();
        B::charge(&mut work, key.as_str()).await.unwrap();
        let mut status = StatusCode::CREATED;
        let frames = if head.uri.path() == "/early" { 0 } else { usize::MAX };
        for _ in 0..frames {
            match body.frame().await {
                None => break,
                Some(Ok(_)) => {}
                Some(Err(_)) if head.uri.path() == "/careless" => break,
                Some(Err(_)) => {
                    status = StatusCode::INTERNAL_SERVER_ERROR;
                    break;
                }
            }
        }
        let mut response = Response::new(Full::from(format!("attempt {}", key.attempt())));
        *response.status_mut() = status;
        response
    }));
    (layer, service)
}

fn upload(path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    request("POST", path, &[("idempotency-key", key)], body)
}

fn scripted(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::new(ScriptedBody::new(steps))
}

async fn an_upload_that_is_whole_is_committed_with_its_record<B: Base>(base: B) {
    let (_, service) = uploads(&base);
    let frames = [Step::Data("one".into()), Step::Yield, Step::Data(" two".into())];
    let first = send(&service, upload("/", "k", scripted(frames))).await;
    assert_eq!(
        (first.status.as_u16(), first.text(), first.outcome()),
        (201, "attempt 1", "executed")
    );
    send(&service, upload("/", "k", "one two"))
        .await
        .assert_replay_of(&first);
    send(&service, upload("/", "k", "other"))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(base.charges("k").await, 1);
}

async fn an_upload_that_fails_is_rolled_back_whatever_the_handler_answers<B: Base>(base: B) {
    let (layer, service) = uploads(&base);
    let data = |length| Step::Data(Bytes::from(vec![b'x'; length]));
    for (key, path) in [("strict", "/"), ("careless", "/careless")] {
        let broken = scripted([data(3), Step::Fail]);
        send(&service, upload(path, key, broken))
            .await
            .assert_problem(400, "body-unreadable");
        let long = scripted([data(LIMIT), data(1)]);
        send(&service, upload(path, key, long))
            .await
            .assert_problem(413, "body-too-large");
        let mut damaged = upload(path, key, "one");
        let digest = http::HeaderValue::from_static("sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:");
        damaged.headers_mut().insert("content-digest", digest);
        send(&service, damaged).await.assert_problem(400, "digest-mismatch");
        assert_eq!(base.charges(key).await, 0, "{path}");
        let slot = layer.slot(None, key).unwrap();
        assert_eq!(base.store().look_up(&slot).await.unwrap(), None, "{path}");
        let whole = send(&service, upload(path, key, "one")).await;
        assert_eq!((whole.status.as_u16(), whole.text()), (201, "attempt 1"));
        assert_eq!(base.charges(key).await, 1);
    }
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_rest_that_is_missing_leaves_the_effect_and_a_tombstone<B: Base>(base: B) {
    let (_, service) = uploads(&base);
    let broken = scripted([Step::Data("one".into()), Step::Fail]);
    let first = send(&service, upload("/early", "k", broken)).await;
    assert_eq!((first.status.as_u16(), first.outcome()), (201, "sealed"));
    assert_eq!(base.charges("k").await, 1);
    send(&service, upload("/early", "k", "one"))
        .await
        .assert_problem(409, "response-not-retained");
    assert_eq!(base.charges("k").await, 1);
}

async fn a_client_that_leaves_in_the_middle_of_an_upload<B: Base>(base: B) {
    let (layer, service) = uploads(&base);
    for (key, end, charges) in [("cut", Step::Fail, 0), ("whole", Step::Data(" two".into()), 1)] {
        let gate = Gate::default();
        let body = scripted([Step::Data("one".into()), Step::Stop(gate.clone()), end]);
        let first = spawn(&service, upload("/careless", key, body));
        gate.arrival().await;
        first.abort();
        first.await.unwrap_err();
        gate.open();
        drain(&layer).await;
        assert_eq!(base.charges(key).await, charges, "{key}");
        let retry = send(&service, upload("/careless", key, "one two")).await;
        assert_eq!((retry.is_replay(), retry.text()), (charges == 1, "attempt 1"), "{key}");
        assert_eq!(base.charges(key).await, 1, "{key}");
    }
}
