//! The built programs of `examples/`.

use std::path::PathBuf;
use std::process::Command;

/// A program of `examples/`, which Cargo puts beside the directory of the tests. Cargo builds it with
/// them, unless it is told to build one test binary alone.
pub(crate) fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "run `cargo build --all-features --examples` first: no {}",
        program.display()
    );
    program
}

/// Hides the options that the environment gives to the example server.
pub(crate) fn without_options(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IDV_") {
            command.env_remove(name);
        }
    }
    command
}
