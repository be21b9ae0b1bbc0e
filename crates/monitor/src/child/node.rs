//! Directories, links and device nodes beneath a container's root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_plan::DeviceKind;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chownat, fsetxattr, mknodat, statat, symlinkat};
use rustix::io::Errno;

use super::root::{Leaf, Root};
use crate::fault::{OrFault, Result};

/// Makes a directory, if it is missing.
pub(crate) fn directory(root: &Root, target: &Path, mode: u32) -> Result<()> {
    root.make(target, Leaf::Directory(mode)).map(drop).or_fault("making the directory", target.display())
}

/// Makes a symbolic link, if its path is free.
pub(crate) fn symlink(root: &Root, target: &Path, content: &Path) -> Result<()> {
    let stage = "making the link";
    let (directory, name) = root.parent(target).or_fault(stage, target.display())?;
    match symlinkat(content, directory, name) {
        Err(Errno::EXIST) => Ok(()),
        done => done.or_fault(stage, target.display()),
    }
}

/// Sets the SELinux label of what is there (xattr(7): `security.selinux`, with the NUL that ends it).
pub(crate) fn label(root: &Root, target: &Path, label: &str) -> Result<()> {
    let stage = "labelling";
    let place = root.open_at(target, OFlags::RDONLY).or_fault(stage, target.display())?;
    let value = [label.as_bytes(), b"\0"].concat();
    fsetxattr(place, "security.selinux", &value, XattrFlags::empty()).or_fault(stage, target.display())
}

/// A device node.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) kind: DeviceKind,
    pub(crate) number: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Device {
    /// Makes it. One that is there already is kept if it is the same device.
    pub(crate) fn make(&self, root: &Root, target: &Path) -> Result<()> {
        let stage = "making the device";
        let (directory, name) = root.parent(target).or_fault(stage, target.display())?;
        self.make_in(&directory, name).or_fault(stage, target.display())
    }

    /// The same, in a directory.
    pub(crate) fn make_in(&self, directory: &OwnedFd, name: &std::ffi::OsStr) -> std::result::Result<(), Errno> {
        let kind = match self.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        };
        match mknodat(directory, name, kind, Mode::from_raw_mode(self.mode), self.number) {
            Err(Errno::EXIST) => {
                let there = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(there.st_mode) != kind || (kind != FileType::Fifo && there.st_rdev != self.number) {
                    return Err(Errno::EXIST);
                }
            }
            done => done?,
        }
        if (self.uid, self.gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        chownat(directory.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}
