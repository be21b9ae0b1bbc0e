//! Writable layers: what a container's rootfs is mounted from, and a look into it without mounting.
//!
//! A writable layer is `<root>/containers/<id>/{upper,work}`. Which layers it stands on is written to
//! tmpfs: a reboot ends every container, and what it leaves here is then nobody's and swept.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_domain::{ContainerId, During, ImageId, Refusal, Result, UserNamespace};
use coracle_failpoint::{Point, reach};
use rustix::fs::{FileType, Timespec, Timestamps};

use crate::LayerKey;
use crate::disk::list;
use crate::failure::for_all;
use crate::layer::root::reopen;
use crate::merged::Merged;
use crate::record::{RootfsRecord, encode};
use crate::store::{LOST_WRITES, QUARANTINE, State, Store, blocking};
use crate::tree::measure;

/// The directories that make up a container's rootfs on overlayfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The read-only layers, the uppermost first; at least one, none twice.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// For overlayfs's own use, on the same file system.
    pub work: PathBuf,
}

impl Store {
    /// Makes a container's writable layer on `image`, and keeps the image's layers until it is removed. With `users`, its
    /// root belongs to whom they map the owner of the image's root to.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] if the image is not here, [`Refusal::WrongState`] if the container has a
    /// writable layer already.
    pub async fn prepare_rootfs(
        self: &Arc<Self>,
        image: &ImageId,
        container: &ContainerId,
        users: Option<UserNamespace>,
    ) -> Result<Rootfs> {
        let record = self.state().claim_rootfs(image, container)?;
        let (store, id) = (Arc::clone(self), container.clone());
        let layers = record.layers.clone();
        let made = blocking("preparing a rootfs", move || {
            let made = store.must_be_there(&record.layers).and_then(|()| store.make_rootfs(&record, &id, users));
            if made.is_err() {
                let _ = store.forget_rootfs(&id);
            }
            made
        });
        let made = made.await;
        if made.is_err() {
            self.check_layers(&layers).await?;
        }
        made
    }

    /// The rootfs made for a container earlier; `None` if there is none.
    pub fn rootfs(&self, container: &ContainerId) -> Option<Rootfs> {
        let record = self.state().rootfs.get(container).cloned()?;
        Some(self.rootfs_of(&record, container))
    }

    /// Removes a container's writable layer, and the layers that only it used. Absence is success.
    ///
    /// # Errors
    /// If the disk refuses to let go of the writable layer.
    pub async fn remove_rootfs(self: &Arc<Self>, container: &ContainerId) -> Result<()> {
        let (store, id) = (Arc::clone(self), container.clone());
        let used_alone = blocking("removing a rootfs", move || store.forget_rootfs(&id)).await?;
        if used_alone && let Err(error) = self.sweep().await {
            tracing::warn!(%error, "cannot delete what only a container used");
        }
        Ok(())
    }

    /// Removes the writable layers that this process found when it began, but for those of the containers in `known`, and the
    /// layers that only they used; then has those measured that stay. It disturbs nobody who makes new ones meanwhile.
    ///
    /// # Errors
    /// If the disk refuses.
    pub async fn sweep_rootfs(self: &Arc<Self>, known: &HashSet<ContainerId>) -> Result<()> {
        let (store, known) = (Arc::clone(self), known.clone());
        let swept = blocking("sweeping writable layers", move || {
            let unclaimed: Vec<_> = store.state().inherited.difference(&known).cloned().collect();
            let forgotten = for_all(&unclaimed, |id| store.forget_rootfs(id).map(drop));
            forgotten.and(store.sweep_strangers()).and(store.sweep_records(&known))
        })
        .await;
        self.sampler.refresh();
        swept.and(self.sweep().await)
    }

    /// Removes what stands among the writable layers and is none: whatever it is, it is nothing of ours.
    fn sweep_strangers(&self) -> Result<()> {
        let containers = self.paths.root.join("containers");
        let strangers = list(&containers)?.into_iter().filter(|name| name.parse::<ContainerId>().is_err());
        for_all(strangers, |name| self.workshop.remove(&containers.join(name)).map(drop))
    }

    /// Removes records whose writable layer is gone. One that is just being made is known before its record is there.
    fn sweep_records(&self, known: &HashSet<ContainerId>) -> Result<()> {
        for name in list(&self.paths.runtime)?.into_iter().filter(|name| name != QUARANTINE && name != LOST_WRITES) {
            // A draft has a longer ending.
            let owner = name.split('.').next().and_then(|id| id.parse::<ContainerId>().ok());
            if !owner.is_some_and(|id| known.contains(&id) || self.state().rootfs.contains_key(&id)) {
                remove_file(&self.paths.runtime.join(name))?;
            }
        }
        Ok(())
    }

    fn make_rootfs(&self, record: &RootfsRecord, id: &ContainerId, users: Option<UserNamespace>) -> Result<Rootfs> {
        let rootfs = self.rootfs_of(record, id);
        let path = self.paths.rootfs_record(id);
        coracle_files::replace(&path, &encode(record)?).during("recording the layers of a container in", path.display())?;
        let directory = self.paths.container(id);
        // A half-made one of this id would be from a run that was killed; it holds nothing.
        self.workshop.remove(&directory)?;
        for path in [&directory, &rootfs.upper, &rootfs.work] {
            std::fs::create_dir(path).during("making the directory", path.display())?;
            reach(Point::WritableDirectory);
        }
        self.describe_upper(record, &rootfs.upper)?;
        if let Some(users) = users {
            give(&rootfs.upper, users).during("giving to the pod's users", rootfs.upper.display())?;
        }
        reach(Point::WritableRoot);
        self.sampler.add(id.clone(), rootfs.upper.clone(), measure(&rootfs.upper).ok());
        Ok(rootfs)
    }

    /// Gives the writable layer's root the attributes of the image's: on overlayfs the uppermost decides.
    fn describe_upper(&self, record: &RootfsRecord, upper: &Path) -> Result<()> {
        let carrier = {
            let state = self.state();
            record.layers.iter().find(|key| state.layers.get(key).is_some_and(|layer| layer.carries_root)).copied()
        };
        let Some(carrier) = carrier else {
            return std::fs::set_permissions(upper, Permissions::from_mode(0o755)).during("setting the mode of", upper.display());
        };
        let copy = || -> std::io::Result<()> {
            let from = std::fs::metadata(self.paths.tree(&carrier))?;
            std::os::unix::fs::chown(upper, Some(from.uid()), Some(from.gid()))?;
            std::fs::set_permissions(upper, Permissions::from_mode(from.mode() & 0o7777))?;
            let times = Timestamps {
                last_access: Timespec { tv_sec: from.atime(), tv_nsec: from.atime_nsec() },
                last_modification: Timespec { tv_sec: from.mtime(), tv_nsec: from.mtime_nsec() },
            };
            rustix::fs::utimensat(rustix::fs::CWD, upper, &times, rustix::fs::AtFlags::empty())?;
            Ok(())
        };
        copy().during("describing the root directory", upper.display())
    }

    fn rootfs_of(&self, record: &RootfsRecord, id: &ContainerId) -> Rootfs {
        let directory = self.paths.container(id);
        let mut lower: Vec<_> = record.layers.iter().map(|key| self.paths.tree(key)).collect();
        if lower.is_empty() {
            lower.push(self.paths.empty_tree());
        }
        Rootfs { lower, upper: directory.join("upper"), work: directory.join("work") }
    }

    /// Makes sure that a container has no writable layer and wants no layers; `true` if some may be there now that nobody wants.
    fn forget_rootfs(&self, id: &ContainerId) -> Result<bool> {
        self.sampler.remove(id);
        self.workshop.remove(&self.paths.container(id))?;
        remove_file(&self.paths.rootfs_record(id))?;
        reach(Point::WritableForget);
        let mut state = self.state();
        state.inherited.remove(id);
        let was_unclear = state.unclear.remove(id);
        // Asked once the claim is gone: whoever removes an image from now on sees to its layers.
        let used_alone = state.rootfs.remove(id).is_some_and(|claim| state.used_alone(&claim));
        Ok(was_unclear || used_alone)
    }
}

impl State {
    /// Whether layers may be there for this claim alone: its images are gone.
    fn used_alone(&self, claim: &RootfsRecord) -> bool {
        let of_images = || self.catalog.images.values().flat_map(|image| &image.layers).collect::<HashSet<_>>();
        !self.catalog.images.contains_key(&claim.image)
            || !claim.volumes.is_empty() && !claim.volumes.iter().collect::<HashSet<_>>().is_subset(&of_images())
    }

    fn claim_rootfs(&mut self, image: &ImageId, container: &ContainerId) -> Result<RootfsRecord> {
        let Some(found) = self.catalog.images.get(image) else {
            return Err(Refusal::not_found("image", image.as_str()).into());
        };
        if self.rootfs.contains_key(container) || self.unclear.contains(container) {
            return Err(Refusal::wrong_state(format!("container {container} has a rootfs already")).into());
        }
        let record = RootfsRecord { image: image.clone(), layers: self.stack(&found.layers), volumes: Vec::new() };
        self.rootfs.insert(container.clone(), record.clone());
        Ok(record)
    }

    /// Turns an image's layers into what overlayfs takes: the uppermost first, each once, and nothing
    /// beneath a layer that hides all. Of a layer that occurs twice the upper one hides the lower.
    pub(crate) fn stack(&self, layers: &[LayerKey]) -> Vec<LayerKey> {
        let mut stack: Vec<LayerKey> = Vec::new();
        for key in layers.iter().rev() {
            if !stack.contains(key) {
                stack.push(*key);
            }
            if self.layers.get(key).is_some_and(|layer| layer.opaque_root) {
                break;
            }
        }
        stack
    }
}

/// Changes the owner as a user namespace maps it. One that it does not have stays, and is nobody inside.
fn give(path: &Path, users: UserNamespace) -> std::io::Result<()> {
    let owner = std::fs::metadata(path)?;
    std::os::unix::fs::chown(path, users.uids.to_host(owner.uid()), users.gids.to_host(owner.gid()))
}

/// Reads a file as a container on `rootfs` would see it, following links but never outside; `None` if
/// there is no such file. Blocks.
///
/// # Errors
/// If it is no regular file, is longer than `limit` bytes, or cannot be read.
pub fn read_file(rootfs: &Rootfs, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let read = || -> std::io::Result<Option<Vec<u8>>> {
        let merged = Merged::open(std::iter::once(&rootfs.upper).chain(&rootfs.lower))?;
        let Some(found) = merged.find(path)? else { return Ok(None) };
        // Opening a pipe or a device could wait for ever.
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let mut content = Vec::new();
        reopen(&found.file)?.take(limit.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(std::io::Error::other(format!("it is longer than {limit} bytes")));
        }
        Ok(Some(content))
    };
    read().during("reading from the image", path.display())
}

fn remove_file(path: &Path) -> Result<()> {
    coracle_files::remove(path).during("deleting", path.display())
}
