//! What the layer holds of the heap while its store does not answer.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, StoreError, Token};

use super::super::{SCALE, SECOND, on_paused_time};

/// Takes every question, and answers none.
#[derive(Default)]
struct BlackHole {
    /// By whom: a request that got no answer is asked about again, under its token.
    tokens: Mutex<HashSet<u64>>,
}

impl BlackHole {
    fn askers(&self) -> usize {
        self.tokens.lock().unwrap().len()
    }
}

impl Store for BlackHole {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.tokens.lock().unwrap().insert(begin.token.0);
        pending().await
    }

    async fn renew(&self, _: &Slot, _: Token, _: Duration) -> Result<Held, StoreError> {
        pending().await
    }

    async fn complete(&self, _: &Slot, _: Token, _: &Record, _: Duration) -> Result<Held, StoreError> {
        pending().await
    }

    async fn release(&self, _: &Slot, _: Token) -> Result<Held, StoreError> {
        pending().await
    }
}

/// What the log and the runtime may keep once.
const KEPT: usize = 64 * 1024;
const REQUESTS: u64 = 10_000 * SCALE;

async fn refused<S, B>(service: &S, key: u64)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible> + Clone,
{
    let mut request = Request::post("/").body(Full::from("{}")).unwrap();
    request
        .headers_mut()
        .insert("idempotency-key", key.to_string().parse().unwrap());
    let Ok(response) = service.clone().oneshot(request).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn contract_6_3_requests_that_are_refused_while_the_store_is_silent_leave_nothing_behind() {
    on_paused_time(async |heap| {
        let store = Arc::new(BlackHole::default());
        let layer = IdempotencyLayer::builder(store.clone())
            .store_timeout(SECOND)
            .circuit_breaker(5, 10 * SECOND)
            // So that what is asked in the background ends soon.
            .lease(SECOND)
            .settle_within(SECOND)
            .build()
            .unwrap();
        let service = layer.layer(service_fn(async |_: Request<Full<Bytes>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
        for key in 0..5 {
            refused(&service, key).await;
        }
        tokio::time::sleep(5 * SECOND).await;
        let (held, at) = (heap.bytes(), Instant::now());
        assert_eq!(store.askers(), 5);
        for key in 0..REQUESTS {
            refused(&service, key).await;
        }
        assert_eq!(store.askers(), 5, "the store is left alone");
        assert_eq!(at.elapsed(), Duration::ZERO, "nobody waits");
        let more = heap.bytes().saturating_sub(held);
        assert!(more <= KEPT, "{more} bytes are held after {REQUESTS} requests");

        // The pause is over: of a thousand at once, one looks for the store. The others are refused as before.
        tokio::time::sleep(10 * SECOND).await;
        let requests = (0..1000).map(|key| refused(&service, REQUESTS + key));
        futures_util::future::join_all(requests).await;
        assert_eq!(store.askers(), 6);
        tokio::time::sleep(5 * SECOND).await;
        let more = heap.bytes().saturating_sub(held);
        assert!(more <= KEPT, "{more} bytes are held after the probe");
    });
}
