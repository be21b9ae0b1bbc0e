//! Mounting, with the kernel's newer calls (fsopen(2), open_tree(2), move_mount(2)): a mount is made unattached, given
//! its attributes, and put onto a handle that was resolved beneath the root. No path is looked up twice.

use std::ffi::CString;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_plan::{Access, MountFlags, Propagation};
use coracle_sys::mount::{self as attribute, Change, change, map_ids};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags as Flags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::chdir;

use super::root::{Leaf, Root};
use crate::fault::{OrFault, Result};

/// A directory's mode where one has to be made to mount on.
const MOUNT_POINT: Leaf = Leaf::Directory(0o755);

/// Mounts layers, the top one first, on `target`, a path of the node.
///
/// Layers are named by the numbers of their descriptors, relative to /proc/self/fd: whatever their paths are, as many
/// fit into the one page of options that mount(2) takes as overlayfs can stack.
pub(crate) fn overlay(target: &Path, lower: &[PathBuf], upper: &Path, work: &Path, label: Option<&str>) -> Result<()> {
    if lower.is_empty() {
        // overlayfs wants a lower layer; an image without layers is its writable one alone.
        return bind_whole(upper, target);
    }
    let lower: Vec<OwnedFd> = lower.iter().map(|layer| open_layer(layer)).collect::<Result<_>>()?;
    let (upper, work) = (open_layer(upper)?, open_layer(work)?);
    // Labels have commas in them, so that they are quoted.
    let label = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    let writable = format!(",upperdir={},workdir={},volatile{label}", upper.as_raw_fd(), work.as_raw_fd());
    mount_overlay(target, &lower, &writable)
}

/// The same without a writable layer, for which overlayfs wants two others.
pub(crate) fn overlay_read_only(target: &Path, lower: &[PathBuf]) -> Result<()> {
    if let [only] = lower {
        return rustix::mount::mount_bind(only, target).or_fault("mounting the layer on", target.display());
    }
    let lower: Vec<OwnedFd> = lower.iter().map(|layer| open_layer(layer)).collect::<Result<_>>()?;
    mount_overlay(target, &lower, "")
}

fn mount_overlay(target: &Path, lower: &[OwnedFd], more: &str) -> Result<()> {
    let numbers: Vec<String> = lower.iter().map(|layer| layer.as_raw_fd().to_string()).collect();
    let options = format!("lowerdir={}{more},index=off,metacopy=off,redirect_dir=nofollow", numbers.join(":"));
    let options = CString::new(options).map_err(|_| Errno::INVAL).or_fault("naming layers", target.display())?;
    chdir("/proc/self/fd").or_fault("entering", "/proc/self/fd")?;
    rustix::mount::mount("overlay", target, "overlay", Flags::empty(), options.as_c_str())
        .or_fault("mounting the layers on", target.display())?;
    chdir("/").or_fault("entering", "/")
}

fn open_layer(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).or_fault("opening the layer", path.display())
}

fn bind_whole(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, target).or_fault("mounting the writable layer on", target.display())
}

/// A new file system.
#[derive(Debug)]
pub(crate) struct Filesystem<'a> {
    pub(crate) kind: &'a str,
    pub(crate) source: &'a str,
    pub(crate) flags: &'a MountFlags,
    pub(crate) options: &'a [(String, Option<String>)],
}

impl Filesystem<'_> {
    /// Mounts it at `target` beneath `root`.
    pub(crate) fn mount(&self, root: &Root, target: &Path) -> Result<()> {
        let subject = format!("{} on {}", self.kind, target.display());
        let mount = self.make(&subject)?;
        let point = root.make(target, MOUNT_POINT).or_fault("making the mount point for", &subject)?;
        attach(mount.as_fd(), point.as_fd()).or_fault("mounting", subject)
    }

    /// Makes the mount, attached nowhere.
    pub(crate) fn make(&self, subject: &str) -> Result<OwnedFd> {
        self.finish(&begin(self.kind).or_fault("mounting", subject)?, subject)
    }

    /// The same of one that was begun, perhaps by another process.
    pub(crate) fn finish(&self, context: &OwnedFd, subject: &str) -> Result<OwnedFd> {
        fsconfig_set_string(context, "source", self.source).or_fault("mounting", subject)?;
        for (key, value) in self.options {
            let done = match value {
                Some(value) => fsconfig_set_string(context, key, value),
                None => fsconfig_set_flag(context, key),
            };
            done.or_fault("mounting", Explained { subject, option: Some(key), context })?;
        }
        fsconfig_create(context).or_fault("mounting", Explained { subject, option: None, context })?;
        let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes(self.flags)).unwrap_or_default());
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).or_fault("mounting", subject)
    }
}

/// Begins a new file system of this kind. What it shows is decided now, where that depends on who asks.
pub(crate) fn begin(kind: &str) -> std::result::Result<OwnedFd, Errno> {
    fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
}

/// A mount with what the kernel has to say about its failure (fsopen(2): messages are read from the context).
struct Explained<'a> {
    subject: &'a str,
    option: Option<&'a str>,
    context: &'a OwnedFd,
}

impl Display for Explained<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.subject)?;
        if let Some(option) = self.option {
            write!(f, ", option {option}")?;
        }
        let mut message = [0; 256];
        let length = rustix::io::read(self.context, &mut message).unwrap_or(0);
        match message.get(..length).map(String::from_utf8_lossy) {
            Some(message) if length > 2 => write!(f, " ({})", message.trim_start_matches("e ").trim_end()),
            _ => Ok(()),
        }
    }
}

/// A file or directory of the node.
#[derive(Debug)]
pub(crate) struct Bind<'a> {
    pub(crate) source: &'a Path,
    pub(crate) recursive: bool,
    pub(crate) flags: &'a MountFlags,
    pub(crate) flags_beneath: &'a MountFlags,
    pub(crate) propagation: Propagation,
}

impl Bind<'_> {
    /// Mounts it at `target` beneath `root`.
    pub(crate) fn mount(&self, root: &Root, target: &Path) -> Result<()> {
        put(self.make(target, None)?.as_fd(), root, target, &self.subject(target))
    }

    /// What it is called in a fault.
    pub(crate) fn subject(&self, target: &Path) -> String {
        format!("{} on {}", self.source.display(), target.display())
    }

    /// Makes the mount for `target`, attached nowhere, its owners mapped by a user namespace if one is given.
    pub(crate) fn make(&self, target: &Path, mapped: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let subject = self.subject(target);
        let recursive = if self.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
        let mount = open_tree(CWD, self.source, flags).or_fault("opening the source of the mount", &subject)?;
        if let Some(user_namespace) = mapped {
            map_ids(mount.as_fd(), user_namespace).or_fault("mapping the owners of files in the mount", &subject)?;
        }
        let propagation = u64::from(propagation_flag(self.propagation).bits());
        change(mount.as_fd(), Change { propagation, recursive: true, ..Change::default() })
            .or_fault("setting the propagation of the mount", &subject)?;
        for (flags, recursive) in [(self.flags, false), (self.flags_beneath, true)] {
            restrict(mount.as_fd(), flags, recursive).or_fault("setting the attributes of the mount", &subject)?;
        }
        Ok(mount)
    }
}

/// Sets what `flags` ask for; clears nothing.
pub(crate) fn restrict(mount: BorrowedFd<'_>, flags: &MountFlags, recursive: bool) -> std::io::Result<()> {
    match attributes(flags) {
        0 => Ok(()),
        set => change(mount, Change { set, recursive, ..Change::default() }),
    }
}

/// Puts an unattached mount onto `target` beneath `root`, where a file or directory is made if there is none.
pub(crate) fn put(mount: BorrowedFd<'_>, root: &Root, target: &Path, subject: &str) -> Result<()> {
    let leaf = if is_directory(mount).or_fault("reading the source of the mount", subject)? { MOUNT_POINT } else { Leaf::File };
    let point = root.make(target, leaf).or_fault("making the mount point for", subject)?;
    attach(mount, point.as_fd()).or_fault("mounting", subject)
}

/// Makes what is at `target`, and all that is mounted beneath, refuse writes, if it is there.
pub(crate) fn read_only(root: &Root, target: &Path) -> Result<()> {
    let stage = "making read-only";
    let place = match root.find(target) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        found => found.or_fault(stage, target.display())?,
    };
    let mount = clone(place.as_fd(), OpenTreeFlags::AT_RECURSIVE).or_fault(stage, target.display())?;
    change(mount.as_fd(), Change { set: attribute::READ_ONLY, recursive: true, ..Change::default() }).or_fault(stage, target.display())?;
    attach(mount.as_fd(), place.as_fd()).or_fault(stage, target.display())
}

/// A second mount of what `place` shows, attached nowhere.
pub(crate) fn clone(place: BorrowedFd<'_>, recursive: OpenTreeFlags) -> std::result::Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, "", flags | recursive)
}

/// Puts an unattached mount onto a place.
pub(crate) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    move_mount(mount, "", place, "", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// Whether a handle is one of a directory.
pub(crate) fn is_directory(handle: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(handle)?.st_mode) == FileType::Directory)
}

/// The kernel's flag for a propagation.
pub(crate) fn propagation_flag(propagation: Propagation) -> MountPropagationFlags {
    match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    }
}

fn attributes(flags: &MountFlags) -> u64 {
    [
        (flags.access == Access::ReadOnly, attribute::READ_ONLY),
        (flags.noexec, attribute::NO_EXEC),
        (flags.nosuid, attribute::NO_SUID),
        (flags.nodev, attribute::NO_DEVICES),
        (flags.noatime, attribute::NO_ACCESS_TIME),
    ]
    .into_iter()
    .filter_map(|(wanted, bit)| wanted.then_some(bit))
    .sum()
}
