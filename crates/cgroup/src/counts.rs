//! What a cgroup counts beyond its stats: what only metrics ask for.
//!
//! Formats: `cpu.stat`, `memory.stat`, `memory.events`, `memory.peak`, `pids.max`, `io.stat`, `hugetlb.*` of
//! cgroup-v2.rst and their like in cgroup-v1/. A container is in no v1 blkio hierarchy (see `create`), so its
//! transfers are known on v2 only.

use std::path::{Path, PathBuf};

use coracle_domain::{Counts, DeviceTransfers, HugepageUsage, TasksLimit, Throttling};

use crate::detect::{Controller, Home};
use crate::{Cgroup, file};

impl Cgroup {
    /// What it counts. What the kernel does not tell, or tells no more because the cgroup is gone, is `None`.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.count_cpu(&mut counts);
        self.count_memory(&mut counts);
        self.count_tasks(&mut counts);
        if let Some((Home::Unified, directory)) = self.home("io") {
            counts.devices = text(&directory, "io.stat").lines().filter_map(transfers).collect();
        }
        if let Some((home, directory)) = self.home("hugetlb") {
            counts.hugepages = hugepages(home, &directory);
        }
        counts
    }

    /// Where the files of a controller are.
    fn home(&self, controller: &str) -> Option<(Home, PathBuf)> {
        let legacy = Controller::named(controller).and_then(|known| self.hierarchy.legacy(known, &self.location));
        match legacy {
            Some(directory) => Some((Home::Legacy, directory)),
            None if self.hierarchy.layout.offers(controller) => Some((Home::Unified, self.unified_dir()?)),
            None => None,
        }
    }

    fn count_cpu(&self, counts: &mut Counts) {
        if let Some((Home::Legacy, directory)) = self.home("cpuacct") {
            counts.cpu_user = number(&directory, "cpuacct.usage_user");
            counts.cpu_system = number(&directory, "cpuacct.usage_sys");
        } else if let Some(directory) = self.unified_dir() {
            let stat = text(&directory, "cpu.stat");
            counts.cpu_user = value(&stat, "user_usec").map(nanoseconds);
            counts.cpu_system = value(&stat, "system_usec").map(nanoseconds);
        }
        counts.throttling = self.home("cpu").and_then(|(home, directory)| throttling(home, &text(&directory, "cpu.stat")));
    }

    fn count_memory(&self, counts: &mut Counts) {
        let Some((home, directory)) = self.home("memory") else { return };
        let stat = text(&directory, "memory.stat");
        match home {
            Home::Legacy => {
                counts.cache = value(&stat, "total_cache");
                counts.mapped_file = value(&stat, "total_mapped_file");
                counts.kernel_memory = number(&directory, "memory.kmem.usage_in_bytes");
                counts.memory_peak = number(&directory, "memory.max_usage_in_bytes");
                counts.memory_limit_hits = number(&directory, "memory.failcnt");
                counts.oom_kills = value(&text(&directory, "memory.oom_control"), "oom_kill");
            }
            Home::Unified => {
                let events = text(&directory, "memory.events");
                counts.cache = value(&stat, "file");
                counts.mapped_file = value(&stat, "file_mapped");
                counts.kernel_memory = value(&stat, "kernel");
                counts.memory_peak = number(&directory, "memory.peak");
                counts.memory_limit_hits = value(&events, "max");
                counts.oom_kills = value(&events, "oom_kill");
            }
        }
    }

    fn count_tasks(&self, counts: &mut Counts) {
        let Some((_, directory)) = self.home("pids") else { return };
        counts.tasks = number(&directory, "pids.current");
        counts.tasks_limit = match file::read(&directory, "pids.max").as_deref() {
            Ok("max") => Some(TasksLimit::Unlimited),
            Ok(limit) => limit.parse().ok().map(TasksLimit::Of),
            Err(_) => None,
        };
    }
}

/// The file's content; empty where there is none.
fn text(directory: &Path, name: &str) -> String {
    file::read(directory, name).unwrap_or_default()
}

/// The number that is the whole file.
fn number(directory: &Path, name: &str) -> Option<u64> {
    file::read(directory, name).ok()?.parse().ok()
}

/// The value of `key` in a flat keyed file.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

fn nanoseconds(microseconds: u64) -> u64 {
    microseconds.saturating_mul(1000)
}

/// On v2 these lines are there only where the cpu controller is enabled.
fn throttling(home: Home, stat: &str) -> Option<Throttling> {
    let throttled_time = match home {
        Home::Legacy => value(stat, "throttled_time")?,
        Home::Unified => nanoseconds(value(stat, "throttled_usec")?),
    };
    Some(Throttling { periods: value(stat, "nr_periods")?, throttled_periods: value(stat, "nr_throttled")?, throttled_time })
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`. A device that was not used has its numbers only.
fn transfers(line: &str) -> Option<DeviceTransfers> {
    let (device, counters) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let number = (major.parse().ok()?, minor.parse().ok()?);
    let counter = |key: &str| counters.split_ascii_whitespace().find_map(|field| field.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
    Some(DeviceTransfers {
        device: device_path(number),
        number,
        reads: counter("rios")?,
        read_bytes: counter("rbytes")?,
        writes: counter("wios")?,
        written_bytes: counter("wbytes")?,
    })
}

/// Where sysfs says that a block device is in /dev; its numbers where it does not say.
fn device_path((major, minor): (u32, u32)) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    // sysfs writes the slash of a name as an exclamation mark.
    let name = link.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().replace('!', "/"));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

fn hugepages(home: Home, directory: &Path) -> Vec<HugepageUsage> {
    let (used, peak) = match home {
        Home::Legacy => ("usage_in_bytes", Some("max_usage_in_bytes")),
        Home::Unified => ("current", None),
    };
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let sizes = names.filter_map(|name| Some(name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(used)?.strip_suffix('.')?.to_owned()));
    // `rsvd` counts what is reserved, not what is used.
    let mut sizes: Vec<String> = sizes.filter(|size| !size.contains('.')).collect();
    sizes.sort();
    let usage = |page_size: String| {
        let file = |what: &str| number(directory, &format!("hugetlb.{page_size}.{what}"));
        Some(HugepageUsage { usage: file(used)?, peak: peak.and_then(file), page_size })
    };
    sizes.into_iter().filter_map(usage).collect()
}

/// Reads a text as every file here: for fuzzers.
#[cfg(fuzzing)]
pub(crate) fn read_arbitrary(text: &str) {
    for home in [Home::Legacy, Home::Unified] {
        let _ = throttling(home, text);
    }
    let _ = text.lines().filter_map(transfers).count();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn throttling_is_read_in_nanoseconds_from_both_versions() {
        let expected = Some(Throttling { periods: 10, throttled_periods: 3, throttled_time: 7000 });
        assert_eq!(throttling(Home::Legacy, "nr_periods 10\nnr_throttled 3\nthrottled_time 7000\nnr_bursts 0"), expected);
        assert_eq!(throttling(Home::Unified, "usage_usec 1\nnr_periods 10\nnr_throttled 3\nthrottled_usec 7"), expected);
        assert_eq!(throttling(Home::Unified, "usage_usec 1"), None, "without the cpu controller nothing is known");
    }

    #[test]
    fn a_devices_transfers_are_told_by_their_names_and_one_that_was_not_used_is_left_out() {
        let read = transfers("4095:7 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0").unwrap();
        assert_eq!((read.device.as_str(), read.number), ("4095:7", (4095, 7)), "no such device is in sysfs");
        assert_eq!((read.reads, read.read_bytes, read.writes, read.written_bytes), (1, 4096, 2, 8192));
        assert_eq!(transfers("8:0 "), None);
    }

    #[test]
    fn huge_pages_are_counted_by_size_without_what_is_reserved() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            [("2MB.usage_in_bytes", "4"), ("2MB.max_usage_in_bytes", "8"), ("2MB.rsvd.usage_in_bytes", "6"), ("2MB.limit_in_bytes", "9")];
        for (name, content) in files {
            std::fs::write(directory.path().join(format!("hugetlb.{name}")), content).unwrap();
        }
        let expected = HugepageUsage { page_size: "2MB".to_owned(), usage: 4, peak: Some(8) };
        assert_eq!(hugepages(Home::Legacy, directory.path()), [expected]);
        assert!(hugepages(Home::Unified, directory.path()).is_empty());
    }

    proptest! {
        #[test]
        fn any_line_of_io_stat_is_read_without_panic(line in "[0-9:]{0,8} ?([rw](bytes|ios)=[0-9]{0,22} ?){0,4}") {
            let _ = transfers(&line);
        }
    }
}
