//! What the compiler says about a service or a body that the layer cannot guard: the crate's own words, with
//! the remedy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The snippets of `tests/compile_errors/`, and what the compiler must say of each. Nothing: it compiles.
const SNIPPETS: &[(&str, &[&str])] = &[
    ("compiles", &[]),
    (
        "service_that_is_not_clone",
        &[
            "`Payments` cannot be guarded by an `IdempotencyLayer`",
            "the service must be `Clone + Send + 'static`",
            "put a `tower::buffer::BufferLayer` between the `IdempotencyLayer` and the service",
        ],
    ),
    (
        "future_that_is_not_send",
        &[
            "cannot be guarded by an `IdempotencyLayer`",
            "its future and its error must be `Send + 'static`",
        ],
    ),
    (
        "response_that_is_not_http",
        &[
            "cannot be guarded by an `IdempotencyLayer`",
            "that returns an `http::Response`",
        ],
    ),
    (
        "hyper_incoming",
        &[
            "Incoming` cannot be the request body of a service inside an `IdempotencyLayer`",
            "wrap the body outside the layer",
            "request.map(tower_idempotency::RequestBody::live)",
        ],
    ),
    (
        "tonic_body_without_the_feature",
        &[
            "Body` cannot be the request body of a service inside an `IdempotencyLayer`",
            "enable the `tonic` feature of `tower-idempotency`",
        ],
    ),
];

#[test]
fn a_bound_that_is_not_met_is_explained_with_its_remedy() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if let Err(error) = Command::new(&cargo).arg("--version").output() {
        eprintln!("skipped: cargo cannot be run: {error}");
        return;
    }
    let checked = check(&cargo);
    for (snippet, words) in SNIPPETS {
        let said = checked.said.get(*snippet).map_or("", String::as_str);
        let compiled = checked.compiled.iter().any(|name| name == snippet);
        assert_eq!(compiled, words.is_empty(), "{snippet}: {said}\n{}", checked.stderr);
        for words in *words {
            assert!(
                said.contains(words),
                "{snippet}: the compiler does not say {words:?}: {said}"
            );
        }
    }
}

/// What one run of `cargo check` over all snippets found.
struct Checked {
    /// The snippets that compiled.
    compiled: Vec<String>,
    /// The errors by snippet.
    said: BTreeMap<String, String>,
    stderr: String,
}

/// Checks the snippets as programs of a crate that depends on this one, with its default features and the
/// versions of its `Cargo.lock`. What they depend on is kept for the next run.
fn check(cargo: &OsString) -> Checked {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile_errors");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest(crate_root)).unwrap();
    // Offline, other versions may not be there.
    if let Ok(lock) = fs::read(crate_root.join("Cargo.lock")) {
        fs::write(folder.join("Cargo.lock"), lock).unwrap();
    }
    let output = Command::new(cargo)
        .current_dir(&folder)
        .args(["check", "--offline", "--bins", "--keep-going", "--message-format=json"])
        .arg("--target-dir")
        .arg(folder.join("target"))
        .output()
        .unwrap();
    let mut checked = Checked {
        compiled: Vec::new(),
        said: BTreeMap::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(name) = message["target"]["name"].as_str() else {
            continue;
        };
        match message["reason"].as_str() {
            Some("compiler-artifact") => checked.compiled.push(name.to_owned()),
            Some("compiler-message") => {
                let text = message["message"]["rendered"].as_str().unwrap_or_default();
                checked.said.entry(name.to_owned()).or_default().push_str(text);
            }
            _ => {}
        }
    }
    checked
}

fn manifest(crate_root: &Path) -> String {
    let root = crate_root.display();
    let snippets = format!("{root}/tests/compile_errors");
    let mut manifest = format!(
        "[package]
name = 'snippets'
version = '0.0.0'
edition = '2024'
publish = false

[workspace]

[lib]
path = '{snippets}/lib.rs'

[dependencies]
axum = {{ version = '0.8', default-features = false }}
bytes = '1'
http = '1'
http-body-util = '0.1'
hyper = '1'
tonic = {{ version = '0.14', default-features = false }}
tower = {{ version = '0.5', features = ['buffer', 'util'] }}
tower-idempotency = {{ path = '{root}' }}
"
    );
    for (name, _) in SNIPPETS {
        manifest += &format!("\n[[bin]]\nname = '{name}'\npath = '{snippets}/{name}.rs'\n");
    }
    manifest
}
