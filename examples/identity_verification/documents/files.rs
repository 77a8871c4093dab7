//! The files of documents: written aside, and given their place when their row is committed.
//!
//! ```text
//! DIR/incoming/doc_…     being received, or waiting for the commit; locked by the process that does
//! DIR/documents/doc_…    of a document whose row is there
//! ```
//!
//! A process that dies leaves files in `incoming/`, and no lock. The next start asks the data which of
//! them have a row: those get their place, the others go.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::super::data::{Data, DataError};

/// How long the data may take to say whether a row is there, when its commit is in doubt.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_FOR: u32 = 60;

/// The directory of the documents. Clones share it.
#[derive(Clone)]
pub(crate) struct Files(Arc<Directory>);

struct Directory {
    path: PathBuf,
    /// It was made for this process, and goes with it.
    is_temporary: bool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "the temporary directory could not be removed");
        }
    }
}

impl Files {
    /// Opens the directory, and makes it if it is missing. Puts in order what processes that died have left.
    /// Without a directory, a new temporary one is made for the first document.
    pub(crate) async fn open(directory: Option<&Path>, data: &Data) -> io::Result<Self> {
        let (path, is_temporary) = match directory {
            Some(path) => (path.to_owned(), false),
            None => {
                let name = format!("identity-verification-{}", Uuid::new_v4().simple());
                (std::env::temp_dir().join(name), true)
            }
        };
        let files = Self(Arc::new(Directory { path, is_temporary }));
        if !is_temporary {
            files.make_folders()?;
            files.put_in_order(data).await?;
        }
        Ok(files)
    }

    fn make_folders(&self) -> io::Result<()> {
        [self.incoming(), self.documents()]
            .iter()
            .try_for_each(std::fs::create_dir_all)
    }

    fn incoming(&self) -> PathBuf {
        self.0.path.join("incoming")
    }

    fn documents(&self) -> PathBuf {
        self.0.path.join("documents")
    }

    async fn put_in_order(&self, data: &Data) -> io::Result<()> {
        let has_row = async |name: &str| {
            let answer = data.has_document(name).await;
            answer.map_err(|error| io::Error::other(error.to_string()))
        };
        for name in names_in(&self.incoming())? {
            let path = self.incoming().join(&name);
            // Another server is at work on it.
            let Some(_locked) = lock(&path)? else { continue };
            if has_row(&name).await? {
                std::fs::rename(&path, self.documents().join(&name))?;
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        // A file gets here when its row is there, so this one's row is gone, as with a store in memory.
        for name in names_in(&self.documents())? {
            if !has_row(&name).await? {
                std::fs::remove_file(self.documents().join(&name))?;
            }
        }
        Ok(())
    }

    /// A new file, for a document that is being received.
    pub(super) async fn receive(&self) -> Result<Incoming, DataError> {
        let files = self.clone();
        // If the client leaves meanwhile, the task drops what it made, and the file goes.
        let (aside, file) = spawn_blocking(move || files.make()).await??;
        Ok(Incoming {
            file: file.into(),
            aside,
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    /// An empty file in `incoming/`, locked.
    fn make(&self) -> io::Result<(Aside, File)> {
        self.make_folders()?;
        loop {
            let aside = Aside::new(self.clone());
            let file = File::create_new(aside.path())?;
            if let Some(made) = aside.lock(file)? {
                return Ok(made);
            }
        }
    }
}

/// The files of this example in a folder, and no others: the directory may be somebody's own.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_ours = name.strip_prefix("doc_").is_some_and(|id| Uuid::try_parse(id).is_ok());
        if is_ours {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The lock of a file, if no process has it. `None` also for one that is gone.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A file in `incoming/`. Dropping it removes the file, unless it was kept.
struct Aside {
    files: Files,
    name: String,
    is_kept: bool,
}

impl Aside {
    fn new(files: Files) -> Self {
        Self {
            files,
            name: format!("doc_{}", Uuid::new_v4().simple()),
            is_kept: false,
        }
    }

    /// Locks the file, which was just made. `None`: before that, a server that started took it for one that
    /// was left behind, and removed it.
    fn lock(self, file: File) -> io::Result<Option<(Self, File)>> {
        file.lock()?;
        Ok(self.path().try_exists()?.then_some((self, file)))
    }

    fn path(&self) -> PathBuf {
        self.files.incoming().join(&self.name)
    }

    /// Gives the file its place.
    fn keep(mut self) {
        self.is_kept = true;
        let place = self.files.documents().join(&self.name);
        if let Err(error) = std::fs::rename(self.path(), place).and_then(|()| sync(&self.files.documents())) {
            // The next start does it.
            tracing::error!(%error, document = %self.name, "a document's file could not be given its place");
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = std::fs::remove_file(self.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, document = %self.name, "a file that is not needed could not be removed");
        }
    }
}

/// Makes what was renamed in a folder last.
#[cfg(unix)]
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Directories are no files there.
#[cfg(not(unix))]
fn sync(_: &Path) -> io::Result<()> {
    Ok(())
}

/// A document that is being received.
pub(super) struct Incoming {
    file: tokio::fs::File,
    aside: Aside,
    digest: Sha256,
    bytes: u64,
}

impl Incoming {
    pub(super) async fn write(&mut self, data: &[u8]) -> Result<(), DataError> {
        self.digest.update(data);
        self.bytes += data.len() as u64;
        Ok(self.file.write_all(data).await?)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of it is there; a crash does not take it any more.
    pub(super) async fn finish(mut self) -> Result<Whole, DataError> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        let digest: [u8; 32] = self.digest.finalize().into();
        Ok(Whole {
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            bytes: self.bytes,
            // Its lock is held for as long as the commit is awaited.
            file: self.file.into_std().await,
            aside: self.aside,
        })
    }
}

/// A file that is complete, and has no row yet.
pub(super) struct Whole {
    aside: Aside,
    file: File,
    bytes: u64,
    sha256: String,
}

impl Whole {
    pub(super) fn name(&self) -> &str {
        &self.aside.name
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// `data` says whether the row is there, if nobody else does.
    pub(super) fn pending(self, data: Data) -> Pending {
        Pending(Some(Waiting { whole: self, data }))
    }
}

/// A file whose row is being written. Dropped before it is kept, it asks the data what became of the row.
pub(super) struct Pending(Option<Waiting>);

struct Waiting {
    whole: Whole,
    data: Data,
}

impl Pending {
    /// Gives the file its place: the row is committed.
    pub(super) async fn keep(mut self) {
        if let Some(Waiting { whole, .. }) = self.0.take() {
            // Blocks for a rename.
            let kept = spawn_blocking(move || {
                let Whole { aside, file, .. } = whole;
                aside.keep();
                drop(file);
            });
            // If it panicked, the next start gives the file its place.
            let _ = kept.await;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(Waiting { whole, data }) = self.0.take() else {
            return;
        };
        // Without a runtime the process ends, and the next start asks.
        let Ok(runtime) = Handle::try_current() else {
            return whole.leave();
        };
        runtime.spawn(async move {
            for _ in 0..ASK_FOR {
                match data.has_document(whole.name()).await {
                    Ok(true) => return whole.aside.keep(),
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(%error, document = whole.name(), "it is not known whether a document is there; asking again");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                }
            }
            whole.leave();
        });
    }
}

impl Whole {
    /// Leaves the file for the next start.
    fn leave(mut self) {
        self.aside.is_kept = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_starting_server_removed_before_it_was_locked_is_made_anew() {
        let files = Files(Arc::new(Directory {
            path: std::env::temp_dir().join(format!("documents-{}", Uuid::new_v4().simple())),
            is_temporary: true,
        }));
        files.make_folders().unwrap();
        let aside = Aside::new(files.clone());
        let file = File::create_new(aside.path()).unwrap();
        let taken = lock(&aside.path()).unwrap().expect("nobody has locked it");
        std::fs::remove_file(aside.path()).unwrap();
        drop(taken);
        assert!(aside.lock(file).unwrap().is_none());

        let (aside, _file) = files.make().unwrap();
        assert!(aside.path().exists());
        assert!(
            lock(&aside.path()).unwrap().is_none(),
            "a starting server leaves it alone"
        );
    }
}
