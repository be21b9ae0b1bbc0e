//! The root of a tree that strangers' names are resolved beneath.
//!
//! Every path goes through openat2(2) with `RESOLVE_IN_ROOT`: absolute names, `..` and symbolic links
//! all stay inside, as after a chroot. Single names are then used relative to a held directory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::malformed;

/// A `..` that races with any rename in the system makes openat2 ask for another try.
const TRIES: usize = 128;

/// A held root directory.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    /// As the kernel spells it.
    path: PathBuf,
}

impl Root {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let path = kernel_path(&directory)?;
        Ok(Self { directory, path })
    }

    /// Opens the directory at `path`, following links as seen from inside.
    pub(crate) fn directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Where in the tree a held directory really is.
    pub(crate) fn locate(&self, directory: &OwnedFd) -> std::io::Result<PathBuf> {
        let path = kernel_path(directory)?;
        let inside = path.strip_prefix(&self.path).map_err(|_| malformed("a directory is not where it was"))?;
        Ok(inside.to_owned())
    }
}

fn kernel_path(directory: &OwnedFd) -> std::io::Result<PathBuf> {
    std::fs::read_link(proc_path(directory))
}

/// A path that means exactly the held object, for calls that take nothing but paths.
pub(crate) fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens for reading what is held with `O_PATH`.
pub(crate) fn reopen(fd: &OwnedFd) -> std::io::Result<File> {
    File::open(proc_path(fd))
}

/// A path of an archive or a link as a sequence of names: no `.`, no `..`, no slash at either end. What
/// climbs above the root ends at the root.
pub(crate) fn normalise(path: &[u8]) -> std::io::Result<PathBuf> {
    if path.contains(&0) {
        return Err(malformed("a name holds a NUL byte"));
    }
    let mut normal = PathBuf::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(normal.pop()),
            name => normal.push(OsStr::from_bytes(name)),
        }
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_climbs_out() {
        for (path, normal) in [("../../etc/passwd", "etc/passwd"), ("/a/./b//c/", "a/b/c"), ("a/../../..", ""), (".", ""), ("a/../b", "b")]
        {
            assert_eq!(normalise(path.as_bytes()).unwrap(), Path::new(normal), "{path}");
        }
        assert!(normalise(b"a\0b").is_err());
    }

    #[test]
    fn links_resolve_beneath_the_root() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("etc/inner")).unwrap();
        std::os::unix::fs::symlink("/etc", scratch.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", scratch.path().join("climbing")).unwrap();
        std::os::unix::fs::symlink("/usr", scratch.path().join("dangling")).unwrap();
        let root = Root::open(scratch.path()).unwrap();
        for path in ["absolute/inner", "climbing/inner", "/etc/inner", "../etc/inner"] {
            let directory = root.directory(Path::new(path)).unwrap();
            assert_eq!(root.locate(&directory).unwrap(), Path::new("etc/inner"), "{path}");
        }
        assert_eq!(root.directory(Path::new("dangling")).unwrap_err(), Errno::NOENT);
    }
}
