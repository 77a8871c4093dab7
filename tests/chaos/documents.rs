//! Where both servers keep the files of documents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::servers::process::{self, Watchdog};

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

    /// The files that have their place, by their names.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.names("documents")
            .into_iter()
            .map(|name| {
                let file = std::fs::read(self.directory.join("documents").join(&name)).unwrap();
                (name, file)
            })
            .collect()
    }

    /// The files that are being received, or whose commit is not known.
    pub fn aside(&self) -> Vec<String> {
        self.names("incoming")
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}
