//! Where both servers keep the files of documents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::servers::process::{self, Watchdog};

/// The folder of the files that have their place.
const PLACED: &str = "documents";

/// A directory that is removed when this is dropped or the process ends.
pub struct Documents {
    directory: PathBuf,
    _removed_at_the_end: Watchdog,
}

impl Documents {
    pub fn new() -> Self {
        let directory = process::scratch(&process::on_disk(), "idempotency-chaos-documents", None);
        Self {
            _removed_at_the_end: Watchdog::new(&directory, "KILL"),
            directory,
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files that have their place.
    pub fn placed(&self) -> BTreeSet<String> {
        self.names(PLACED)
    }

    /// What is in them, by their names.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let read = |name: String| {
            let file = std::fs::read(self.directory.join(PLACED).join(&name)).unwrap();
            (name, file)
        };
        self.placed().into_iter().map(read).collect()
    }

    /// The files that are being received, or whose commit is not known.
    pub fn aside(&self) -> BTreeSet<String> {
        self.names("incoming")
    }

    fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.directory.join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}
