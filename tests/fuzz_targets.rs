//! The fuzz targets of `fuzz/` as an ordinary test: each over its committed corpus, and over
//! pseudo-random inputs from a fixed seed. `scripts/fuzz` looks for more.

mod support;

mod fuzz_targets {
    use crate::support::claim;

    mod body;
    mod input;
    pub(crate) mod key;
    pub(crate) mod record;
    pub(crate) mod service;
    pub(crate) mod stores;
    pub(crate) mod uploads;
}

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Once;

const RANDOM: usize = 2000;

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// A runtime swallows the panics of its tasks, where a fuzzer ends at any. They are counted, so that
/// none goes unnoticed here.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
}

/// Says which input it was when a target panics.
struct Current<'a>(&'a str, &'a [u8]);

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("the input is {}: {hex}", self.0);
        }
    }
}

#[track_caller]
fn replay(target: &str, run: fn(&[u8])) {
    count_panics();
    let check = |name: &str, data: &[u8]| {
        let current = Current(name, data);
        run(data);
        assert_eq!(PANICS.get(), 0, "something panicked in the background");
        drop(current);
    };
    for path in corpus(target) {
        let data = std::fs::read(&path).expect("a readable file");
        check(&path.display().to_string(), &data);
    }
    check("empty", &[]);
    let mut random = fastrand::Rng::with_seed(0x1D37);
    for n in 0..RANDOM {
        let length = random.usize(..if n % 8 == 0 { 1024 } else { 320 });
        let mut data = vec![0; length];
        random.fill(&mut data);
        // Small numbers decide more than large ones.
        if n % 2 == 0 {
            data.iter_mut().for_each(|byte| *byte &= 0x1f);
        }
        check(&format!("random input {n}"), &data);
    }
}

/// The committed inputs, in order. The published package has none.
fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("there is no corpus in {}", folder.display());
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

#[test]
fn key() {
    replay("key", fuzz_targets::key::run);
}

#[test]
fn record() {
    replay("record", fuzz_targets::record::run);
}

#[test]
fn service() {
    replay("service", fuzz_targets::service::run);
}

#[test]
fn stores() {
    replay("stores", fuzz_targets::stores::run);
}

#[test]
fn uploads() {
    replay("uploads", fuzz_targets::uploads::run);
}
