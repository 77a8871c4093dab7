//! A store whose type is chosen at run time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{Begin, Begun, Held, Record, Slot, Store, StoreError, Token};

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Store`] with boxed futures, so that it can be a trait object.
trait Erased: Send + Sync {
    fn begin<'a>(&'a self, begin: &'a Begin) -> Answer<'a, Result<Begun, StoreError>>;
    fn renew<'a>(&'a self, slot: &'a Slot, token: Token, lease: Duration) -> Answer<'a, Result<Held, StoreError>>;
    fn complete<'a>(
        &'a self,
        slot: &'a Slot,
        token: Token,
        record: &'a Record,
        ttl: Duration,
    ) -> Answer<'a, Result<Held, StoreError>>;
    fn release<'a>(&'a self, slot: &'a Slot, token: Token) -> Answer<'a, Result<Held, StoreError>>;
    fn changed<'a>(&'a self, slot: &'a Slot, round: u32) -> Answer<'a, ()>;
}

impl<S: Store> Erased for S {
    fn begin<'a>(&'a self, begin: &'a Begin) -> Answer<'a, Result<Begun, StoreError>> {
        Box::pin(Store::begin(self, begin))
    }
    fn renew<'a>(&'a self, slot: &'a Slot, token: Token, lease: Duration) -> Answer<'a, Result<Held, StoreError>> {
        Box::pin(Store::renew(self, slot, token, lease))
    }
    fn complete<'a>(
        &'a self,
        slot: &'a Slot,
        token: Token,
        record: &'a Record,
        ttl: Duration,
    ) -> Answer<'a, Result<Held, StoreError>> {
        Box::pin(Store::complete(self, slot, token, record, ttl))
    }
    fn release<'a>(&'a self, slot: &'a Slot, token: Token) -> Answer<'a, Result<Held, StoreError>> {
        Box::pin(Store::release(self, slot, token))
    }
    fn changed<'a>(&'a self, slot: &'a Slot, round: u32) -> Answer<'a, ()> {
        Box::pin(Store::changed(self, slot, round))
    }
}

/// A store whose type is chosen at run time, as from a URL in the configuration. Each call costs
/// one allocation; where the type is known when compiling, use it directly.
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, store::{DynStore, MemoryStore}};
///
/// let store: DynStore = match "memory" {
///     "memory" => DynStore::new(MemoryStore::new()),
///     other => panic!("unknown store {other}"),
/// };
/// let layer: IdempotencyLayer<DynStore> = IdempotencyLayer::new(store);
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct DynStore(Arc<dyn Erased>);

impl DynStore {
    /// Erases the type of a store.
    #[must_use]
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for DynStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynStore(..)")
    }
}

impl Store for DynStore {
    async fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        self.0.begin(begin).await
    }
    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.0.renew(slot, token, lease).await
    }
    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.0.complete(slot, token, record, ttl).await
    }
    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.0.release(slot, token).await
    }
    async fn changed(&self, slot: &Slot, round: u32) {
        self.0.changed(slot, round).await;
    }
}
