//! This crate and its peers, on one service, in one run. `run` builds this and prints the tables.

#[path = "../../support/mod.rs"]
mod support;

mod behaviour;
mod by_hand;
mod footprint;
mod memory_store;
mod peers;
mod requests;
mod speed;

use axum::Router;
use tokio::runtime::{Builder, Runtime};

use self::peers::Peer;
use self::requests::numbered;
use self::support::router;

fn main() {
    let rounds = match std::env::args().nth(1).map(|rounds| rounds.parse()) {
        None => 61,
        Some(Ok(rounds)) => rounds,
        _ => panic!("the only argument is the number of rounds; 0 measures nothing"),
    };
    // The handlers of the cases panic on purpose.
    std::panic::set_hook(Box::new(|_| {}));
    let peers = peers::all();
    let one = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let two = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");

    if rounds > 0 {
        heading("", "bare", &peers);
        for line in speed::measure(&one, 1, rounds, &peers) {
            time_line(&line);
        }
        for line in speed::measure(&two, 2, rounds, &peers) {
            time_line(&line);
        }
        for held in [10, 10_000] {
            time_line(&speed::of_one_caller(&one, held, rounds, &peers));
        }
        count_lines(&one, &peers);
        println!();
    }

    heading("", "", &peers);
    let mut wrong = Vec::new();
    for case in behaviour::cases() {
        let observed = peers.iter().map(|peer| {
            let guard = if case.with_defaults {
                peer.with_defaults
            } else {
                peer.guard
            };
            two.block_on(case.observe(guard))
        });
        let cells: Vec<_> = observed.collect();
        // The first column is this crate.
        if cells[0] != case.ours {
            wrong.push(format!("{}: {}, not {}", case.name, cells[0], case.ours));
        }
        row(case.name, None, cells.into_iter());
    }
    if !wrong.is_empty() {
        eprintln!("\nthis crate does not do what it should:\n{}", wrong.join("\n"));
        std::process::exit(1);
    }
}

fn count_lines(one: &Runtime, peers: &[Peer]) {
    let bare: fn(Router) -> Router = |router| router;
    let allocations = |guard: fn(Router) -> Router, make| {
        let count = one.block_on(async { footprint::allocations(guard(router()), make).await });
        count.to_string()
    };
    let each = |make| peers.iter().map(move |peer| allocations(peer.guard, make));
    row(
        "allocations, first request",
        Some(allocations(bare, numbered)),
        each(numbered),
    );
    row(
        "allocations, replay",
        Some(allocations(bare, footprint::a_replay)),
        each(footprint::a_replay),
    );
    const KEYS: u64 = 100_000;
    let bytes = peers.iter().map(|peer| {
        let kept = one.block_on(footprint::bytes_kept(peer.guard, KEYS));
        format!("{kept:.0}")
    });
    row("bytes kept per key, of 100,000", Some(String::new()), bytes);
}

fn heading(corner: &str, first: &str, peers: &[Peer]) {
    let names = peers.iter().map(|peer| peer.name.clone());
    let first = (!first.is_empty()).then(|| first.to_owned());
    let columns = peers.len() + 1 + usize::from(first.is_some());
    row(corner, first, names);
    println!("{}", "|---".repeat(columns) + "|");
}

fn time_line(line: &speed::Line) {
    let bare = format!("{:.2} µs", line.bare.as_secs_f64() * 1e6);
    row(
        &line.name,
        Some(bare),
        line.peers.iter().map(|multiple| format!("{multiple:.2}")),
    );
}

fn row(name: &str, bare: Option<String>, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = bare.into_iter().chain(cells).collect();
    println!("| {name} | {} |", cells.join(" | "));
}
