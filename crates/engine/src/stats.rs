//! Stats: one sweep over the cgroups' held descriptors, off the runtime's threads.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_domain::{ContainerStats, ContainerView, CpuStats, MemoryStats, NetworkStats, PodStats, PodView};

use crate::live::Live;
use crate::{Shared, clock};

/// A container and what is live of its pod.
pub(crate) type Sampled = (Arc<ContainerView>, Arc<Live>);

/// Samples running containers; the others have nothing to measure and are left out.
pub(crate) fn containers(shared: &Shared, containers: Vec<Sampled>) -> Vec<ContainerStats> {
    containers.into_iter().filter_map(|(view, live)| container(shared, view, &live).map(|sample| sample.stats)).collect()
}

/// Samples pods, and the running containers of each.
pub(crate) fn pods(shared: &Shared, pods: Vec<(Arc<PodView>, Arc<Live>)>, mut interfaces: HashMap<String, NetworkStats>) -> Vec<PodStats> {
    pods.into_iter().map(|(view, live)| pod(shared, view, &live, &mut interfaces)).collect()
}

struct Sample {
    stats: ContainerStats,
    processes: Option<u64>,
}

fn container(shared: &Shared, view: Arc<ContainerView>, live: &Live) -> Option<Sample> {
    let running = live.running(&view)?;
    let (at, usage) = (clock::now(), running.cgroup.stats());
    let cpu = usage.cpu_usage.map(|nanoseconds| CpuStats { at, usage: nanoseconds, rate: running.rate(at, nanoseconds) });
    let writable_layer = shared.images.writable_usage(&view.id);
    Some(Sample { stats: ContainerStats { container: view, cpu, memory: memory(at, &usage), writable_layer }, processes: usage.tasks })
}

/// `None` where memory is not accounted.
fn memory(at: i64, usage: &coracle_cgroup::Stats) -> Option<MemoryStats> {
    Some(MemoryStats {
        at,
        usage: usage.memory_usage?,
        working_set: usage.working_set?,
        available: usage.available(),
        rss: usage.rss?,
        page_faults: usage.page_faults?,
        major_page_faults: usage.major_page_faults?,
        swap: usage.swap,
    })
}

fn pod(shared: &Shared, view: Arc<PodView>, live: &Live, interfaces: &mut HashMap<String, NetworkStats>) -> PodStats {
    let samples: Vec<_> = view.containers.iter().filter_map(|view| container(shared, Arc::clone(view), live)).collect();
    PodStats {
        cpu: samples.iter().filter_map(|sample| sample.stats.cpu).reduce(add_cpu),
        memory: samples.iter().filter_map(|sample| sample.stats.memory).reduce(add_memory),
        network: interfaces.remove(&coracle_network::host_link_name(&view.id)),
        processes: samples.iter().filter_map(|sample| sample.processes).reduce(|a, b| a + b),
        containers: samples.into_iter().map(|sample| sample.stats).collect(),
        pod: view,
    }
}

fn add_cpu(a: CpuStats, b: CpuStats) -> CpuStats {
    CpuStats { at: a.at.max(b.at), usage: a.usage + b.usage, rate: add(a.rate, b.rate) }
}

fn add_memory(a: MemoryStats, b: MemoryStats) -> MemoryStats {
    MemoryStats {
        at: a.at.max(b.at),
        usage: a.usage + b.usage,
        working_set: a.working_set + b.working_set,
        available: add(a.available, b.available),
        rss: a.rss + b.rss,
        page_faults: a.page_faults + b.page_faults,
        major_page_faults: a.major_page_faults + b.major_page_faults,
        swap: add(a.swap, b.swap),
    }
}

/// A sum of which a part is unknown is unknown.
fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a? + b?)
}
