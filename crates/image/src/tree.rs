//! Directory trees that others may have filled: measuring and removing them.
//!
//! Names come from containers and archives, so no path is followed: every step is relative to a held
//! directory and refuses symbolic links. Trees may be deeper than a path can be long, and their directories larger
//! than memory: names are taken one after the other.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How many directories are held open on the way down, to remove them.
const DEPTH_LIMIT: usize = 64;
/// The same, to measure them, where none can be brought nearer. Nobody's directories go so deep for use.
const MEASURED_DEPTH: usize = 256;
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
        empty(Dir::read_from(&top)?, &top, 0)?;
    }
    Err(Errno::NOTEMPTY)
}

/// Removes what is in `directory`. What lies too deep is moved up into `top`, for its next pass, and for that stays what a
/// directory did not show: it may pass over names while others go.
fn empty(mut directory: Dir, top: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    while let Some(entry) = next(&mut directory)? {
        let (directory, name) = (directory.fd()?, entry.file_name());
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(Errno::NOENT) | Ok(()) => continue,
            Err(error) => return Err(error),
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(Errno::NOENT) | Ok(()) => continue,
            Err(error) => return Err(error),
        }
        let child = rustix::fs::openat(directory, name, DIRECTORY, Mode::empty())?;
        if depth == DEPTH_LIMIT {
            let inode = rustix::fs::fstat(&child)?.st_ino;
            rustix::fs::renameat(directory, name, top, format!(".deep-{inode}"))?;
            continue;
        }
        empty(Dir::new(child)?, top, depth + 1)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next entry of a directory.
fn next(directory: &mut Dir) -> rustix::io::Result<Option<DirEntry>> {
    directory.find(|entry| !entry.as_ref().is_ok_and(|entry| is_dot(entry.file_name()))).transpose()
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Measures the tree at `path` without crossing into other file systems. What vanishes meanwhile does
/// not count, and neither does what lies deeper than [`MEASURED_DEPTH`].
pub(crate) fn measure(path: &Path) -> std::io::Result<TreeSize> {
    let top = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
    let mut tally = Tally::default();
    tally.count(&rustix::fs::fstat(&top)?);
    tally.count_below(Dir::new(top)?, 0)?;
    Ok(tally.size)
}

#[derive(Default)]
struct Tally {
    size: TreeSize,
    /// Files with several names that were counted.
    linked: HashSet<u64>,
}

impl Tally {
    fn count_below(&mut self, mut directory: Dir, depth: usize) -> rustix::io::Result<()> {
        while let Some(entry) = next(&mut directory)? {
            let (directory, name) = (directory.fd()?, entry.file_name());
            let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.count(&stat);
            if !is_directory(&stat) || depth == MEASURED_DEPTH {
                continue;
            }
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            match rustix::fs::openat2(directory, name, DIRECTORY, Mode::empty(), resolve) {
                Ok(child) => self.count_below(Dir::new(child)?, depth + 1)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat) {
        if is_directory(stat) || stat.st_nlink < 2 || self.linked.insert(stat.st_ino) {
            // st_blocks is in units of 512 bytes whatever the file system's own (stat(2)).
            self.size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            self.size.inodes += 1;
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

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

    #[test]
    fn trees_of_many_names_take_no_memory() {
        // Disks take their time over this many.
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let inner = ["--ignored", "--exact", "tree::tests::measure_and_remove_in_little_memory"];
        let inside = Command::new(std::env::current_exe().unwrap()).args(inner).env("TREE", scratch.path()).output().unwrap();
        let output = String::from_utf8_lossy(&inside.stdout);
        assert!(inside.status.success() && output.contains("1 passed"), "{output}");
    }

    #[test]
    #[ignore = "run by trees_of_many_names_take_no_memory, in a process of its own"]
    fn measure_and_remove_in_little_memory() {
        let tree = PathBuf::from(std::env::var_os("TREE").unwrap()).join("tree");
        let deep = (0..13).fold(tree.clone(), |path, _| path.join("d".repeat(250)));
        std::fs::create_dir_all(&deep).unwrap();
        let deep = rustix::fs::openat(CWD, &deep, DIRECTORY, Mode::empty()).unwrap();
        for number in 0..20_000 {
            rustix::fs::mkdirat(&deep, format!("{number:0250}"), Mode::RWXU).unwrap();
        }
        let before = peak();
        assert_eq!(measure(&tree).unwrap().inodes, 1 + 13 + 20_000);
        remove(&tree).unwrap();
        assert!(!tree.exists());
        let taken = peak() - before;
        assert!(taken < 2048, "{taken} KiB");
    }

    /// The most memory that this process ever had, KiB.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim_end_matches("kB").trim().parse().unwrap()
    }
}
