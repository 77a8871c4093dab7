//! The store in this process's memory.
//!
//! The files are listed with the lowest layer first. Each file uses only files that are listed
//! before it:
//!
//! | file | content |
//! |---|---|
//! | `hash` | the seeded hashes of slots and scopes |
//! | `ledger` | when records and claims end, and how much space each scope uses |
//! | `budget` | the counters and the byte limit |
//! | `entry` | a slot that is not vacant, and its size |
//! | `chain` | the entries whose slots have the same hash |
//! | `map` | the `DashMap` of the chains |
//! | `slots` | the combined map, ledger and budget |
//! | `inspect`, `sweep` | reading slots; removing expired and evicted entries |
//! | `calls` | the `Store` calls |
//! | `store` | the public type |

mod budget;
mod calls;
mod chain;
mod entry;
mod hash;
mod inspect;
mod ledger;
mod map;
mod slots;
mod store;
mod sweep;

pub use budget::{MemoryStats, WhenFull};
pub use store::{MemoryStore, MemoryStoreBuilder};
