//! A store whose type is chosen at run time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, Record, ScopeTag, Slot, Store, StoreError, Token,
    UnitOfWork,
};

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Inspect`] and [`Store`] combined, with boxed futures, for use as a trait object.
trait Erased: Send + Sync {
    fn begin<'a>(&'a self, begin: &'a ClaimRequest) -> Answer<'a, Result<ClaimOutcome, StoreError>>;
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
    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>>;
    fn look_up<'a>(&'a self, slot: &'a Slot) -> Answer<'a, Result<Option<Entry>, StoreError>>;
    fn forget<'a>(&'a self, slot: &'a Slot) -> Answer<'a, Result<bool, StoreError>>;
    fn forget_scope<'a>(&'a self, scope: &'a ScopeTag) -> Answer<'a, Result<u64, StoreError>>;
    fn count(&self) -> Answer<'_, Result<Census, StoreError>>;
}

impl<S: Inspect> Erased for S {
    fn begin<'a>(&'a self, begin: &'a ClaimRequest) -> Answer<'a, Result<ClaimOutcome, StoreError>> {
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
    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        Store::unit_of_work(self, begin)
    }
    fn look_up<'a>(&'a self, slot: &'a Slot) -> Answer<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(Inspect::look_up(self, slot))
    }
    fn forget<'a>(&'a self, slot: &'a Slot) -> Answer<'a, Result<bool, StoreError>> {
        Box::pin(Inspect::forget(self, slot))
    }
    fn forget_scope<'a>(&'a self, scope: &'a ScopeTag) -> Answer<'a, Result<u64, StoreError>> {
        Box::pin(Inspect::forget_scope(self, scope))
    }
    fn count(&self) -> Answer<'_, Result<Census, StoreError>> {
        Box::pin(Inspect::count(self))
    }
}

/// A store whose type is chosen at run time, for example from a URL in the configuration. Each call
/// allocates once. If you know the store's type at compile time, use that type directly.
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
    /// Wraps a store and erases its type.
    #[must_use]
    pub fn new(store: impl Inspect) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for DynStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynStore(..)")
    }
}

impl Store for DynStore {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
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
    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        self.0.unit_of_work(begin)
    }
}

impl Inspect for DynStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        self.0.look_up(slot).await
    }
    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        self.0.forget(slot).await
    }
    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        self.0.forget_scope(scope).await
    }
    async fn count(&self) -> Result<Census, StoreError> {
        self.0.count().await
    }
}
