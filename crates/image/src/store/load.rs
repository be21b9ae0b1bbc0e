//! Opening the store: reading what is on disk, and dropping what is half-made, lost or nobody's.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use coracle_domain::{ContainerId, During, Failure, FailureKind, Result};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use tokio::sync::Notify;

use super::{Paths, State, Store, blocking};
use crate::LayerKey;
use crate::content::Layout;
use crate::disk::{Workshop, create_directory, list};
use crate::image::{Catalog, Image};
use crate::record::{self, ImageRecord, LayerRecord, encode};
use crate::registry::{Client, Registries};
use crate::usage::Sampler;

impl Store {
    /// Opens the store at `root` (`/var/lib/coracle`), with its volatile records in `runtime`, which must
    /// not survive a reboot (`/run/coracle/images`).
    ///
    /// # Errors
    /// If a directory cannot be made or read, or another process has the store open. Broken content is
    /// no error: it is dropped or moved aside, with a warning.
    pub async fn open(root: &Path, runtime: &Path, registries: Registries) -> Result<Arc<Self>> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").during("reading", "the boot id")?;
        Self::open_in_boot(root, runtime, registries, boot.trim().to_owned()).await
    }

    pub(crate) async fn open_in_boot(root: &Path, runtime: &Path, registries: Registries, boot: String) -> Result<Arc<Self>> {
        let paths = Paths { root: root.to_owned(), runtime: runtime.to_owned() };
        let store = blocking("opening the image store", move || load(paths, registries, boot).map(Arc::new)).await?;
        store.start_syncing();
        Ok(store)
    }
}

fn load(paths: Paths, registries: Registries, boot: String) -> Result<Store> {
    let root = &paths.root;
    for directory in ["records", "layers/empty", "containers"] {
        create_directory(&root.join(directory))?;
    }
    open_to_all(&paths.empty_tree())?;
    create_directory(&paths.runtime)?;
    let lock_file = root.join("lock");
    if lock_file.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        paths.quarantine().take(&lock_file, "it is no regular file");
    }
    let lock = lock(&lock_file)?;
    let disk = File::open(root).during("opening", root.display())?;
    let workshop = Workshop::open(root.join("tmp"))?;
    let layout = Layout::open(root.join("images"), workshop.clone())?;
    // By now nobody knows which of the layers found here that cost something.
    let intact_from = u64::from(paths.lost_writes().exists());
    let mut state = State { intact_from, ..State::default() };
    rootfs(&paths, &mut state)?;
    state.layers = layers(&paths, &workshop, &boot, &state)?;
    state.catalog = Arc::new(Catalog::new(images(&paths, &workshop, &layout, &state.layers)?));
    let store = Store {
        sampler: Sampler::start(root.clone()).during("starting a thread to measure in", root.display())?,
        client: Arc::new(Client::new(registries)),
        pulls: Default::default(),
        state: Mutex::new(state),
        changes: Arc::default(),
        unsynced: Arc::new(Notify::new()),
        disk: Mutex::new(disk),
        fetching: Mutex::default(),
        _lock: lock,
        paths,
        workshop,
        layout,
        boot,
    };
    store.account();
    if let Err(error) = store.collect_garbage() {
        tracing::warn!(%error, "unused layers and blobs could not be deleted");
    }
    store.layout.publish(store.catalog().images.values().map(AsRef::as_ref));
    Ok(store)
}

/// Makes sure that everybody may look into a directory. Where it is so already nothing is written, which may need room.
fn open_to_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.symlink_metadata().during("reading the mode of", path.display())?.permissions().mode();
    if mode & 0o7777 == 0o755 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).during("setting the mode of", path.display())
}

/// A record lock, which children that are just being spawned do not inherit.
fn lock(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).during("opening", path.display())?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) => {
            let failure = Failure::new("locking the image store", path.display(), std::io::Error::from(error));
            Err(failure.kind(FailureKind::Unavailable).hint("another process uses this directory").into())
        }
    }
}

/// The layers that are complete and known to be so. Others go, unless a container may stand on them: then they are no
/// layers any more, but their files stay until a start that finds them unused.
fn layers(paths: &Paths, workshop: &Workshop, boot: &str, state: &State) -> Result<HashMap<LayerKey, LayerRecord>> {
    let mut layers = HashMap::new();
    for name in list(&paths.root.join("layers"))? {
        let path = paths.root.join("layers").join(&name);
        if path == paths.empty_tree() {
            continue;
        }
        // What was found damaged before has a second name after a dot.
        let (key, is_whole_name) = name.split_once('.').map_or((name.as_str(), true), |(key, _)| (key, false));
        let key = key.parse::<LayerKey>().ok();
        let record = if is_whole_name && is_directory(&path.join("fs")) { layer_record(paths, &path) } else { None };
        // What another boot had not synced may be incomplete in any way, and nothing that runs in this one stands on it.
        let is_unsynced = record.as_ref().is_some_and(|record| !record.durable && record.boot != boot);
        if let (Some(key), Some(record), false) = (key, record, is_unsynced) {
            layers.insert(key, record);
        } else if !is_unsynced && key.is_some_and(|key| state.may_be_mounted(&key)) {
            if is_whole_name {
                set_aside(paths, workshop, &path)?;
            }
        } else {
            tracing::warn!(layer = %path.display(), "dropping a layer that may be incomplete");
            workshop.remove(&path)?;
        }
    }
    Ok(layers)
}

fn layer_record(paths: &Paths, layer: &Path) -> Option<LayerRecord> {
    // A link could lead to a layer that is not ours.
    if is_directory(layer) { record::load(&layer.join("record.json"), &paths.quarantine()) } else { None }
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Makes way for the layer to be pulled again. What is mounted does not mind being renamed. Absence is success.
pub(super) fn set_aside(paths: &Paths, workshop: &Workshop, path: &Path) -> Result<()> {
    let (Some(name), Some(serial)) = (path.file_name(), workshop.new_path().file_name().map(ToOwned::to_owned)) else { return Ok(()) };
    let aside = paths.root.join("layers").join(format!("{}.{}", name.to_string_lossy(), serial.to_string_lossy()));
    match std::fs::rename(path, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.during("setting aside", path.display())?,
    }
    tracing::warn!(layer = %path.display(), "a damaged layer is kept for the containers that stand on it, and for no others");
    Ok(())
}

fn images(paths: &Paths, workshop: &Workshop, layout: &Layout, layers: &HashMap<LayerKey, LayerRecord>) -> Result<Vec<Arc<Image>>> {
    let directory = paths.root.join("records");
    let names = list(&directory)?.into_iter().filter(|name| name.ends_with(".json"));
    let quarantine = paths.quarantine();
    let load = |path: PathBuf| record::load::<ImageRecord>(&path, &quarantine).map(|record| (path, record));
    let mut records: Vec<(PathBuf, ImageRecord)> = names.map(|name| directory.join(name)).filter_map(load).collect();
    for (path, record) in keep_latest_tags(&mut records) {
        // Else the tag would come back once the image is gone that has it now.
        if let Err(error) = encode(record).and_then(|record| workshop.write_durably(path, &record)) {
            tracing::warn!(image = %record.id, %error, "an image's record still has a tag that it lost");
        }
    }
    let mut images = Vec::new();
    for (path, record) in records {
        if path != paths.image_record(&record.id) {
            paths.quarantine().take(&path, "it is the record of another image than its name says");
        } else if !record.layers.iter().all(|key| layers.contains_key(key)) {
            tracing::warn!(image = %record.id, "an image lost layers; it must be pulled again");
            coracle_files::remove(&path).during("deleting", path.display())?;
        } else {
            match Image::load(record, layout) {
                Ok(image) => images.push(Arc::new(image)),
                Err(error) => paths.quarantine().take(&path, format!("its image must be pulled again: {error}")),
            }
        }
    }
    Ok(images)
}

/// A tag that moved while the power went may stand in two records: the later one has it. Answers with those that lost one.
fn keep_latest_tags(records: &mut [(PathBuf, ImageRecord)]) -> impl Iterator<Item = &(PathBuf, ImageRecord)> {
    let mut latest: HashMap<(String, String), i64> = HashMap::new();
    for name in records.iter().flat_map(|(_, record)| &record.names) {
        let Some(tag) = &name.tag else { continue };
        let at = latest.entry((name.repository.clone(), tag.clone())).or_insert(name.at);
        *at = name.at.max(*at);
    }
    let (mut given, mut changed) = (HashSet::new(), HashSet::new());
    for (path, record) in &mut *records {
        for name in &mut record.names {
            let Some(tag) = &name.tag else { continue };
            let key = (name.repository.clone(), tag.clone());
            if latest.get(&key) != Some(&name.at) || !given.insert(key) {
                name.tag = None;
                changed.insert(path.clone());
            }
        }
    }
    records.iter().filter(move |(path, _)| changed.contains(path))
}

/// Takes stock of writable layers. Whether anybody claims them, the engine will say.
fn rootfs(paths: &Paths, state: &mut State) -> Result<()> {
    for name in list(&paths.root.join("containers"))? {
        let Ok(id) = name.parse::<ContainerId>() else { continue };
        state.inherited.insert(id.clone());
        match record::load(&paths.rootfs_record(&id), &paths.runtime_quarantine()) {
            Some(record) => drop(state.rootfs.insert(id, record)),
            None => drop(state.unclear.insert(id)),
        }
    }
    Ok(())
}

impl Store {
    /// Accounts for the writable layers that were found. To measure them takes long, and nobody waits for it at a start.
    fn account(&self) {
        let ids: Vec<_> = self.state().rootfs.keys().cloned().collect();
        for id in ids {
            let upper = self.paths.container(&id).join("upper");
            self.sampler.add(id, upper, None);
        }
    }
}
