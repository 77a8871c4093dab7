//! The conformance suite: does a [`Store`] keep the rules of [`Machine`](super::Machine)?
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
//! store within hours, but for two records that `very_long_times_do_not_overflow` keeps for ever.
//!
//! **Time.** Leases of the suite last a few [units](Harness::unit), and it looks at the store at
//! least one unit before or after anything lapses. Against a server, the unit is real time: long
//! enough that a call, a pause of the scheduler included, takes well less; the whole suite takes
//! about a hundred units. A store that reads tokio's clock, as [`MemoryStore`](super::MemoryStore)
//! does, takes no time at all if that clock is paused.
//!
//! **Concurrency.** Checks of races start tasks on the runtime they are run in. A paused clock
//! needs the current-thread runtime; a store whose calls do not wait is tried by threads only on
//! a multi-thread runtime. The checks that need no time to pass can be run there, too.

mod claims;
mod history;
mod inspection;
mod lapses;
mod probe;
mod races;
mod records;
mod waits;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use super::{Inspect, Store};
use probe::Probe;

/// How the suite reaches a store.
pub trait Harness: Sync {
    /// The store under test. One that is not `Clone` can be given as [`Arc`](std::sync::Arc).
    type Store: Store;

    /// A handle to the store. All handles of a harness are to the same data. It is asked for a
    /// hundred times and more: where a handle is a connection or a pool, make a few beforehand,
    /// as different hosts would, and hand out clones of them in turn.
    fn store(&self) -> Self::Store;

    /// The suite's unit of time: 300 ms unless you say otherwise. Any call, and the time that
    /// [`pass`](Self::pass) takes too long, have to be well below it; a store that rounds its
    /// times needs a unit that is coarse against the rounding.
    fn unit(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Lets that much of the store's time pass. By default it sleeps on tokio's clock.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }
}

/// One rule of the suite, under its name.
pub struct Check<H> {
    name: &'static str,
    run: for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<H: Harness> Check<H> {
    /// The rule, as an identifier: `the_first_begin_starts_attempt_1`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it.
    ///
    /// # Panics
    ///
    /// When the store breaks the rule, or fails.
    pub async fn run(&self, harness: &H) {
        (self.run)(harness).await;
    }
}

impl<H> fmt::Debug for Check<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

macro_rules! list {
    ($($module:ident :: $rule:ident),* $(,)?) => {
        vec![$(Check {
            name: stringify!($rule),
            run: |harness| Box::pin($module::$rule(Probe::new(harness, stringify!($rule)))),
        }),*]
    };
}

/// Runs every check, one after the other.
///
/// # Panics
///
/// When the store breaks a rule, or fails.
pub async fn check<H: Harness>(harness: &H) {
    for check in checks() {
        check.run(harness).await;
    }
}

/// Runs a history of 40 random steps on several slots, drawn from that seed, beside
/// [`Machine`](super::Machine). The check `a_random_history_follows_the_machine` is this with a
/// random seed, which its message names.
///
/// # Panics
///
/// When the store answers otherwise than the machine, or fails.
pub async fn check_history<H: Harness>(harness: &H, seed: u64) {
    history::follow(&Probe::new(harness, "a_random_history_follows_the_machine"), seed).await;
}

/// Every check of [`Inspect`], for stores that have it. They are like those of [`checks`].
#[must_use]
pub fn inspection_checks<H: Harness<Store: Inspect>>() -> Vec<Check<H>> {
    list![
        inspection::look_up_tells_how_far_an_operation_is,
        inspection::forget_empties_the_slot,
        inspection::count_counts,
        inspection::settle_ends_a_lapsed_claim_and_nothing_else,
    ]
}

/// Every check, for a test runner that reports each by its name. They are independent of each
/// other and can run at the same time.
#[must_use]
pub fn checks<H: Harness>() -> Vec<Check<H>> {
    list![
        claims::the_first_begin_starts_attempt_1,
        claims::a_duplicate_is_in_flight,
        claims::another_fingerprint_is_a_mismatch,
        claims::fingerprints_count_to_the_last_bit,
        claims::slots_count_to_the_last_bit,
        claims::tokens_count_to_the_last_bit,
        claims::begin_can_be_repeated_with_its_token,
        claims::a_foreign_token_is_lost_and_changes_nothing,
        claims::release_frees_the_slot_for_any_fingerprint,
        claims::a_claim_ends_once,
        claims::very_long_times_do_not_overflow,
        lapses::a_lapsed_claim_is_taken_over_as_the_next_attempt,
        lapses::a_former_holder_is_fenced_off,
        lapses::a_lapsed_claim_that_nobody_took_over_is_still_held,
        lapses::a_lease_of_zero_lapses_at_once_and_is_remembered,
        lapses::a_lapsed_claim_is_remembered_for_its_ttl,
        lapses::a_lapsed_claim_can_be_refused,
        lapses::renew_moves_the_lease,
        lapses::a_foreign_renew_does_not_move_the_lease,
        lapses::a_record_lives_for_its_ttl_from_completion,
        lapses::nobody_holds_what_is_forgotten,
        records::a_record_comes_back_byte_for_byte,
        records::a_large_record_comes_back_whole,
        records::a_tombstone_comes_back,
        races::one_of_many_begins_starts,
        races::one_of_many_takes_a_lapsed_claim_over,
        races::one_of_many_completes_counts,
        races::the_present_holder_wins_against_the_fenced_one,
        races::a_dropped_begin_can_be_given_back,
        races::a_dropped_complete_is_done_or_not,
        waits::changed_returns_when_the_claim_has_ended,
        waits::waiters_learn_of_completion,
        waits::waiters_learn_of_release,
        history::a_random_history_follows_the_machine,
    ]
}
