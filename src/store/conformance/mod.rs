//! The conformance suite, which checks whether a [`Store`](super::Store) follows the rules of
//! [`Machine`](super::Machine).
//!
//! Use it if you write a store. Implement a [`Harness`] that gives access to your store, and run
//! [`check`] in a test:
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
//! If a rule is broken, the suite panics. The message names the rule and the step, and says what
//! was expected and what the store answered. To run each rule as a separate test, use [`checks`].
//!
//! **Slots.** Each check draws random slots and tokens. The store therefore need not be empty, and
//! several checks, or several runs, can share one store. The suite does not clean up. It leaves a
//! few hundred small entries and a record of one megabyte, which the store removes within hours,
//! like any other entry. Two records stay forever: those of `very_long_times_do_not_overflow`.
//!
//! **Time.** The suite's leases last a few [units](Harness::unit), and it checks the store at least
//! one unit before or after a lease or TTL ends. With a server, the unit is real time. Make it so
//! long that a call takes much less, including a pause of the scheduler. The whole suite takes
//! about a hundred units. A store that reads tokio's clock, like
//! [`MemoryStore`](super::MemoryStore), takes no real time if that clock is paused.
//!
//! **Concurrency.** The checks of races start tasks on the runtime that runs them. A paused clock
//! needs the current-thread runtime. If a store's calls do not wait, only a multi-thread runtime
//! tests it with several threads. You can also run the checks that need no time to pass there.

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
