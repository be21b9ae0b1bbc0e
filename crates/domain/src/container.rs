//! Containers: what a caller asks for and what is told of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ContainerId, HandlerName, ImageId, PidMode, PodId, Resources, SecurityContext, UserNamespace};

/// Who a container is within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Its name.
    pub name: String,
    /// The number of the attempt to create it.
    pub attempt: u32,
}

/// An environment variable. Its value may be any bytes but NUL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for EnvironmentVariable {
    /// Values may be secrets: only the name is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// How mounts travel between a mount's two sides (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the host into the container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`).
    Bidirectional,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the node.
    Host(PathBuf),
    /// An image's content, or a directory or file in it.
    Image {
        /// The image as named by the caller.
        reference: String,
        /// Its id as resolved by the caller, where given.
        id: Option<ImageId>,
        /// `image.user_specified_image` of the request.
        #[serde(default)]
        user_specified: String,
        /// The path within it.
        sub_path: Option<PathBuf>,
    },
}

/// A mount into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, as an absolute path inside the container.
    pub target: PathBuf,
    /// What.
    pub source: MountSource,
    /// Whether writing is refused at its top mount.
    pub read_only: bool,
    /// Whether writing is refused in every mount beneath as well (KEP-3857).
    pub recursive_read_only: bool,
    /// How mounts travel.
    pub propagation: Propagation,
    /// Whether SELinux labels are to be changed.
    pub relabel: bool,
    /// `noexec`, `nodev`, `nosuid` (KEP-5855).
    pub options: Vec<String>,
    /// Whether owners on the node are shown as the same numbers in the pod's user namespace.
    #[serde(default)]
    pub mapping: Option<UserNamespace>,
}

/// A device of the node given to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the node: a device or a directory of them.
    pub host: PathBuf,
    /// Its path inside.
    pub target: PathBuf,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

/// The signal that asks a container to end.
///
/// Kept in CRI's own numbering, an alphabetical index which is not the kernel's, so that it is reported
/// as it was given; `cri` translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSignal(pub i32);

/// The image a container was made from, as asked and as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// `image.image` of the request, verbatim.
    pub asked: String,
    /// `image.user_specified_image` of the request.
    pub user_specified: String,
    /// `image.annotations` of the request.
    pub annotations: BTreeMap<String, String>,
    /// `image.runtime_handler` of the request.
    pub handler: Option<HandlerName>,
}

/// A parsed CreateContainer request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRequest {
    /// Who it is.
    pub metadata: ContainerMetadata,
    /// Its image.
    pub image: ImageIdentity,
    /// Replaces the image's entrypoint, unless empty.
    pub command: Vec<String>,
    /// Replaces the image's command, unless empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    pub working_directory: Option<PathBuf>,
    /// Added to the image's environment.
    pub environment: Vec<EnvironmentVariable>,
    /// Mounts, in the caller's order.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// The caller's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its log, relative to the pod's log directory; `None`: no log.
    pub log_path: Option<PathBuf>,
    /// Whether its standard input can be attached to.
    pub stdin: bool,
    /// Whether standard input ends with the first client that attached.
    pub stdin_once: bool,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Its pid namespace.
    pub pid: PidMode,
    /// Its limits.
    pub resources: Resources,
    /// Its security context.
    pub security: SecurityContext,
    /// `None`: the image's, else SIGTERM.
    pub stop_signal: Option<StopSignal>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The status.
    pub code: ExitCode,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Whether the kernel killed a process of its cgroup for want of memory.
    pub oom_killed: bool,
}

/// An exit status, or the honest admission that it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCode {
    /// The process exited with this status, or was killed by a signal (128 + its number).
    Known(i32),
    /// Nobody was there to see it.
    Unknown,
}

/// A container's phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running {
        /// Its process id in the node's namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It ended, or never could start.
    Exited {
        /// Nanoseconds since the epoch; `None` if it never ran.
        started_at: Option<i64>,
        /// How.
        exit: Exit,
        /// Why, for people; empty where there is nothing to add.
        message: String,
    },
}

/// Output of a container that its log did not take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostOutput {
    /// How many log entries: lines, or parts of long ones.
    pub entries: u64,
    /// How many bytes were in them.
    pub bytes: u64,
}

/// An immutable picture of a container, published by its pod's owner.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod's id.
    pub pod: PodId,
    /// The request it was made from.
    pub request: Arc<ContainerRequest>,
    /// Its image's id.
    pub image: ImageId,
    /// The ids of the images among its mounts, in the mounts' order.
    pub volume_images: Vec<ImageId>,
    /// Its phase.
    pub phase: ContainerPhase,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Its limits as they are now.
    pub resources: Resources,
    /// The user its first process was started as: uid, gid and supplementary gids.
    pub user: (u32, u32, Vec<u32>),
    /// The whole path of its log.
    pub log_path: Option<PathBuf>,
    /// What is missing in that log, as last told by the monitor.
    pub lost_output: LostOutput,
    /// The kernel's number of the signal that asks it to end.
    pub stop_signal: i32,
}
