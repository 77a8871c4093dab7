//! The files of documents. A file is first written to a separate folder, and moved to its place
//! when its row is committed.
//!
//! ```text
//! DIR/incoming/doc_…     being received, or waiting for the commit; locked by its process
//! DIR/documents/doc_…    the file of a document whose row is committed
//! ```
//!
//! A process that dies leaves unlocked files in `incoming/`. At the next start, the server looks up
//! which of these files have a row. Files with a row are moved to their place, and the others are
//! removed.

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

/// If a commit is in doubt, the server checks at this interval whether the row exists, up to
/// [`ASK_FOR`] times.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_FOR: u32 = 60;

/// The directory of the documents. Clones share it.
#[derive(Clone)]
pub(crate) struct Files(Arc<Directory>);

struct Directory {
    path: PathBuf,
    /// Whether the directory was created for this process, and is removed with it.
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
    /// Opens the directory, or creates it if it is missing. Moves or removes the files that dead
    /// processes left behind. Without a directory, a new temporary directory is created for the
    /// first document.
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
            // Another server is still writing this file.
            let Some(_locked) = lock(&path)? else { continue };
            if has_row(&name).await? {
                std::fs::rename(&path, self.documents().join(&name))?;
            } else {
                std::fs::remove_file(&path)?;
            }
        }
        // A file is moved here only when its row exists. If the row is missing now, it was lost,
        // for example with an in-memory store.
        for name in names_in(&self.documents())? {
            if !has_row(&name).await? {
                std::fs::remove_file(self.documents().join(&name))?;
            }
        }
        Ok(())
    }

    /// Creates a file for a document that is being received.
    pub(super) async fn receive(&self) -> Result<Incoming, DataError> {
        let files = self.clone();
        // If the client disconnects in the meantime, the task drops the file, which removes it.
        let (aside, file) = spawn_blocking(move || files.make()).await??;
        Ok(Incoming {
            file: file.into(),
            aside,
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    /// Creates an empty, locked file in `incoming/`.
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

/// Returns only this example's files in a folder, because the directory may also contain other
/// files.
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

/// Locks a file. Returns `None` if another process has locked the file, or if the file no longer
/// exists.
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

    /// Locks the file that was just created. Returns `None` if a starting server removed the file
    /// before it was locked, because it looked like a file that was left behind.
    fn lock(self, file: File) -> io::Result<Option<(Self, File)>> {
        file.lock()?;
        Ok(self.path().try_exists()?.then_some((self, file)))
    }

    fn path(&self) -> PathBuf {
        self.files.incoming().join(&self.name)
    }

    /// Moves the file to its place.
    fn keep(mut self) {
        self.is_kept = true;
        let place = self.files.documents().join(&self.name);
        if let Err(error) = std::fs::rename(self.path(), place).and_then(|()| sync(&self.files.documents())) {
            // The next start moves the file.
            tracing::error!(%error, document = %self.name, "a document's file could not be moved to its place");
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
            tracing::warn!(%error, document = %self.name, "a file that is no longer needed could not be removed");
        }
    }
}

/// Makes renames in a folder durable.
#[cfg(unix)]
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// On other systems, a directory cannot be opened as a file.
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

    /// Completes the file, and makes it durable: a crash can no longer lose it.
    pub(super) async fn finish(mut self) -> Result<Whole, DataError> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        let digest: [u8; 32] = self.digest.finalize().into();
        Ok(Whole {
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            bytes: self.bytes,
            // The lock on the file is held until the result of the commit is known.
            file: self.file.into_std().await,
            aside: self.aside,
        })
    }
}

/// A complete file that has no row yet.
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

    /// Returns the file as pending. If the result of the commit is unknown, the row is looked up in
    /// `data`.
    pub(super) fn pending(self, data: Data) -> Pending {
        Pending(Some(Waiting { whole: self, data }))
    }
}

/// A file whose row is being written. If this value is dropped before the file is kept, it looks up
/// whether the row exists.
pub(super) struct Pending(Option<Waiting>);

struct Waiting {
    whole: Whole,
    data: Data,
}

impl Pending {
    /// Moves the file to its place, because its row is committed.
    pub(super) async fn keep(mut self) {
        if let Some(Waiting { whole, .. }) = self.0.take() {
            // A rename blocks the thread.
            let kept = spawn_blocking(move || {
                let Whole { aside, file, .. } = whole;
                aside.keep();
                drop(file);
            });
            // If this panicked, the next start moves the file to its place.
            let _ = kept.await;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(Waiting { whole, data }) = self.0.take() else {
            return;
        };
        // Without a runtime, the process is ending, and the server looks up the row when it next
        // starts.
        let Ok(runtime) = Handle::try_current() else {
            return whole.leave();
        };
        runtime.spawn(async move {
            for _ in 0..ASK_FOR {
                match data.has_document(whole.name()).await {
                    Ok(true) => return whole.aside.keep(),
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(%error, document = whole.name(), "cannot determine whether a document was stored; asking again");
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
