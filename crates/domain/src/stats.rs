//! What is measured. Every sample says when it was taken, in nanoseconds since the epoch; what the kernel
//! does not tell is `None`, never zero. What only metrics tell, [`Details`], is measured on demand.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{ContainerView, PodView};

/// How much of the time tasks stood still for want of a resource (the kernel's `Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// No task could go on.
    pub full: Option<Stall>,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stall {
    /// Nanoseconds in all.
    pub total: u64,
    /// Hundredths of a per cent of the time, averaged over 10, 60 and 300 seconds: as exact as the kernel says it.
    pub averages: [u32; 3],
}

/// Processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// When.
    pub at: i64,
    /// Nanoseconds of one core, since the cgroup was made.
    pub usage: u64,
    /// Nanoseconds of one core per second, over the time since the sample before.
    pub rate: Option<u64>,
    /// Waiting for a processor.
    pub pressure: Option<Pressure>,
}

/// Memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// What is left of the limit on swap; `None` without one.
    pub swap_available: Option<u64>,
    /// Waiting for memory to be reclaimed or read back.
    pub pressure: Option<Pressure>,
}

/// Input and output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// When.
    pub at: i64,
    /// Waiting for I/O.
    pub pressure: Pressure,
}

/// Room used on a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// Counters of a pod's network interfaces, without loopback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// When.
    pub at: i64,
    /// The interfaces, the pod's own one (`eth0`) first, then those that programs in it made.
    pub interfaces: Vec<InterfaceStats>,
}

/// Counters of one network interface, as the pod sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Its name inside the pod.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were broken.
    pub errors: u64,
    /// Packets that were dropped.
    pub dropped: u64,
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
    /// Input and output.
    pub io: Option<IoStats>,
    /// The writable layer.
    pub writable_layer: Option<FilesystemUsage>,
    /// What only metrics tell; `None` unless asked for.
    pub details: Option<Box<Details>>,
}

/// A pod's sample.
#[derive(Debug, Clone)]
pub struct PodStats {
    /// Whose.
    pub pod: Arc<PodView>,
    /// When.
    pub at: i64,
    /// Processor time of all its containers, those that have ended included where the pod has a cgroup of its own.
    pub cpu: Option<CpuStats>,
    /// Memory of all its containers.
    pub memory: Option<MemoryStats>,
    /// Input and output of all its containers.
    pub io: Option<IoStats>,
    /// Its own network's counters.
    pub network: Option<NetworkStats>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}

/// What only metrics tell of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// What its cgroup counts.
    pub counts: Counts,
    /// Its processes; `None` where they could not all be looked at.
    pub processes: Option<ProcessCounts>,
    /// The soft limit on open files of its first process (RLIMIT_NOFILE).
    pub open_files_limit: Option<u64>,
    /// The file system of its writable layer.
    pub filesystem: Option<Filesystem>,
}

/// What a cgroup counts beyond [`CpuStats`] and [`MemoryStats`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nanoseconds of one core in user mode.
    pub cpu_user: Option<u64>,
    /// Nanoseconds of one core in the kernel.
    pub cpu_system: Option<u64>,
    /// What its CPU quota did.
    pub throttling: Option<Throttling>,
    /// Bytes of file pages, shared memory included.
    pub cache: Option<u64>,
    /// Bytes of file pages that are mapped.
    pub mapped_file: Option<u64>,
    /// Bytes the kernel allocated on its behalf.
    pub kernel_memory: Option<u64>,
    /// The most memory it ever used, bytes.
    pub memory_peak: Option<u64>,
    /// How often its memory limit was hit.
    pub memory_limit_hits: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// The limit on them.
    pub tasks_limit: Option<TasksLimit>,
    /// Transfers of each block device.
    pub devices: Vec<DeviceTransfers>,
    /// Huge pages of each size.
    pub hugepages: Vec<HugepageUsage>,
}

/// What a CPU quota did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods that passed while tasks could run.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// Nanoseconds spent waiting for the next one.
    pub throttled_time: u64,
}

/// A limit on processes and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TasksLimit {
    /// There is none.
    Unlimited,
    /// So many.
    Of(u64),
}

/// Transfers of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceTransfers {
    /// Its path, where it has one; else its numbers (`8:0`).
    pub device: String,
    /// Its major and minor number.
    pub number: (u32, u32),
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugepageUsage {
    /// `2MB`, `1GB`…
    pub page_size: String,
    /// Bytes used.
    pub usage: u64,
    /// The most bytes ever used; v2 does not count it.
    pub peak: Option<u64>,
}

/// What the processes of a container have open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// Processes.
    pub processes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Those that are sockets.
    pub sockets: u64,
}

/// A file system as a whole (statvfs(3)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// When.
    pub at: i64,
    /// Its device, as the mount table names it.
    pub device: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Its inodes; none on file systems that make them as needed.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}
