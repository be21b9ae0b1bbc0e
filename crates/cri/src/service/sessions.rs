//! The calls that answer with the URL of a streaming session. Nothing is started before its client comes.

use coracle_domain::{ContainerId, ContainerPhase, PodPhase, Refusal, Result};
use coracle_engine::Engine;
use coracle_streaming::{AttachRequest, ExecRequest, PortForwardRequest, StreamFlags, Streams, Urls};

use super::id;
use crate::{check, v1};

pub(super) async fn exec(engine: &Engine, urls: &Urls, request: &v1::ExecRequest) -> Result<v1::ExecResponse> {
    let &v1::ExecRequest { tty, stdin, stdout, stderr, .. } = request;
    let streams = Streams::new(StreamFlags { stdin, stdout, stderr, tty })?;
    let command = check::texts("cmd", &request.cmd)?;
    let container = running(engine, &request.container_id).await?;
    Ok(v1::ExecResponse { url: urls.exec(ExecRequest::new(container, command, streams)?)? })
}

pub(super) async fn attach(engine: &Engine, urls: &Urls, request: &v1::AttachRequest) -> Result<v1::AttachResponse> {
    let &v1::AttachRequest { tty, stdin, stdout, stderr, .. } = request;
    let streams = Streams::new(StreamFlags { stdin, stdout, stderr, tty })?;
    let container = running(engine, &request.container_id).await?;
    Ok(v1::AttachResponse { url: urls.attach(AttachRequest { container, streams })? })
}

pub(super) async fn port_forward(engine: &Engine, urls: &Urls, request: &v1::PortForwardRequest) -> Result<v1::PortForwardResponse> {
    let pod = engine.pod(id("pod_sandbox_id", &request.pod_sandbox_id)?).await?;
    let request = PortForwardRequest::new(pod.id.clone(), &request.port)?;
    if pod.phase != PodPhase::Ready {
        return Err(Refusal::wrong_state(format!("pod sandbox {} is not ready", pod.id)).into());
    }
    Ok(v1::PortForwardResponse { url: urls.port_forward(request)? })
}

async fn running(engine: &Engine, name: &str) -> Result<ContainerId> {
    let container = engine.container(id("container_id", name)?).await?;
    match container.phase {
        ContainerPhase::Running { .. } => Ok(container.id.clone()),
        _ => Err(Refusal::wrong_state(format!("container {} is not running", container.id)).into()),
    }
}
