//! The quick start: its own test runs here too.

#[path = "../../examples/quickstart.rs"]
#[allow(dead_code, reason = "its `main` starts a server on a fixed port")]
mod program;

#[test]
fn the_quick_start_is_short_enough_to_copy() {
    let lines = include_str!("../../examples/quickstart.rs").lines().count();
    assert!(lines < 60, "{lines} lines");
}
