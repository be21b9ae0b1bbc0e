//! The calls about pods, between messages and engine.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_domain::{PodId, PodPhase, PodView, Result};
use coracle_engine::Engine;

use super::id;
use crate::filter::PodFilter;
use crate::{container_status, metrics, pod, stats, v1};

pub(super) async fn run(engine: &Engine, request: &v1::RunPodSandboxRequest) -> Result<PodId> {
    engine.run_pod(pod::parse(request)?).await
}

/// How the log names a pod that has no id yet.
pub(super) fn name(request: &v1::RunPodSandboxRequest) -> String {
    let metadata = request.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}

pub(super) async fn stop(engine: &Engine, request: &v1::StopPodSandboxRequest) -> Result<v1::StopPodSandboxResponse> {
    engine.stop_pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    Ok(v1::StopPodSandboxResponse {})
}

pub(super) async fn remove(engine: &Engine, request: &v1::RemovePodSandboxRequest) -> Result<v1::RemovePodSandboxResponse> {
    engine.remove_pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    Ok(v1::RemovePodSandboxResponse {})
}

pub(super) async fn status(engine: &Engine, request: &v1::PodSandboxStatusRequest) -> Result<v1::PodSandboxStatusResponse> {
    let view = engine.pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    Ok(v1::PodSandboxStatusResponse {
        status: Some(pod::status(&view)),
        info: if request.verbose { engine.inspect_pod(&view.id) } else { Default::default() },
        containers_statuses: view.containers.iter().map(|container| container_status::status(container)).collect(),
        timestamp: now(),
    })
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) async fn list(engine: &Engine, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>> {
    Ok(admitted(engine, &PodFilter::parse(filter)?).await.iter().map(|view| pod::item(view)).collect())
}

async fn admitted(engine: &Engine, filter: &PodFilter) -> Vec<Arc<PodView>> {
    let mut pods = engine.pods().await;
    pods.retain(|view| filter.admits(view));
    pods
}

/// One pod's sample; of a pod that is not ready, its name alone: its cgroup may be the next attempt's.
pub(super) async fn stats(engine: &Engine, request: &v1::PodSandboxStatsRequest) -> Result<v1::PodSandboxStatsResponse> {
    let view = engine.pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    let unmeasured = v1::PodSandboxStats { attributes: Some(pod::attributes(&view)), ..Default::default() };
    let ready = (view.phase == PodPhase::Ready).then_some(view);
    let sample = engine.pod_stats(ready.into_iter().collect()).await.first().map(stats::pod);
    Ok(v1::PodSandboxStatsResponse { stats: Some(sample.unwrap_or(unmeasured)) })
}

pub(super) async fn list_stats(engine: &Engine, filter: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<v1::PodSandboxStats>> {
    let samples = engine.pod_stats(admitted(engine, &PodFilter::of_stats(filter)).await).await;
    Ok(samples.iter().map(stats::pod).collect())
}

pub(super) async fn resize(
    engine: &Engine,
    request: &v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse> {
    engine.resize_pod(id("pod_sandbox_id", &request.pod_sandbox_id)?, pod::parse_resize(request)?).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}

/// The metrics of all pods that are ready, and of their containers that run.
pub(super) async fn list_metrics(engine: &Engine) -> Vec<v1::PodSandboxMetrics> {
    let samples = engine.pod_metrics(admitted(engine, &PodFilter::of_stats(None)).await).await;
    samples.iter().map(metrics::pod).collect()
}
