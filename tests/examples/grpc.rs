//! The gRPC example, as its documentation shows it.

use std::process::Command;

use crate::support::example;
use crate::support::servers::process;

#[test]
fn the_grpc_example_charges_once_and_refuses_another_amount() {
    let Some(program) = example::built("grpc") else {
        process::missing("the example `grpc` (cargo build --examples --features examples/tonic)");
        return;
    };
    let output = Command::new(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = text.lines().collect();
    let [charging, first, retry, other] = lines[..] else {
        panic!("{text}");
    };
    assert!(charging.starts_with("charging 1000 cents under "), "{text}");
    assert_eq!(first, "first: charge 1, replayed: false");
    assert_eq!(retry, "retry: charge 1, replayed: true");
    assert!(other.starts_with("other amount: FailedPrecondition, "), "{text}");
}
