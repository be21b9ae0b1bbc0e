//! The calls about containers, between messages and engine.

use std::sync::Arc;

use coracle_domain::{ContainerId, ContainerView, Refusal, Result};
use coracle_engine::Engine;

use super::id;
use crate::filter::ContainerFilter;
use crate::{MESSAGE_LIMIT, check, container, container_status, resources, stats, v1};

/// Bytes that an ExecSyncResponse takes beside its output: three tags and lengths, at most.
const EXEC_FRAME: usize = 64;

pub(super) async fn create(engine: &Engine, request: &v1::CreateContainerRequest) -> Result<ContainerId> {
    let container = container::parse(request)?;
    let pod = engine.pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    container::fits(request, &container, &pod.request)?;
    engine.create_container(pod.id.as_str(), container).await
}

/// How the log names a container that has no id yet.
pub(super) fn name(request: &v1::CreateContainerRequest) -> String {
    let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
    format!("{} in {}", metadata.map(|metadata| metadata.name.as_str()).unwrap_or_default(), request.pod_sandbox_id)
}

pub(super) async fn start(engine: &Engine, request: &v1::StartContainerRequest) -> Result<v1::StartContainerResponse> {
    engine.start_container(id("container_id", &request.container_id)?).await?;
    Ok(v1::StartContainerResponse {})
}

pub(super) async fn stop(engine: &Engine, request: &v1::StopContainerRequest) -> Result<v1::StopContainerResponse> {
    let grace = check::seconds("timeout", request.timeout)?;
    engine.stop_container(id("container_id", &request.container_id)?, grace).await?;
    Ok(v1::StopContainerResponse {})
}

pub(super) async fn remove(engine: &Engine, request: &v1::RemoveContainerRequest) -> Result<v1::RemoveContainerResponse> {
    engine.remove_container(id("container_id", &request.container_id)?).await?;
    Ok(v1::RemoveContainerResponse {})
}

pub(super) async fn status(engine: &Engine, request: &v1::ContainerStatusRequest) -> Result<v1::ContainerStatusResponse> {
    let view = engine.container(id("container_id", &request.container_id)?).await?;
    let info = if request.verbose { engine.inspect_container(&view.id) } else { Default::default() };
    Ok(v1::ContainerStatusResponse { status: Some(container_status::status(&view)), info })
}

pub(super) async fn list(engine: &Engine, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>> {
    Ok(admitted(engine, &ContainerFilter::parse(filter)?).await.iter().map(|view| container_status::item(view)).collect())
}

async fn admitted(engine: &Engine, filter: &ContainerFilter) -> Vec<Arc<ContainerView>> {
    let mut containers = engine.containers().await;
    containers.retain(|view| filter.admits(view));
    containers
}

/// Without limits for Linux there is nothing to change, but the container must be there.
pub(super) async fn update(engine: &Engine, request: &v1::UpdateContainerResourcesRequest) -> Result<v1::UpdateContainerResourcesResponse> {
    let container = id("container_id", &request.container_id)?;
    match &request.linux {
        Some(linux) => engine.update_container(container, resources::parse("linux", linux)?).await?,
        None => drop(engine.container(container).await?),
    }
    Ok(v1::UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_log(engine: &Engine, request: &v1::ReopenContainerLogRequest) -> Result<v1::ReopenContainerLogResponse> {
    engine.reopen_log(id("container_id", &request.container_id)?).await?;
    Ok(v1::ReopenContainerLogResponse {})
}

pub(super) async fn exec_sync(engine: &Engine, request: &v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
    let container = id("container_id", &request.container_id)?;
    let command = check::texts("cmd", &request.cmd)?;
    if command.is_empty() {
        return Err(Refusal::invalid("cmd", "is empty").into());
    }
    let limit = check::seconds("timeout", request.timeout)?;
    let output = engine.exec_sync(container, command, (!limit.is_zero()).then_some(limit)).await?;
    let (stdout, stderr) = fit(output.stdout, output.stderr, MESSAGE_LIMIT - EXEC_FRAME);
    Ok(v1::ExecSyncResponse { stdout, stderr, exit_code: output.exit_code })
}

/// Both streams, cut so that together they fit into one message, or the caller would get neither. Each
/// may have half of the room, and what the other leaves.
fn fit(mut stdout: Vec<u8>, mut stderr: Vec<u8>, room: usize) -> (Vec<u8>, Vec<u8>) {
    stdout.truncate(room - stderr.len().min(room / 2));
    stderr.truncate(room - stdout.len());
    (stdout, stderr)
}

/// One container's sample; of one that does not run, its name alone.
pub(super) async fn stats(engine: &Engine, request: &v1::ContainerStatsRequest) -> Result<v1::ContainerStatsResponse> {
    let view = engine.container(id("container_id", &request.container_id)?).await?;
    let unmeasured = v1::ContainerStats { attributes: Some(container_status::attributes(&view)), ..Default::default() };
    let sample = engine.container_stats(vec![view]).await.first().map(stats::container);
    Ok(v1::ContainerStatsResponse { stats: Some(sample.unwrap_or(unmeasured)) })
}

pub(super) async fn list_stats(engine: &Engine, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>> {
    let samples = engine.container_stats(admitted(engine, &ContainerFilter::of_stats(filter)).await).await;
    Ok(samples.iter().map(stats::container).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_to_what_one_message_holds() {
        let lengths = |out: usize, err: usize| {
            let (stdout, stderr) = fit(vec![1; out], vec![2; err], 100);
            (stdout.len(), stderr.len())
        };
        assert_eq!(lengths(10, 20), (10, 20));
        assert_eq!(lengths(500, 0), (100, 0));
        assert_eq!(lengths(0, 500), (0, 100));
        assert_eq!(lengths(500, 20), (80, 20));
        assert_eq!(lengths(20, 500), (20, 80));
        assert_eq!(lengths(500, 500), (50, 50));
    }
}
