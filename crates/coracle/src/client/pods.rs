//! Pods: `pods`; and `stop` and `rm`, which take pods and containers alike.

use std::io;

use coracle_cri::v1;
use coracle_domain::Refusal;
use tonic::Code;

use super::connect::Client;
use super::error::{Error, Result};
use super::render::table::Table;
use super::render::units::{UNKNOWN, age, short};
use super::resolve::{Catalogue, Kind, Subject};
use super::time::now;
use super::{Tally, containers, log_directory, print_json};
use crate::cli::{Output, RemoveArgs, StopArgs};

/// Prints the pods, the youngest first.
pub(crate) async fn list(client: &Client, output: Output) -> Result<()> {
    let mut answer = client.pods().await?;
    if output == Output::Json {
        return print_json(&answer);
    }
    answer.items.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    let now = now();
    let mut table = Table::new(["POD", "NAME", "NAMESPACE", "STATE", "AGE", "IP"]);
    for pod in &answer.items {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let state = if pod.state() == v1::PodSandboxState::SandboxReady { "ready" } else { "not ready" };
        let age = age(pod.created_at, now);
        table.row([short(&pod.id).into(), metadata.name, metadata.namespace, state.into(), age, address(client, &pod.id).await?]);
    }
    Ok(table.write(&mut io::stdout().lock())?)
}

/// A pod's addresses; it may have none, and may have gone since it was listed.
async fn address(client: &Client, id: &str) -> Result<String> {
    let status = match client.pod_status(id, false).await {
        Ok(answer) => answer.status,
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    let network = status.and_then(|status| status.network).unwrap_or_default();
    let addresses = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|additional| additional.ip));
    let addresses: Vec<_> = addresses.filter(|ip| !ip.is_empty()).collect();
    Ok(if addresses.is_empty() { UNKNOWN.into() } else { addresses.join(",") })
}

/// Whether the server says that the subject is not there.
pub(crate) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Server(status) if status.code() == Code::NotFound)
}

/// Stops containers and pods.
pub(crate) async fn stop_all(client: &Client, args: &StopArgs, output: Output) -> Result<()> {
    let catalogue = Catalogue::containers_and_pods(client).await?;
    let mut tally = Tally::new(output);
    for name in &args.subjects {
        let result = match catalogue.resolve(name) {
            Ok(subject) => stop(client, &catalogue, subject, args.timeout).await,
            Err(error) => Err(error),
        };
        tally.note(name, result);
    }
    tally.outcome()
}

async fn stop(client: &Client, catalogue: &Catalogue, subject: &Subject, timeout: u32) -> Result<()> {
    if subject.kind == Kind::Container {
        return containers::stop(client, &subject.id, timeout).await;
    }
    // Stopping a pod kills what still runs in it; as the kubelet does, let its containers end in their own way first.
    let mut stops = tokio::task::JoinSet::new();
    for container in catalogue.containers_of(&subject.id).filter(|container| container.active) {
        let (client, id) = (client.clone(), container.id.clone());
        stops.spawn(async move { containers::stop(&client, &id, timeout).await });
    }
    for result in stops.join_all().await {
        result?;
    }
    stop_pod(client, &subject.id).await
}

/// Stops a pod and kills what runs in it.
pub(crate) async fn stop_pod(client: &Client, id: &str) -> Result<()> {
    client.runtime.clone().stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.into() }).await?;
    Ok(())
}

/// Removes a stopped pod with its containers.
pub(crate) async fn remove_pod(client: &Client, id: &str) -> Result<()> {
    client.runtime.clone().remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await?;
    Ok(())
}

/// Removes containers and pods.
pub(crate) async fn remove_all(client: &Client, args: &RemoveArgs, output: Output) -> Result<()> {
    let catalogue = Catalogue::containers_and_pods(client).await?;
    let mut tally = Tally::new(output);
    for name in &args.subjects {
        let result = match catalogue.resolve(name) {
            Ok(subject) => remove(client, name, subject, args.force).await,
            Err(error) => Err(error),
        };
        tally.note(name, result);
    }
    tally.outcome()
}

async fn remove(client: &Client, name: &str, subject: &Subject, force: bool) -> Result<()> {
    if subject.active && !force {
        let noun = if subject.kind == Kind::Pod { "pod" } else { "container" };
        return Err(Refusal::wrong_state(format!("{noun} {name:?} is up: stop it first, or remove it with -f")).into());
    }
    if subject.kind == Kind::Container {
        return containers::remove(client, &subject.id).await;
    }
    let status = client.pod_status(&subject.id, false).await?.status.unwrap_or_default();
    stop_pod(client, &subject.id).await?;
    remove_pod(client, &subject.id).await?;
    match log_directory::removable(&status.metadata.unwrap_or_default(), &status.annotations) {
        Some(path) => log_directory::remove(path),
        None => Ok(()),
    }
}
