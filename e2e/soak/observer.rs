//! Somebody who only looks: lists all along, each held against what was acknowledged before and after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_e2e::api::{ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState, PodSandboxStateValue};

use crate::caller::Caller;
use crate::world::World;

const PAUSE: Duration = Duration::from_millis(250);
/// A list waits for no pod. This much is for a machine that is busy.
const LIST: Duration = Duration::from_secs(20);

/// Looks until it is aborted.
pub(crate) async fn observe(world: Arc<World>) {
    let caller = Caller::new(&world, "observer".to_owned());
    loop {
        pods(&caller).await;
        containers(&caller).await;
        filtered(&caller).await;
        statistics(&caller).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn pods(caller: &Caller) {
    let ledger = &caller.world.ledger;
    let (begin, before) = (Instant::now(), ledger.now());
    let Some(listed) = caller.must("ListPodSandbox", || caller.cri.pods(None)).await else { return };
    for (expected, seen) in before.contradicted_by_pods(&ledger.now(), &listed) {
        caller.find("ListPodSandbox", expected, seen);
    }
    be_quick(caller, "ListPodSandbox", begin);
}

async fn containers(caller: &Caller) {
    let ledger = &caller.world.ledger;
    let (begin, before) = (Instant::now(), ledger.now());
    let Some(listed) = caller.must("ListContainers", || caller.cri.containers(None)).await else { return };
    for (expected, seen) in before.contradicted_by_containers(&ledger.now(), &listed) {
        caller.find("ListContainers", expected, seen);
    }
    be_quick(caller, "ListContainers", begin);
}

/// Filters give what they ask for and nothing else.
async fn filtered(caller: &Caller) {
    let state = PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
    let filter = PodSandboxFilter { state: Some(state), ..Default::default() };
    let pods = caller.must("ListPodSandbox", || caller.cri.pods(Some(filter.clone()))).await.unwrap_or_default();
    for pod in pods.iter().filter(|pod| pod.state() != PodSandboxState::SandboxNotready) {
        caller.find("ListPodSandbox", "pods that are not ready, as was asked", format!("{pod:?}"));
    }
    let state = ContainerStateValue { state: ContainerState::ContainerExited.into() };
    let filter = ContainerFilter { state: Some(state), ..Default::default() };
    let containers = caller.must("ListContainers", || caller.cri.containers(Some(filter.clone()))).await.unwrap_or_default();
    for container in containers.iter().filter(|container| container.state() != ContainerState::ContainerExited) {
        caller.find("ListContainers", "containers that have ended, as was asked", format!("{container:?}"));
    }
}

async fn statistics(caller: &Caller) {
    caller.must("ListPodSandboxStats", || caller.cri.all_pod_stats(None)).await;
    caller.must("ListContainerStats", || caller.cri.all_container_stats(None)).await;
    caller.must("ListPodSandboxMetrics", || caller.cri.pod_metrics()).await;
}

fn be_quick(caller: &Caller, call: &str, begin: Instant) {
    use crate::sky::Trouble;
    if begin.elapsed() > LIST && !caller.world.sky.troubled(&[Trouble::NoDaemon], begin) {
        caller.find(call, format!("an answer within {} s", LIST.as_secs()), format!("{:.1} s", begin.elapsed().as_secs_f32()));
    }
}
