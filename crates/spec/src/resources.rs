//! Limits in the OCI spec's form, for runtimes that set them themselves. On the native path `coracle-cgroup` sets them
//! from the domain's [`Resources`] and nothing here is looked at.

use std::collections::HashMap;

use coracle_domain::{DeviceRule, Resources};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::devices::rule_to_oci;

/// `resources` and the device rules as `linux.resources`.
pub(crate) fn to_oci(resources: &Resources, rules: &[DeviceRule]) -> LinuxResources {
    let mut oci = LinuxResources::default();
    oci.set_devices(Some(rules.iter().map(rule_to_oci).collect()))
        .set_cpu(cpu(resources))
        .set_memory(memory(resources))
        .set_hugepage_limits(hugepages(resources))
        .set_unified(unified(resources));
    oci
}

fn cpu(resources: &Resources) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(resources.cpu_shares)
        .set_quota(resources.cpu_quota)
        .set_period(resources.cpu_period)
        .set_cpus(resources.cpuset_cpus.clone())
        .set_mems(resources.cpuset_mems.clone());
    (cpu != LinuxCpu::default()).then_some(cpu)
}

/// Without a limit on memory and swap together, there is no swap beyond the memory limit.
fn memory(resources: &Resources) -> Option<LinuxMemory> {
    let mut memory = LinuxMemory::default();
    memory.set_limit(resources.memory_limit).set_swap(resources.memory_swap_limit.or(resources.memory_limit));
    (memory != LinuxMemory::default()).then_some(memory)
}

fn hugepages(resources: &Resources) -> Option<Vec<LinuxHugepageLimit>> {
    let limits: Vec<_> = resources
        .hugepages
        .iter()
        .map(|asked| {
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(asked.page_size.clone()).set_limit(i64::try_from(asked.limit).unwrap_or(i64::MAX));
            limit
        })
        .collect();
    (!limits.is_empty()).then_some(limits)
}

fn unified(resources: &Resources) -> Option<HashMap<String, String>> {
    (!resources.unified.is_empty()).then(|| resources.unified.clone().into_iter().collect())
}
