//! What a container's mounts and devices need of the node before they can be described: sources that are there and may be
//! shared, their labels, and the layers of images.
//!
//! Looking at a host path can hang on a dead server, so it is done on a thread of its own and not waited for for ever. That
//! thread has none of the daemon's descriptors, so that the sockets and locks of a daemon that is killed go all the same.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coracle_domain::{
    ContainerId, ContainerRequest, During, Failure, FailureKind, ImageId, Mount, MountSource, Propagation, Refusal, Result,
};
use coracle_failpoint::{Point, reach};
use coracle_image::Store;
use coracle_spec::DeviceNode;
use coracle_sys::process::without_descriptors;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cgroups::blocking;
use crate::deadline::{SET_UP, within};
use crate::{node, selinux};

/// The images among a container's mounts, in the mounts' order.
#[derive(Debug, Default)]
pub(crate) struct ImageVolumes {
    pub(crate) images: Vec<ImageId>,
    /// Of each its layers, the top one first.
    pub(crate) layers: Vec<Vec<PathBuf>>,
}

/// Finds the images among a container's mounts, and keeps their layers until its rootfs is removed.
pub(crate) async fn images(store: &Arc<Store>, request: &ContainerRequest, container: &ContainerId) -> Result<ImageVolumes> {
    let mut volumes = ImageVolumes::default();
    for mount in &request.mounts {
        let MountSource::Image { reference, id, sub_path, .. } = &mount.source else { continue };
        let claimed = claim(store, (reference, id.as_ref()), sub_path.as_deref(), container).await;
        let failure = |error| Failure::new("mounting an image on", mount.target.display(), error).kind(FailureKind::ImageVolume);
        let (image, layers) = claimed.map_err(failure)?;
        volumes.images.push(image);
        volumes.layers.push(layers);
    }
    Ok(volumes)
}

async fn claim(
    store: &Arc<Store>,
    (reference, id): (&str, Option<&ImageId>),
    part: Option<&Path>,
    container: &ContainerId,
) -> Result<(ImageId, Vec<PathBuf>)> {
    let named = id.map_or(reference, ImageId::as_str);
    let image = store.find(named).ok_or_else(|| Refusal::not_found("image", named))?.id.clone();
    let layers = store.claim_volume(&image, part, container).await?;
    Ok((image, layers))
}

/// Host paths that are being looked at. A path that hangs keeps one of the runtime's threads waiting, with the one that looks,
/// however often and by however many pods it is asked for: threads are few, and what other pods need runs on them too.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<HashMap<PathBuf, Weak<Semaphore>>>);

impl Looks {
    /// Does what may hang at a host path, on a thread of its own, when nobody else does.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        stage: &'static str,
        path: &Path,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let look = async {
            let turn = self.at(path).await?;
            let looked = blocking(move || {
                let _turn = turn;
                Ok(without_descriptors(work))
            });
            looked.await?.during("making a thread to look at the host path", path.display())?
        };
        within(SET_UP, stage, &path.display().to_string(), look).await
    }

    /// Waits until nobody else looks at the path. It is free again when the permit is dropped.
    async fn at(&self, path: &Path) -> Result<OwnedSemaphorePermit> {
        self.turn(path).acquire_owned().await.during("waiting for a look at the host path", path.display())
    }

    fn turn(&self, path: &Path) -> Arc<Semaphore> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = looks.get(path).and_then(Weak::upgrade) {
            return turn;
        }
        looks.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        looks.insert(path.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// Makes host paths that are missing and refuses those whose mounts cannot travel as they are asked to.
pub(crate) async fn sources(looks: &Looks, request: &ContainerRequest) -> Result<()> {
    for mount in &request.mounts {
        let MountSource::Host(path) = &mount.source else { continue };
        let mount = mount.clone();
        if looks.look("looking at the host path", path, move || source(&mount)).await? == Source::Made {
            // Here, because it needs descriptors.
            reach(Point::VolumeSource);
        }
    }
    Ok(())
}

/// Gives a label to the volumes that ask for one. Of large ones it takes more than one call: what has it is not touched again.
pub(crate) async fn relabel(looks: &Looks, request: &ContainerRequest, label: &str) -> Result<()> {
    for mount in request.mounts.iter().filter(|mount| mount.relabel) {
        let MountSource::Host(path) = &mount.source else { continue };
        let (place, label) = (path.clone(), label.to_owned());
        looks.look("relabelling", path, move || selinux::relabel(&place, &label)).await?;
    }
    Ok(())
}

/// The device nodes that a request means.
pub(crate) async fn devices(looks: &Looks, request: &ContainerRequest) -> Result<Vec<DeviceNode>> {
    let mut devices = Vec::new();
    for device in &request.devices {
        let asked = device.clone();
        devices.extend(looks.look("looking at the device", &device.host, move || node::requested(&asked)).await?);
    }
    Ok(devices)
}

/// How a host path was found.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    There,
    Made,
}

fn source(mount: &Mount) -> Result<Source> {
    let MountSource::Host(path) = &mount.source else { return Ok(Source::There) };
    // A host path that is missing becomes a directory, as with the peers; pods in the field rely on it.
    let mut found = Source::There;
    if !path.try_exists().during("looking at the host path", path.display())? {
        DirBuilder::new().recursive(true).mode(0o755).create(path).during("making the host path", path.display())?;
        found = Source::Made;
    }
    let (wanted, word): (&[&str], _) = match mount.propagation {
        Propagation::Private => return Ok(found),
        Propagation::HostToContainer => (&["shared", "master"], "shared or slave"),
        Propagation::Bidirectional => (&["shared"], "shared"),
    };
    let (point, ties) = mount_of(path).during("finding the mount of", path.display())?;
    if ties.iter().any(|tie| wanted.contains(&tie.as_str())) {
        return Ok(found);
    }
    Err(Refusal::wrong_state(format!("path {path:?} is mounted on {point:?} but it is not a {word} mount")).into())
}

/// Where the mount that holds `path` is mounted, and how it is tied to others.
fn mount_of(path: &Path) -> std::io::Result<(String, Vec<String>)> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let mounts = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo")?).into_owned();
    find_mount(&mounts, id).ok_or_else(|| std::io::Error::other("/proc/self/mountinfo does not have it"))
}

/// The mount point and the tags (`shared`, `master`, `unbindable`) of a mount in a proc_pid_mountinfo(5).
pub(crate) fn find_mount(mounts: &str, id: u64) -> Option<(String, Vec<String>)> {
    let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let fields = lines.into_iter().find(|fields| fields.first().and_then(|first| first.parse().ok()) == Some(id))?;
    let tags = fields.iter().skip(6).take_while(|field| **field != "-");
    let names = tags.map(|tag| tag.split_once(':').map_or(*tag, |(name, _)| name).to_owned());
    Some(((*fields.get(4)?).to_owned(), names.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &Path, propagation: Propagation) -> Mount {
        Mount {
            target: "/x".into(),
            source: MountSource::Host(path.to_owned()),
            read_only: false,
            recursive_read_only: false,
            propagation,
            relabel: false,
            options: Vec::new(),
            mapping: None,
        }
    }

    #[tokio::test]
    async fn one_path_is_looked_at_once_at_a_time_and_leaves_nothing() {
        let looks = Looks::default();
        let first = looks.at(Path::new("/a")).await.unwrap();
        let other = looks.at(Path::new("/b")).await.unwrap();
        assert_eq!(looks.turn(Path::new("/a")).available_permits(), 0);
        drop((first, other));
        drop(looks.at(Path::new("/a")).await.unwrap());
        assert!(looks.0.lock().unwrap().values().all(|turn| turn.strong_count() == 0));
    }

    #[test]
    fn the_mount_that_holds_a_path_is_found() {
        assert_eq!(mount_of(Path::new("/proc/sys/kernel")).unwrap().0, "/proc");
        assert!(mount_of(Path::new("/no/such/path")).is_err());
    }

    #[test]
    fn missing_sources_are_made_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("there")).unwrap();
        std::os::unix::fs::symlink("there", path("link")).unwrap();
        source(&mount(&path("link/a/b"), Propagation::Private)).unwrap();
        assert!(path("there/a/b").is_dir());
        fs::write(path("file"), "").unwrap();
        source(&mount(&path("file"), Propagation::Private)).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let error = source(&mount(&path("dangling"), Propagation::Private)).unwrap_err().to_string();
        assert!(error.contains("dangling"), "{error}");
    }

    #[test]
    fn a_mounts_ties_are_read_from_its_line() {
        let mounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
                      36 22 0:3 / /srv/a\\040b rw,noatime shared:7 master:1 - tmpfs none rw\n\
                      360 22 0:3 / /private rw - tmpfs shared:9 rw\n";
        assert_eq!(find_mount(mounts, 36), Some(("/srv/a\\040b".to_owned(), vec!["shared".to_owned(), "master".to_owned()])));
        assert_eq!(find_mount(mounts, 360), Some(("/private".to_owned(), Vec::new())));
        assert_eq!(find_mount(mounts, 3), None);
    }
}
