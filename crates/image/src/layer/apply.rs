//! Makes the files that an archive describes, in the form that overlayfs wants a lower layer to have.
//!
//! ```text
//!   archive member            in the layer's directory
//!   .wh.name                  name: character device 0:0           (kernel: overlayfs.rst, "whiteouts
//!   .wh..wh..opq              trusted.overlay.opaque=y on its directory    and opaque directories")
//!   everything else           itself; a later member replaces an earlier one
//! ```
//!
//! Members are resolved beneath the root; see `root`. Directories that the archive uses without carrying
//! them, and hard links to files it does not carry, are noted for `implicit` to complete.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coracle_domain::{During, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::archive::{Archive, Kind, Member, Metadata, malformed};
use super::root::{Root, normalise, proc_path};
use super::whiteout::{self, Name};
use crate::tree;

/// The prefix of the attributes by which overlayfs talks to itself. No archive may set them.
pub(super) const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// As in path_resolution(7).
const LINK_LIMIT: u8 = 40;
/// How much may be noted of one archive for its end, bytes: some hundred thousand directories. It is also the limit of all that
/// wait for the other layers of an image.
pub(crate) const NOTES_LIMIT: usize = 128 << 20;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A layer whose archive was read to its end, and what is left to do.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(super) root: Root,
    /// The times to give to directories once nothing is made in them any more.
    pub(super) directory_times: Vec<(PathBuf, Timestamps)>,
    /// Directories that the archive uses but does not carry.
    pub(super) implicit: BTreeSet<PathBuf>,
    /// Hard links to files it does not carry: the new name, and the file's.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// Whether the archive carries the root directory itself.
    pub(super) carries_root: bool,
    /// Whether it hides all that lies below.
    pub(super) opaque_root: bool,
    /// Bytes that the notes above take.
    noted: usize,
}

/// Applies `archive` to the empty directory `directory`.
pub(super) fn apply(directory: &Path, archive: &mut Archive<impl BufRead>) -> Result<Applied> {
    let root = Root::open(directory).during("opening the layer's directory", directory.display())?;
    let applied = Applied {
        root,
        directory_times: Vec::new(),
        implicit: BTreeSet::new(),
        links: Vec::new(),
        carries_root: false,
        opaque_root: false,
        noted: 0,
    };
    let mut applier = Applier { applied, parent: None };
    while let Some(member) = archive.next().during("reading", "the archive")? {
        let made = applier.member(&member, archive);
        made.during("making", String::from_utf8_lossy(&member.path))?;
        coracle_failpoint::reach(coracle_failpoint::Point::LayerMember);
    }
    Ok(applier.applied)
}

struct Applier {
    applied: Applied,
    /// The directory that the last member went into: the next one mostly goes there too.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl Applier {
    fn member(&mut self, member: &Member, content: &mut impl BufRead) -> io::Result<()> {
        let path = normalise(&member.path)?;
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else { return self.root(member) };
        let hidden = whiteout::classify(name)?;
        if hidden == Name::Ignored {
            return Ok(());
        }
        let parent = self.parent(parent_path)?;
        match hidden {
            Name::Whiteout(hidden) => return hide(&parent, hidden),
            Name::Opaque => {
                self.applied.opaque_root |= parent_path.as_os_str().is_empty();
                return set_opaque(&parent);
            }
            Name::Plain | Name::Ignored => {}
        }
        match &member.kind {
            Kind::Directory => self.directory(&parent, &path, name, &member.metadata),
            Kind::File => make_file(&parent, name, &member.metadata, content),
            Kind::HardLink(target) => self.hard_link(&parent, &path, name, target),
            Kind::SymbolicLink(target) => {
                replacing(&parent, name, || rustix::fs::symlinkat(target.as_slice(), &parent, name))?;
                describe(&parent, name, &member.metadata)
            }
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => make_special(&parent, name, member),
        }
    }

    fn root(&mut self, member: &Member) -> io::Result<()> {
        if member.kind != Kind::Directory {
            return Err(malformed("only a directory can be the root"));
        }
        self.applied.carries_root = true;
        let root = self.applied.root.directory(Path::new(""))?;
        self.describe_directory(&root, Path::new(""), &member.metadata)
    }

    /// The directory `path`, which is made where it is missing.
    fn parent(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if let Some((_, directory)) = self.parent.as_ref().filter(|(known, _)| known == path) {
            return Ok(Rc::clone(directory));
        }
        let directory = Rc::new(self.applied.ensure_directory(path)?);
        self.parent = Some((path.to_owned(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn directory(&mut self, parent: &OwnedFd, path: &Path, name: &OsStr, metadata: &Metadata) -> io::Result<()> {
        let mut opaque = false;
        if let Err(error) = rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            if error != Errno::EXIST {
                return Err(error.into());
            }
            if type_at(parent, name)? != FileType::Directory {
                // What stood here hid what lies below, and so must what takes its place.
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
                opaque = true;
            }
        }
        let directory = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        if opaque {
            set_opaque(&directory)?;
        }
        if !self.applied.implicit.is_empty() {
            self.applied.implicit.remove(&self.applied.root.locate(&directory)?);
        }
        self.describe_directory(&directory, path, metadata)
    }

    fn describe_directory(&mut self, directory: &OwnedFd, path: &Path, metadata: &Metadata) -> io::Result<()> {
        describe_held(directory, metadata)?;
        self.applied.note(path)?;
        self.applied.directory_times.push((path.to_owned(), metadata.times()));
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, path: &Path, name: &OsStr, target: &[u8]) -> io::Result<()> {
        let target = normalise(target)?;
        if target == path {
            return Err(malformed("it is a hard link to itself"));
        }
        match self.applied.link(&target, parent, name) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.applied.note(path)?;
                self.applied.note(&target)?;
                self.applied.links.push((path.to_owned(), target));
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

impl Applied {
    /// Whether the layer says everything itself, and so fits on any other.
    pub(crate) fn is_self_contained(&self) -> bool {
        self.implicit.is_empty() && self.links.is_empty()
    }

    /// Bytes that are kept of it until it is finished.
    pub(crate) fn noted(&self) -> usize {
        self.noted
    }

    /// Accounts for a path that is kept until the archive's end.
    fn note(&mut self, path: &Path) -> io::Result<()> {
        self.noted += path.as_os_str().len() + size_of::<(PathBuf, Timestamps)>();
        if self.noted > NOTES_LIMIT {
            return Err(malformed("it has too many directories, or hard links to files that it does not have"));
        }
        Ok(())
    }

    /// Links the file `target` of this layer to `name` in `parent`.
    pub(super) fn link(&self, target: &Path, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        let (Some(directory), Some(file)) = (target.parent(), target.file_name()) else { return Err(Errno::ISDIR) };
        let directory = self.root.directory(directory)?;
        if rustix::fs::statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_whiteout(&stat)) {
            return Err(Errno::STALE);
        }
        replacing(parent, name, || rustix::fs::linkat(&directory, file, parent, name, AtFlags::empty()))
    }

    /// Opens a directory, making it and those above it where they are missing.
    pub(super) fn ensure_directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let (mut directory, mut missing) = self.deepest_directory(path)?;
        let mut links = 0;
        while let Some(name) = missing.pop() {
            let Some(target) = self.make_directory(&directory, &name)? else {
                directory = rustix::fs::openat(&directory, &name, DIRECTORY, Mode::empty())?;
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))?;
                continue;
            };
            links += 1;
            if links > LINK_LIMIT {
                return Err(Errno::LOOP.into());
            }
            let (nearest, further) = self.deepest_directory(&target)?;
            directory = nearest;
            missing.extend(further);
        }
        Ok(directory)
    }

    /// The last directory on the way to `path` that is there, and the names after it, the last one first.
    fn deepest_directory(&self, path: &Path) -> io::Result<(OwnedFd, Vec<OsString>)> {
        let mut missing = Vec::new();
        for path in path.ancestors() {
            match self.root.directory(path) {
                Err(Errno::NOENT | Errno::NOTDIR) => missing.extend(path.file_name().map(OsStr::to_owned)),
                other => return Ok((other?, missing)),
            }
        }
        Err(malformed("the root is gone"))
    }

    /// Makes the directory `name` in `parent`. If a link stands there, answers with where it leads: to a directory that only
    /// a layer below has.
    fn make_directory(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<Option<PathBuf>> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {
                let made = self.root.locate(parent)?.join(name);
                self.note(&made)?;
                self.implicit.insert(made);
            }
            Err(Errno::EXIST) => match type_at(parent, name)? {
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                    let target = self.root.locate(parent)?.join(OsStr::from_bytes(target.as_bytes()));
                    return normalise(target.as_os_str().as_bytes()).map(Some);
                }
                FileType::CharacterDevice if is_whiteout_at(parent, name) => make_opaque_directory(parent, name)?,
                FileType::Directory => {}
                _ => return Err(Errno::NOTDIR.into()),
            },
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }
}

impl Metadata {
    fn times(&self) -> Timestamps {
        Timestamps { last_access: self.accessed, last_modification: self.modified }
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// Hides `name` in the layers below, unless this layer has it: whiteouts do not concern their own layer.
fn hide(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let whiteout = rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0);
    match whiteout {
        Err(Errno::EXIST) if type_at(parent, name)? == FileType::Directory => {
            set_opaque(&rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?)
        }
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// Puts a directory where a whiteout was: what lies below stays hidden.
fn make_opaque_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    set_opaque(&rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?)
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

fn make_file(parent: &OwnedFd, name: &OsStr, metadata: &Metadata, content: &mut impl BufRead) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = replacing(parent, name, || rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR))?;
    let mut file = File::from(file);
    loop {
        let chunk = content.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        file.write_all(chunk)?;
        let written = chunk.len();
        content.consume(written);
    }
    describe_held(&file.into(), metadata)
}

fn make_special(parent: &OwnedFd, name: &OsStr, member: &Member) -> io::Result<()> {
    let (kind, device) = match member.kind {
        Kind::CharacterDevice(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Kind::BlockDevice(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        _ => (FileType::Fifo, 0),
    };
    let mode = Mode::from_raw_mode(member.metadata.mode);
    replacing(parent, name, || rustix::fs::mknodat(parent, name, kind, mode, device))?;
    describe(parent, name, &member.metadata)?;
    // The umask had its say above. This follows links, but what we just made is none.
    rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    Ok(rustix::fs::utimensat(parent, name, &member.metadata.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Runs `make`, and once more after removing what stood in its place.
pub(super) fn replacing<T>(parent: &OwnedFd, name: &OsStr, make: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            tree::remove_at(parent, name)?;
            make()
        }
        other => other,
    }
}

/// Owner, mode, attributes and times of an open file or directory, in the order in which none undoes
/// another: chown clears set-id bits and capabilities, and everything changes times.
fn describe_held(file: &OwnedFd, metadata: &Metadata) -> io::Result<()> {
    let (uid, gid) = metadata.owner();
    rustix::fs::fchown(file, uid, gid)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode))?;
    set_attributes(metadata, |name, value| rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))?;
    Ok(rustix::fs::futimens(file, &metadata.times())?)
}

/// The same, without the mode, for what cannot be opened: links and devices.
fn describe(parent: &OwnedFd, name: &OsStr, metadata: &Metadata) -> io::Result<()> {
    let (uid, gid) = metadata.owner();
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if !metadata.attributes.is_empty() {
        let path = proc_path(parent).join(name);
        set_attributes(metadata, |name, value| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()))?;
    }
    Ok(rustix::fs::utimensat(parent, name, &metadata.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set_attributes(metadata: &Metadata, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    for (name, value) in metadata.attributes.iter().filter(|(name, _)| !name.starts_with(OVERLAY_PREFIX)) {
        match set(name, value) {
            // A label of a security module that this kernel does not run.
            Err(Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

fn type_at(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<FileType> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

fn is_whiteout_at(parent: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_whiteout(&stat))
}

/// Whether a file is overlayfs's mark of absence.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
