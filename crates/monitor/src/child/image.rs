//! Images as volumes: their layers as one read-only tree, or a directory or file in it.
//!
//! The tree is mounted for a moment where the container's root file system is being put together, over it; a path in it
//! is resolved there as beneath a root of its own, so that an image's links lead nowhere else; and what is found is taken
//! away as a mount of its own. All of that happens in the container's mount namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_plan::{Access, MountFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags, unmount};

use super::mount::{clone, overlay_read_only, put, restrict};
use super::root::Root;
use crate::fault::{OrFault, Result};

/// An image, or a part of it.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    /// Its layers, the top one first.
    pub(crate) lower: &'a [std::path::PathBuf],
    /// The part.
    pub(crate) sub_path: Option<&'a Path>,
    pub(crate) flags: &'a MountFlags,
}

impl Volume<'_> {
    /// Mounts it at `target` beneath `root`, by way of `place`, a directory of the node.
    pub(crate) fn mount(&self, place: &Path, root: &Root, target: &Path) -> Result<()> {
        let subject = format!("an image on {}", target.display());
        overlay_read_only(place, self.lower)?;
        let taken = self.take(place);
        unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).or_fault("unmounting an image from", place.display())?;
        let mount = taken?;
        let flags = MountFlags { access: Access::ReadOnly, ..*self.flags };
        restrict(mount.as_fd(), &flags, false).or_fault("setting the attributes of the mount", &subject)?;
        put(mount.as_fd(), root, target, &subject)
    }

    fn take(&self, place: &Path) -> Result<OwnedFd> {
        let path = self.sub_path.unwrap_or(Path::new("/"));
        let stage = "finding in the image";
        let tree = Root::open(place).or_fault(stage, path.display())?;
        let part = tree.find(path).or_fault(stage, path.display())?;
        clone(part.as_fd(), OpenTreeFlags::empty()).or_fault("mounting of the image", path.display())
    }
}
