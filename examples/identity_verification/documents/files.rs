//! Where documents are: a file for each, there if and only if the document is.
//!
//! A file is written aside, in a directory that belongs to this process, and gets a second name among the
//! documents when it is whole and on the disk. The first name stays until the document is known to be there, so
//! that a file whose document was never committed is found, whatever happened to the process.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::super::data::{Data, DataError};
use super::super::error::ApiError;

/// Chunks on their way to the disk.
const QUEUE: usize = 4;
/// How often files are looked for whose document was not committed.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// How long an operation may take to commit.
const COMMITS_WITHIN: Duration = Duration::from_secs(60);

/// The files of all documents. Several servers may share a directory.
#[derive(Clone)]
pub(crate) struct Files(Arc<Inner>);

struct Inner {
    documents: PathBuf,
    /// All processes' directories of files that are on their way.
    incoming: PathBuf,
    /// This one's.
    own: PathBuf,
    /// Says that this process lives.
    _lock: File,
    max_bytes: u64,
    /// What goes with this process.
    temporary: Option<PathBuf>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(directory) = &self.temporary {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

impl Files {
    /// In a new temporary directory, if none is given; it is removed in the end.
    pub(crate) fn open(directory: Option<&Path>, max_bytes: u64) -> io::Result<Self> {
        let new = || std::env::temp_dir().join(format!("idv-{}", Uuid::new_v4().simple()));
        let temporary = directory.is_none().then(new);
        let directory = directory.or(temporary.as_deref()).unwrap_or(Path::new("."));
        let (documents, incoming) = (directory.join("documents"), directory.join("incoming"));
        fs::create_dir_all(&documents)?;
        fs::create_dir_all(&incoming)?;
        let own = incoming.join(Uuid::new_v4().simple().to_string());
        // The lock before the directory: who finds a directory without it may remove it.
        let lock = File::create(own.with_extension("lock"))?;
        lock.lock()?;
        fs::create_dir(&own)?;
        Ok(Self(Arc::new(Inner {
            documents,
            incoming,
            own,
            _lock: lock,
            max_bytes,
            temporary: temporary.clone(),
        })))
    }

    /// Removes what processes that died have left behind: files whose document is not there.
    pub(crate) async fn remove_leftovers(&self, data: &Data) -> Result<(), DataError> {
        let (mut alive, mut dead) = (HashSet::new(), Vec::new());
        for entry in fs::read_dir(&self.0.incoming)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "lock") {
                continue;
            }
            let lock = path.with_extension("lock");
            let lives = path == self.0.own || File::open(&lock).is_ok_and(|lock| lock.try_lock().is_err());
            if lives {
                alive.extend(names(&path)?);
            } else {
                dead.push(path);
            }
        }
        for name in names(&self.0.documents)? {
            if !alive.contains(&name) && !data.has_document(&name).await? {
                remove(&self.0.documents.join(name))?;
            }
        }
        for directory in dead {
            fs::remove_dir_all(&directory)?;
            remove(&directory.with_extension("lock"))?;
        }
        Ok(())
    }

    /// Lets go of the first names of files whose operation is over, and of files whose document was not
    /// committed.
    async fn tidy(&self, data: &Data) -> Result<(), DataError> {
        for name in names(&self.0.own)? {
            let (aside, placed) = (self.0.own.join(&name), self.0.documents.join(&name));
            // One that is still written to has one name.
            let changed = fs::metadata(&placed).and_then(|file| file.modified());
            let is_over = changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > COMMITS_WITHIN));
            if !is_over {
                continue;
            }
            if !data.has_document(&name).await? {
                remove(&placed)?;
            }
            remove(&aside)?;
        }
        Ok(())
    }

    /// Tidies up until it is aborted.
    pub(crate) async fn keep_tidy(self, data: Data) {
        loop {
            tokio::time::sleep(TIDY_EVERY).await;
            if let Err(error) = self.tidy(&data).await {
                tracing::warn!(%error, "leftover files cannot be removed; trying again");
            }
        }
    }

    /// Begins a file aside.
    pub(super) async fn receive(&self, document_id: &str) -> Result<Incoming, ApiError> {
        let path = self.0.own.join(document_id);
        let aside = Aside {
            path: Some(path.clone()),
        };
        let (chunks, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        // The disk is not waited for on a thread that serves requests.
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
            let mut digest = Sha256::new();
            while let Some(chunk) = queue.blocking_recv() {
                digest.update(&chunk);
                file.write_all(&chunk)?;
            }
            file.sync_all()?;
            Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
        });
        Ok(Incoming {
            files: self.clone(),
            aside,
            document_id: document_id.to_owned(),
            chunks,
            writer,
            bytes: 0,
        })
    }
}

/// A file's first name, which goes when this does.
struct Aside {
    /// `None`: it stays.
    path: Option<PathBuf>,
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // One that cannot be removed is found at the next start.
            let _ = remove(path);
        }
    }
}

/// A file that is being written.
pub(super) struct Incoming {
    files: Files,
    aside: Aside,
    document_id: String,
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<io::Result<String>>,
    bytes: u64,
}

impl Incoming {
    pub(super) async fn write(&mut self, data: Bytes) -> Result<(), ApiError> {
        self.bytes += data.len() as u64;
        if self.bytes > self.files.0.max_bytes {
            return Err(too_large());
        }
        // A writer that has ended says why when it is finished.
        let _ = self.chunks.send(data).await;
        Ok(())
    }

    /// Waits until the file is on the disk.
    pub(super) async fn finish(self) -> Result<Written, ApiError> {
        drop(self.chunks);
        let written = self.writer.await.map_err(io::Error::other).and_then(|written| written);
        Ok(Written {
            sha256: written.map_err(unwritable)?,
            files: self.files,
            aside: self.aside,
            document_id: self.document_id,
            bytes: self.bytes,
        })
    }
}

/// A file that is whole.
pub(super) struct Written {
    files: Files,
    aside: Aside,
    document_id: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Written {
    /// Gives the file its name among the documents. Whether the document is committed is found out later.
    pub(super) async fn place(mut self) -> Result<(), ApiError> {
        let documents = self.files.0.documents.clone();
        let (aside, name) = (
            self.files.0.own.join(&self.document_id),
            documents.join(&self.document_id),
        );
        let placing = tokio::task::spawn_blocking(move || {
            fs::hard_link(aside, name)?;
            File::open(documents)?.sync_all()
        });
        // From here on both names stay, whatever becomes of the operation.
        self.aside.path = None;
        placing
            .await
            .map_err(io::Error::other)
            .and_then(|placed| placed)
            .map_err(unwritable)
    }
}

pub(super) fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "the document is larger than the server takes",
    )
}

fn unwritable(error: io::Error) -> ApiError {
    tracing::error!(%error, "a document cannot be written");
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the document cannot be stored; try again with the same key",
    )
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
