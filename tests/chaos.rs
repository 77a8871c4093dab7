//! Two processes of the example server on one store, under duplicate load, while processes are
//! killed and halted, the store fails or fails over, connections break and clocks are wrong: afterwards
//! the books must balance.
//!
//! `rounds` is random, from a seed; `steps`, `halts` and `clocks` are not. What must hold is in `tests/chaos/check.rs`.
//!
//! | variable | meaning |
//! |---|---|
//! | `CHAOS_ROUNDS` | random rounds on each store |
//! | `CHAOS_MINUTES` | rounds for that long, instead of a number of them |
//! | `CHAOS_SEED` | seed of the first of them; the next have the numbers that follow |
//! | `CHAOS_STORE` | `sqlite`, `postgres` or `redis`: that one alone |
//!
//! The server must have been built, `cargo build --examples`, as `cargo test` does
//! unless it is told to build one test alone.
#![cfg(target_os = "linux")]

mod support;

mod chaos {
    mod check;
    mod client;
    mod clocks;
    mod documents;
    mod faketime;
    mod halts;
    mod operation;
    mod plan;
    mod rng;
    mod round;
    mod rounds;
    mod savepoints;
    mod server;
    mod steps;
    mod store;
}
