//! What commits: success, streams, seals, and work in all its forms.

use super::*;

on_both![
    a_success_commits_effect_and_record,
    streams_and_lost_bodies_commit_with_a_tombstone,
    seals,
    stored_failures_have_no_effect,
    a_failure_whose_response_cannot_be_stored_has_no_effect,
    a_panic_while_the_response_is_read_has_no_effect,
    work_that_begins_after_the_response_is_refused,
    savepoints,
    a_handler_that_never_begins,
    through_dyn_store_and_arc,
    the_extractor,
];

async fn a_success_commits_effect_and_record<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = shop.send("/ok", "k").await;
    assert_eq!((first.status.as_u16(), first.text()), (200, "charged in attempt 1"));
    assert_eq!(first.outcome(), "executed");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/ok", "k").await.assert_replay_of(&first);
    // Another process replays it too.
    let other = shop_with::<B, _>(base.elsewhere().await, |builder| builder);
    other.send("/ok", "k").await.assert_replay_of(&first);
    assert_eq!(other.runs.get(), 0);
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.runs.get(), 1);
    assert_eq!(counted(&shop.layer, "executed"), 1);
    assert_eq!(counted(&shop.layer, "replayed"), 1);
    let entry = base.store().look_up(&shop.slot("k")).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { .. }), "{entry}");
}

async fn streams_and_lost_bodies_commit_with_a_tombstone<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    for path in ["/stream", "/large", "/grows", "/breaks"] {
        let first = respond(&shop.bank, post(path, path, "{}")).await;
        assert_eq!(first.status(), 200);
        let outcome = first.extensions().get::<tower_idempotency::Outcome>().copied();
        assert_eq!(outcome.map(|outcome| outcome.as_str()), Some("sealed"), "{path}");
        let body = http_body_util::BodyExt::collect(first.into_body()).await;
        assert_eq!(body.is_err(), path == "/breaks");
        assert_eq!(base.charges(path).await, 1, "{path}");
        let again = shop.send(path, path).await;
        again.assert_problem(409, "response-not-retained");
        assert_eq!(again.json()["original_status"], 200);
    }
    let free = shop_with::<B, _>(base.store(), |builder| {
        builder.policy(Policy::success().on_lost_body(Fate::Release))
    });
    let first = free.send("/large", "free").await;
    assert_eq!(first.body.len(), 5000);
    assert_undone(&base, &free, "free").await;
}

async fn seals<B: Base>(base: B) {
    let sealing = shop_with::<B, _>(base.store(), |builder| {
        let policy = Policy::from_fn(|_, _| Verdict::Seal);
        builder.policy(policy.on_panic(Fate::Seal).on_error(Fate::Seal))
    });
    assert_eq!(sealing.send("/status/402", "seal").await.outcome(), "sealed");
    assert_eq!(base.charges("seal").await, 1, "what is sealed is done");
    sealing
        .send("/status/402", "seal")
        .await
        .assert_problem(409, "response-not-retained");

    let panicking = sealing.bank.clone().oneshot(post("/panic", "panic", "{}"));
    assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
    assert_eq!(base.charges("panic").await, 0);
    sealing
        .send("/panic", "panic")
        .await
        .assert_problem(409, "outcome-unknown");
    sealing
        .bank
        .clone()
        .oneshot(post("/error", "error", "{}"))
        .await
        .unwrap_err();
    assert_eq!(base.charges("error").await, 0);
    sealing
        .send("/error", "error")
        .await
        .assert_problem(409, "outcome-unknown");
}

async fn stored_failures_have_no_effect<B: Base>(base: B) {
    let by_policy = shop_with::<B, _>(base.store(), |builder| builder.policy(Policy::everything()));
    let by_profile = shop_with::<B, _>(base.store(), |builder| builder.stripe());
    for (shop, status) in [
        (&by_policy, 402),
        (&by_policy, 500),
        (&by_profile, 402),
        (&by_profile, 500),
    ] {
        let key = format!("{status}-{}", std::ptr::eq(shop, &by_policy));
        let path = format!("/status/{status}");
        let first = shop.send(&path, &key).await;
        assert_eq!((first.status.as_u16(), first.outcome()), (status, "executed"));
        assert_eq!(base.charges(&key).await, 0, "{key}: rolled back");
        let retry = shop.send(&path, &key).await;
        assert_eq!(
            (retry.status.as_u16(), retry.outcome()),
            (status, "replayed"),
            "{key}: stored"
        );
    }
}

/// Neither the length nor the end of a refusal decides whether its effect stays.
async fn a_failure_whose_response_cannot_be_stored_has_no_effect<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.policy(Policy::everything()));
    for path in ["/large-refusal", "/broken-refusal", "/streamed-refusal"] {
        let first = respond(&shop.bank, post(path, path, "{}")).await;
        assert_eq!(first.status(), 402);
        let _ = http_body_util::BodyExt::collect(first.into_body()).await;
        assert_eq!(base.charges(path).await, 0, "{path}");
        let again = shop.send(path, path).await;
        again.assert_problem(409, "response-not-retained");
        assert_eq!(again.json()["original_status"], 402);
    }
    let first = shop.send("/grpc-refusal", "grpc").await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    assert_eq!(base.charges("grpc").await, 0);
    assert!(shop.send("/grpc-refusal", "grpc").await.is_replay());
    assert_eq!(shop.runs.get(), 4);
}

async fn a_panic_while_the_response_is_read_has_no_effect<B: Base>(base: B) {
    let by_body = shop_with::<B, _>(base.store(), |builder| {
        builder.policy(Policy::success().on_panic(Fate::Seal))
    });
    let by_policy = shop_with::<B, _>(base.store(), |builder| {
        let policy = Policy::from_response(|_| panic!("as the test wants"));
        builder.policy(policy.on_panic(Fate::Seal))
    });
    for (shop, path) in [(&by_body, "/body-panics"), (&by_policy, "/ok")] {
        let panicking = shop.bank.clone().oneshot(post(path, path, "{}"));
        assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
        assert_eq!(base.charges(path).await, 0, "{path}");
        shop.send(path, path).await.assert_problem(409, "outcome-unknown");
    }
}

async fn work_that_begins_after_the_response_is_refused<B: Base>(base: B) {
    let left = Arc::<std::sync::Mutex<Vec<Transaction<B::Db>>>>::default();
    let keep = Arc::clone(&left);
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        move |transaction, _| {
            keep.lock().unwrap().push(transaction);
            Box::pin(async { 200 })
        },
    );
    assert_eq!(shop.send("/without", "k").await.outcome(), "executed");
    let transaction = left.lock().unwrap().pop().unwrap();
    let error = transaction.begin().await.unwrap_err();
    assert_eq!(error.kind(), TransactionErrorKind::Over);
    assert_eq!(base.busy(), 0, "no connection is kept");
}

async fn savepoints<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    assert_eq!(shop.send("/nested", "k").await.status, 200);
    for (id, charges) in [("k", 1), ("kept", 1), ("undone", 0)] {
        assert_eq!(base.charges(id).await, charges, "{id}");
    }
}

async fn a_handler_that_never_begins<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = shop.send("/idle", "k").await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    shop.send("/idle", "k").await.assert_replay_of(&first);
}

async fn through_dyn_store_and_arc<B: Base>(base: B) {
    let erased = shop_with::<B, _>(DynStore::new(Arc::new(base.store())), |builder| builder);
    assert_eq!(erased.send("/ok", "dyn").await.status, 200);
    assert_eq!(base.charges("dyn").await, 1);
    let failed = erased.send("/status/500", "dyn2").await;
    assert_eq!(failed.status, 500);
    assert_eq!(base.charges("dyn2").await, 0);
    let shared = shop_with::<B, _>(Arc::new(base.store()), |builder| builder);
    assert!(shared.send("/ok", "dyn").await.is_replay());
    assert_eq!(shared.send("/status/500", "arc").await.status, 500);
    assert_undone(&base, &shared, "arc").await;
}

async fn the_extractor<B: Base>(base: B) {
    async fn charge<B: Base>(
        key: IdempotencyKey,
        transaction: Transaction<B::Db>,
    ) -> Result<(StatusCode, &'static str), TransactionError> {
        let mut work = transaction.begin().await?;
        B::charge(&mut work, key.as_str()).await?;
        // Fails as a statement does.
        if key.as_str() == "in-use" {
            transaction.begin().await?;
        }
        Ok((StatusCode::CREATED, "charged"))
    }
    async fn optional<B: Base>(transaction: Option<Transaction<B::Db>>) -> &'static str {
        if transaction.is_some() { "there" } else { "not there" }
    }
    let routes = || {
        axum::Router::new()
            .route("/charge", axum::routing::post(charge::<B>))
            .route("/optional", axum::routing::post(optional::<B>))
    };
    let layer = IdempotencyLayer::new(base.store());
    let app = routes().layer(layer.clone());
    let first = send(&app, post("/charge", "k", "")).await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "charged"));
    send(&app, post("/charge", "k", "")).await.assert_replay_of(&first);
    assert_eq!(base.charges("k").await, 1);
    let refused = send(&app, post("/charge", "in-use", "")).await;
    assert_eq!(refused.status, 500, "a mistake of the handler is permanent");
    assert_eq!(refused.outcome(), "released");
    assert_eq!(base.charges("in-use").await, 0);
    assert_eq!(
        base.store()
            .look_up(&layer.slot(None, "in-use").unwrap())
            .await
            .unwrap(),
        None
    );
    assert_eq!(send(&app, post("/optional", "o", "")).await.text(), "there");
    // Without the layer.
    let bare = routes();
    assert_eq!(send(&bare, post("/charge", "k", "")).await.status, 500);
    assert_eq!(send(&bare, post("/optional", "k", "")).await.text(), "not there");
}
