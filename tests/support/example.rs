//! The built programs of `examples/`.

use std::path::PathBuf;
use std::process::Command;

/// A program of `examples/`, which Cargo puts beside the directory of the tests. Cargo builds it with
/// them, unless it is told to build one test binary alone.
pub(crate) fn program(name: &str) -> PathBuf {
    built(name).unwrap_or_else(|| panic!("run `cargo build --all-features --examples` first: no example {name}"))
}

/// The same, or none if it was not built: some need a feature of the examples' package.
pub(crate) fn built(name: &str) -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    program.exists().then_some(program)
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
