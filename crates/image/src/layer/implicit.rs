//! Completes a layer from those below it, and finishes every layer.
//!
//! An archive may put files under directories it does not carry, and hard-link files it does not carry.
//! The first leave the directory's owner, mode, times and attributes to the layers below, the second
//! their file. Both are copied up here, so that the layer looks on overlayfs as its author meant; such a
//! layer belongs to one chain only.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_domain::{During, Result};
use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::apply::{Applied, OVERLAY_PREFIX, replacing};
use super::root::{proc_path, reopen};
use crate::merged::{Found, Merged};

/// What the store must remember of a finished layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Whether the layer says what the root directory is like.
    pub(crate) carries_root: bool,
    /// Whether it hides all that lies below.
    pub(crate) opaque_root: bool,
}

impl Applied {
    /// Takes from `below` what is missing and gives the directories their times.
    pub(crate) fn finish(mut self, below: &Merged) -> Result<Finished> {
        for (link, target) in std::mem::take(&mut self.links) {
            self.pull_up(below, &link, &target).during("completing the hard link", link.display())?;
        }
        for path in std::mem::take(&mut self.implicit) {
            self.complete(below, &path).during("completing the directory", path.display())?;
        }
        for (path, times) in &self.directory_times {
            self.set_times(path, times).during("setting the times of", path.display())?;
        }
        Ok(Finished { carries_root: self.carries_root, opaque_root: self.opaque_root })
    }

    /// Copies a file up from below and links it, as link(2) on an overlay would.
    fn pull_up(&mut self, below: &Merged, link: &Path, target: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (link.parent(), link.file_name()) else { return Err(Errno::ISDIR.into()) };
        let parent = self.ensure_directory(parent)?;
        if rustix::fs::statat(&parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            // A later member took its place.
            return Ok(());
        }
        match self.link(target, &parent, name) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => return Ok(other?),
        }
        let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("no layer has its target {}", target.display()));
        let found = below.find(target)?.ok_or_else(missing)?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its target is no regular file"));
        }
        let (Some(directory), Some(file)) = (target.parent(), target.file_name()) else { return Err(Errno::ISDIR.into()) };
        let directory = self.ensure_directory(directory)?;
        copy_file(&found, &directory, file)?;
        Ok(self.link(target, &parent, name)?)
    }

    fn complete(&mut self, below: &Merged, path: &Path) -> io::Result<()> {
        let directory = match self.root.directory(path) {
            // The archive itself removed it again.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let found = below.find(path)?.filter(|found| FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory);
        // Nothing below knows it either: it stays root's, mode 0755.
        let Some(found) = found else { return Ok(()) };
        copy_description(&found, &directory)?;
        self.directory_times.push((path.to_owned(), times(&found.stat)));
        Ok(())
    }

    fn set_times(&self, path: &Path, times: &Timestamps) -> io::Result<()> {
        match self.root.directory(path) {
            Ok(directory) => Ok(rustix::fs::futimens(directory, times)?),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn copy_file(found: &Found, directory: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = replacing(directory, name, || rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR))?;
    let mut copy = File::from(copy);
    io::copy(&mut reopen(&found.file)?, &mut copy)?;
    let copy = OwnedFd::from(copy);
    copy_description(found, &copy)?;
    Ok(rustix::fs::futimens(&copy, &times(&found.stat))?)
}

/// Copies owner, mode and extended attributes.
fn copy_description(from: &Found, to: &OwnedFd) -> io::Result<()> {
    let stat = &from.stat;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let path = proc_path(&from.file);
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::listxattr(&path, &mut names[..])?;
    let mut value = vec![0; 64 << 10];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY_PREFIX) {
            continue;
        }
        let length = rustix::fs::getxattr(&path, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps { last_access: time(stat.st_atime, stat.st_atime_nsec), last_modification: time(stat.st_mtime, stat.st_mtime_nsec) }
}
