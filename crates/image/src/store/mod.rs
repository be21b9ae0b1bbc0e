//! The image store: what is here, and the one place where that changes.
//!
//! Questions are answered from memory. Whatever changes the disk holds [`Store::changes`], takes the
//! guard along to the thread that does the work, and so is done completely even if its caller has gone.
//! A layer stays as long as an image, a rootfs or a pull under way wants it.

mod change;
mod load;
mod lost;
mod sync;
#[cfg(test)]
mod tests;

pub(crate) use change::{Arrival, Draft};

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coracle_domain::{ContainerId, Failure, FailureKind, Filesystem, FilesystemUsage, Result};
use coracle_files::Quarantine;
use tokio::sync::{Notify, oneshot};

use crate::content::Layout;
use crate::disk::Workshop;
use crate::image::{Catalog, Image};
use crate::pull::Pulls;
use crate::record::{LayerRecord, RootfsRecord};
use crate::registry::Client;
use crate::usage::{Sampler, now};
use crate::{Digest, LayerKey};

/// Where damaged records are put aside, below the root and below the runtime directory.
pub(crate) const QUARANTINE: &str = "quarantine";

/// A file below the runtime directory, which is there once this boot's kernel has said that writes were lost.
pub(crate) const LOST_WRITES: &str = "lost-writes";

/// All images, layers and writable layers of a node.
#[derive(Debug)]
pub struct Store {
    pub(crate) paths: Paths,
    pub(crate) workshop: Workshop,
    pub(crate) layout: Layout,
    pub(crate) client: Arc<Client>,
    pub(crate) pulls: Pulls,
    pub(crate) sampler: Sampler,
    state: Mutex<State>,
    /// Held by whoever changes what is on disk.
    changes: Arc<tokio::sync::Mutex<()>>,
    /// Rings when there are layers that may not be on the disk yet.
    unsynced: Arc<Notify>,
    /// The root, open since before the first layer was looked at: see [`sync`].
    disk: Mutex<File>,
    /// Keeps two pulls from fetching the same blob.
    fetching: Mutex<HashMap<BlobOf, Weak<tokio::sync::Mutex<()>>>>,
    /// Identifies this boot of the machine.
    boot: String,
    /// Keeps a second process out.
    _lock: OwnedFd,
}

/// A blob, and the registry that it comes from: whoever waits for another pull of these waits for no slower download than its own.
pub(crate) type BlobOf = (String, Digest);

/// Where everything is.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    /// On tmpfs.
    pub(crate) runtime: PathBuf,
}

/// What is known of the disk.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) layers: HashMap<LayerKey, LayerRecord>,
    pub(crate) rootfs: HashMap<ContainerId, RootfsRecord>,
    /// Writable layers that stand on nobody knows what: while there are any, no layer is deleted.
    pub(crate) unclear: HashSet<ContainerId>,
    /// Writable layers that former processes made: of these some may be nobody's.
    pub(crate) inherited: HashSet<ContainerId>,
    /// Layers wanted by pulls.
    pins: HashMap<u64, HashSet<LayerKey>>,
    serial: u64,
    /// Of layers with a smaller serial that are not durable something may be lost.
    intact_from: u64,
}

/// Keeps layers that no image claims yet.
#[derive(Debug)]
pub(crate) struct Pin {
    store: Weak<Store>,
    number: u64,
}

impl Paths {
    pub(crate) fn layer(&self, key: &LayerKey) -> PathBuf {
        self.root.join("layers").join(key.to_string())
    }

    /// A layer's tree.
    pub(crate) fn tree(&self, key: &LayerKey) -> PathBuf {
        self.layer(key).join("fs")
    }

    /// Stands in for the layers of an image that has none.
    pub(crate) fn empty_tree(&self) -> PathBuf {
        self.root.join("layers").join("empty")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// For what is damaged on disk.
    pub(crate) fn quarantine(&self) -> Quarantine {
        Quarantine::at(self.root.join(QUARANTINE))
    }

    /// For what is damaged on tmpfs.
    fn runtime_quarantine(&self) -> Quarantine {
        Quarantine::at(self.runtime.join(QUARANTINE))
    }

    fn lost_writes(&self) -> PathBuf {
        self.runtime.join(LOST_WRITES)
    }

    pub(crate) fn rootfs_record(&self, id: &ContainerId) -> PathBuf {
        self.runtime.join(format!("{id}.json"))
    }

    pub(super) fn image_record(&self, id: &coracle_domain::ImageId) -> PathBuf {
        self.root.join("records").join(format!("{}.json", id.digits()))
    }
}

impl Store {
    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.paths.root
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.catalog().images.values().cloned().collect()
    }

    /// The image that `name` means: a reference, an id with or without `sha256:`, or the unique start of one.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.catalog().find(name)
    }

    /// Room taken by images: unpacked layers, manifests and configs. Counted when they came.
    pub fn usage(&self) -> FilesystemUsage {
        let state = self.state();
        let mut usage = FilesystemUsage { at: now(), mountpoint: self.paths.root.clone(), bytes: 0, inodes: 0 };
        for layer in state.layers.values() {
            usage.bytes += layer.bytes;
            usage.inodes += layer.inodes;
        }
        for image in state.catalog.images.values() {
            usage.bytes += image.blob_bytes;
            usage.inodes += 1 + image.manifests.len() as u64;
        }
        usage
    }

    /// Room taken by all writable layers, from samples some seconds old.
    pub fn container_usage(&self) -> FilesystemUsage {
        self.sampler.total(self.paths.root.clone())
    }

    /// Room taken by one container's writable layer, from a sample some seconds old; `None` until there is one.
    pub fn writable_usage(&self, container: &ContainerId) -> Option<FilesystemUsage> {
        self.sampler.get(container)
    }

    /// The file system of the writable layers, from a sample some seconds old; `None` until there is one.
    pub fn filesystem(&self) -> Option<Filesystem> {
        self.sampler.filesystem()
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.state().catalog)
    }

    /// Held for moments, never across I/O.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock under which a blob is fetched.
    pub(crate) fn fetching(&self, blob: BlobOf) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&blob).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(blob, Arc::downgrade(&lock));
        lock
    }

    /// A pin on nothing yet.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        let mut state = self.state();
        let number = state.next_serial();
        state.pins.insert(number, HashSet::new());
        Pin { store: Arc::downgrade(self), number }
    }

    /// The first of `keys` that is here, pinned.
    pub(crate) fn claim(&self, keys: &[LayerKey], pin: &Pin) -> Option<LayerKey> {
        let mut state = self.state();
        let key = keys.iter().find(|key| state.layers.contains_key(key)).copied()?;
        state.pins.entry(pin.number).or_default().insert(key);
        Some(key)
    }
}

impl State {
    /// Greater than all before. Layers that former processes unpacked have 0.
    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The layers that somebody wants.
    fn wanted(&self) -> HashSet<LayerKey> {
        let images = self.catalog.images.values().flat_map(|image| &image.layers);
        let rootfs = self.rootfs.values().flat_map(|rootfs| rootfs.layers.iter().chain(&rootfs.volumes));
        images.chain(rootfs).chain(self.pins.values().flatten()).copied().collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.state().pins.remove(&self.number);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The task that listens finds the store gone and ends.
        self.unsynced.notify_one();
    }
}

/// Runs what may block where it may.
pub(crate) async fn blocking<T: Send + 'static>(stage: &'static str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(stage, "on a thread of its own", error).into()),
    }
}

/// Runs what waits for somebody else, such as a registry, on a thread that ends with it: those of [`blocking`] are limited in number,
/// and all else needs them. The work goes on when nobody waits for it any more.
pub(crate) async fn on_own_thread<T: Send + 'static>(stage: &'static str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let body = move || {
        // Nobody listens when the caller was cancelled.
        let _ = answer.send(work());
    };
    std::thread::Builder::new().name("coracle-image".into()).spawn(body).map_err(|error| {
        let failure = Failure::new(stage, "on a thread of its own", error).kind(FailureKind::Exhausted);
        failure.hint("no thread could be made: a pids limit is reached, of the daemon's cgroup or of the machine")
    })?;
    answered.await.unwrap_or_else(|closed| Err(Failure::new(stage, "on a thread of its own", closed).into()))
}
