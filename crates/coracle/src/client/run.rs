//! `run`: a pod, and a container in it, as a kubelet would ask for them.
//!
//! What a kubelet would give by default is given here too: the runtime's seccomp profile, the paths that are hidden or
//! read-only, a pod-wide IPC namespace and a PID namespace for each container. What fails leaves nothing behind.

use std::io::{self, Write};
use std::process::ExitCode;

use coracle_cri::v1;
use coracle_domain::{During, Refusal};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::connect::Client;
use super::error::Result;
use super::render::json;
use super::resolve::Catalogue;
use super::run_config::{self, Identity};
use super::{containers, images, log_directory, logs, pods};
use crate::cli::{Output, RunArgs};

/// Seconds that an interrupted container has to end.
const GRACE: u32 = 10;

/// Starts a container.
pub(crate) async fn run(client: &Client, args: &RunArgs, output: Output) -> Result<ExitCode> {
    let image = images::ensure(client, &args.image, !args.no_pull).await?;
    let identity = Identity::new(args, &random_uuid()?);
    let pod = match &args.pod {
        Some(name) => Pod::join(client, name, args).await?,
        None => Pod::make(client, args, &identity).await?,
    };
    let container = match start(client, args, &pod, &identity, &image).await {
        Ok(id) => id,
        Err(error) => {
            pod.discard(client, &identity).await;
            return Err(error);
        }
    };
    if !args.rm {
        return print(&pod.id, &container, output);
    }
    let outcome = attend(client, &container).await;
    report(containers::remove(client, &container).await);
    pod.discard(client, &identity).await;
    outcome
}

/// 122 random bits, as the kernel writes them.
fn random_uuid() -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    Ok(std::fs::read_to_string(SOURCE).during("reading", SOURCE)?.trim().into())
}

fn print(pod: &str, container: &str, output: Output) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    match output {
        Output::Json => json::write(&mut out, &json!({ "podSandboxId": pod, "containerId": container }))?,
        Output::Table => writeln!(out, "pod        {pod}\ncontainer  {container}")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The pod that the container goes into.
#[derive(Debug)]
struct Pod {
    id: String,
    config: v1::PodSandboxConfig,
    /// Whether this command made it.
    own: bool,
}

impl Pod {
    async fn make(client: &Client, args: &RunArgs, identity: &Identity) -> Result<Self> {
        let config = run_config::pod(args, identity);
        log_directory::make(&config.log_directory)?;
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: args.handler.clone() };
        match client.runtime.clone().run_pod_sandbox(request).await {
            Ok(answer) => Ok(Self { id: answer.into_inner().pod_sandbox_id, config, own: true }),
            Err(status) => {
                report(log_directory::remove_log(&config.log_directory, &identity.log_file()));
                Err(status.into())
            }
        }
    }

    async fn join(client: &Client, name: &str, args: &RunArgs) -> Result<Self> {
        let id = Catalogue::pods(client).await?.resolve(name)?.id.clone();
        let status = client.pod_status(&id, false).await?.status.unwrap_or_default();
        if status.state() != v1::PodSandboxState::SandboxReady {
            return Err(Refusal::wrong_state(format!("pod {name:?} is not ready")).into());
        }
        let config = run_config::joined_pod(args, status);
        log_directory::make(&config.log_directory)?;
        Ok(Self { id, config, own: false })
    }

    /// Removes the pod if this command made it, and the log.
    async fn discard(&self, client: &Client, identity: &Identity) {
        if self.own {
            report(pods::stop_pod(client, &self.id).await);
            report(pods::remove_pod(client, &self.id).await);
        }
        report(log_directory::remove_log(&self.config.log_directory, &identity.log_file()));
    }
}

/// A clean-up that failed is worth a word, but not the outcome.
fn report(result: Result<()>) {
    if let Err(error) = result {
        error.report();
    }
}

async fn start(client: &Client, args: &RunArgs, pod: &Pod, identity: &Identity, image: &str) -> Result<String> {
    let mut runtime = client.runtime.clone();
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(run_config::container(args, identity, image, &pod.config)),
        sandbox_config: Some(pod.config.clone()),
    };
    let container_id = runtime.create_container(request).await?.into_inner().container_id;
    let started = runtime.start_container(v1::StartContainerRequest { container_id: container_id.clone() }).await;
    if let Err(status) = started {
        report(containers::remove(client, &container_id).await);
        return Err(status.into());
    }
    Ok(container_id)
}

/// Shows a container's output until it ends, and answers with its status. A signal to this command ends it.
async fn attend(client: &Client, id: &str) -> Result<ExitCode> {
    const STAGE: &str = "listening for signals to";
    let mut interrupt = signal(SignalKind::interrupt()).during(STAGE, "this command")?;
    let mut terminate = signal(SignalKind::terminate()).during(STAGE, "this command")?;
    let mut printing = std::pin::pin!(logs::print_until_exit(client, id));
    tokio::select! {
        result = &mut printing => return finish(client, id, result).await,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let result = tokio::try_join!(containers::stop(client, id, GRACE), printing).map(drop);
    finish(client, id, result).await
}

/// The status of a container that has exited.
async fn finish(client: &Client, id: &str, printed: Result<()>) -> Result<ExitCode> {
    printed?;
    let status = client.container_status(id, false).await?.status.unwrap_or_default();
    Ok(containers::exit_status(status.exit_code))
}
