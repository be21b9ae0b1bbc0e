//! What a cgroup has used. Its files are opened for each sample: one that is held keeps a page of the kernel's memory from its
//! first reading on, and is looked at whenever the daemon starts a process.
//!
//! Formats: `memory.stat`, `memory.current`, `cpu.stat`, `pids.current` of cgroup-v2.rst;
//! `cpuacct.usage`, `memory.stat`, `memory.usage_in_bytes` of cgroup-v1/. Where v1's memory.stat has a value
//! for the cgroup alone and one with all below (`total_…`), it is the latter: as v2 counts.

use std::os::fd::OwnedFd;

use crate::detect::Controller;
use crate::file::{directory, sample};
use crate::{Cgroup, Pressures};

/// v1 says "unlimited" by the largest number of bytes that fit in pages; on no machine is a limit this large real.
const UNLIMITED: u64 = 1 << 62;
/// Room for the largest file, `memory.stat`, which has about 2 kB.
const BUFFER: usize = 8192;
type Buffer = [u8; BUFFER];

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
    /// How much of the time they stood still.
    pub pressures: Pressures,
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

impl Cgroup {
    /// What it has used; all `None` if it is not there.
    pub fn stats(&self) -> Stats {
        let legacy = |controller| directory(&self.hierarchy.legacy(controller, &self.location)?);
        let directories = Directories {
            cpuacct: legacy(Controller::Cpuacct),
            memory: legacy(Controller::Memory),
            pids: legacy(Controller::Pids),
            unified: self.unified_dir().and_then(|path| directory(&path)),
        };
        directories.read()
    }
}

/// A cgroup's directories: those of controllers on v1, and that of v2. On the way to each, cgroupfs takes a lock at every name.
struct Directories {
    cpuacct: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    pids: Option<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Directories {
    fn read(&self) -> Stats {
        let (mut stats, mut buffer) = (Stats::default(), [0; BUFFER]);
        stats.cpu_usage = self.cpu_usage(&mut buffer);
        self.read_memory(&mut stats, &mut buffer);
        if let Some(directory) = self.pids.as_ref().or(self.unified.as_ref()) {
            stats.tasks = number(sample(directory, "pids.current", &mut buffer));
        }
        if let Some(directory) = &self.unified {
            stats.pressures = Pressures::read(directory, &mut buffer);
        }
        stats
    }

    fn cpu_usage(&self, buffer: &mut Buffer) -> Option<u64> {
        if let Some(directory) = &self.cpuacct {
            return number(sample(directory, "cpuacct.usage", buffer));
        }
        // It counts time even where the cpu controller is not enabled.
        let (_, microseconds) = pairs(sample(self.unified.as_ref()?, "cpu.stat", buffer)).find(|(key, _)| *key == b"usage_usec")?;
        microseconds?.checked_mul(1000)
    }

    fn read_memory(&self, stats: &mut Stats, buffer: &mut Buffer) {
        if let Some(directory) = &self.memory {
            stats.memory_usage = number(sample(directory, "memory.usage_in_bytes", buffer));
            stats.read_memory_stat(sample(directory, "memory.stat", buffer), &LEGACY);
        } else if let Some(directory) = &self.unified {
            stats.memory_usage = number(sample(directory, "memory.current", buffer));
            stats.memory_limit = number(sample(directory, "memory.max", buffer));
            stats.swap = number(sample(directory, "memory.swap.current", buffer));
            stats.swap_limit = number(sample(directory, "memory.swap.max", buffer));
            stats.read_memory_stat(sample(directory, "memory.stat", buffer), &UNIFIED);
        }
    }
}

/// Reads a text as every file here: for fuzzers.
#[cfg(fuzzing)]
pub(crate) fn read_arbitrary(text: &[u8]) {
    for keys in [&LEGACY, &UNIFIED] {
        Stats { memory_usage: number(text), ..Stats::default() }.read_memory_stat(text, keys);
    }
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
