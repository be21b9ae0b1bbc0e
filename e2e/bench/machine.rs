//! Reading the machine: processor time, memory of processes, room on disk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// Memory of a set of processes, in KiB (`/proc/<pid>/smaps_rollup`).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Proportional set size: pages shared by n processes count by 1/n.
    pub(crate) proportional: f64,
    /// Pages that no other process maps.
    pub(crate) private: f64,
    /// How many processes.
    pub(crate) processes: usize,
}

/// Processor time of the whole machine since boot, but for idling and waiting for disks (`/proc/stat`).
pub(crate) fn busy_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user and nice already.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&index| ticks.get(index)).sum();
    from_ticks(busy)
}

/// Processor time of one process and of its children that it has waited for (`/proc/<pid>/stat`, fields 14 to 17).
pub(crate) fn process_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    from_ticks(ticks)
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// The memory of some processes.
pub(crate) fn memory(processes: &[i32]) -> Memory {
    let mut sum = Memory::default();
    for pid in processes {
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let kib = |name: &str| {
            let line = rollup.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or_default()
        };
        sum.proportional += kib("Pss");
        sum.private += kib("Private_Clean") + kib("Private_Dirty");
        sum.processes += 1;
    }
    sum
}

/// A file, whatever name it is known by: device and inode.
pub(crate) type FileId = (u64, u64);

/// The file at a path; links are followed, so that of `/proc/<pid>/exe` is the program.
///
/// The text of that link is no use: a process that has left the host's mounts behind shows none.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The ids of processes that are accepted by their program's file and the name they were started by.
pub(crate) fn processes_of(accept: impl Fn(Option<FileId>, &str) -> bool) -> Vec<i32> {
    let mut processes = coracle_e2e::host::processes();
    processes.retain(|pid| {
        let command = coracle_e2e::host::command_line(*pid);
        let name = command.split(' ').next().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
        accept(file_id(Path::new(&format!("/proc/{pid}/exe"))), name)
    });
    processes
}

/// The files beside a process's program, and itself, whose names begin with its name.
pub(crate) fn family(pid: i32) -> Vec<FileId> {
    let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { return Vec::new() };
    let (Some(directory), Some(name)) = (program.parent(), program.file_name()) else { return Vec::new() };
    let name = name.to_string_lossy();
    let beside = fs::read_dir(directory).into_iter().flatten().flatten();
    let relatives =
        beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(&*name)).filter_map(|entry| file_id(&entry.path()));
    relatives.chain(file_id(Path::new(&format!("/proc/{pid}/exe")))).collect()
}

/// The room that a directory takes on disk, in MiB; other file systems mounted below it do not count.
pub(crate) fn disk_usage(directory: &Path) -> f64 {
    let Ok(root) = fs::metadata(directory) else { return 0.0 };
    let mut seen = std::collections::HashSet::new();
    let mut blocks = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != root.dev() || (metadata.nlink() > 1 && !seen.insert(metadata.ino())) {
                continue;
            }
            blocks += metadata.blocks();
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    blocks as f64 * 512.0 / 1024.0 / 1024.0
}

/// Kernel release, number of processors and memory in GiB.
pub(crate) fn description() -> (String, usize, u64) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or_default();
    (kernel, processors, total / 1024 / 1024)
}
