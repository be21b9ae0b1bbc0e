//! Paths as a container sees them, resolved beneath its root: openat2(2) with RESOLVE_IN_ROOT, so that no link in a
//! hostile image leads outside, not even while somebody changes it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2, readlinkat};
use rustix::io::Errno;

/// The kernel's own bound on symbolic links in one path.
const MOST_LINKS: usize = 40;
/// RESOLVE_IN_ROOT answers EAGAIN where a `..` meets a mount or rename anywhere on the machine.
const MOST_TRIES: usize = 1_000;

/// What to make at the end of a path that is missing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leaf {
    /// A directory with these permission bits.
    Directory(u32),
    /// An empty file, to mount on.
    File,
}

/// The directory that is `/` in the paths asked for.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Takes a directory as root.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Takes an open directory as root.
    pub(crate) fn at(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens what is at `path`, links followed, with `flags`.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..MOST_TRIES {
            result = openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    /// A handle to what is at `path`, links followed.
    pub(crate) fn find(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_at(path, OFlags::PATH)
    }

    /// The same, with everything made that is missing: directories with mode 0755, then `leaf`. A link that leads
    /// nowhere is followed, and what it names is made.
    pub(crate) fn make(&self, path: &Path, leaf: Leaf) -> Result<OwnedFd, Errno> {
        match self.find(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        // Mostly the last name alone is missing.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.find(parent)
            && make_one(parent.as_fd(), name, leaf).is_ok()
        {
            return self.find(path);
        }
        let mut made = PathBuf::from("/");
        let mut left = Vec::new();
        push_names(&mut left, path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            let next = made.join(&name);
            if !matches!(self.find(&next), Err(Errno::NOENT)) {
                made = next;
                continue;
            }
            let parent = self.find(&made)?;
            match make_one(parent.as_fd(), &name, if left.is_empty() { leaf } else { Leaf::Directory(0o755) }) {
                Ok(()) => made = next,
                Err(Errno::EXIST) if links < MOST_LINKS => {
                    links += 1;
                    let content = readlinkat(&parent, &name, Vec::new())?;
                    let content = Path::new(OsStr::from_bytes(content.to_bytes()));
                    if content.is_absolute() {
                        made = PathBuf::from("/");
                    }
                    push_names(&mut left, content);
                }
                Err(error) => return Err(error),
            }
        }
        self.find(&made)
    }

    /// The directory that holds `path`, made if it is missing, and the name in it.
    pub(crate) fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let directory = self.make(path.parent().unwrap_or(path), Leaf::Directory(0o755))?;
        Ok((directory, name))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Puts a path's names on a stack, the first on top. `..` is left to the kernel, which knows where it leads.
fn push_names(stack: &mut Vec<OsString>, path: &Path) {
    stack.extend(
        path.components()
            .rev()
            .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
            .map(|part| part.as_os_str().to_owned()),
    );
}

fn make_one(parent: BorrowedFd<'_>, name: &OsStr, leaf: Leaf) -> Result<(), Errno> {
    match leaf {
        Leaf::Directory(mode) => mkdirat(parent, name, Mode::from_raw_mode(mode)),
        Leaf::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, PathBuf, Root) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        std::fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        (directory, path, root)
    }

    #[test]
    fn missing_directories_are_made() {
        let (_guard, path, root) = root();
        root.make(Path::new("/a/b/c"), Leaf::Directory(0o700)).unwrap();
        assert!(path.join("a/b/c").is_dir());
        root.make(Path::new("/a/b/file"), Leaf::File).unwrap();
        assert!(path.join("a/b/file").is_file());
    }

    #[test]
    fn links_to_the_outside_lead_inside() {
        let (guard, path, root) = root();
        let outside = guard.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, path.join("absolute")).unwrap();
        symlink("../outside", path.join("relative")).unwrap();
        symlink("../../../../../../..", path.join("up")).unwrap();
        for link in ["absolute", "relative", "up"] {
            root.make(&Path::new("/").join(link).join("x"), Leaf::File).unwrap();
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(path.join("outside/x").is_file());
        assert!(path.join("x").is_file());
        assert!(path.join(outside.strip_prefix("/").unwrap()).join("x").is_file());
    }

    #[test]
    fn what_a_link_into_nowhere_names_is_made() {
        let (_guard, path, root) = root();
        std::fs::create_dir_all(path.join("var")).unwrap();
        symlink("/run", path.join("var/run")).unwrap();
        root.make(Path::new("/var/run/secrets"), Leaf::Directory(0o755)).unwrap();
        assert!(path.join("run/secrets").is_dir());
        std::fs::create_dir_all(path.join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", path.join("etc/resolv.conf")).unwrap();
        root.make(Path::new("/etc/resolv.conf"), Leaf::File).unwrap();
        assert!(path.join("run/resolve/stub.conf").is_file());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let (_guard, path, root) = root();
        symlink("b", path.join("a")).unwrap();
        symlink("a", path.join("b")).unwrap();
        assert_eq!(root.make(Path::new("/a/x"), Leaf::File).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let (_guard, path, root) = root();
        std::fs::write(path.join("file"), "").unwrap();
        assert_eq!(root.make(Path::new("/file/x"), Leaf::File).unwrap_err(), Errno::NOTDIR);
    }
}
