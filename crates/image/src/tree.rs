//! Directory trees that others may have filled: measuring and removing them.
//!
//! Names come from containers and archives, so no path is followed: every step is relative to a held
//! directory and refuses symbolic links. Trees may be deeper than a path can be long.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How many directories are held open on the way down.
const DEPTH_LIMIT: usize = 64;
/// How often a directory that refills is emptied again.
const PASSES: usize = 10_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a tree takes on its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TreeSize {
    /// Allocated, not apparent.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Removes the tree at `path`, which need not exist.
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    match rustix::fs::openat(CWD, parent, DIRECTORY, Mode::empty()) {
        Ok(parent) => Ok(remove_at(&parent, name)?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the tree called `name` in `parent`; absence is success.
pub(crate) fn remove_at(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) | Ok(()) => return Ok(()),
        Err(error) => return Err(error),
    }
    for _ in 0..PASSES {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) | Ok(()) => return Ok(()),
            Err(error) => return Err(error),
        }
        let top = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        empty(&top, &top, 0)?;
    }
    Err(Errno::NOTEMPTY)
}

/// Removes what is in `directory`. What lies too deep is moved up into `top`, for its next pass.
fn empty(directory: &OwnedFd, top: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    for name in names(directory)? {
        match rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(Errno::NOENT) | Ok(()) => continue,
            Err(error) => return Err(error),
        }
        match rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) | Ok(()) => continue,
            Err(error) => return Err(error),
        }
        let child = rustix::fs::openat(directory, name.as_c_str(), DIRECTORY, Mode::empty())?;
        if depth == DEPTH_LIMIT {
            let inode = rustix::fs::fstat(&child)?.st_ino;
            rustix::fs::renameat(directory, name.as_c_str(), top, format!(".deep-{inode}"))?;
            continue;
        }
        empty(&child, top, depth + 1)?;
        rustix::fs::unlinkat(directory, name.as_c_str(), AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<std::ffi::CString>> {
    let entries = Dir::read_from(directory)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()));
    names.filter(|name| !name.as_deref().is_ok_and(is_dot)).collect()
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Measures the tree at `path` without crossing into other file systems. What vanishes meanwhile does
/// not count, and neither does what lies deeper than a path can say.
pub(crate) fn measure(path: &Path) -> std::io::Result<TreeSize> {
    let top = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&top)?;
    let mut size = TreeSize::default();
    let mut linked = HashSet::new();
    count(&stat, &mut size, &mut linked);
    let mut waiting = vec![PathBuf::from(".")];
    while let Some(relative) = waiting.pop() {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let directory = match rustix::fs::openat2(&top, &relative, DIRECTORY, Mode::empty(), resolve) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => continue,
            Err(error) => return Err(error.into()),
        };
        for name in names(&directory)? {
            let Ok(stat) = rustix::fs::statat(&directory, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            count(&stat, &mut size, &mut linked);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                waiting.push(relative.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(size)
}

fn count(stat: &Stat, size: &mut TreeSize, linked: &mut HashSet<u64>) {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if is_directory || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
        // st_blocks is in units of 512 bytes whatever the file system's own (stat(2)).
        size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        size.inodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_goes_away() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = rustix::fs::openat(CWD, scratch.path(), DIRECTORY, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..150 {
            rustix::fs::mkdirat(&directory, "t", Mode::RWXU).or_else(|e| if e == Errno::EXIST { Ok(()) } else { Err(e) }).unwrap();
            rustix::fs::mkdirat(&directory, name.as_str(), Mode::RWXU).unwrap();
            directory = rustix::fs::openat(&directory, name.as_str(), DIRECTORY, Mode::empty()).unwrap();
        }
        measure(scratch.path()).unwrap();
        remove(&scratch.path().join(&name)).unwrap();
        remove(&scratch.path().join(&name)).unwrap();
        assert!(!scratch.path().join(&name).exists());
        assert!(scratch.path().join("t").exists());
    }

    #[test]
    fn links_are_neither_followed_nor_counted_twice() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, outside) = (scratch.path().join("in"), scratch.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), [1; 8192]).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        std::fs::write(inside.join("a"), [1; 8192]).unwrap();
        std::fs::hard_link(inside.join("a"), inside.join("b")).unwrap();
        let size = measure(&inside).unwrap();
        assert_eq!(size.inodes, 3);
        assert!((8192..32768).contains(&size.bytes), "{size:?}");
        remove(&inside).unwrap();
        assert!(outside.join("kept").exists());
    }
}
