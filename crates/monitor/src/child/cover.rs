//! Hiding paths: files behind the node's /dev/null, which itself stays as it is, directories behind an empty file system that refuses writes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_plan::{Access, MountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::mount::{Filesystem, attach, clone, is_directory};
use super::root::Root;
use crate::fault::{OrFault, Result};
use crate::unwritable;

/// The two covers of a container. They are taken before its root changes, when the node's files are still in reach.
#[derive(Debug)]
pub(crate) struct Covers {
    file: Cover,
    directory: Option<Cover>,
}

impl Covers {
    /// Takes hold of /dev/null.
    pub(crate) fn open() -> Result<Self> {
        let path = "/dev/null";
        let null = unwritable::mount(Path::new(path)).or_fault("opening", path)?;
        Ok(Self { file: Cover::Loose(null), directory: None })
    }

    /// Hides what is at `target`, if it is there.
    pub(crate) fn mask(&mut self, root: &Root, target: &Path) -> Result<()> {
        let stage = "hiding";
        let place = match root.find(target) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            found => found.or_fault(stage, target.display())?,
        };
        let cover = if is_directory(place.as_fd()).or_fault(stage, target.display())? { self.directory()? } else { &mut self.file };
        cover.put_onto(place.as_fd()).or_fault(stage, target.display())
    }

    fn directory(&mut self) -> Result<&mut Cover> {
        let cover = match self.directory.take() {
            Some(cover) => cover,
            None => Cover::Loose(empty_directory()?),
        };
        Ok(self.directory.insert(cover))
    }
}

/// An empty file system that refuses writes, attached nowhere.
pub(crate) fn empty_directory() -> Result<OwnedFd> {
    let flags = MountFlags { access: Access::ReadOnly, noexec: true, nosuid: true, nodev: true, noatime: false };
    let options = [("mode".to_owned(), Some("0555".to_owned())), ("nr_inodes".to_owned(), Some("1".to_owned()))];
    Filesystem { kind: "tmpfs", source: "tmpfs", flags: &flags, options: &options }.make("tmpfs for hidden directories")
}

/// A mount that can be put onto any number of places. An unattached one can be attached once; only an attached one
/// can be cloned (before Linux 6.15).
#[derive(Debug)]
enum Cover {
    Loose(OwnedFd),
    Attached(OwnedFd),
}

impl Cover {
    fn put_onto(&mut self, place: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        match self {
            Self::Attached(mount) => attach(clone(mount.as_fd(), OpenTreeFlags::empty())?.as_fd(), place),
            Self::Loose(mount) => {
                attach(mount.as_fd(), place)?;
                *self = Self::Attached(rustix::io::dup(mount.as_fd())?);
                Ok(())
            }
        }
    }
}
