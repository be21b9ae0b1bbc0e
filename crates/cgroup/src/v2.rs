//! What cgroup v2 calls CRI's limits. Pure. Format: the kernel's `admin-guide/cgroup-v2.rst`.

use coracle_domain::{Refusal, Resources};

use crate::convert::{cpu_max, limit_or_max, swap_max, weight_of_shares};
use crate::settings::{Absent, Place, Setting};

/// `cpu.weight` and `cpu.max`.
pub(crate) fn cpu(limits: &Resources) -> Vec<Setting> {
    let weight = limits.cpu_shares.map(|shares| Setting::new(Place::Unified, "cpu.weight", weight_of_shares(shares), "cpu_shares"));
    let is_limited = limits.cpu_quota.is_some() || limits.cpu_period.is_some();
    let max = is_limited.then(|| Setting::new(Place::Unified, "cpu.max", cpu_max(limits.cpu_quota, limits.cpu_period), "cpu_quota"));
    [weight, max].into_iter().flatten().collect()
}

/// `memory.swap.max` and `memory.max`.
pub(crate) fn memory(limits: &Resources) -> Result<Vec<Setting>, Refusal> {
    let swap = swap_max(limits.memory_limit, limits.memory_swap_limit)?.map(|value| {
        // Without swap there is no file, and nothing to do for a limit that allows none or any.
        let absent = match value.as_str() {
            "0" | "max" => Absent::Harmless,
            _ => Absent::Refused("this kernel does not account swap"),
        };
        Setting::new(Place::Unified, "memory.swap.max", value, "memory_swap_limit_in_bytes").if_absent(absent)
    });
    let memory = limits.memory_limit.map(|limit| Setting::new(Place::Unified, "memory.max", limit_or_max(limit), "memory_limit_in_bytes"));
    Ok([swap, memory].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_equal_to_the_limit_forbids_swap_and_needs_no_swap_file() {
        let limits = Resources { memory_limit: Some(4096), memory_swap_limit: Some(4096), ..Resources::default() };
        let settings = memory(&limits).unwrap();
        assert_eq!((settings[0].value.as_str(), settings[0].absent), ("0", Absent::Harmless));
        let more = Resources { memory_swap_limit: Some(8192), ..limits };
        assert!(matches!(memory(&more).unwrap()[0].absent, Absent::Refused(_)));
    }
}
