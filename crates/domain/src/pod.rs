//! Pods: what a caller asks for and what is told of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ContainerView, PodId, Resources, SecurityContext, TimeOffsets, UserNamespace};

/// Who a pod is to its kubelet. A retry of a create carries the same value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodMetadata {
    /// The pod's name.
    pub name: String,
    /// The pod's uid in the API server.
    pub uid: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// The number of the attempt to create its sandbox.
    pub attempt: u32,
}

/// Whose network namespace a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// One of its own.
    Pod,
    /// The node's.
    Node,
}

/// Whose System V IPC and POSIX message queues a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpcMode {
    /// Its own.
    Pod,
    /// The node's.
    Node,
}

/// Which processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Those of its pod.
    Pod,
    /// Its own only.
    Container,
    /// The node's.
    Node,
    /// Those of another container of the pod (debug containers).
    Target(crate::ContainerId),
}

/// What `/etc/resolv.conf` is to say; absent: the node's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// A transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address it is bound to; absent: all.
    pub host_ip: Option<IpAddr>,
}

/// The name of a handler; the default handler's is empty in CRI and absent here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HandlerName(pub String);

/// A parsed RunPodSandbox request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRequest {
    /// Who it is.
    pub metadata: PodMetadata,
    /// The handler asked for; `None`: the default.
    pub handler: Option<HandlerName>,
    /// The host name inside; `None` where the node's is shared.
    pub hostname: Option<String>,
    /// The directory its containers' log paths are relative to.
    pub log_directory: Option<PathBuf>,
    /// Name resolution.
    pub dns: Option<DnsConfig>,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
    /// The caller's labels, returned as they came.
    pub labels: BTreeMap<String, String>,
    /// The caller's annotations, returned byte by byte.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup, in cgroupfs syntax, under which the pod's containers get theirs.
    pub cgroup_parent: Option<String>,
    /// Network namespace.
    pub network: NetworkMode,
    /// The pid mode the pod was described with; containers say theirs.
    pub pid: PidMode,
    /// IPC namespace.
    pub ipc: IpcMode,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The sandbox's own security context.
    pub security: SecurityContext,
    /// The sum of the containers' resources, as the kubelet computed it.
    pub resources: Option<Resources>,
    /// What the handler costs beside them.
    pub overhead: Option<Resources>,
    /// Users of its own; `None`: the node's.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// Clocks of its own.
    #[serde(default)]
    pub time_offsets: TimeOffsets,
}

/// What a pod as a whole may use, after a resize. The limits are the kubelet's to set, on a cgroup of its own; whoever
/// is told of them only keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    /// The sum of the containers' resources; `None`: as before.
    pub resources: Option<Resources>,
    /// What the handler costs beside them; `None`: as before.
    pub overhead: Option<Resources>,
}

/// A pod's phase. CRI knows READY and NOTREADY; anything but [`PodPhase::Ready`] is the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// RunPodSandbox is under way; the pod is in no list yet.
    Creating,
    /// It can take containers.
    Ready,
    /// It was stopped: its namespaces and network are gone or going.
    Stopped,
}

/// An immutable picture of a pod, published by its owner.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// The request it was made from.
    pub request: Arc<PodRequest>,
    /// Its phase.
    pub phase: PodPhase,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Its addresses, the primary one first; empty with the node's network.
    pub addresses: Vec<IpAddr>,
    /// The sum of the containers' resources, as the kubelet last told it.
    pub resources: Option<Resources>,
    /// What the handler costs beside them, as last told.
    pub overhead: Option<Resources>,
    /// Its containers, oldest first.
    pub containers: Vec<Arc<ContainerView>>,
    /// The process id of its monitor, for `inspect`; `None` when there is none.
    pub monitor_pid: Option<i32>,
    /// The path of its network namespace's pin, where it has its own.
    pub network_namespace: Option<PathBuf>,
}
