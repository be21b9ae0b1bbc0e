//! Images as volumes: their layers as one read-only tree, or a directory or file in it.
//!
//! The tree is mounted for a moment where the container's root file system is being put together, over it; a path in it
//! is resolved there as beneath a root of its own, so that an image's links lead nowhere else; and what is found is taken
//! away as a mount of its own. All of that happens in the container's mount namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_plan::{Access, MountFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags, unmount};

use super::mount::{clone, overlay_read_only, restrict};
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
    /// Makes the mount for `target`, attached nowhere, by way of `place`, a directory of the node.
    pub(crate) fn make(&self, place: &Path, target: &Path) -> Result<OwnedFd> {
        overlay_read_only(place, self.lower)?;
        let taken = self.take(place);
        unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).or_fault("unmounting an image from", place.display())?;
        let mount = taken?;
        let flags = MountFlags { access: Access::ReadOnly, ..*self.flags };
        restrict(mount.as_fd(), &flags, false).or_fault("setting the attributes of the mount", self.subject(target))?;
        Ok(mount)
    }

    /// What it is called in a fault.
    pub(crate) fn subject(&self, target: &Path) -> String {
        format!("an image on {}", target.display())
    }

    fn take(&self, place: &Path) -> Result<OwnedFd> {
        let path = self.sub_path.unwrap_or(Path::new("/"));
        let stage = "finding in the image";
        let tree = Root::open(place).or_fault(stage, path.display())?;
        let part = tree.find(path).or_fault(stage, path.display())?;
        clone(part.as_fd(), OpenTreeFlags::empty()).or_fault("mounting of the image", path.display())
    }
}
