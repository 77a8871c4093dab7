//! Every order in which duplicates, a client that leaves, the background, the store's calls and time
//! can take their turns, at the level of polls: all orders of small races, drawn ones beyond.

mod interleavings {
    pub(crate) mod protocol;
    pub(crate) mod race;
    pub(crate) mod schedule;
    pub(crate) mod watch;
}

use std::time::Duration;

use interleavings::protocol::{Mode, Protocol};
use interleavings::race::{End, Got, Over, Race};
use interleavings::schedule::{Explored, explore};
use interleavings::watch::Lag;
use stateright::{Checker, Model};
use tower_idempotency::store::OnLapse;
use tower_idempotency::{Fate, Outcome};

/// Explores a race on a store in this process; whether that was all of it is up to the test.
fn in_process(race: &Race, check: impl Fn(&Over)) -> bool {
    report(race, explore(|choices| check(&race.run::<true>(choices))))
}

/// The same on a store elsewhere, whose claims have leases.
fn remote(race: &Race, check: impl Fn(&Over)) -> bool {
    report(race, explore(|choices| check(&race.run::<false>(choices))))
}

fn report(race: &Race, explored: Explored) -> bool {
    let Explored { schedules, all } = explored;
    eprintln!("{schedules} schedules{} of {race:?}", if all { ", all" } else { "" });
    all
}

const SLOW: Lag = Lag {
    call: [1, 1],
    wait: 1,
    loses_first_answer: false,
};

fn success(over: &Over) {
    over.check();
    assert_eq!(over.runs, 1, "{over:?}");
    assert!(
        over.got
            .iter()
            .chain([&over.retry])
            .all(|got| got.kept().is_some() || *got == Got::Left),
        "{over:?}"
    );
}

#[test]
fn contract_5_6_duplicates_that_wait_all_get_the_one_answer() {
    let lag = Lag {
        wait: 1,
        call: [1, 1],
        ..Lag::NONE
    };
    for clients in [2, 3] {
        for lag in [Lag::NONE, lag] {
            let race = Race {
                clients,
                lag,
                yields: 2,
                ..Race::QUIET
            };
            let all = in_process(&race, success);
            assert!(all || clients == 3);
        }
    }
    remote(
        &Race {
            lag: SLOW,
            ..Race::QUIET
        },
        success,
    );
    remote(
        &Race {
            clients: 3,
            lag: Lag { call: [1, 0], ..SLOW },
            ..Race::QUIET
        },
        success,
    );
}

#[test]
fn contract_5_3_duplicates_that_do_not_wait_are_refused_while_it_runs() {
    let race = Race {
        clients: 3,
        wait: Duration::ZERO,
        ..Race::QUIET
    };
    let check = |over: &Over| {
        over.check();
        assert_eq!(over.runs, 1);
        assert!(
            over.got.iter().all(|got| got.is_in_flight() || got.kept().is_some()),
            "{over:?}"
        );
        assert!(over.retry.kept().is_some());
    };
    assert!(in_process(&race, check));
    remote(
        &Race {
            clients: 2,
            lag: SLOW,
            ..race
        },
        check,
    );
}

#[test]
fn contract_4_5_a_client_that_leaves_at_any_moment_takes_nothing_with_it() {
    for lag in [Lag::NONE, SLOW] {
        let race = Race {
            leavers: 1,
            lag,
            ..Race::QUIET
        };
        in_process(&race, success);
        remote(&race, success);
    }
    // All may leave.
    let race = Race {
        clients: 2,
        leavers: 2,
        ..Race::QUIET
    };
    let check = |over: &Over| {
        over.check();
        assert_eq!(over.runs, 1);
        assert!(over.retry.kept().is_some());
    };
    in_process(&race, check);
    remote(
        &Race {
            lag: Lag {
                call: [1, 1],
                ..Lag::NONE
            },
            ..race
        },
        check,
    );
}

#[test]
fn contract_5_3_if_the_first_fails_one_of_the_waiters_runs_next() {
    for ends in [
        &[End::Refusal] as &[End],
        &[End::Failure],
        &[End::Panic],
        &[End::Panic, End::Refusal],
    ] {
        let check = |over: &Over| {
            over.check();
            // The retry runs if too few were there to come so far.
            assert_eq!(over.runs, ends.len() + 1, "{over:?}");
            assert!(over.retry.kept().is_some());
        };
        let race = Race {
            clients: 3,
            ends,
            yields: 1,
            ..Race::QUIET
        };
        in_process(&race, check);
        in_process(
            &Race {
                clients: 2,
                leavers: 1,
                lag: SLOW,
                ..race.clone()
            },
            |over| {
                over.check();
                assert!(over.retry.kept().is_some() || over.runs <= ends.len(), "{over:?}");
            },
        );
        remote(
            &Race {
                clients: 2,
                lag: SLOW,
                ..race
            },
            |over| {
                over.check();
                assert!(over.retry.kept().is_some() || over.runs <= ends.len(), "{over:?}");
            },
        );
    }
}

#[test]
fn contract_5_3_who_waits_is_answered_at_the_bound() {
    let race = Race {
        yields: 2,
        ticks: &[4, 1],
        ..Race::QUIET
    };
    let check = |over: &Over| {
        over.check();
        assert_eq!(over.runs, 1);
        assert!(
            over.got.iter().all(|got| got.is_in_flight() || got.kept().is_some()),
            "{over:?}"
        );
        assert!(over.retry.kept().is_some());
    };
    assert!(in_process(&race, check));
    in_process(
        &Race {
            clients: 3,
            leavers: 1,
            ..race.clone()
        },
        |over| {
            over.check();
            assert_eq!(over.runs, 1);
        },
    );
    remote(
        &Race {
            lag: SLOW,
            lease: Duration::from_secs(3600),
            ..race
        },
        check,
    );
}

#[test]
fn a_handler_that_is_cancelled_with_its_client_frees_or_seals_the_key() {
    for fate in [Fate::Release, Fate::Seal] {
        let race = Race {
            leavers: 1,
            cancel: Some(fate),
            yields: 2,
            ..Race::QUIET
        };
        let check = |over: &Over| {
            over.check();
            let sealed = matches!(
                over.retry,
                Got::Answer {
                    outcome: Outcome::NotRetained,
                    ..
                }
            );
            assert!(over.retry.kept().is_some() || sealed && fate == Fate::Seal, "{over:?}");
        };
        in_process(&race, check);
        remote(&Race { lag: SLOW, ..race }, check);
    }
}

#[test]
fn contract_4_6_a_holder_that_was_overtaken_is_fenced_off() {
    for ends in [&[] as &[End], &[End::Refusal], &[End::Panic]] {
        let race = Race {
            ends,
            yields: 2,
            lag: Lag {
                call: [1, 0],
                ..Lag::NONE
            },
            lease: Duration::from_secs(3),
            wait: Duration::from_secs(60),
            // Whoever holds the claim may be stopped for longer than its lease.
            ticks: &[4],
            ..Race::QUIET
        };
        remote(&race, Over::check_answers);
        remote(
            &Race {
                clients: 3,
                leavers: 1,
                ..race
            },
            Over::check_answers,
        );
    }
}

/// The first claim takes effect and its answer is lost.
const LOSSY: Race = Race {
    wait: Duration::ZERO,
    lag: Lag {
        call: [1, 1],
        wait: 0,
        loses_first_answer: true,
    },
    ..Race::QUIET
};

fn given_back(over: &Over) {
    over.check();
    assert!(over.retry.kept().is_some(), "{over:?}");
}

#[test]
fn contract_6_3_a_claim_whose_answer_was_lost_is_given_back() {
    remote(&LOSSY, given_back);
}

#[test]
fn contract_6_3_a_claim_whose_answer_was_lost_is_given_back_although_its_client_left() {
    remote(&Race { leavers: 1, ..LOSSY }, given_back);
}

/// Checks every state of the model, and that each example it should have is found.
fn check(protocol: Protocol) -> usize {
    let checker = protocol.clone().checker().threads(2).spawn_bfs().join();
    let states = checker.unique_state_count();
    eprintln!("{states} states, {} steps deep, of {protocol:?}", checker.max_depth());
    checker.assert_properties();
    states
}

const PROTOCOL: Protocol = Protocol {
    mode: Mode::Apart,
    on_lapse: OnLapse::RunAgain,
    processes: 3,
    requests: 3,
    faults: 2,
    ticks: 3,
    is_fenced: true,
};

#[test]
fn in_every_history_a_second_effect_needs_a_lapse() {
    check(PROTOCOL);
}

#[test]
fn in_every_history_an_operation_that_must_not_run_again_takes_effect_at_most_once() {
    check(Protocol {
        on_lapse: OnLapse::Refuse,
        ..PROTOCOL
    });
}

#[test]
fn in_every_history_the_atomic_mode_has_one_effect_and_one_answer() {
    check(Protocol {
        mode: Mode::Atomic,
        ..PROTOCOL
    });
}

#[test]
fn a_store_that_does_not_compare_tokens_is_found_out() {
    let protocol = Protocol {
        mode: Mode::Atomic,
        is_fenced: false,
        ..PROTOCOL
    };
    let checker = protocol.checker().spawn_bfs().join();
    let found = checker.discovery("at most one effect").expect("two effects");
    eprintln!("{found}");
}
