//! A cgroup that is measured again and again: what it used, and how fast it uses processor time.

use std::sync::{Arc, Mutex, PoisonError};

use coracle_cgroup::{Cgroup, Stats};
use coracle_domain::{CpuStats, IoStats, MemoryStats};

use crate::clock;

/// Samples closer together than this say more about the clock than about the load.
const SHORTEST_INTERVAL: u64 = 500_000_000;

/// What a cgroup used; `None` where it is not accounted.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Option<CpuStats>,
    pub(crate) memory: Option<MemoryStats>,
    pub(crate) io: Option<IoStats>,
    pub(crate) tasks: Option<u64>,
}

/// A cgroup and its last samples.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) cgroup: Arc<Cgroup>,
    last: Mutex<Option<UsageSample>>,
}

#[derive(Debug, Clone, Copy)]
struct UsageSample {
    at: i64,
    usage: u64,
    rate: Option<u64>,
}

impl Meter {
    pub(crate) fn new(cgroup: Arc<Cgroup>) -> Self {
        Self { cgroup, last: Mutex::new(None) }
    }

    /// What the cgroup has used until now.
    pub(crate) fn read(&self) -> Usage {
        let (at, stats) = (clock::now(), self.cgroup.stats());
        let cpu = stats.cpu_usage.map(|usage| CpuStats { at, usage, rate: self.rate(at, usage), pressure: stats.pressures.cpu });
        let io = stats.pressures.io.map(|pressure| IoStats { at, pressure });
        Usage { cpu, memory: memory(at, &stats), io, tasks: stats.tasks }
    }

    /// Nanoseconds of processor time per second since an earlier sample; `None` before there are two.
    fn rate(&self, at: i64, usage: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = UsageSample::after(*last, at, usage);
        *last = Some(sample);
        sample.rate
    }
}

impl UsageSample {
    /// The one to compare with from now on.
    fn after(last: Option<Self>, at: i64, usage: u64) -> Self {
        let Some(last) = last else { return Self { at, usage, rate: None } };
        let elapsed = at.abs_diff(last.at);
        // Of two who look at once, the first may come here last.
        if elapsed < SHORTEST_INTERVAL {
            return last;
        }
        // Where the clock was set back, what was before says nothing.
        if at < last.at {
            return Self { at, usage, rate: None };
        }
        let rate = u128::from(usage.saturating_sub(last.usage)) * 1_000_000_000 / u128::from(elapsed);
        Self { at, usage, rate: u64::try_from(rate).ok() }
    }
}

/// `None` where memory is not accounted.
fn memory(at: i64, stats: &Stats) -> Option<MemoryStats> {
    Some(MemoryStats {
        at,
        usage: stats.memory_usage?,
        working_set: stats.working_set?,
        available: stats.available(),
        rss: stats.rss?,
        page_faults: stats.page_faults?,
        major_page_faults: stats.major_page_faults?,
        swap: stats.swap,
        swap_available: stats.swap_available(),
        pressure: stats.pressures.memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_samples_whoever_comes_last_and_begins_anew_when_the_clock_is_set_back() {
        let second = 1_000_000_000;
        let after = |last, at, usage| UsageSample::after(Some(last), at, usage);
        let first = UsageSample::after(None, 10_000 * second, 5);
        assert_eq!(first.rate, None);
        let next = after(first, first.at + 2 * second, 1_000_005);
        assert_eq!(next.rate, Some(500_000));
        let soon = after(next, next.at + 1, 2_000_000);
        assert_eq!((soon.at, soon.rate), (next.at, Some(500_000)));
        let overtaken = after(soon, soon.at - 1, 1_000_004);
        assert_eq!((overtaken.at, overtaken.rate), (soon.at, Some(500_000)));
        let back = after(overtaken, second, 3_000_000);
        assert_eq!((back.at, back.rate), (second, None));
        assert_eq!(after(back, 2 * second, 3_000_007).rate, Some(7));
    }
}
