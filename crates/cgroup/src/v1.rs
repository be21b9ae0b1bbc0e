//! What cgroup v1 calls CRI's limits, and the orders in which it accepts them. Pure.
//!
//! Formats: the kernel's `Documentation/scheduler/sched-bwc.rst` and `admin-guide/cgroup-v1/memory.rst`.

use coracle_domain::{Refusal, Resources};

use crate::convert::SHARES;
use crate::detect::Controller;
use crate::settings::{Absent, Place, Present, Setting};

/// `cpu.shares`, then quota and period in the order that never allows more than the larger of the old and
/// the new share of a CPU: the kernel refuses a state that exceeds the parent's, even between two writes.
pub(crate) fn cpu(limits: &Resources, present: Present) -> Vec<Setting> {
    let place = Place::Legacy(Controller::Cpu);
    let shares =
        limits.cpu_shares.map(|shares| Setting::new(place, "cpu.shares", shares.clamp(*SHARES.start(), *SHARES.end()), "cpu_shares"));
    let quota = limits.cpu_quota.map(|quota| Setting::new(place, "cpu.cfs_quota_us", quota.max(-1), "cpu_quota"));
    let period = limits.cpu_period.map(|period| Setting::new(place, "cpu.cfs_period_us", period, "cpu_period"));
    let shrinks = limits.cpu_period.is_some_and(|period| period < present.period);
    let (first, second) = if shrinks { (quota, period) } else { (period, quota) };
    [shares, first, second].into_iter().flatten().collect()
}

/// Memory and the sum of memory and swap, in the order that keeps memory at or below the sum throughout.
pub(crate) fn memory(limits: &Resources, present: Present) -> Result<Vec<Setting>, Refusal> {
    const SUM_FIELD: &str = "memory_swap_limit_in_bytes";
    let place = Place::Legacy(Controller::Memory);
    // Unlimited memory takes unlimited swap with it: otherwise the old sum would still limit both.
    let unlimited = limits.memory_limit.filter(|limit| *limit < 0);
    let sum = limits.memory_swap_limit.or(unlimited).map(|sum| sum.max(-1));
    let memory = limits.memory_limit.map(|limit| limit.max(-1));
    if let (Some(memory @ 0..), Some(sum @ 0..)) = (memory, sum)
        && sum < memory
    {
        return Err(Refusal::invalid(SUM_FIELD, format!("{sum} is below memory_limit_in_bytes, {memory}")));
    }
    let sum_is_first = sum.is_some_and(|sum| u64::try_from(sum).map_or(true, |sum| sum >= present.memory_limit));
    // Without swap accounting there is no file, and nothing to do for a sum that allows no swap or any.
    let absent = match sum {
        Some(0..) if sum != memory => Absent::Refused("this kernel does not account swap (boot it with swapaccount=1)"),
        _ => Absent::Harmless,
    };
    let memory = memory.map(|limit| Setting::new(place, "memory.limit_in_bytes", limit, "memory_limit_in_bytes"));
    let sum = sum.map(|limit| Setting::new(place, "memory.memsw.limit_in_bytes", limit, SUM_FIELD).if_absent(absent));
    let (first, second) = if sum_is_first { (sum, memory) } else { (memory, sum) };
    Ok([first, second].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    fn memory_limits(memory: Option<i64>, sum: Option<i64>) -> Resources {
        Resources { memory_limit: memory, memory_swap_limit: sum, ..Resources::default() }
    }

    #[test]
    fn a_lower_period_comes_after_the_quota() {
        let limits = Resources { cpu_quota: Some(5_000), cpu_period: Some(10_000), ..Resources::default() };
        assert_eq!(order(&cpu(&limits, Present::FRESH)), ["cpu.cfs_quota_us=5000", "cpu.cfs_period_us=10000"]);
        let now = Present { period: 5_000, ..Present::FRESH };
        assert_eq!(order(&cpu(&limits, now)), ["cpu.cfs_period_us=10000", "cpu.cfs_quota_us=5000"]);
    }

    #[test]
    fn shares_stay_within_the_kernels_bounds() {
        for (given, written) in [(1, 2), (1000, 1000), (1 << 40, 262_144)] {
            let limits = Resources { cpu_shares: Some(given), ..Resources::default() };
            assert_eq!(order(&cpu(&limits, Present::FRESH)), [format!("cpu.shares={written}")]);
        }
    }

    #[test]
    fn unlimited_memory_frees_the_sum_first() {
        let settings = memory(&memory_limits(Some(-1), None), Present { memory_limit: 4096, ..Present::FRESH }).unwrap();
        assert_eq!(order(&settings), ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"]);
    }

    #[test]
    fn a_sum_that_needs_swap_accounting_is_refused_without_it() {
        let absent = |memory_limit, sum| memory(&memory_limits(memory_limit, sum), Present::FRESH).unwrap().pop().unwrap().absent;
        assert!(matches!(absent(Some(4096), Some(8192)), Absent::Refused(_)));
        assert_eq!(absent(Some(4096), Some(4096)), Absent::Harmless);
        assert!(memory(&memory_limits(Some(4096), Some(4095)), Present::FRESH).is_err());
    }

    proptest! {
        #[test]
        fn memory_never_exceeds_the_sum_between_two_writes(old in 1i64..1000, old_swap in 0i64..1000, new in 1i64..1000, new_swap in 0i64..1000) {
            let present = Present { memory_limit: old as u64, ..Present::FRESH };
            let (mut limit, mut sum) = (old, old + old_swap);
            for setting in memory(&memory_limits(Some(new), Some(new + new_swap)), present).unwrap() {
                let value = setting.value.parse().unwrap();
                if setting.file == "memory.limit_in_bytes" { limit = value } else { sum = value }
                prop_assert!(limit <= sum);
            }
            prop_assert_eq!((limit, sum), (new, new + new_swap));
        }

        #[test]
        fn no_order_of_quota_and_period_exceeds_both_ratios(old in 1i64..1000, old_period in 1u64..1000, new in 1i64..1000, period in 1u64..1000) {
            let limits = Resources { cpu_quota: Some(new), cpu_period: Some(period), ..Resources::default() };
            let (mut q, mut p) = (old as f64, old_period as f64);
            let bound = (q / p).max(new as f64 / period as f64);
            for setting in cpu(&limits, Present { period: old_period, ..Present::FRESH }) {
                let value: f64 = setting.value.parse().unwrap();
                if setting.file == "cpu.cfs_quota_us" { q = value } else { p = value }
                prop_assert!(q / p <= bound);
            }
        }
    }
}
