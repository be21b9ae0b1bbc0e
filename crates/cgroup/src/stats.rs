//! What a cgroup has used, read from held file descriptors: one pread(2) a file and no allocation.
//!
//! Formats: `memory.stat`, `memory.current`, `cpu.stat`, `pids.current` of cgroup-v2.rst;
//! `cpuacct.usage`, `memory.stat`, `memory.usage_in_bytes` of cgroup-v1/. Where v1's memory.stat has a value
//! for the cgroup alone and one with all below (`total_…`), it is the latter: as v2 counts.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::Cgroup;
use crate::detect::{Controller, Home};

/// v1 says "unlimited" by the largest number of bytes that fit in pages; on no machine is a limit this large real.
const UNLIMITED: u64 = 1 << 62;
/// Room for the largest file, `memory.stat`, which has about 2 kB.
const BUFFER: usize = 8192;

/// A sample. What the kernel does not tell is `None`, never zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time, nanoseconds of one core.
    pub cpu_usage: Option<u64>,
    /// All memory charged to it, bytes.
    pub memory_usage: Option<u64>,
    /// Usage without file pages that could be dropped at once (`inactive_file`), bytes.
    pub working_set: Option<u64>,
    /// Anonymous memory, bytes.
    pub rss: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that needed I/O.
    pub major_page_faults: Option<u64>,
    /// The memory limit, bytes; `None` when unlimited. On v1 the tightest of it and its parents'.
    pub memory_limit: Option<u64>,
    /// Swap used, bytes; `None` where it is not accounted.
    pub swap: Option<u64>,
    /// The limit on swap, bytes; `None` when unlimited, and on v1, which limits only the sum of memory and swap.
    pub swap_limit: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

impl Stats {
    /// What is left of the limit, bytes; `None` without one.
    pub fn available(&self) -> Option<u64> {
        Some(self.memory_limit?.saturating_sub(self.working_set?))
    }

    /// What is left of the limit on swap, bytes; `None` without one.
    pub fn swap_available(&self) -> Option<u64> {
        Some(self.swap_limit?.saturating_sub(self.swap?))
    }

    fn read_memory_stat(&mut self, text: &[u8], keys: &MemoryKeys) {
        let mut inactive_file = None;
        for (key, value) in pairs(text) {
            let slot = match key {
                key if key == keys.anonymous => &mut self.rss,
                key if key == keys.inactive_file => &mut inactive_file,
                key if key == keys.faults => &mut self.page_faults,
                key if key == keys.major_faults => &mut self.major_page_faults,
                key if Some(key) == keys.swap => &mut self.swap,
                key if Some(key) == keys.limit => &mut self.memory_limit,
                _ => continue,
            };
            *slot = value;
        }
        self.memory_limit = self.memory_limit.filter(|limit| *limit < UNLIMITED);
        self.working_set = self.memory_usage.zip(inactive_file).map(|(usage, inactive)| usage.saturating_sub(inactive));
    }
}

/// How memory.stat names what we read.
struct MemoryKeys {
    anonymous: &'static [u8],
    inactive_file: &'static [u8],
    faults: &'static [u8],
    major_faults: &'static [u8],
    /// On v2 both have files of their own.
    swap: Option<&'static [u8]>,
    limit: Option<&'static [u8]>,
}

const LEGACY: MemoryKeys = MemoryKeys {
    anonymous: b"total_rss",
    inactive_file: b"total_inactive_file",
    faults: b"total_pgfault",
    major_faults: b"total_pgmajfault",
    swap: Some(b"total_swap"),
    limit: Some(b"hierarchical_memory_limit"),
};

const UNIFIED: MemoryKeys = MemoryKeys {
    anonymous: b"anon",
    inactive_file: b"inactive_file",
    faults: b"pgfault",
    major_faults: b"pgmajfault",
    swap: None,
    limit: None,
};

/// The open files; `None` where the kernel has none.
#[derive(Debug, Default)]
pub(crate) struct StatFiles {
    unified_memory: bool,
    cpuacct_usage: Option<OwnedFd>,
    cpu_stat: Option<OwnedFd>,
    memory_usage: Option<OwnedFd>,
    memory_stat: Option<OwnedFd>,
    memory_max: Option<OwnedFd>,
    swap_current: Option<OwnedFd>,
    swap_max: Option<OwnedFd>,
    pids_current: Option<OwnedFd>,
}

impl StatFiles {
    /// Opens what there is.
    pub(crate) fn open(cgroup: &Cgroup) -> Self {
        let layout = &cgroup.hierarchy.layout;
        let file = |controller: Controller, legacy: Option<&str>, unified: Option<&str>| match layout.home(controller)? {
            Home::Legacy => open(&cgroup.hierarchy.legacy(controller, &cgroup.location)?, legacy?),
            Home::Unified => open(&cgroup.unified_dir()?, unified?),
        };
        let cpuacct_usage = file(Controller::Cpuacct, Some("cpuacct.usage"), None);
        // cpu.stat counts time even where the cpu controller is not enabled.
        let cpu_stat = if cpuacct_usage.is_none() { cgroup.unified_dir().and_then(|directory| open(&directory, "cpu.stat")) } else { None };
        Self {
            unified_memory: layout.home(Controller::Memory) == Some(Home::Unified),
            cpuacct_usage,
            cpu_stat,
            memory_usage: file(Controller::Memory, Some("memory.usage_in_bytes"), Some("memory.current")),
            memory_stat: file(Controller::Memory, Some("memory.stat"), Some("memory.stat")),
            memory_max: file(Controller::Memory, None, Some("memory.max")),
            swap_current: file(Controller::Memory, None, Some("memory.swap.current")),
            swap_max: file(Controller::Memory, None, Some("memory.swap.max")),
            pids_current: file(Controller::Pids, Some("pids.current"), Some("pids.current")),
        }
    }

    /// A sample.
    pub(crate) fn read(&self) -> Stats {
        let mut buffer = [0; BUFFER];
        let mut stats = Stats {
            cpu_usage: number(read(&self.cpuacct_usage, &mut buffer)),
            memory_usage: number(read(&self.memory_usage, &mut buffer)),
            memory_limit: number(read(&self.memory_max, &mut buffer)),
            swap: number(read(&self.swap_current, &mut buffer)),
            swap_limit: number(read(&self.swap_max, &mut buffer)),
            tasks: number(read(&self.pids_current, &mut buffer)),
            ..Stats::default()
        };
        if self.cpu_stat.is_some() {
            let usage = pairs(read(&self.cpu_stat, &mut buffer)).find(|(key, _)| *key == b"usage_usec");
            stats.cpu_usage = usage.and_then(|(_, microseconds)| microseconds?.checked_mul(1000));
        }
        let keys = if self.unified_memory { &UNIFIED } else { &LEGACY };
        stats.read_memory_stat(read(&self.memory_stat, &mut buffer), keys);
        stats
    }
}

fn open(directory: &Path, file: &str) -> Option<OwnedFd> {
    rustix::fs::open(directory.join(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Reads a text as every file here: for fuzzers.
#[cfg(fuzzing)]
pub(crate) fn read_arbitrary(text: &[u8]) {
    for keys in [&LEGACY, &UNIFIED] {
        Stats { memory_usage: number(text), ..Stats::default() }.read_memory_stat(text, keys);
    }
}

/// The file's content; empty if there is no file, or no cgroup any more.
fn read<'buffer>(file: &Option<OwnedFd>, buffer: &'buffer mut [u8; BUFFER]) -> &'buffer [u8] {
    let length = file.as_ref().and_then(|file| rustix::io::pread(file, &mut buffer[..], 0).ok()).unwrap_or(0);
    buffer.get(..length).unwrap_or_default()
}

/// The number that is the whole text; `None` for `max`.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// The lines `key value` of a flat keyed file.
fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], Option<u64>)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let space = line.iter().position(|byte| *byte == b' ')?;
        let (key, value) = line.split_at_checked(space)?;
        Some((key, number(value)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_keys_of_both_versions_give_the_same_sample() {
        let v1 = b"cache 4096\nrss 1\ntotal_rss 300\ntotal_inactive_file 40\ntotal_pgfault 7\ntotal_pgmajfault 2\ntotal_swap 5\nhierarchical_memory_limit 1000\n";
        let v2 = b"anon 300\nfile 4096\ninactive_file 40\npgfault 7\npgmajfault 2\n";
        let usage = Stats { memory_usage: Some(100), ..Stats::default() };
        let (mut first, mut second) = (usage, Stats { swap: Some(5), memory_limit: Some(1000), ..usage });
        first.read_memory_stat(v1, &LEGACY);
        second.read_memory_stat(v2, &UNIFIED);
        assert_eq!(first, second);
        assert_eq!((first.rss, first.working_set, first.available()), (Some(300), Some(60), Some(940)));
    }

    #[test]
    fn what_is_not_told_is_none_and_unlimited_is_no_limit() {
        let mut stats = Stats { memory_usage: Some(10), ..Stats::default() };
        stats.read_memory_stat(b"hierarchical_memory_limit 9223372036854771712\ntotal_inactive_file 4096\n", &LEGACY);
        assert_eq!((stats.memory_limit, stats.available(), stats.swap, stats.rss), (None, None, None, None));
        assert_eq!(stats.working_set, Some(0), "file pages may exceed a usage read a moment earlier");
        assert_eq!(number(b"max\n"), None);
    }

    proptest! {
        #[test]
        fn any_stat_file_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut stats = Stats::default();
            stats.read_memory_stat(&bytes, &UNIFIED);
            prop_assert_eq!(pairs(&bytes).filter(|(key, _)| key.contains(&b'\n')).count(), 0);
        }

        #[test]
        fn every_pair_written_is_read(pairs_in in proptest::collection::vec(("[a-z_]{1,10}", any::<u64>()), 0..20)) {
            let text: String = pairs_in.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            let read: Vec<_> = pairs(text.as_bytes()).map(|(key, value)| (String::from_utf8(key.to_vec()).unwrap(), value.unwrap())).collect();
            prop_assert_eq!(read, pairs_in);
        }
    }
}
