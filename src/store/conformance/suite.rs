//! The list of rules, and functions that run them.

use super::check::Check;
use super::harness::Harness;
use super::probe::Probe;
use super::{claims, history, inspection, lapses, races, records, waits};
use crate::store::Inspect;

macro_rules! list {
    ($($module:ident :: $rule:ident),* $(,)?) => {
        vec![$(Check {
            name: stringify!($rule),
            run: |harness| Box::pin($module::$rule(Probe::new(harness, stringify!($rule)))),
        }),*]
    };
}

/// Runs all checks, one after another.
///
/// # Panics
///
/// Panics if the store breaks a rule, or fails.
pub async fn check<H: Harness>(harness: &H) {
    for check in checks() {
        check.run(harness).await;
    }
}

/// Runs a history of 40 random steps, generated from the given seed, on several slots, and compares
/// each result with that of [`Machine`](crate::store::Machine). The check
/// `a_random_history_follows_the_machine` runs such a history with a random seed. If the check
/// fails, its message contains the seed.
///
/// # Panics
///
/// Panics if one of the store's results differs from the machine's, or if the store fails.
pub async fn check_history<H: Harness>(harness: &H, seed: u64) {
    history::follow(&Probe::new(harness, "a_random_history_follows_the_machine"), seed).await;
}

/// Returns every check of [`Inspect`], for stores that implement this trait. These checks work like
/// those from [`checks`].
#[must_use]
pub fn inspection_checks<H: Harness<Store: Inspect>>() -> Vec<Check<H>> {
    list![
        inspection::look_up_tells_how_far_an_operation_is,
        inspection::forget_empties_the_slot,
        inspection::forget_scope_forgets_what_is_finished_in_one_scope,
        inspection::count_counts,
        inspection::settle_ends_a_lapsed_claim_and_nothing_else,
    ]
}

/// Returns every check, for a test runner that reports each check by name. The checks are
/// independent of each other and can run at the same time.
#[must_use]
pub fn checks<H: Harness>() -> Vec<Check<H>> {
    list![
        claims::the_first_begin_starts_attempt_1,
        claims::a_duplicate_is_in_flight,
        claims::another_fingerprint_is_a_mismatch,
        claims::fingerprints_count_to_the_last_bit,
        claims::a_fingerprint_of_another_rule_is_not_a_mismatch,
        claims::slots_count_to_the_last_bit,
        claims::tokens_count_to_the_last_bit,
        claims::begin_can_be_repeated_with_its_token,
        claims::a_foreign_token_is_lost_and_changes_nothing,
        claims::release_frees_the_slot_for_any_fingerprint,
        claims::a_claim_ends_once,
        claims::very_long_times_do_not_overflow,
        lapses::a_lapsed_claim_is_taken_over_as_the_next_attempt,
        lapses::a_takeover_under_another_rule_brings_its_fingerprint,
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
        records::a_record_that_knows_the_body_of_its_request_comes_back,
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
