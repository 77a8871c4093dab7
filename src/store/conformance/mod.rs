//! The conformance suite: does a [`Store`](super::Store) keep the rules of [`Machine`](super::Machine)?
//!
//! It is for those who write a store. Say how to reach yours in a [`Harness`], and run [`check`]
//! in a test:
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
//! A rule that is broken is a panic, whose message names the rule and the step, and says what was
//! expected and what the store answered. For a test of its own for each rule, take [`checks`].
//!
//! **Slots.** Each check draws random slots and tokens, so that the store need not be empty, and
//! several checks, or several runs, can share one. The suite does not clean up: what it leaves,
//! some hundreds of small entries and a record of one megabyte, goes the way of everything in a
//! store within hours, but for two records that `very_long_times_do_not_overflow` keeps forever.
//!
//! **Time.** Leases of the suite last a few [units](Harness::unit), and it looks at the store at
//! least one unit before or after anything lapses. Against a server, the unit is real time: long
//! enough that a call, a pause of the scheduler included, takes well less; the whole suite takes
//! about a hundred units. A store that reads tokio's clock, as [`MemoryStore`](super::MemoryStore)
//! does, takes no time at all if that clock is paused.
//!
//! **Concurrency.** Checks of races start tasks on the runtime they are run in. A paused clock
//! needs the current-thread runtime; a store whose calls do not wait is tried by threads only on
//! a multi-thread runtime. The checks that need no time to pass can be run there too.

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
