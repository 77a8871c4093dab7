//! The conformance suite, which checks whether a [`Store`](super::Store) follows the rules of
//! [`Machine`](super::Machine).
//!
//! Use this suite if you write a store. Implement a [`Harness`] that gives the suite access to your
//! store, and run [`check`] in a test:
//!
//! ```
//! use tower_idempotency::MemoryStore;
//! use tower_idempotency::store::conformance::{self, Harness};
//!
//! struct Memory(MemoryStore);
//!
//! impl Harness for Memory {
//!     type Store = MemoryStore;
//!
//!     fn store(&self) -> MemoryStore {
//!         self.0.clone()
//!     }
//! }
//!
//! // In a test: #[tokio::test(start_paused = true)]
//! #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn main() {
//!     conformance::check(&Memory(MemoryStore::new())).await;
//! }
//! ```
//!
//! If the store breaks a rule, the suite panics. The message names the rule and the step, and shows
//! the expected result and the store's result. To run each rule as a separate test, use [`checks`].
//!
//! **Slots.** Each check generates random slots and tokens. The store therefore does not need to be
//! empty, and several checks, or several runs, can share one store. The suite does not clean up. It
//! leaves a few hundred small entries and a record of one megabyte. The store removes them within
//! hours, like any other entry. The two records from `very_long_times_do_not_overflow` remain
//! forever.
//!
//! **Time.** The suite's leases last a few [units](Harness::unit). The suite checks the store at
//! least one unit before or after each lease or TTL expires. With a server, the unit is real time,
//! so choose a unit that is much longer than a call, including scheduler pauses. The whole suite
//! takes about a hundred units. With a store that reads tokio's clock, such as
//! [`MemoryStore`](super::MemoryStore), the suite takes no real time if that clock is paused.
//!
//! **Concurrency.** The race checks start tasks on the current runtime. A paused clock needs the
//! current-thread runtime. If a store's calls never wait, only a multi-thread runtime tests it with
//! several threads. On a multi-thread runtime, you can also run the checks that do not require time
//! to pass.

mod check;
mod claims;
mod harness;
mod history;
mod inspection;
mod lapses;
mod probe;
mod races;
mod records;
mod suite;
mod waits;

pub use check::Check;
pub use harness::Harness;
pub use suite::{check, check_history, checks, inspection_checks};
