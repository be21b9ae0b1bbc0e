//! The metrics, by subject. One row each: name, help, and where the value is found.
//!
//! Names and labels are cAdvisor's (the `cAdvisor metrics` page of its documentation), as the kubelet exposes them.

use coracle_domain::{
    ContainerPhase, ContainerStats, Counts, DeviceTransfers, Filesystem, HugepageUsage, InterfaceStats, PodStats, Pressure, Stall,
    TasksLimit,
};

use super::Definition;
use super::Sample;
use super::Source::{Container, PartsOfContainer, PartsOfPod};

const NANOSECONDS: u64 = 1_000_000_000;

/// All of them.
pub(super) fn all() -> impl Iterator<Item = &'static Definition> {
    [PROCESSOR, MEMORY, FILESYSTEM, NETWORK, PROCESSES, PRESSURE, SPECIFICATION].into_iter().flatten()
}

const PROCESSOR: &[Definition] = &[
    Definition::counter(
        "container_cpu_usage_seconds_total",
        "Processor time, seconds of one core.",
        PartsOfContainer(&["cpu"], |stats| stats.cpu.map(|cpu| Sample::live(["total"], cpu.usage / NANOSECONDS)).into_iter().collect()),
    ),
    Definition::counter(
        "container_cpu_user_seconds_total",
        "Processor time in user mode, seconds of one core.",
        Container(|stats| seconds(counts(stats)?.cpu_user)),
    ),
    Definition::counter(
        "container_cpu_system_seconds_total",
        "Processor time in the kernel, seconds of one core.",
        Container(|stats| seconds(counts(stats)?.cpu_system)),
    ),
    Definition::counter(
        "container_cpu_cfs_periods_total",
        "Periods of the CPU quota that passed.",
        Container(|stats| Some(counts(stats)?.throttling?.periods)),
    ),
    Definition::counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        Container(|stats| Some(counts(stats)?.throttling?.throttled_periods)),
    ),
    Definition::counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time spent waiting for the CPU quota, seconds.",
        Container(|stats| seconds(Some(counts(stats)?.throttling?.throttled_time))),
    ),
];

const MEMORY: &[Definition] = &[
    Definition::gauge("container_memory_usage_bytes", "All memory in use, bytes.", Container(|stats| Some(stats.memory?.usage))),
    Definition::gauge(
        "container_memory_working_set_bytes",
        "Memory in use without file pages that could be dropped at once, bytes.",
        Container(|stats| Some(stats.memory?.working_set)),
    ),
    Definition::gauge("container_memory_rss", "Anonymous memory, bytes.", Container(|stats| Some(stats.memory?.rss))),
    Definition::gauge("container_memory_swap", "Swap in use, bytes.", Container(|stats| stats.memory?.swap)),
    Definition::gauge("container_memory_cache", "File pages, bytes.", Container(|stats| counts(stats)?.cache)),
    Definition::gauge("container_memory_mapped_file", "Mapped file pages, bytes.", Container(|stats| counts(stats)?.mapped_file)),
    Definition::gauge("container_memory_kernel_usage", "Memory of the kernel, bytes.", Container(|stats| counts(stats)?.kernel_memory)),
    Definition::gauge(
        "container_memory_max_usage_bytes",
        "The most memory ever in use, bytes.",
        Container(|stats| counts(stats)?.memory_peak),
    ),
    Definition::counter(
        "container_memory_failcnt",
        "How often the memory limit was hit.",
        Container(|stats| counts(stats)?.memory_limit_hits),
    ),
    Definition::counter(
        "container_memory_failures_total",
        "Page faults: all of them (pgfault), and those that needed I/O (pgmajfault).",
        PartsOfContainer(&["failure_type", "scope"], page_faults),
    ),
    Definition::counter("container_oom_events_total", "Processes killed for want of memory.", Container(|stats| counts(stats)?.oom_kills)),
    Definition::gauge(
        "container_hugetlb_usage_bytes",
        "Huge pages in use, bytes.",
        PartsOfContainer(&["pagesize"], |stats| hugepages(stats, |pages| Some(pages.usage))),
    ),
    Definition::gauge(
        "container_hugetlb_max_usage_bytes",
        "The most huge pages ever in use, bytes.",
        PartsOfContainer(&["pagesize"], |stats| hugepages(stats, |pages| pages.peak)),
    ),
];

const FILESYSTEM: &[Definition] = &[
    Definition::gauge(
        "container_fs_usage_bytes",
        "Room taken by the writable layer, bytes.",
        PartsOfContainer(&["device"], |stats| {
            let Some((layer, filesystem)) = stats.writable_layer.as_ref().zip(filesystem(stats)) else { return Vec::new() };
            vec![Sample { labels: vec![filesystem.device.clone()], value: layer.bytes, at: layer.at }]
        }),
    ),
    Definition::gauge(
        "container_fs_limit_bytes",
        "The size of the writable layer's file system, bytes.",
        PartsOfContainer(&["device"], |stats| whole_filesystem(stats, |filesystem| filesystem.bytes)),
    ),
    Definition::gauge(
        "container_fs_inodes_total",
        "The inodes of the writable layer's file system.",
        PartsOfContainer(&["device"], |stats| whole_filesystem(stats, |filesystem| filesystem.inodes)),
    ),
    Definition::gauge(
        "container_fs_inodes_free",
        "The free inodes of the writable layer's file system.",
        PartsOfContainer(&["device"], |stats| whole_filesystem(stats, |filesystem| filesystem.inodes_free)),
    ),
    Definition::counter(
        "container_fs_reads_total",
        "Reads from a block device.",
        PartsOfContainer(&["device"], |stats| devices(stats, |device| device.reads)),
    ),
    Definition::counter(
        "container_fs_reads_bytes_total",
        "Bytes read from a block device.",
        PartsOfContainer(&["device"], |stats| devices(stats, |device| device.read_bytes)),
    ),
    Definition::counter(
        "container_fs_writes_total",
        "Writes to a block device.",
        PartsOfContainer(&["device"], |stats| devices(stats, |device| device.writes)),
    ),
    Definition::counter(
        "container_fs_writes_bytes_total",
        "Bytes written to a block device.",
        PartsOfContainer(&["device"], |stats| devices(stats, |device| device.written_bytes)),
    ),
    Definition::counter(
        "container_blkio_device_usage_total",
        "Bytes read from or written to a block device.",
        PartsOfContainer(&["device", "major", "minor", "operation"], transferred),
    ),
];

const INTERFACE: &[&str] = &["interface"];

const NETWORK: &[Definition] = &[
    Definition::counter(
        "container_network_receive_bytes_total",
        "Bytes received.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.received.bytes)),
    ),
    Definition::counter(
        "container_network_receive_packets_total",
        "Packets received.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.received.packets)),
    ),
    Definition::counter(
        "container_network_receive_errors_total",
        "Broken packets received.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.received.errors)),
    ),
    Definition::counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped on reception.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.received.dropped)),
    ),
    Definition::counter(
        "container_network_transmit_bytes_total",
        "Bytes sent.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.sent.bytes)),
    ),
    Definition::counter(
        "container_network_transmit_packets_total",
        "Packets sent.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.sent.packets)),
    ),
    Definition::counter(
        "container_network_transmit_errors_total",
        "Packets that could not be sent.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.sent.errors)),
    ),
    Definition::counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped before they were sent.",
        PartsOfPod(INTERFACE, |stats| interfaces(stats, |interface| interface.sent.dropped)),
    ),
];

const PROCESSES: &[Definition] = &[
    Definition::gauge("container_processes", "Processes.", Container(|stats| Some(stats.details.as_ref()?.processes?.processes))),
    Definition::gauge("container_threads", "Threads of all processes.", Container(|stats| counts(stats)?.tasks)),
    Definition::gauge(
        "container_threads_max",
        "The limit on threads of all processes; 0: none.",
        Container(|stats| match counts(stats)?.tasks_limit? {
            TasksLimit::Unlimited => Some(0),
            TasksLimit::Of(limit) => Some(limit),
        }),
    ),
    Definition::gauge(
        "container_file_descriptors",
        "Open file descriptors of all processes.",
        Container(|stats| Some(stats.details.as_ref()?.processes?.descriptors)),
    ),
    Definition::gauge(
        "container_sockets",
        "Open sockets of all processes.",
        Container(|stats| Some(stats.details.as_ref()?.processes?.sockets)),
    ),
    Definition::gauge(
        "container_ulimits_soft",
        "Soft resource limits of the first process.",
        PartsOfContainer(&["ulimit"], |stats| {
            let limit = stats.details.as_ref().and_then(|details| details.open_files_limit);
            limit.map(|limit| Sample::live(["max_open_files"], limit)).into_iter().collect()
        }),
    ),
    Definition::gauge("container_start_time_seconds", "When it started, seconds since the epoch.", Container(started)),
    Definition::gauge("container_last_seen", "When it was measured, seconds since the epoch.", Container(seen)),
];

const PRESSURE: &[Definition] = &[
    Definition::counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which a task waited for a processor, seconds.",
        Container(|stats| some(stats.cpu?.pressure)),
    ),
    Definition::counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for a processor, seconds.",
        Container(|stats| full(stats.cpu?.pressure)),
    ),
    Definition::counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which a task waited for memory, seconds.",
        Container(|stats| some(stats.memory?.pressure)),
    ),
    Definition::counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, seconds.",
        Container(|stats| full(stats.memory?.pressure)),
    ),
    Definition::counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which a task waited for I/O, seconds.",
        Container(|stats| some(Some(stats.io?.pressure))),
    ),
    Definition::counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for I/O, seconds.",
        Container(|stats| full(Some(stats.io?.pressure))),
    ),
];

/// Limits in force. The absent and the negative mean none, which cAdvisor writes as zero where it writes them at all.
const SPECIFICATION: &[Definition] = &[
    Definition::gauge(
        "container_spec_cpu_period",
        "The period of the CPU quota, microseconds.",
        Container(|stats| stats.container.resources.cpu_period),
    ),
    Definition::gauge(
        "container_spec_cpu_quota",
        "The CPU quota per period, microseconds.",
        Container(|stats| stats.container.resources.cpu_quota.and_then(limit).filter(|quota| *quota > 0)),
    ),
    Definition::gauge(
        "container_spec_cpu_shares",
        "The share of processor time (2 to 262144).",
        Container(|stats| stats.container.resources.cpu_shares),
    ),
    Definition::gauge(
        "container_spec_memory_limit_bytes",
        "The limit on memory, bytes; 0: none.",
        Container(|stats| Some(stats.container.resources.memory_limit.and_then(limit).unwrap_or(0))),
    ),
    Definition::gauge(
        "container_spec_memory_swap_limit_bytes",
        "The limit on memory and swap together, bytes; 0: none.",
        Container(|stats| Some(stats.container.resources.memory_swap_limit.and_then(limit).unwrap_or(0))),
    ),
    // CRI can reserve memory by one file of v2 alone.
    Definition::gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is not taken away, bytes; 0: none.",
        Container(|stats| stats.container.resources.unified.get("memory.min").map_or(Some(0), |bytes| bytes.parse().ok())),
    ),
];

fn counts(stats: &ContainerStats) -> Option<&Counts> {
    Some(&stats.details.as_ref()?.counts)
}

fn filesystem(stats: &ContainerStats) -> Option<&Filesystem> {
    stats.details.as_ref()?.filesystem.as_ref()
}

fn seconds(nanoseconds: Option<u64>) -> Option<u64> {
    Some(nanoseconds? / NANOSECONDS)
}

fn limit(value: i64) -> Option<u64> {
    u64::try_from(value).ok()
}

fn started(stats: &ContainerStats) -> Option<u64> {
    match stats.container.phase {
        ContainerPhase::Running { started_at, .. } => seconds(u64::try_from(started_at).ok()),
        _ => None,
    }
}

fn seen(stats: &ContainerStats) -> Option<u64> {
    let at = stats.cpu.map(|cpu| cpu.at).or(stats.memory.map(|memory| memory.at));
    seconds(u64::try_from(at?).ok())
}

fn some(pressure: Option<Pressure>) -> Option<u64> {
    stalled(Some(pressure?.some))
}

fn full(pressure: Option<Pressure>) -> Option<u64> {
    stalled(pressure?.full)
}

fn stalled(stall: Option<Stall>) -> Option<u64> {
    seconds(Some(stall?.total))
}

/// The kernel counts the faults of a cgroup with all below it. That is both scopes at once: a container has nothing
/// below it that counts memory of its own, unless it was allowed to make it.
fn page_faults(stats: &ContainerStats) -> Vec<Sample> {
    let Some(memory) = stats.memory else { return Vec::new() };
    let kinds = [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)];
    let scopes = ["container", "hierarchy"];
    kinds.into_iter().flat_map(|(kind, value)| scopes.map(|scope| Sample::live([kind, scope], value))).collect()
}

fn hugepages(stats: &ContainerStats, value: fn(&HugepageUsage) -> Option<u64>) -> Vec<Sample> {
    let pages = counts(stats).map(|counts| counts.hugepages.as_slice()).unwrap_or_default();
    pages.iter().filter_map(|pages| Some(Sample::live([&pages.page_size], value(pages)?))).collect()
}

fn whole_filesystem(stats: &ContainerStats, value: fn(&Filesystem) -> u64) -> Vec<Sample> {
    let sample = |filesystem: &Filesystem| Sample { labels: vec![filesystem.device.clone()], value: value(filesystem), at: filesystem.at };
    filesystem(stats).map(sample).into_iter().collect()
}

fn transfers(stats: &ContainerStats) -> &[DeviceTransfers] {
    counts(stats).map(|counts| counts.devices.as_slice()).unwrap_or_default()
}

fn devices(stats: &ContainerStats, value: fn(&DeviceTransfers) -> u64) -> Vec<Sample> {
    transfers(stats).iter().map(|device| Sample::live([&device.device], value(device))).collect()
}

fn transferred(stats: &ContainerStats) -> Vec<Sample> {
    let of = |device: &DeviceTransfers| {
        let (name, major, minor) = (device.device.as_str(), &*device.number.0.to_string(), &*device.number.1.to_string());
        [("Read", device.read_bytes), ("Write", device.written_bytes)]
            .map(|(operation, bytes)| Sample::live([name, major, minor, operation], bytes))
    };
    transfers(stats).iter().flat_map(of).collect()
}

fn interfaces(stats: &PodStats, value: fn(&InterfaceStats) -> u64) -> Vec<Sample> {
    let interfaces = stats.network.as_ref().map(|network| network.interfaces.as_slice()).unwrap_or_default();
    interfaces.iter().map(|interface| Sample::live([&interface.name], value(interface))).collect()
}
