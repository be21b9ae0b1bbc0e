//! Small durable writes, directories for work under way, and a thread that deletes.
//!
//! Nothing is deleted where it stands: it is renamed into `tmp` first, which needs no room and is done
//! at once, and the thread does the rest. A store that opens throws away all of `tmp`. But where even a renaming takes room
//! and there is none, as on a copy-on-write file system whose quota is used up, it is deleted in its place.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use coracle_domain::{During, Failure, Result};
use coracle_failpoint::{Point, reach};
use tokio::sync::oneshot;

use crate::tree;

/// `<root>/tmp` and what is done there. Clones share the thread, which ends after the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    directory: PathBuf,
    serial: Arc<AtomicU64>,
    rubbish: mpsc::Sender<Rubbish>,
}

#[derive(Debug)]
struct Rubbish {
    path: PathBuf,
    done: Option<oneshot::Sender<()>>,
}

/// A directory that is deleted unless it was moved away.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    workshop: Workshop,
}

impl Workshop {
    /// Makes `directory` and starts deleting what is in it.
    pub(crate) fn open(directory: PathBuf) -> Result<Self> {
        create_directory(&directory)?;
        let (rubbish, heap) = mpsc::channel();
        let deleting = std::thread::Builder::new().name("coracle-delete".into());
        deleting.spawn(move || heap.iter().for_each(delete)).during("starting a thread to delete in", directory.display())?;
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Names must differ from those that earlier processes left.
        let serial = Arc::new(AtomicU64::new(u64::try_from(started.as_nanos()).unwrap_or_default()));
        let workshop = Self { directory, serial, rubbish };
        for left in list(&workshop.directory)? {
            workshop.discard(workshop.directory.join(left));
        }
        Ok(workshop)
    }

    /// A name in `tmp` that nobody uses.
    pub(crate) fn new_path(&self) -> PathBuf {
        self.directory.join(format!("{:x}", self.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// A new directory.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        let path = self.new_path();
        std::fs::create_dir(&path).during("making a directory to work in", path.display())?;
        reach(Point::DiskScratch);
        Ok(Scratch { path, workshop: self.clone() })
    }

    /// Takes `path` out of the way at once and has it deleted; the receiver hears when that is done.
    /// Absence is success.
    pub(crate) fn remove(&self, path: &Path) -> Result<oneshot::Receiver<()>> {
        let aside = self.new_path();
        let (done, receiver) = oneshot::channel();
        match std::fs::rename(path, &aside) {
            Ok(()) => {
                reach(Point::DiskAside);
                self.send(Rubbish { path: aside, done: Some(done) });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if matches!(error.kind(), ErrorKind::QuotaExceeded | ErrorKind::StorageFull) => {
                forget(path).and_then(|()| tree::remove(path)).during("removing", path.display())?;
                let _ = done.send(());
            }
            Err(error) => return Err(Failure::new("removing", path.display(), error).into()),
        }
        Ok(receiver)
    }

    /// Has something in `tmp` deleted.
    fn discard(&self, path: PathBuf) {
        self.send(Rubbish { path, done: None });
    }

    fn send(&self, rubbish: Rubbish) {
        // Without the thread it stays until the store opens again.
        let _ = self.rubbish.send(rubbish);
    }

    /// Replaces the file at `path` so that a power cut leaves the old content or the new.
    pub(crate) fn write_durably(&self, path: &Path, content: &[u8]) -> Result<()> {
        let draft = self.new_path();
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            // Nothing of ours, and no file can be renamed to it.
            self.remove(path)?;
        }
        let write = || {
            write_synced(&draft, content)?;
            reach(Point::DiskDraft);
            std::fs::rename(&draft, path)?;
            reach(Point::DiskRename);
            sync_parent(path)
        };
        let written = write();
        if written.is_err() {
            let _ = std::fs::remove_file(&draft);
        }
        written.during("writing", path.display())
    }
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the directory to where it stays.
    pub(crate) fn keep_as(self, path: &Path) -> Result<()> {
        // Dropping afterwards finds nothing to delete.
        std::fs::rename(&self.path, path).during("moving into place", path.display())?;
        reach(Point::LayerKeep);
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.workshop.discard(self.path.clone());
    }
}

fn delete(rubbish: Rubbish) {
    if let Err(error) = tree::remove(&rubbish.path) {
        tracing::warn!(path = %rubbish.path.display(), %error, "cannot delete; it is tried again at the next start");
    }
    reach(Point::DiskDelete);
    if let Some(done) = rubbish.done {
        let _ = done.send(());
    }
}

/// Removes the files in the directory at `path`, and no directory: a layer whose record is gone is none, whatever is left of it.
fn forget(path: &Path) -> std::io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes a directory and those above it, for root alone.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).during("making the directory", path.display())
}

/// The names in a directory that are text; ours all are.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).during("listing", directory.display())? {
        let entry = entry.during("listing", directory.display())?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_in_its_place_is_first_no_longer_what_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = scratch.path().join("layer");
        std::fs::create_dir_all(layer.join("fs/deep")).unwrap();
        std::fs::write(layer.join("record.json"), "{}").unwrap();
        forget(&layer).unwrap();
        assert_eq!(list(&layer).unwrap(), ["fs"]);
        tree::remove(&layer).unwrap();
        std::fs::write(&layer, "a file").unwrap();
        forget(&layer).unwrap();
        assert!(layer.exists());
    }
}
