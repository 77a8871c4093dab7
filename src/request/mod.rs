//! The parts of a request that the layer reads: its key, the key's scope, and the parts that decide
//! whether two requests are the same. All the code here is pure.

mod authorization;
pub(crate) mod content;
pub(crate) mod fingerprint;
pub(crate) mod header_name;
pub(crate) mod idempotency_key;
pub(crate) mod integrity;
pub(crate) mod json;
pub(crate) mod key;
pub(crate) mod lines;
pub(crate) mod scope;
pub(crate) mod slot;
mod target;

pub use fingerprint::{Fingerprint, FingerprintSource};
pub use idempotency_key::IdempotencyKey;
pub use key::{InvalidKey, KeyFormat, KeySource};
pub use scope::{ScopeSource, ScopeValues};
pub use slot::{ScopeTag, Slot, SlotError};
