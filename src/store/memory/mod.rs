//! The store in this process's memory.
//!
//! From the ground up, each file uses only those above it:
//!
//! | file | what is in it |
//! |---|---|
//! | `hash` | the seeded hashes of slots and scopes |
//! | `ledger` | what ends when, and what each scope takes |
//! | `budget` | what is counted, against its limit |
//! | `entry` | a slot that is not vacant, and what it costs |
//! | `chain` | the entries whose slots have the same hash |
//! | `map` | the `DashMap` of the chains |
//! | `slots` | map, ledger and budget together |
//! | `inspect`, `sweep` | reading slots; removing what expired or is evicted |
//! | `calls` | the calls of `Store` |
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
