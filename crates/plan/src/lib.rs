//! The Plan: the ordered kernel operations that turn a process into a container.
//!
//! `spec` writes Plans, deciding everything; `monitor` carries them out, deciding nothing. A Plan is
//! data: it is stored as JSON beside its container, and printing it is the first thing to do when a container
//! misbehaves. This crate has types only, so that the monitor stays small.
//!
//! Order of execution in the new process: enter the cgroups, enter or make the namespaces, the [`Step`]s in
//! their order, then the [`Process`], then `execve`.

#![forbid(unsafe_code)]

mod bytes;
mod process;
mod step;
mod user;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use bytes::Bytes;
pub use process::{Capabilities, Filter, Process, Rlimit, User};
pub use step::{Access, DeviceKind, MountFlags, Propagation, Step};
pub use user::{IdMapping, UserNamespace};

/// Everything the kernel is asked to do for one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Where the process is accounted and limited.
    pub cgroups: Cgroups,
    /// What it sees of the machine.
    pub namespaces: Namespaces,
    /// An empty directory on which the root file system is put together, in the container's own mount namespace.
    pub root: PathBuf,
    /// Its file systems and their preparation, in order.
    pub steps: Vec<Step>,
    /// The program and its rights.
    pub process: Process,
}

/// The cgroups a process is put into.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// A cgroup v2 directory to clone into (CLONE_INTO_CGROUP).
    pub unified: Option<PathBuf>,
    /// `tasks` files that the process writes itself into before anything else (v1).
    pub join: Vec<PathBuf>,
}

/// The namespaces of a container. Network, IPC and UTS are its monitor's, which are its pod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Which processes it sees.
    pub pid: PidNamespace,
    /// Whether it gets a cgroup namespace, rooted in the cgroups it was put into.
    pub cgroup: bool,
    /// The pod's user namespace, which then owns the container's other namespaces; `None`: the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserNamespace>,
}

/// A container's pid namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new one; the process is its init.
    New,
    /// The node's.
    Node,
    /// The pod's, kept by the pod's init process.
    Pod,
    /// That of another container of the same pod, by id.
    Container(String),
}
