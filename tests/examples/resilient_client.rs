//! End to end: the client layers, a network that loses a third of everything both ways, and the
//! example server on each store. As many charges as operations, exactly.
//!
//! `IDEMPOTENCY_OPERATIONS=10000 cargo nextest run --release resilient_client` is the
//! full run; without the variable it is shortened.

use std::process::{Command, Output};

use crate::support::directory::Directory;
use crate::support::example::{program, without_options};
use crate::support::servers::postgres::Postgres;
use crate::support::servers::redis::Redis;

/// What the program printed, and how it ended.
struct Run {
    output: Output,
    text: String,
}

impl Run {
    fn of(arguments: &[&str]) -> Self {
        let mut command = Command::new(program("resilient_client"));
        let output = without_options(&mut command).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        Self { output, text }
    }

    /// The first number of the line of that name.
    fn figure(&self, name: &str) -> usize {
        let line = self.text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no line {name:?}: {self}"));
        let digits: String = line.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse()
            .unwrap_or_else(|_| panic!("no number in {line:?}: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let errors = String::from_utf8_lossy(&self.output.stderr);
        write!(f, "{}\n{}{errors}", self.output.status, self.text)
    }
}

fn operations() -> usize {
    match std::env::var("IDEMPOTENCY_OPERATIONS") {
        Ok(number) => number.parse().expect("IDEMPOTENCY_OPERATIONS is a number"),
        Err(_) => 300,
    }
}

/// Orders through the bad network, on that store.
fn the_bill_equals_the_operations(store: &str) {
    orders(store, &[]);
}

/// Uploads through it: every other one as a form, and of each attempt that is lost perhaps half.
fn the_documents_are_as_many_as_the_operations(store: &str) {
    let run = orders(store, &["--documents"]);
    assert_eq!(run.figure("documents"), operations(), "{run}");
    let cut = run.text.split_once(" requests (").map(|(_, cut)| cut);
    let cut = cut
        .and_then(|cut| cut.split(' ').next())
        .and_then(|cut| cut.parse().ok());
    assert!(cut > Some(operations() / 8), "{run}");
}

fn orders(store: &str, options: &[&str]) -> Run {
    let operations = operations();
    let number = operations.to_string();
    let base = [
        "--store",
        store,
        "--operations",
        &number,
        "--seed",
        "20261124",
        "--loss",
        "30",
        "--concurrency",
        "32",
        "--provider-latency",
        "1ms",
        "--delay",
        "5ms",
    ];
    let run = Run::of(&[&base, options].concat());
    println!("{run}");
    assert!(run.output.status.success(), "{run}");
    assert!(run.text.ends_with("The bill equals the operations.\n"), "{run}");
    assert_eq!(
        (run.figure("operations"), run.figure("bill")),
        (operations, operations),
        "{run}"
    );
    // And the network was as bad as it was to be: each way a third of what came is lost, so that
    // there are about two attempts for each operation and every fifth is answered by a replay.
    assert!(run.figure("attempts") > operations * 3 / 2, "{run}");
    assert!(run.figure("replays") > operations / 8, "{run}");
    assert!(run.figure("lost") > operations / 3, "{run}");
    run
}

#[test]
fn in_memory() {
    the_bill_equals_the_operations("memory");
}

#[test]
fn on_sqlite() {
    let directory = Directory::new();
    the_bill_equals_the_operations(&format!("sqlite:{}", directory.path("idv.db").display()));
}

#[test]
fn on_postgres() {
    if let Some(server) = Postgres::start() {
        the_bill_equals_the_operations(&server.create_database());
    }
}

#[test]
fn on_redis() {
    if let Some(server) = Redis::start() {
        the_bill_equals_the_operations(&server.url());
    }
}

#[test]
fn documents_in_memory() {
    the_documents_are_as_many_as_the_operations("memory");
}

#[test]
fn documents_on_sqlite() {
    let directory = Directory::new();
    the_documents_are_as_many_as_the_operations(&format!("sqlite:{}", directory.path("idv.db").display()));
}

#[test]
fn documents_on_postgres() {
    if let Some(server) = Postgres::start() {
        the_documents_are_as_many_as_the_operations(&server.create_database());
    }
}

#[test]
fn documents_on_redis() {
    if let Some(server) = Redis::start() {
        the_documents_are_as_many_as_the_operations(&server.url());
    }
}

/// That the comparison can fail, and what the mistake costs.
#[test]
fn a_new_key_for_each_attempt_is_charged_twice_and_told() {
    let run = Run::of(&[
        "--operations",
        "100",
        "--seed",
        "1",
        "--provider-latency",
        "1ms",
        "--delay",
        "1ms",
        "--new-key-each-attempt",
    ]);
    assert_eq!(run.output.status.code(), Some(1), "{run}");
    assert!(run.figure("bill") > 110, "{run}");
    assert!(run.text.contains("The bill does not equal the operations:"), "{run}");
}

#[test]
fn the_same_orders_again_are_not_charged_again() {
    let directory = Directory::new();
    let store = format!("sqlite:{}", directory.path("idv.db").display());
    let again = |loss| {
        let options = [
            "--store",
            &store,
            "--operations",
            "50",
            "--seed",
            "5",
            "--provider-latency",
            "1ms",
        ];
        Run::of(&[&options[..], &["--loss", loss]].concat())
    };
    let first = again("30");
    assert!(first.output.status.success(), "{first}");
    // As after a restart of the client that had forgotten how far it was.
    let second = again("0");
    assert_eq!((second.figure("bill"), second.figure("replays")), (0, 50), "{second}");
}

#[test]
fn bad_options_are_errors_that_say_so() {
    for (arguments, said) in [
        (&["--loss", "91"][..], "--loss"),
        (&["--concurrency", "0"], "--concurrency"),
        (&["--store", "nonsense"], "--store: unknown store"),
        (&["--server", "http://127.0.0.1:1/"], "error:"),
    ] {
        let run = Run::of(arguments);
        assert_eq!(run.output.status.code(), Some(2), "{run}");
        assert!(run.to_string().contains(said), "{run}");
    }
}
