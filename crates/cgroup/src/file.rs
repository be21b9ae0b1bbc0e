//! Reading and writing the files of a cgroup, and making its directory. Knows no controller.
//!
//! A cgroup's files exist from the start: they are opened without O_CREAT, so that a missing one is ENOENT
//! and not, as cgroupfs would say, EPERM.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coracle_failpoint::{Point, reach};
use rustix::fs::{Mode, OFlags, XattrFlags};

/// Marks a parent directory which the kubelet did not make and we did, so that we may remove it later.
const MADE_BY_US: &str = "trusted.coracle.made";

/// Whether a directory had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// Yes: every file in it has its default.
    Fresh,
    /// It was there.
    Before,
}

/// Writes `value` in one write(2), as cgroup files want it. An empty value is written as an empty line:
/// the kernel never sees a write of no bytes.
pub(crate) fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    let descriptor = rustix::fs::open(directory.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let bytes = if value.is_empty() { b"\n" } else { value.as_bytes() };
    rustix::io::retry_on_intr(|| rustix::io::write(&descriptor, bytes))?;
    reach(Point::CgroupWrite);
    Ok(())
}

/// The whole file without the white space at its end.
pub(crate) fn read(directory: &Path, file: &str) -> io::Result<String> {
    let mut text = std::fs::read_to_string(directory.join(file))?;
    text.truncate(text.trim_ascii_end().len());
    Ok(text)
}

/// A directory to read files in; `None` if it is not there.
pub(crate) fn directory(path: &Path) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// What is in one of them, as far as the buffer has room; empty if there is no such file, or no cgroup any more.
pub(crate) fn sample<'buffer>(directory: &OwnedFd, file: &str, buffer: &'buffer mut [u8]) -> &'buffer [u8] {
    let opened = rustix::fs::openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let length = opened.and_then(|file| rustix::io::read(file, &mut buffer[..])).unwrap_or(0);
    buffer.get(..length).unwrap_or_default()
}

/// Makes `relative` below `top`. Parents that are missing are made too; with `mark` they are marked as ours.
///
/// Another pod's end may remove a shared, empty parent in between: then it starts over.
pub(crate) fn make(top: &Path, relative: &str, mark: Mark) -> io::Result<Made> {
    const ATTEMPTS: usize = 8;
    let directory = top.join(relative);
    for _ in 0..ATTEMPTS {
        match make_child(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
        for parent in parents(top, relative) {
            match make_child(&parent) {
                Ok(Made::Fresh) if mark == Mark::Parents => ignore_missing(mark_as_ours(&parent))?,
                outcome => ignore_missing(outcome.map(drop))?,
            }
        }
    }
    make_child(&directory)
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Whether parents that had to be made are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Yes: they stand where a kubelet's should.
    Parents,
    /// No: all that is there is ours anyway.
    Nothing,
}

/// Makes one directory whose parent is there.
pub(crate) fn make_child(directory: &Path) -> io::Result<Made> {
    match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            reach(Point::CgroupDirectory);
            Ok(Made::Fresh)
        }
        Err(rustix::io::Errno::EXIST) => Ok(Made::Before),
        Err(error) => Err(error.into()),
    }
}

/// The directories between `top` and `relative`, both excluded, outermost first.
pub(crate) fn parents(top: &Path, relative: &str) -> Vec<PathBuf> {
    relative.match_indices('/').map(|(end, _)| top.join(relative.get(..end).unwrap_or_default())).collect()
}

fn mark_as_ours(directory: &Path) -> io::Result<()> {
    match rustix::fs::setxattr(directory, MADE_BY_US, b"1", XattrFlags::empty()) {
        // An unmarked directory is merely left behind, empty.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    reach(Point::CgroupMark);
    Ok(())
}

/// Whether there is such a directory, and it does not bear our mark.
pub(crate) fn is_of_others(directory: &Path) -> bool {
    !matches!(rustix::fs::getxattr(directory, MADE_BY_US, &mut [0u8; 8][..]), Ok(_) | Err(rustix::io::Errno::NOENT))
}

/// The names of the directories in `directory`; none if it does not exist.
pub(crate) fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    // Each directory has a link in its parent: with two, its own, the kernel says that there are none, for less than a list costs.
    if rustix::fs::stat(directory).is_ok_and(|found| found.st_nlink == 2) {
        return Ok(Vec::new());
    }
    let entries = match std::fs::read_dir(directory) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?.is_dir(), entry.path()))) {
            Ok((true, path)) => found.push(path),
            Ok((false, _)) => {}
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether the error says that the cgroup is not there: no such file, or (ENODEV) removed while it was open.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_listed_from_the_outside() {
        assert_eq!(parents(Path::new("/t"), "a/b/c"), [Path::new("/t/a"), Path::new("/t/a/b")]);
        assert!(parents(Path::new("/t"), "a").is_empty());
    }

    #[test]
    fn a_missing_file_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(write(directory.path(), "cpu.max", "max").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(children(&directory.path().join("absent")).unwrap().is_empty());
    }
}
