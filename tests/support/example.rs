//! The built programs of `examples/`.

use std::path::PathBuf;
use std::process::Command;

/// The path of a program in `examples/`, which Cargo puts next to the directory of the tests. Cargo
/// builds it with the tests, unless it builds only one test binary.
pub(crate) fn program(name: &str) -> PathBuf {
    built(name).unwrap_or_else(|| panic!("run `cargo build --examples` first: no example {name}"))
}

/// Like [`program`], but `None` if it was not built. Some programs need a feature of the examples'
/// package.
pub(crate) fn built(name: &str) -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().and_then(|deps| deps.parent()).unwrap();
    let program = target
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    program.exists().then_some(program)
}

/// Hides the example server's options in the environment.
pub(crate) fn without_options(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IDV_") {
            command.env_remove(name);
        }
    }
    command
}
