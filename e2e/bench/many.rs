//! Many pods: starting them side by side, and what lists, statuses, statistics and memory cost when they are there.

use std::time::{Duration, Instant};

use coracle_e2e::Status;
use coracle_e2e::api::{self, ContainerFilter};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::endpoint::{Endpoint, Network, Started};
use crate::machine::{self, Memory};
use crate::report::Report;
use crate::series::{Series, timed};

/// Pods of a burst.
const BURST: usize = 20;
/// How many of them are started at a time.
const AT_A_TIME: usize = 8;
/// A burst or a pull is taken once for so many samples of something quick.
pub(crate) const SLOW: usize = 10;

/// Calls that are measured with many pods.
const CALLS: [&str; 6] =
    ["ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus", "ListContainerStats", "ListPodSandboxStats"];

/// 20 pods, 8 at a time, with either network.
pub(crate) async fn burst(endpoints: &[Endpoint], samples: usize, report: &mut Report) -> Result<(), String> {
    for network in [Network::Own, Network::Host] {
        let mut series = vec![Series::default(); endpoints.len()];
        for _ in 0..samples.div_ceil(SLOW).max(3) {
            for (endpoint, series) in endpoints.iter().zip(&mut series) {
                let begin = Instant::now();
                let pods = start(endpoint, network, BURST).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
                series.add_time(begin.elapsed());
                remove(endpoint, &pods).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
            }
        }
        report.add(format!("{BURST} pods, {AT_A_TIME} at a time, {}", network.label()), "ms", series);
    }
    Ok(())
}

pub(crate) async fn start(endpoint: &Endpoint, network: Network, count: usize) -> Result<Vec<Started>, Status> {
    stream::iter(0..count).map(|_| endpoint.start(network)).buffer_unordered(AT_A_TIME).try_collect().await
}

pub(crate) async fn remove(endpoint: &Endpoint, pods: &[Started]) -> Result<(), Status> {
    stream::iter(pods).map(|pod| endpoint.remove(&pod.pod)).buffer_unordered(AT_A_TIME).try_collect().await
}

/// Lists, statuses, statistics and memory, for each number of pods.
pub(crate) async fn measure(endpoints: &[Endpoint], counts: &[usize], samples: usize, report: &mut Report) -> Result<(), String> {
    let empty: Vec<Footprint> = endpoints.iter().map(Footprint::of).collect();
    let mut pods: Vec<Vec<Started>> = vec![Vec::new(); endpoints.len()];
    for &count in counts {
        for (endpoint, pods) in endpoints.iter().zip(&mut pods) {
            let more = start(endpoint, Network::Host, count.saturating_sub(pods.len())).await;
            pods.extend(more.map_err(|status| format!("{}: {status}", endpoint.name))?);
        }
        // Statistics may be cached for a moment; memory may be given back in one.
        tokio::time::sleep(Duration::from_secs(2)).await;
        memory(endpoints, &empty, count, report);
        for call in CALLS {
            calls(endpoints, &pods, (call, count), samples, report).await;
        }
    }
    for (endpoint, pods) in endpoints.iter().zip(&pods) {
        remove(endpoint, pods).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
    }
    Ok(())
}

/// One call, by both endpoints in turn. A call that fails is reported as failing.
async fn calls(endpoints: &[Endpoint], pods: &[Vec<Started>], (call, count): (&str, usize), samples: usize, report: &mut Report) {
    let mut series: Vec<Result<Series, String>> = vec![Ok(Series::default()); endpoints.len()];
    for round in 0..samples {
        for ((endpoint, pods), series) in endpoints.iter().zip(pods).zip(&mut series) {
            let (Ok(sampled), Some(pod)) = (series.as_mut(), pods.get(round % pods.len().max(1))) else { continue };
            match timed(ask(endpoint, call, pod)).await {
                Ok(((), time)) => sampled.add_time(time),
                Err(status) => *series = Err(status.message().to_owned()),
            }
        }
    }
    report.add_some(format!("{call}, {count} pods"), "ms", series);
}

async fn ask(endpoint: &Endpoint, call: &str, pod: &Started) -> Result<(), Status> {
    match call {
        "ListPodSandbox" => endpoint.cri.pods(None).await.map(drop),
        "ListContainers" => endpoint.cri.containers(None::<ContainerFilter>).await.map(drop),
        "PodSandboxStatus" => endpoint.cri.pod_status(&pod.pod).await.map(drop),
        "ContainerStatus" => endpoint.cri.status(&pod.container).await.map(drop),
        "ListContainerStats" => endpoint.cri.all_container_stats(None::<api::ContainerStatsFilter>).await.map(drop),
        "ListPodSandboxStats" => endpoint.cri.all_pod_stats(None::<api::PodSandboxStatsFilter>).await.map(drop),
        _ => Err(Status::unimplemented(call)),
    }
}

/// The memory of a runtime's processes, all of them and its daemon's alone.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    all: Memory,
    daemon: Memory,
}

impl Footprint {
    fn of(endpoint: &Endpoint) -> Self {
        Self { all: machine::memory(&endpoint.runtime_processes()), daemon: machine::memory(&[endpoint.daemon]) }
    }

    /// Private memory of the monitors, shims and the like, KiB.
    fn beside_daemon(&self) -> f64 {
        self.all.private - self.daemon.private
    }
}

/// What the runtime's processes have grown by since there was no pod, by pod; and all of it.
fn memory(endpoints: &[Endpoint], empty: &[Footprint], count: usize, report: &mut Report) {
    let full: Vec<Footprint> = endpoints.iter().map(Footprint::of).collect();
    let mut add = |name: &str, unit: &'static str, of: &dyn Fn(&Footprint, &Footprint) -> f64| {
        let values = full.iter().zip(empty).map(|(full, empty)| Series::of(of(full, empty))).collect();
        report.add(format!("{name}, {count} pods"), unit, values);
    };
    let pods = count.max(1) as f64;
    add("runtime's memory per pod, PSS", "KiB", &|full, empty| (full.all.proportional - empty.all.proportional) / pods);
    add("runtime's memory per pod, private", "KiB", &|full, empty| (full.all.private - empty.all.private) / pods);
    add("  of which not the daemon's", "KiB", &|full, empty| (full.beside_daemon() - empty.beside_daemon()) / pods);
    add("runtime's processes per pod", "", &|full, empty| (full.all.processes as f64 - empty.all.processes as f64) / pods);
    add("runtime's memory, PSS", "MiB", &|full, _| full.all.proportional / 1024.0);
    add("  of which the daemon's", "MiB", &|full, _| full.daemon.proportional / 1024.0);
}
