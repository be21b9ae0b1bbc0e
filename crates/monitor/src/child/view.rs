//! Carrying out a plan's steps: the container's view of the file system, put together in the mount namespace of the
//! process that does it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_plan::{Propagation, Step};
use coracle_sys::mount::{Change, READ_ONLY, change};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::cover::Covers;
use super::root::Root;
use super::{image, mount, node, procfs};
use crate::fault::{OrFault, Result};

/// The file system in the making.
#[derive(Debug)]
pub(crate) struct View<'a> {
    path: PathBuf,
    root: Root,
    covers: Covers,
    /// A process of the pid namespace to be seen in /proc; `None`: this one.
    neighbour: Option<BorrowedFd<'a>>,
}

impl<'a> View<'a> {
    /// Begins with the directory on which the root file system will be put together, for a program that will live beside `neighbour`.
    pub(crate) fn new(path: &Path, neighbour: Option<BorrowedFd<'a>>) -> Result<Self> {
        let root = Root::open(path).or_fault("opening the root directory", path.display())?;
        Ok(Self { path: path.to_owned(), root, covers: Covers::open()?, neighbour })
    }

    /// Begins with a root file system that is put together already but for the rest of the plan, attached nowhere.
    pub(crate) fn over(root: OwnedFd) -> Result<Self> {
        let covers = Covers::open()?;
        // On the node's root directory: that is one which this process can reach, whoever it is.
        let place = Root::open(Path::new("/")).or_fault("opening the root directory", "/")?;
        mount::attach(root.as_fd(), place.as_fd()).or_fault("mounting", "the layers")?;
        Ok(Self { path: PathBuf::from("/"), root: Root::at(root), covers, neighbour: None })
    }

    /// Puts a mount, which was made for a step and is attached nowhere, in its place.
    pub(crate) fn put(&mut self, mount: BorrowedFd<'_>, step: &Step) -> Result<()> {
        let (target, subject) = match step {
            Step::Bind { source, target, .. } => (target, format!("{} on {}", source.display(), target.display())),
            Step::Image { target, .. } => (target, format!("an image on {}", target.display())),
            Step::Device { target, .. } => (target, format!("the device {}", target.display())),
            other => return Err(Errno::INVAL).or_fault("putting a mount in its place", format_args!("{other:?}")),
        };
        mount::put(mount, &self.root, target, &subject)
    }

    /// Carries out one step.
    pub(crate) fn apply(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Propagate(propagation) => self.propagate(*propagation),
            Step::Overlay { lower, upper, work, label } => {
                mount::overlay(&self.path, lower, upper, work, label.as_deref())?;
                self.reopen()
            }
            Step::Filesystem { kind, source, target, flags, options } => {
                let filesystem = mount::Filesystem { kind, source, flags, options };
                match self.neighbour.filter(|_| kind == procfs::KIND) {
                    Some(neighbour) => procfs::mount(&filesystem, neighbour, &self.root, target)?,
                    None => filesystem.mount(&self.root, target)?,
                }
                self.reopen_if_covered(target)
            }
            Step::Bind { source, target, recursive, flags, flags_beneath, propagation, mapped: _ } => {
                let bind = mount::Bind { source, recursive: *recursive, flags, flags_beneath, propagation: *propagation };
                bind.mount(&self.root, target)?;
                self.reopen_if_covered(target)
            }
            Step::Image { lower, sub_path, target, flags } => {
                let volume = image::Volume { lower, sub_path: sub_path.as_deref(), flags };
                mount::put(volume.make(&self.path, target)?.as_fd(), &self.root, target, &volume.subject(target))
            }
            Step::Label { target, label } => node::label(&self.root, target, label),
            Step::Directory { target, mode } => node::directory(&self.root, target, *mode),
            Step::Symlink { target, content } => node::symlink(&self.root, target, content),
            Step::Device { target, kind, major, minor, mode, uid, gid } => {
                let device = node::Device { kind: *kind, number: rustix::fs::makedev(*major, *minor), mode: *mode, uid: *uid, gid: *gid };
                device.make(&self.root, target)
            }
            Step::Mask { target } => self.covers.mask(&self.root, target),
            Step::ReadOnly { target } => mount::read_only(&self.root, target),
            Step::PivotRoot => self.pivot().or_fault("changing the root directory to", self.path.display()),
            Step::ReadOnlyRoot => {
                let root = Root::open(Path::new("/")).or_fault("opening the root directory", "/")?;
                change(root.as_fd(), Change { set: READ_ONLY, ..Change::default() }).or_fault("making read-only", "/")
            }
        }
    }

    fn propagate(&mut self, propagation: Propagation) -> Result<()> {
        let stage = "changing the propagation of mounts beneath";
        mount_change("/", mount::propagation_flag(propagation) | MountPropagationFlags::REC).or_fault(stage, "/")?;
        if propagation == Propagation::Shared {
            // What is mounted on the root must not travel to the node, and pivot_root refuses a shared parent.
            let parent = mount_point_of(&self.path).or_fault("finding the mount of", self.path.display())?;
            mount_change(&parent, MountPropagationFlags::PRIVATE).or_fault(stage, parent.display())?;
        }
        Ok(())
    }

    fn pivot(&mut self) -> std::result::Result<(), Errno> {
        pivot_into(&self.root)?;
        self.path = PathBuf::from("/");
        self.root = Root::open(&self.path)?;
        Ok(())
    }

    fn reopen_if_covered(&mut self, target: &Path) -> Result<()> {
        if target == Path::new("/") { self.reopen() } else { Ok(()) }
    }

    fn reopen(&mut self) -> Result<()> {
        self.root = Root::open(&self.path).or_fault("opening the root directory", self.path.display())?;
        Ok(())
    }
}

/// Makes a mount's root the root directory of this mount namespace, and drops the old one.
pub(crate) fn pivot_into(root: impl AsFd) -> std::result::Result<(), Errno> {
    let node = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(root)?;
    pivot_root(".", ".")?;
    fchdir(&node)?;
    // Else the node would see its own mounts go.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// Where the mount that holds `path` is mounted.
fn mount_point_of(path: &Path) -> std::result::Result<PathBuf, Errno> {
    let mount_id = |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
    let mut point = std::fs::canonicalize(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOENT))?;
    let id = mount_id(&point)?;
    while let Some(parent) = point.parent() {
        if mount_id(parent)? != id {
            break;
        }
        point = parent.to_owned();
    }
    Ok(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_found() {
        assert_eq!(mount_point_of(Path::new("/proc/sys/kernel")).unwrap(), Path::new("/proc"));
        assert_eq!(mount_point_of(Path::new("/")).unwrap(), Path::new("/"));
    }
}
