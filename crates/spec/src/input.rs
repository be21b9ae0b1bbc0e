//! What has to be known before a container can be described: its request, its image, and facts of node and pod
//! that only the engine can find out. Plain data; nothing here decides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_domain::{ContainerId, ContainerRequest, DeviceAccess, DeviceKind, PodId, PodRequest};

use crate::{ResolvedUser, Selinux, SelinuxLabels};

/// Everything that makes a container's description.
#[derive(Debug, Clone, Copy)]
pub struct ContainerSpec<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// What was asked for.
    pub request: &'a ContainerRequest,
    /// Its pod's id.
    pub pod_id: &'a PodId,
    /// Its pod.
    pub pod: &'a PodRequest,
    /// What its image says.
    pub image: &'a ImageDefaults,
    /// Who it runs as, from [`crate::UserDatabase::resolve`].
    pub user: &'a ResolvedUser,
    /// The node.
    pub node: &'a Node,
    /// The layers of each image among `request.mounts`, in their order; of one image the top layer first.
    pub image_volumes: &'a [Vec<PathBuf>],
    /// The nodes behind `request.devices`, found by the engine: directories walked, links followed.
    pub devices: &'a [DeviceNode],
    /// The pod's files.
    pub files: &'a PodFiles,
    /// The pod's namespaces.
    pub namespaces: &'a NamespacePaths,
    /// What it sees under /sys/fs/cgroup.
    pub cgroup: &'a CgroupView,
    /// Its cgroup relative to every hierarchy's root, with a leading slash.
    pub cgroups_path: &'a Path,
    /// The content of the file that `request.security.seccomp` names, if it names one.
    pub seccomp_profile: Option<&'a [u8]>,
}

impl ContainerSpec<'_> {
    /// Its SELinux labels, where SELinux is enabled.
    pub fn selinux_labels(&self) -> Option<SelinuxLabels> {
        let selinux = self.node.selinux.as_ref()?;
        Some(selinux.of_container(self.pod_id, &self.pod.security, &self.request.security))
    }
}

/// The part of an image's config that describes containers (OCI image spec, "config").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `User`: `user`, `uid`, `user:group`, `uid:gid`…; empty: root.
    pub user: String,
    /// `Env`: `NAME=value`.
    pub environment: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub command: Vec<String>,
    /// `WorkingDir`; empty: `/`.
    pub working_directory: String,
    /// `StopSignal`; empty: SIGTERM. See [`crate::signal_number`].
    pub stop_signal: String,
    /// The keys of `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
}

/// Facts of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its host name.
    pub hostname: String,
    /// The runtime's own bounding set as the kernel's bit mask (`CapBnd` of /proc/self/status): what "all" means.
    pub capabilities: u64,
    /// Its devices, for privileged containers.
    pub devices: Vec<DeviceNode>,
    /// Its AppArmor, if the kernel has it enabled.
    pub apparmor: Option<AppArmor>,
    /// What its SELinux policy says of containers, if SELinux is enabled.
    pub selinux: Option<Selinux>,
    /// The kernel's version, major and minor.
    pub kernel: (u32, u32),
    /// How many files a process in a container may have open; `None`: as many as the daemon.
    pub open_files: Option<OpenFiles>,
}

/// A limit on open files (getrlimit(2), RLIMIT_NOFILE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit in force, which a process may raise.
    pub soft: u64,
    /// As far as this.
    pub hard: u64,
}

/// A node's AppArmor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppArmor {
    /// The loaded profile that `RuntimeDefault` stands for; `None`: it could not be loaded.
    pub default_profile: Option<String>,
}

/// A device node to make in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its absolute path inside.
    pub path: PathBuf,
    /// Its sort.
    pub kind: DeviceKind,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What the device cgroup is to allow.
    pub access: DeviceAccess,
}

/// Files the engine made for a pod; paths of the node. What is `None` is not mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// For /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// For /etc/hosts, where the request does not mount one (a kubelet does).
    pub hosts: Option<PathBuf>,
    /// For /dev/shm: the pod's own, or the node's with the node's IPC namespace.
    pub shm: Option<PathBuf>,
}

/// Where a pod's namespaces are. `None`: the node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// Network.
    pub network: Option<PathBuf>,
    /// System V IPC and POSIX message queues.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// The process ids the container shares, of its pod or of its target; unused for a container's own.
    pub pid: Option<PathBuf>,
    /// Users.
    pub user: Option<PathBuf>,
    /// Clocks.
    pub time: Option<PathBuf>,
}

/// What a container sees under /sys/fs/cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupView {
    /// cgroup v2, from a cgroup namespace of its own; the node's whole tree if it is privileged.
    Unified,
    /// cgroup v1, perhaps beside v2: of each hierarchy the container's own directory, writable if it is privileged.
    Hierarchies(Vec<CgroupHierarchy>),
}

/// One hierarchy of a [`CgroupView::Hierarchies`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupHierarchy {
    /// Its directory's name under /sys/fs/cgroup: `memory`, `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// The container's own directory in it, a path of the node.
    pub source: PathBuf,
    /// Other names of it: `cpu` and `cpuacct` for `cpu,cpuacct`.
    pub aliases: Vec<String>,
}
