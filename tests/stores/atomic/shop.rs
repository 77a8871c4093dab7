//! A guarded service whose handlers charge in the transaction.

use super::*;

#[derive(Debug)]
pub(super) struct Broken;
impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as the test wants")
    }
}
impl std::error::Error for Broken {}

pub(super) type Bank =
    BoxCloneSyncService<Request<Body>, Response<tower_idempotency::ResponseBody<ScriptedBody>>, Broken>;

pub(super) struct Shop<St> {
    pub(super) layer: IdempotencyLayer<St>,
    pub(super) bank: Bank,
    pub(super) gate: Gate,
    pub(super) runs: Count,
    /// What handlers left behind.
    pub(super) left: Arc<std::sync::Mutex<Vec<Box<dyn std::any::Any + Send>>>>,
}

impl<St: Store> Shop<St> {
    pub(super) fn slot(&self, key: &str) -> tower_idempotency::Slot {
        self.layer.slot(None, key).unwrap()
    }
    pub(super) async fn send(&self, path: &str, key: &str) -> Answer {
        send(&self.bank, post(path, key, "{}")).await
    }
    /// Until it is neither in flight nor unavailable.
    pub(super) async fn retry(&self, path: &str, key: &str) -> Answer {
        self.retry_while(path, key, &[409, 503]).await
    }
    /// Another request with the key, until the key is free.
    pub(super) async fn retry_anew(&self, key: &str) -> Answer {
        self.retry_while("/ok", key, &[409, 422, 503]).await
    }
    pub(super) async fn retry_while(&self, path: &str, key: &str, statuses: &[u16]) -> Answer {
        eventually("another answer", async || {
            let answer = self.send(path, key).await;
            (!statuses.contains(&answer.status.as_u16())).then_some(answer)
        })
        .await
    }
}

pub(super) fn shop<B: Base>(base: &B) -> Shop<B::Store> {
    shop_with::<B, _>(base.store(), |builder| builder)
}

/// What a handler of [`shop_of`] does with the transaction, and answers.
pub(super) type Doing = std::pin::Pin<Box<dyn Future<Output = u16> + Send>>;

/// A shop whose handler does what the test says, but for the path `/ok`, on which it charges under the key.
pub(super) fn shop_of<B: Base, St: Store>(
    store: St,
    configure: impl FnOnce(IdempotencyLayerBuilder<St>) -> IdempotencyLayerBuilder<St>,
    doing: impl Fn(Transaction<B::Db>, String) -> Doing + Clone + Send + Sync + 'static,
) -> Shop<St> {
    let mut shop = shop_with::<B, St>(store, configure);
    let (layer, runs) = (shop.layer.clone(), shop.runs.clone());
    let handler = service_fn(move |request: Request<Body>| {
        let (runs, doing) = (runs.clone(), doing.clone());
        async move {
            let transaction = request.extensions().get::<Transaction<B::Db>>().unwrap().clone();
            let key = request.extensions().get::<IdempotencyKey>().unwrap().clone();
            runs.up();
            if request.uri().path() == "/ok" {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, key.as_str()).await.unwrap();
                let text = format!("charged in attempt {}", key.attempt());
                return answered(200, bytes::Bytes::from(text));
            }
            let status = doing(transaction, key.as_str().to_owned()).await;
            answered(status, "done")
        }
    });
    shop.bank = BoxCloneSyncService::new(layer.layer(handler));
    shop
}

/// Handlers by path. All charge under the key, but for `/idle`.
pub(super) fn shop_with<B: Base, St: Store>(
    store: St,
    configure: impl FnOnce(IdempotencyLayerBuilder<St>) -> IdempotencyLayerBuilder<St>,
) -> Shop<St> {
    let builder = IdempotencyLayer::builder(store)
        .store_timeout(Duration::from_secs(20))
        .lease(Duration::from_secs(60))
        .max_response_body(1000);
    let layer = configure(builder).build().unwrap();
    let gate = Gate::default();
    let runs = Count::default();
    let left = Arc::<std::sync::Mutex<Vec<_>>>::default();
    let (stop, count, keep) = (gate.clone(), runs.clone(), left.clone());
    let handler =
        service_fn(move |request: Request<Body>| handle::<B>(request, stop.clone(), count.clone(), keep.clone()));
    let bank = BoxCloneSyncService::new(layer.layer(handler));
    Shop {
        layer,
        bank,
        gate,
        runs,
        left,
    }
}

pub(super) fn answered(status: u16, body: impl Into<ScriptedBody>) -> Result<Response<ScriptedBody>, Broken> {
    Ok(Response::builder().status(status).body(body.into()).unwrap())
}

pub(super) async fn handle<B: Base>(
    request: Request<Body>,
    gate: Gate,
    runs: Count,
    left: Arc<std::sync::Mutex<Vec<Box<dyn std::any::Any + Send>>>>,
) -> Result<Response<ScriptedBody>, Broken> {
    runs.up();
    let key = request.extensions().get::<IdempotencyKey>().unwrap().clone();
    let transaction = request.extensions().get::<Transaction<B::Db>>().unwrap().clone();
    let path = request.uri().path().to_owned();
    if path == "/slow" {
        gate.pass().await;
    }
    if path == "/idle" {
        return answered(200, "idle");
    }
    let mut work = match transaction.begin().await {
        Ok(work) => work,
        Err(_) => return answered(503, "no transaction"),
    };
    if path == "/in-use" {
        let error = transaction.begin().await.unwrap_err();
        assert_eq!(error.kind(), TransactionErrorKind::InUse);
        drop(work);
        work = transaction.begin().await.expect("it goes on");
    }
    if B::charge(&mut work, key.as_str()).await.is_err() {
        return answered(503, "no charge");
    }
    match path.as_str() {
        "/error" => return Err(Broken),
        "/panic" => panic!("as the test wants"),
        "/open" => gate.pass().await,
        "/refer" => B::refer(&mut work).await.unwrap(),
        "/swallow" => B::fail(&mut work).await,
        "/nested" => {
            B::charge_nested(&mut work, "kept", true).await.unwrap();
            B::charge_nested(&mut work, "undone", false).await.unwrap();
        }
        "/leak" => {
            left.lock().unwrap().push(Box::new((work, transaction)));
            return answered(200, "leaked");
        }
        "/late" => {
            tokio::spawn(async move {
                gate.pass().await;
                B::charge(&mut work, key.as_str()).await.unwrap();
            });
            return answered(200, "late");
        }
        "/hand-on" => left.lock().unwrap().push(Box::new(transaction)),
        "/live" => {
            drop(work);
            let work = Arc::new(tokio::sync::Mutex::new(Some(transaction.begin().await.unwrap())));
            let mut response = answered(200, ScriptedBody::new([Step::Data("event".into()), Step::Hang])).unwrap();
            response
                .headers_mut()
                .insert("content-type", "text/event-stream".parse().unwrap());
            left.lock().unwrap().push(Box::new(work));
            return Ok(response);
        }
        "/stream" => {
            let mut response = answered(200, "data: 1\n\n").unwrap();
            response
                .headers_mut()
                .insert("content-type", "text/event-stream".parse().unwrap());
            return Ok(response);
        }
        "/large" => return answered(200, bytes::Bytes::from(vec![b'x'; 5000])),
        "/grows" => {
            let steps = (0..5).map(|_| Step::Data(vec![b'x'; 1000].into()));
            return answered(200, ScriptedBody::new(steps));
        }
        "/large-refusal" => return answered(402, bytes::Bytes::from(vec![b'x'; 5000])),
        "/broken-refusal" => return answered(402, ScriptedBody::new([Step::Data("half".into()), Step::Fail])),
        "/streamed-refusal" => {
            let mut response = answered(402, "{}\n").unwrap();
            response
                .headers_mut()
                .insert("content-type", "application/x-ndjson".parse().unwrap());
            return Ok(response);
        }
        "/grpc-refusal" => {
            let mut response = answered(200, "").unwrap();
            response.headers_mut().insert("grpc-status", "9".parse().unwrap());
            return Ok(response);
        }
        "/body-panics" => return answered(200, ScriptedBody::new([Step::Panic])),
        "/breaks" => return answered(200, ScriptedBody::new([Step::Data("half".into()), Step::Fail])),
        "/body-stops" => {
            return answered(200, ScriptedBody::new([Step::Data("half".into()), Step::Stop(gate)]));
        }
        path => {
            if let Some(status) = path.strip_prefix("/status/") {
                return answered(status.parse().unwrap(), "refused");
            }
        }
    }
    answered(
        200,
        ScriptedBody::from(bytes::Bytes::from(format!("charged in attempt {}", key.attempt()))),
    )
}

/// Nothing is there, and a retry is attempt 1, with whatever fingerprint.
pub(super) async fn assert_undone<B: Base, St: Store>(base: &B, shop: &Shop<St>, key: &str) {
    assert_eq!(base.charges(key).await, 0, "{key}");
    assert_eq!(base.store().look_up(&shop.slot(key)).await.unwrap(), None, "{key}");
    let again = shop.send("/ok", key).await;
    assert_eq!(
        (again.status.as_u16(), again.text()),
        (200, "charged in attempt 1"),
        "{key}"
    );
    assert_eq!(base.charges(key).await, 1, "{key}");
}
