//! The operations that build a container's view of the file system.
//!
//! A `target` is a path as the container will see it. It is resolved beneath the plan's root as the container
//! would resolve it (openat2, RESOLVE_IN_ROOT), so that a hostile image cannot lead an operation outside.
//! Missing directories on the way are made with mode 0755.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Cuts or keeps the tie between the container's mounts and the node's, for the whole tree. Comes first.
    Propagate(Propagation),
    /// Mounts the layers on the plan's root; with a user namespace, the read-only ones as it maps their owners.
    Overlay {
        /// Read-only layers, the top one first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// overlayfs' own directory, beside `upper`.
        work: PathBuf,
        /// The SELinux label of every file in it, whatever the layers say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// Mounts a new file system.
    Filesystem {
        /// `proc`, `tmpfs`…
        kind: String,
        /// What mountinfo shows as its source.
        source: String,
        /// Where.
        target: PathBuf,
        /// Access to it.
        flags: MountFlags,
        /// The file system's own options: a key, and a value unless it is a switch.
        options: Vec<(String, Option<String>)>,
    },
    /// Shows a directory or file of the node.
    Bind {
        /// Its path on the node; symbolic links are followed.
        source: PathBuf,
        /// Where.
        target: PathBuf,
        /// Whether mounts beneath it are shown too.
        recursive: bool,
        /// Access to the top mount.
        flags: MountFlags,
        /// What holds for every mount beneath as well (mount_setattr(2), AT_RECURSIVE).
        #[serde(default)]
        flags_beneath: MountFlags,
        /// How mounts travel.
        propagation: Propagation,
        /// Whether the owners of its files are shown as the plan's user namespace maps them (MOUNT_ATTR_IDMAP).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        mapped: bool,
    },
    /// Shows an image, or a directory or file in it, to be read only. Before [`Step::PivotRoot`].
    Image {
        /// Its layers, the top one first.
        lower: Vec<PathBuf>,
        /// The path in it, resolved as beneath a root of its own; `None`: all of it.
        sub_path: Option<PathBuf>,
        /// Where.
        target: PathBuf,
        /// Access to it.
        flags: MountFlags,
    },
    /// Sets the SELinux label of the file system mounted at a path, which cannot be given one while it is mounted.
    Label {
        /// Where.
        target: PathBuf,
        /// The label.
        label: String,
    },
    /// Makes a directory, if it is missing.
    Directory {
        /// Where.
        target: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Makes a symbolic link, if its path is free.
    Symlink {
        /// Where.
        target: PathBuf,
        /// What it says.
        content: PathBuf,
    },
    /// Makes a device node.
    Device {
        /// Where.
        target: PathBuf,
        /// Which sort.
        kind: DeviceKind,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// Hides a path: a file behind /dev/null, a directory behind an empty read-only tmpfs. Nothing, if it is missing.
    Mask {
        /// Which.
        target: PathBuf,
    },
    /// Makes a path refuse writes. Nothing, if it is missing.
    ReadOnly {
        /// Which.
        target: PathBuf,
    },
    /// Makes the plan's root the root directory and drops the node's. After it, targets are plain paths.
    PivotRoot,
    /// Makes the root mount refuse writes. After [`Step::PivotRoot`].
    ReadOnlyRoot,
}

/// How a mount is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Access {
    /// Reading and writing.
    #[default]
    ReadWrite,
    /// Reading only.
    ReadOnly,
}

/// Per-mount flags (mount_setattr(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountFlags {
    /// Whether it can be written to.
    pub access: Access,
    /// No programs.
    pub noexec: bool,
    /// No set-user-id.
    pub nosuid: bool,
    /// No devices.
    pub nodev: bool,
    /// No access times.
    pub noatime: bool,
}

/// How mounts travel between a mount and its peers (mount_namespaces(7)); all recursive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the node into the container.
    Slave,
    /// Both ways.
    Shared,
}

/// The sort of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}
