//! What an Axum handler gets, also where there is no transaction of the layer, and what its errors are.

use axum::extract::FromRef;
use axum::routing;
use sqlx::Pool;
use tower_idempotency::MemoryStore;
use tower_idempotency::store::sql::TransactionOrOwn;

use super::*;
use crate::support::capture;
use crate::support::store::Scripted;

on_both![
    a_violated_constraint_is_permanent_and_has_no_effect,
    a_stored_failure_of_the_second_statement_undoes_the_first,
    a_missing_transaction_is_named_in_the_log_alone,
    a_handler_without_a_key_commits_its_own,
    a_transaction_of_ones_own_proves_itself,
];

async fn unique<B: Base>(base: &B) {
    base.execute("CREATE UNIQUE INDEX once ON charges (id)").await;
}

async fn twice<B: Base>(key: IdempotencyKey, transaction: Transaction<B::Db>) -> Result<StatusCode, TransactionError> {
    let mut work = transaction.begin().await?;
    B::charge(&mut work, key.as_str()).await?;
    B::charge(&mut work, key.as_str()).await?;
    Ok(StatusCode::CREATED)
}

fn assert_permanent(answer: &Answer) {
    assert_eq!(answer.status, 500);
    assert_eq!(answer.header("retry-after"), None);
    assert_eq!(answer.text(), "The operation failed and was rolled back.");
}

async fn a_violated_constraint_is_permanent_and_has_no_effect<B: Base>(base: B) {
    unique(&base).await;
    let layer = IdempotencyLayer::new(base.store());
    let app = axum::Router::new()
        .route("/twice", routing::post(twice::<B>))
        .layer(layer);
    let answer = send(&app, post("/twice", "k", "")).await;
    assert_permanent(&answer);
    assert_eq!(answer.outcome(), "released");
    assert_eq!(base.charges("k").await, 0);

    let transaction = Transaction::<B::Db>::for_tests(base.pool());
    let mut work = transaction.begin().await.unwrap();
    B::charge(&mut work, "k").await.unwrap();
    let error = TransactionError::from(B::charge(&mut work, "k").await.unwrap_err());
    assert!(error.as_database_error().unwrap().is_unique_violation());
    assert!(error.as_sqlx_error().is_some());
    assert!(!error.is_transient());
}

async fn a_stored_failure_of_the_second_statement_undoes_the_first<B: Base>(base: B) {
    unique(&base).await;
    let by_profile = IdempotencyLayer::builder(base.store()).stripe();
    let by_policy = IdempotencyLayer::builder(base.store()).policy(Policy::everything());
    for (key, builder) in [("profile", by_profile), ("policy", by_policy)] {
        let app = axum::Router::new()
            .route("/twice", routing::post(twice::<B>))
            .layer(builder.build().unwrap());
        let first = send(&app, post("/twice", key, "")).await;
        assert_permanent(&first);
        assert_eq!(first.outcome(), "executed");
        assert_eq!(base.charges(key).await, 0, "{key}");
        let again = send(&app, post("/twice", key, "")).await;
        assert_eq!((again.status.as_u16(), again.outcome()), (500, "replayed"));
        assert_eq!(base.charges(key).await, 0, "{key}");
    }
}

async fn a_missing_transaction_is_named_in_the_log_alone<B: Base>(base: B) {
    capture::install();
    async fn charge<B: Base>(_: Transaction<B::Db>) {
        unreachable!("there is none");
    }
    let routes = || axum::Router::new().route("/charge", routing::post(charge::<B>));
    let keyless = || crate::support::request("POST", "/charge", &[], "");
    let broken = Scripted::default();
    broken.down(true);
    let unprotected = IdempotencyLayer::builder(broken).run_unprotected_when_store_fails();
    let cases = [
        (
            routes().layer(IdempotencyLayer::new(base.store())),
            keyless(),
            "has no idempotency key",
        ),
        (
            routes(),
            post("/charge", "k", ""),
            "no `IdempotencyLayer` has checked the request's key",
        ),
        (
            routes().layer(unprotected.build().unwrap()),
            post("/charge", "k", ""),
            "runs unprotected because the store failed",
        ),
        (
            routes().layer(IdempotencyLayer::new(MemoryStore::new())),
            post("/charge", "k", ""),
            "the layer's store has no atomic mode",
        ),
    ];
    for (app, request, reason) in cases {
        capture::take();
        let answer = send(&app, request).await;
        assert_eq!(answer.status, 500);
        assert_eq!(
            answer.text(),
            "The server is not set up for this request. See the server's log for the reason."
        );
        let events = capture::take();
        assert!(
            events
                .iter()
                .any(|event| event.level == tracing::Level::ERROR && event.message().contains(reason)),
            "{reason}: {events:?}"
        );
    }
}

#[derive(Clone)]
struct State<B: Base>(B);

async fn either<B: Base>(
    TransactionOrOwn(transaction): TransactionOrOwn<B::Db>,
    request: axum::extract::Request,
) -> Result<StatusCode, TransactionError>
where
    Pool<B::Db>: FromRef<State<B>>,
{
    let mut work = transaction.begin().await?;
    B::charge(&mut work, request.uri().query().unwrap()).await?;
    drop(work);
    match request.uri().path() {
        "/fail" => return Ok(StatusCode::NOT_FOUND),
        "/abort" => transaction.abort(),
        _ => {}
    }
    transaction.commit().await?;
    if request.uri().path() == "/late" {
        return Ok(StatusCode::NOT_FOUND);
    }
    Ok(StatusCode::CREATED)
}

impl FromRef<State<Lite>> for sqlx::SqlitePool {
    fn from_ref(state: &State<Lite>) -> Self {
        state.0.pool()
    }
}

impl FromRef<State<Big>> for PgPool {
    fn from_ref(state: &State<Big>) -> Self {
        state.0.pool()
    }
}

async fn a_handler_without_a_key_commits_its_own<B: Base>(base: B)
where
    Pool<B::Db>: FromRef<State<B>>,
{
    let app = axum::Router::new()
        .fallback(routing::post(either::<B>))
        .with_state(State(base.clone()))
        .layer(IdempotencyLayer::new(base.store()));
    // With a key, the layer commits: what is answered counts.
    for (path, status, charges) in [
        ("/ok", 201, 1),
        ("/fail", 404, 0),
        ("/late", 404, 0),
        ("/abort", 201, 0),
    ] {
        let id = format!("layer{path}");
        let answer = send(&app, post(&format!("{path}?{id}"), &id, "")).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(base.charges(&id).await, charges, "{id}");
    }
    // Without one, `commit` does.
    for (path, status, charges) in [
        ("/ok", 201, 1),
        ("/fail", 404, 0),
        ("/late", 404, 1),
        ("/abort", 201, 0),
    ] {
        let id = format!("own{path}");
        let request = crate::support::request("POST", &format!("{path}?{id}"), &[], "");
        assert_eq!(send(&app, request).await.status.as_u16(), status);
        eventually("no connection is kept", async || base.busy() == 0).await;
        assert_eq!(base.charges(&id).await, charges, "{id}");
    }
    base.assert_clean().await;
}

async fn a_transaction_of_ones_own_proves_itself<B: Base>(base: B) {
    let kind = async |transaction: Transaction<B::Db>| transaction.commit().await.map_err(|error| error.kind());
    // Not begun, begun, in use, over.
    let transaction = Transaction::<B::Db>::for_tests(base.pool());
    assert_eq!(kind(transaction.clone()).await, Ok(()));
    let ran = Count::default();
    let up = ran.clone();
    let transaction = Transaction::<B::Db>::own(base.pool());
    transaction.on_commit(async move {
        up.up();
    });
    let mut work = transaction.begin().await.unwrap();
    B::charge(&mut work, "k").await.unwrap();
    assert_eq!(kind(transaction.clone()).await, Err(TransactionErrorKind::InUse));
    drop(work);
    assert_eq!(ran.get(), 0);
    assert_eq!(kind(transaction.clone()).await, Ok(()));
    eventually("what follows the commit ran", async || ran.get() == 1).await;
    assert_eq!(kind(transaction.clone()).await, Err(TransactionErrorKind::Over));
    assert_eq!(
        transaction.begin().await.unwrap_err().kind(),
        TransactionErrorKind::Over
    );
    assert_eq!(base.charges("k").await, 1);
    // Dropped.
    let transaction = Transaction::<B::Db>::own(base.pool());
    let mut work = transaction.begin().await.unwrap();
    B::charge(&mut work, "dropped").await.unwrap();
    drop((work, transaction));
    // Ended by itself, and cut off.
    for cut in [false, true] {
        let transaction = Transaction::<B::Db>::own(base.pool());
        let mut work = transaction.begin().await.unwrap();
        B::charge(&mut work, "ended").await.unwrap();
        if cut {
            B::cut(&mut work).await;
        } else {
            B::run(&mut work, "ROLLBACK").await.unwrap();
        }
        B::charge(&mut work, "ended").await.unwrap_err();
        drop(work);
        assert_eq!(kind(transaction).await, Err(TransactionErrorKind::Ended), "{cut}");
    }
    // Nothing to commit: what was to follow is dropped, although it owns the transaction.
    let held = Arc::new(());
    let transaction = Transaction::<B::Db>::own(base.pool());
    let (own, hold) = (transaction.clone(), Arc::clone(&held));
    transaction.on_commit(async move { drop((own, hold)) });
    assert_eq!(kind(transaction).await, Ok(()));
    assert_eq!(Arc::strong_count(&held), 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
    assert_eq!(base.charges("dropped").await + base.charges("ended").await, 0);
    base.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_unavailable_and_may_be_retried() {
    let Some(base) = Big::new().await else { return };
    let raise =
        |state: &str| format!("DO $$ BEGIN RAISE EXCEPTION 'as the test wants' USING ERRCODE = '{state}'; END $$");
    async fn run(transaction: Transaction<sqlx::Postgres>, sql: String) -> Result<StatusCode, TransactionError> {
        let mut work = transaction.begin().await?;
        Big::run(&mut work, &sql).await?;
        Ok(StatusCode::CREATED)
    }
    let app = axum::Router::new()
        .route("/run", routing::post(run))
        .layer(IdempotencyLayer::new(base.store()));
    let transient = ["40001", "40P01", "57P01", "08006", "53300", "55P03"].map(raise);
    let terminate = "SELECT pg_terminate_backend(pg_backend_pid())".to_owned();
    for (n, sql) in transient.into_iter().chain([terminate]).enumerate() {
        let answer = send(&app, post("/run", &format!("transient{n}"), sql.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.outcome()), (503, "released"), "{sql}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{sql}");
        assert!(!answer.text().contains("test"), "{sql}");
    }
    for (n, sql) in ["23505", "23503", "22012", "42P01"].map(raise).into_iter().enumerate() {
        let answer = send(&app, post("/run", &format!("permanent{n}"), sql)).await;
        assert_permanent(&answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_writer_is_unavailable_and_may_be_retried() {
    let base = Lite::new().await;
    let impatient = base.impatient().await;
    let holder = Transaction::own(base.pool());
    let work = holder.begin().await.unwrap();
    let transaction = Transaction::own(impatient);
    let error = transaction.begin().await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    // It can be tried again on the same transaction.
    drop((work, holder));
    eventually("the writer is free", async || transaction.begin().await.is_ok()).await;
}
