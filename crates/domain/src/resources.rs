//! Limits, in CRI's units. Zero and absent mean the same in CRI: not set. Here absent is `None`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A limit on huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`…
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// CRI's `LinuxContainerResources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota per period, microseconds; negative: unlimited.
    pub cpu_quota: Option<i64>,
    /// CPU shares in cgroup v1's scale (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Memory limit, bytes; negative: unlimited.
    pub memory_limit: Option<i64>,
    /// Memory and swap together, bytes, as in cgroup v1; negative: unlimited.
    pub memory_swap_limit: Option<i64>,
    /// -1000 to 1000. CRI cannot tell unset from 0: always applied.
    pub oom_score_adj: i32,
    /// CPUs, in list format (`0-3,7`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, in list format.
    pub cpuset_mems: Option<String>,
    /// Huge pages.
    pub hugepages: Vec<HugepageLimit>,
    /// cgroup v2 files and their content, applied last and verbatim.
    pub unified: BTreeMap<String, String>,
}

/// The sort of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAccess {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Making a node of it.
    pub mknod: bool,
}

/// A rule of a container's device cgroup; the last one that fits decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Which sort; `None`: both.
    pub kind: Option<DeviceKind>,
    /// Which major number; `None`: any.
    pub major: Option<u32>,
    /// Which minor number; `None`: any.
    pub minor: Option<u32>,
    /// What it is about.
    pub access: DeviceAccess,
}

impl Resources {
    /// These limits with those that `change` sets replaced: what an update means.
    pub fn updated_by(&self, change: &Resources) -> Resources {
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Resources {
            cpu_period: change.cpu_period.or(self.cpu_period),
            cpu_quota: change.cpu_quota.or(self.cpu_quota),
            cpu_shares: change.cpu_shares.or(self.cpu_shares),
            memory_limit: change.memory_limit.or(self.memory_limit),
            memory_swap_limit: change.memory_swap_limit.or(self.memory_swap_limit),
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: change.cpuset_cpus.clone().or_else(|| self.cpuset_cpus.clone()),
            cpuset_mems: change.cpuset_mems.clone().or_else(|| self.cpuset_mems.clone()),
            hugepages: if change.hugepages.is_empty() { self.hugepages.clone() } else { change.hugepages.clone() },
            unified,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_replaces_what_it_sets_and_nothing_else() {
        let before = Resources { cpu_shares: Some(512), memory_limit: Some(1 << 20), oom_score_adj: 7, ..Resources::default() };
        let after = before.updated_by(&Resources { memory_limit: Some(2 << 20), ..Resources::default() });
        assert_eq!(after, Resources { memory_limit: Some(2 << 20), ..before });
    }
}
