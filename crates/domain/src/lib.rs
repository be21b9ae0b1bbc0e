//! The words of the runtime: ids, requests, views, refusals and failures.
//!
//! Everything that crosses a crate boundary is said in these types. They are pure: nothing here does
//! I/O, and nothing here knows a wire format. A value of a type in this crate is already valid: parsing
//! happens in fallible constructors, once, at the edge.

#![forbid(unsafe_code)]

mod container;
mod error;
mod id;
mod pod;
mod resources;
mod security;
mod signal;
mod stats;
mod time_offsets;
mod user_namespace;

pub use container::{
    ContainerMetadata, ContainerPhase, ContainerRequest, ContainerView, Device, EnvironmentVariable, Exit, ExitCode, ImageIdentity,
    LostOutput, Mount, MountSource, Propagation, StopSignal,
};
pub use error::{During, Error, Failure, FailureKind, Refusal, Result};
pub use id::{ContainerId, ContainerKind, Id, IdKind, ImageId, InvalidId, PodId, PodKind};
pub use pod::{
    DnsConfig, HandlerName, IpcMode, NetworkMode, PidMode, PodMetadata, PodPhase, PodRequest, PodResources, PodView, PortMapping, Protocol,
};
pub use resources::{DeviceAccess, DeviceKind, DeviceRule, HugepageLimit, Resources};
pub use security::{Capabilities, Profile, RunAs, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy};
pub use stats::{
    ContainerStats, Counts, CpuStats, Details, DeviceTransfers, Filesystem, FilesystemUsage, HugepageUsage, InterfaceStats, IoStats,
    MemoryStats, NetworkStats, PodStats, Pressure, ProcessCounts, Stall, TasksLimit, Throttling, Traffic,
};
pub use time_offsets::{TimeOffset, TimeOffsets};
pub use user_namespace::{IdMapping, UserNamespace};
