//! What `docs/operating.md`, its alert rules and its dashboard name is what the code has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tower_idempotency::{IdempotencyLayer, MemoryStore};

use crate::support::servers::process;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The sources without line breaks inside texts.
fn sources() -> String {
    fn read(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    read(&root().join("src"), &mut text);
    let mut joined = String::new();
    let mut pieces = text.split("\\\n");
    joined.push_str(pieces.next().unwrap());
    for piece in pieces {
        joined.push_str(piece.trim_start());
    }
    joined
}

/// The metrics that the code reports, each with its kind.
fn reported(sources: &str) -> BTreeSet<(String, &'static str)> {
    let mut metrics = BTreeSet::new();
    for kind in ["counter", "gauge", "histogram"] {
        for after in sources.split(&format!("metrics::{kind}!(")).skip(1) {
            let name = after
                .trim_start()
                .strip_prefix('"')
                .and_then(|name| name.split('"').next());
            metrics.insert((name.expect("a literal name").to_owned(), kind));
        }
    }
    metrics
}

/// Every word of a text that may be a metric's name.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    // The table of the SQL stores has such a name too.
    words
        .filter(|word| word.starts_with("idempotency_") && *word != "idempotency_keys")
        .collect()
}

#[test]
fn the_alerts_the_dashboard_and_the_page_name_metrics_that_exist() {
    let reported = reported(&sources());
    assert!(reported.len() >= 7, "{reported:?}");
    let mut known: BTreeSet<String> = BTreeSet::new();
    for (name, kind) in &reported {
        known.insert(name.clone());
        if *kind == "histogram" {
            known.extend(["bucket", "count", "sum"].map(|part| format!("{name}_{part}")));
        }
    }
    for path in [
        "docs/operating.md",
        "docs/operating/alerts.yml",
        "docs/operating/alerts.test.yml",
        "docs/operating/dashboard.json",
    ] {
        let text = file(path);
        for name in named(&text) {
            assert!(known.contains(name), "{path} names {name}, which nothing reports");
        }
    }
}

#[test]
fn every_metric_is_on_the_page_with_its_type() {
    let page = file("docs/operating.md");
    for (name, kind) in reported(&sources()) {
        let row = format!("| `{name}` | {kind} |");
        assert!(page.contains(&row), "docs/operating.md has no row {row}");
    }
}

#[test]
fn the_alerts_and_the_dashboard_name_outcomes_that_exist() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let outcomes: BTreeSet<&str> = layer.counts().map(|(outcome, _)| outcome).collect();
    for path in ["docs/operating/alerts.yml", "docs/operating/dashboard.json"] {
        // In JSON the quotation marks are escaped.
        let text = file(path).replace("\\\"", "\"");
        let mut found = 0;
        for operator in ["outcome=\"", "outcome!=\"", "outcome=~\"", "outcome!~\""] {
            for after in text.split(operator).skip(1) {
                for outcome in after.split('"').next().unwrap().split('|') {
                    assert!(outcomes.contains(outcome), "{path}: {outcome}");
                    found += 1;
                }
            }
        }
        assert!(found > 5, "{path}");
    }
}

/// A person who sees a message searches for it.
#[test]
fn the_messages_on_the_page_are_those_of_the_log() {
    let (page, sources) = (file("docs/operating.md"), sources());
    let rows = page.lines().filter(|line| {
        ["| error | `", "| warn | `", "| info | `"]
            .iter()
            .any(|level| line.starts_with(level))
    });
    let mut messages = 0;
    for row in rows {
        // Of a message that has backticks itself, the page has the parts between them.
        let cell = row.split(" | ").nth(1).unwrap();
        for message in cell.split('`').skip(1).step_by(2) {
            assert!(sources.contains(message), "no log message has {message:?}");
            messages += 1;
        }
    }
    assert!(messages > 15, "{messages} messages");
}

#[test]
fn every_alert_leads_to_a_symptom_on_the_page() {
    let page = file("docs/operating.md");
    let anchors: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    let alerts = file("docs/operating/alerts.yml");
    let runbooks: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: docs/operating.md#"))
        .collect();
    assert_eq!(runbooks.len(), alerts.matches("- alert: ").count(), "each has one");
    for anchor in runbooks {
        assert!(anchors.contains(anchor), "{anchor} in {anchors:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_panels_that_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&file("docs/operating/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{panel}");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(taken.insert((x, y)), "two panels at {x}, {y}");
            }
        }
    }
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests() {
    let Some(promtool) = process::in_path("promtool") else {
        process::missing("promtool");
        return;
    };
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(root().join("docs/operating"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
    }
}
