//! Stats and metrics: one sweep over the cgroups, shared among the processors. Metrics are stats with
//! details, which cost more to look up.
//!
//! A pod is measured by its own cgroup, whose counters never fall when a container ends. Where the pod has none of
//! its own, it is the sum of its containers.

mod meter;
mod processes;

use std::sync::Arc;

use coracle_cgroup::{Cgroup, Hierarchy};
use coracle_domain::{
    ContainerPhase, ContainerStats, ContainerView, CpuStats, Details, Filesystem, MemoryStats, NetworkStats, PodRequest, PodStats, PodView,
};

pub(crate) use meter::Meter;
use meter::Usage;

use crate::live::{Live, LiveContainer};
use crate::record::PodRecord;
use crate::{Engine, Shared, clock, shares};

/// How much is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    Stats,
    Metrics,
}

impl Engine {
    /// Samples containers. Of one that does not run only the writable layer is known.
    pub async fn container_stats(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerStats> {
        let live = |view: Arc<ContainerView>| self.shared.index.live(&view.pod).map(|live| (view, live));
        let sampled = containers.into_iter().filter_map(live).collect();
        self.sweep(Depth::Stats, sampled, |sweep, (view, live)| sweep.container(view, &live).0).await
    }

    /// Samples pods and their running containers.
    pub async fn pod_stats(&self, pods: Vec<Arc<PodView>>) -> Vec<PodStats> {
        self.sweep_pods(Depth::Stats, pods).await
    }

    /// The same with all that metrics tell.
    pub async fn pod_metrics(&self, pods: Vec<Arc<PodView>>) -> Vec<PodStats> {
        self.sweep_pods(Depth::Metrics, pods).await
    }

    async fn sweep_pods(&self, depth: Depth, pods: Vec<Arc<PodView>>) -> Vec<PodStats> {
        let live = |view: Arc<PodView>| self.shared.index.live(&view.id).map(|live| (view, live));
        let sampled = pods.into_iter().filter_map(live).collect();
        self.sweep(depth, sampled, |sweep, (view, live)| sweep.pod(view, &live)).await
    }

    async fn sweep<A: Send + 'static, B: Send + 'static>(&self, depth: Depth, sampled: Vec<A>, look: fn(&Sweep, A) -> B) -> Vec<B> {
        let _sweeping = self.shared.index.recoveries().sweep();
        let sweep = Arc::new(Sweep { filesystem: self.shared.images.filesystem(), shared: Arc::clone(&self.shared), depth });
        shares::each(sampled, move |sample| look(&sweep, sample)).await.unwrap_or_default()
    }
}

/// One look at many cgroups.
struct Sweep {
    shared: Arc<Shared>,
    depth: Depth,
    /// The one of all writable layers.
    filesystem: Option<Filesystem>,
}

impl Sweep {
    /// A container's sample, and its processes and threads.
    fn container(&self, view: Arc<ContainerView>, live: &Live) -> (ContainerStats, Option<u64>) {
        let running = live.running(&view);
        let Usage { cpu, memory, io, tasks } = running.map(|running| running.meter.read()).unwrap_or_default();
        let details = running.filter(|_| self.depth == Depth::Metrics).map(|running| Box::new(self.details(&view, running)));
        let writable_layer = self.shared.images.writable_usage(&view.id);
        (ContainerStats { container: view, cpu, memory, io, writable_layer, details }, tasks)
    }

    fn details(&self, view: &ContainerView, running: &LiveContainer) -> Details {
        let first = match view.phase {
            ContainerPhase::Running { pid, .. } => Some(pid),
            _ => None,
        };
        Details {
            counts: running.cgroup.counts(),
            processes: running.cgroup.processes().ok().and_then(|processes| processes::count(&processes)),
            open_files_limit: first.and_then(processes::open_files_limit),
            filesystem: self.filesystem.clone(),
        }
    }

    fn pod(&self, view: Arc<PodView>, live: &Live) -> PodStats {
        let running = view.containers.iter().filter(|container| live.running(container).is_some());
        let (containers, tasks): (Vec<_>, Vec<_>) = running.map(|container| self.container(Arc::clone(container), live)).unzip();
        let usage = match &live.meter {
            Some(meter) => meter.read(),
            None => sum(&containers, tasks),
        };
        let Usage { cpu, memory, io, tasks } = usage;
        PodStats { network: network(&view), pod: view, at: clock::now(), cpu, memory, io, tasks, containers }
    }
}

/// The counters of a pod's own network, seen through its monitor, which lives in it. `None` with the node's network.
fn network(pod: &PodView) -> Option<NetworkStats> {
    pod.network_namespace.as_ref()?;
    coracle_network::interfaces_of(pod.monitor_pid?).ok()
}

/// The meter of a pod's own cgroup, if it has one.
pub(crate) fn meter(hierarchy: &Hierarchy, pod: &PodRecord) -> Option<Arc<Meter>> {
    let location = hierarchy.pod(pod.request.cgroup_parent.as_deref(), &pod.id).ok()?;
    has_own_cgroup(&pod.request).then(|| Arc::new(Meter::new(Arc::new(Cgroup::open(hierarchy, location)))))
}

/// A kubelet names a pod's cgroup after the pod's uid. A parent of another name may have other pods in it, and what it
/// counts is not the pod's.
fn has_own_cgroup(pod: &PodRequest) -> bool {
    let Some(parent) = &pod.cgroup_parent else { return true };
    let (name, uid) = (parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default(), &pod.metadata.uid);
    // systemd's names have underscores where a uid has hyphens.
    name.contains(uid.as_str()) || name.contains(&uid.replace('-', "_"))
}

fn sum(containers: &[ContainerStats], tasks: Vec<Option<u64>>) -> Usage {
    Usage {
        cpu: containers.iter().filter_map(|stats| stats.cpu).reduce(add_cpu),
        memory: containers.iter().filter_map(|stats| stats.memory).reduce(add_memory),
        io: None,
        tasks: tasks.into_iter().flatten().reduce(|a, b| a + b),
    }
}

/// Stalls of containers cannot be added: they may have been at the same time.
fn add_cpu(a: CpuStats, b: CpuStats) -> CpuStats {
    CpuStats { at: a.at.max(b.at), usage: a.usage + b.usage, rate: add(a.rate, b.rate), pressure: None }
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
        swap_available: add(a.swap_available, b.swap_available),
        pressure: None,
    }
}

/// A sum of which a part is unknown is unknown.
fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a? + b?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_kubelets_cgroup_is_the_pods_own_and_any_other_may_be_shared() {
        let own = |parent: Option<&str>| {
            let mut request = (*testing::record(1).request).clone();
            request.metadata.uid = "4b1f-22".to_owned();
            request.cgroup_parent = parent.map(str::to_owned);
            has_own_cgroup(&request)
        };
        assert!(own(None) && own(Some("/kubepods/burstable/pod4b1f-22")) && own(Some("/kubepods.slice/kubepods-pod4b1f_22.slice/")));
        assert!(!own(Some("/system.slice")) && !own(Some("/pod4b1f-22/shared")));
    }
}
