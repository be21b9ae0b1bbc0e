//! What is measured. Every sample says when it was taken, in nanoseconds since the epoch; what the kernel
//! does not tell is `None`, never zero.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{ContainerView, PodView};

/// Processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuStats {
    /// When.
    pub at: i64,
    /// Nanoseconds of one core, since the cgroup was made.
    pub usage: u64,
    /// Nanoseconds of one core per second, over the time since the sample before.
    pub rate: Option<u64>,
}

/// Memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// When.
    pub at: i64,
    /// All that is charged to the cgroup.
    pub usage: u64,
    /// Usage without file pages that could be dropped at once.
    pub working_set: u64,
    /// What is left of the limit; `None` without one.
    pub available: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Those that needed I/O.
    pub major_page_faults: u64,
    /// Swap used; `None` where it is not accounted.
    pub swap: Option<u64>,
}

/// Room used on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// When.
    pub at: i64,
    /// A path on the file system.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Counters of one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStats {
    /// When.
    pub at: i64,
    /// Its name inside the pod.
    pub interface: String,
    /// Bytes received.
    pub received: u64,
    /// Errors receiving.
    pub receive_errors: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Errors sending.
    pub send_errors: u64,
}

/// A container's sample.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// Whose.
    pub container: Arc<ContainerView>,
    /// Processor time.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// The writable layer.
    pub writable_layer: Option<FilesystemUsage>,
}

/// A pod's sample.
#[derive(Debug, Clone)]
pub struct PodStats {
    /// Whose.
    pub pod: Arc<PodView>,
    /// Processor time of all its containers.
    pub cpu: Option<CpuStats>,
    /// Memory of all its containers.
    pub memory: Option<MemoryStats>,
    /// Its own network's counters.
    pub network: Option<NetworkStats>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}
