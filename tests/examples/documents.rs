//! What the documents say of files, versions and each other is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn file(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["", "docs", "examples/identity_verification"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() >= 10, "{found:?}");
    found
}

/// The lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|at| at.is_alphanumeric() || " -_".contains(*at));
    kept.map(|at| if at == ' ' { '-' } else { at }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    prose(text).filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = file(&document);
        for line in prose(&text) {
            for after in line.split("](").skip(1) {
                let target = after.split(')').next().unwrap();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                links += 1;
                let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
                let place = if path.is_empty() {
                    document.clone()
                } else {
                    document.parent().unwrap().join(path)
                };
                assert!(place.exists(), "{}: {target}", document.display());
                if !fragment.is_empty() && place.extension().is_some_and(|ending| ending == "md") {
                    let there = anchors(&file(&place));
                    assert!(there.contains(fragment), "{}: {target}", document.display());
                }
            }
        }
    }
    assert!(links > 100, "{links} links");
}

#[test]
fn the_readme_is_short() {
    let lines = file(&root().join("README.md")).lines().count();
    assert!(lines <= 150, "{lines} lines");
}

/// The part of a dependency's version that a user has to match.
fn version(manifest: &str, name: &str) -> String {
    let line = manifest
        .lines()
        .find(|line| line.starts_with(&format!("{name} = ")) && !line.contains("dep:"));
    let line = line.unwrap_or_else(|| panic!("no {name}"));
    let version = line.split('"').nth(1).unwrap();
    assert!(version.starts_with(|at: char| at.is_ascii_digit()), "{line}");
    version.to_owned()
}

#[test]
fn the_readme_names_the_versions_of_the_manifest() {
    let manifest = file(&root().join("Cargo.toml"));
    let readme = file(&root().join("README.md"));
    let mut expected = vec![format!("Rust {}", version(&manifest, "rust-version"))];
    for name in ["axum", "tokio"] {
        expected.push(format!("cargo add {name}@{}", version(&manifest, name)));
    }
    for name in [
        "axum",
        "sqlx",
        "redis",
        "reqwest",
        "reqwest-middleware",
        "tonic",
        "metrics",
    ] {
        expected.push(format!("{name} {}", version(&manifest, name)));
    }
    for text in expected {
        assert!(readme.contains(&text), "the README does not say {text:?}");
    }
}

/// rustdoc hides such lines, and a repository's page shows them.
#[test]
fn no_snippet_has_a_hidden_line() {
    for document in documents() {
        let text = file(&document);
        for block in text.split("```rust").skip(1) {
            let block = block.split("\n```").next().unwrap();
            let hidden = block.lines().find(|line| *line == "#" || line.starts_with("# "));
            assert_eq!(hidden, None, "{}", document.display());
        }
    }
}

/// The README's first program answers its first commands as it says. The program itself is compiled as a
/// documentation test; here its router listens on a port that is free.
#[cfg(unix)]
#[tokio::test]
async fn the_commands_of_the_readme_show_a_replay() {
    use axum::{Router, routing::post};
    use tower_idempotency::{IdempotencyLayer, MemoryStore};

    use crate::support::servers::process;

    if process::in_path("curl").is_none() {
        process::missing("curl");
        return;
    }
    let app: Router = Router::new()
        .route("/payments", post(|| async { "paid" }))
        .layer(IdempotencyLayer::new(MemoryStore::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });

    let readme = file(&root().join("README.md"));
    let blocks = readme.split("```sh\n").skip(1);
    let block = blocks
        .map(|rest| rest.split("```").next().unwrap())
        .find(|block| block.starts_with("curl "));
    let commands = block.expect("commands with curl").replace("127.0.0.1:3000", &address);
    let output = tokio::task::spawn_blocking(move || {
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &commands]).output().unwrap()
    });
    let output = output.await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let replays: Vec<bool> = text
        .split("HTTP/1.1 200 OK")
        .skip(1)
        .map(|response| response.contains("idempotency-replayed: true"))
        .collect();
    assert_eq!(replays, [false, true], "{text}");
}
