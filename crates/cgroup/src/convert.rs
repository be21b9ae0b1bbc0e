//! The formulas between CRI's limits, which have cgroup v1's scales, and cgroup v2's files. Pure.

use coracle_domain::Refusal;

/// The kernel's default period, microseconds, on v1 and v2.
pub(crate) const DEFAULT_PERIOD: u64 = 100_000;
/// v1's bounds of `cpu.shares` (`MIN_SHARES`, `MAX_SHARES` in the kernel's scheduler).
pub(crate) const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// v1's default of `cpu.shares`.
pub(crate) const DEFAULT_SHARES: u64 = 1024;

/// `cpu.weight` for v1's cpu shares: 2 → 1, 1024 → 100, 262144 → 10000, and between them
/// ⌈10^((l² + 125 l) / 612 − 7 / 34)⌉ with l = log₂ shares.
///
/// It is the curve that runc and crun use since 2025, chosen so that the two scales' defaults meet.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= *SHARES.start() {
        return 1;
    }
    if shares >= *SHARES.end() {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

/// `cpu.max`: quota (`max` when unlimited) and period, microseconds.
pub(crate) fn cpu_max(quota: Option<i64>, period: Option<u64>) -> String {
    let period = period.unwrap_or(DEFAULT_PERIOD);
    match quota {
        Some(quota) if quota > 0 => format!("{quota} {period}"),
        _ => format!("max {period}"),
    }
}

/// A limit as v2 writes it; negative: unlimited.
pub(crate) fn limit_or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// `memory.swap.max` for v1's sum of memory and swap; `None`: leave it alone.
///
/// An unlimited memory limit takes unlimited swap with it when the sum is not given, as on v1.
pub(crate) fn swap_max(memory: Option<i64>, sum: Option<i64>) -> Result<Option<String>, Refusal> {
    match (memory, sum) {
        (Some(memory), None) if memory < 0 => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (_, Some(sum)) if sum < 0 => Ok(Some("max".to_owned())),
        (None, Some(_)) => Err(Refusal::invalid("memory_swap_limit_in_bytes", "given without memory_limit_in_bytes")),
        (Some(memory), Some(sum)) if memory < 0 => Ok(Some(sum.to_string())),
        (Some(memory), Some(sum)) if sum < memory => {
            Err(Refusal::invalid("memory_swap_limit_in_bytes", format!("{sum} is below memory_limit_in_bytes, {memory}")))
        }
        (Some(memory), Some(sum)) => Ok(Some((sum - memory).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_become_the_weights_of_the_peers() {
        // The values of runc's own table, and what the formula gives for a kubelet's usual requests.
        let table = [(0, 1), (1, 1), (2, 1), (3, 2), (102, 17), (512, 59), (1024, 100), (2048, 174), (262_143, 10_000), (262_144, 10_000)];
        for (shares, weight) in table {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn quota_and_period_share_a_file() {
        assert_eq!(cpu_max(Some(50_000), Some(100_000)), "50000 100000");
        assert_eq!(cpu_max(Some(50_000), None), "50000 100000");
        assert_eq!(cpu_max(Some(-1), Some(20_000)), "max 20000");
        assert_eq!(cpu_max(None, Some(20_000)), "max 20000");
    }

    #[test]
    fn swap_is_the_sum_less_the_memory() {
        let ok = |memory, sum| swap_max(memory, sum).map(|text| text.unwrap_or("unset".to_owned()));
        assert_eq!(ok(Some(100), Some(150)).as_deref(), Ok("50"));
        assert_eq!(ok(Some(100), Some(100)).as_deref(), Ok("0"));
        assert_eq!(ok(Some(100), Some(-1)).as_deref(), Ok("max"));
        assert_eq!(ok(Some(100), None).as_deref(), Ok("unset"));
        assert_eq!(ok(Some(-1), None).as_deref(), Ok("max"));
        assert_eq!(ok(Some(-1), Some(300)).as_deref(), Ok("300"));
        assert_eq!(ok(None, Some(-1)).as_deref(), Ok("max"));
        assert!(ok(None, Some(5)).is_err());
        assert!(ok(Some(100), Some(99)).is_err());
    }

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(shares in 0u64..300_000) {
            let weight = weight_of_shares(shares);
            prop_assert!((1..=10_000).contains(&weight));
            prop_assert!(weight_of_shares(shares + 1) >= weight);
        }
    }
}
