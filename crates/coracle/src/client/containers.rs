//! Containers: `ps`, and the calls that `stop`, `rm` and `run` share.

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;

use coracle_cri::v1;

use super::connect::Client;
use super::error::Result;
use super::pods::is_absent;
use super::print_json;
use super::render::table::Table;
use super::render::units::{UNKNOWN, age, short};
use super::resolve::path;
use super::time::now;
use crate::cli::Output;

/// Prints the containers, the youngest first: those that run, or all.
pub(crate) async fn list(client: &Client, all: bool, output: Output) -> Result<()> {
    let mut answer = client.containers().await?;
    answer.containers.retain(|container| all || container.state() == v1::ContainerState::ContainerRunning);
    if output == Output::Json {
        return print_json(&answer);
    }
    let pods: HashMap<_, _> = client.pods().await?.items.iter().map(|pod| (pod.id.clone(), path(pod))).collect();
    let images = image_names(&client.list_images().await?.images);
    answer.containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let now = now();
    let mut table = Table::new(["CONTAINER", "NAME", "POD", "STATE", "EXIT", "ATTEMPT", "AGE", "IMAGE"]);
    for container in &answer.containers {
        let metadata = container.metadata.clone().unwrap_or_default();
        let pod = pods.get(&container.pod_sandbox_id).cloned().unwrap_or_else(|| short(&container.pod_sandbox_id).into());
        let exit = exit_code(client, container).await?;
        let attempt = metadata.attempt.to_string();
        let (state, image, age) = (state(container).into(), image_name(container, &images), age(container.created_at, now));
        table.row([short(&container.id).into(), metadata.name, pod, state, exit, attempt, age, image]);
    }
    Ok(table.write(&mut io::stdout().lock())?)
}

fn state(container: &v1::Container) -> &'static str {
    match container.state() {
        v1::ContainerState::ContainerCreated => "created",
        v1::ContainerState::ContainerRunning => "running",
        v1::ContainerState::ContainerExited => "exited",
        v1::ContainerState::ContainerUnknown => "unknown",
    }
}

/// The exit code of what has exited and is still there to be asked.
async fn exit_code(client: &Client, container: &v1::Container) -> Result<String> {
    if container.state() != v1::ContainerState::ContainerExited {
        return Ok(UNKNOWN.into());
    }
    match client.container_status(&container.id, false).await {
        Ok(answer) => {
            Ok(answer.status.filter(|status| status.finished_at != 0).map_or(UNKNOWN.into(), |status| status.exit_code.to_string()))
        }
        Err(error) if is_absent(&error) => Ok(UNKNOWN.into()),
        Err(error) => Err(error),
    }
}

/// The first name of each image that has one, by id.
fn image_names(images: &[v1::Image]) -> HashMap<String, String> {
    let name = |image: &v1::Image| image.repo_tags.first().or(image.repo_digests.first()).cloned();
    images.iter().filter_map(|image| Some((image.id.clone(), name(image)?))).collect()
}

/// The image as its user named it, or else by a name it has on the node, or else by id.
fn image_name(container: &v1::Container, names: &HashMap<String, String>) -> String {
    let spec = container.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        return spec.user_specified_image;
    }
    let ids = [&container.image_id, &container.image_ref, &spec.image];
    let known = ids.into_iter().find_map(|id| names.get(id)).cloned();
    known.unwrap_or_else(|| if spec.image.starts_with("sha256:") { short(&spec.image).into() } else { spec.image })
}

/// A process's status has one byte; what does not fit is 255, never 0.
pub(crate) fn exit_status(code: i32) -> ExitCode {
    u8::try_from(code).unwrap_or(u8::MAX).into()
}

/// Stops a container: its stop signal, then a kill after `timeout` seconds.
pub(crate) async fn stop(client: &Client, id: &str, timeout: u32) -> Result<()> {
    let request = v1::StopContainerRequest { container_id: id.into(), timeout: timeout.into() };
    client.runtime.clone().stop_container(request).await?;
    Ok(())
}

/// Removes a container, running or not.
pub(crate) async fn remove(client: &Client, id: &str) -> Result<()> {
    client.runtime.clone().remove_container(v1::RemoveContainerRequest { container_id: id.into() }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_as_people_know_it() {
        let names = image_names(&[v1::Image { id: "sha256:01".into(), repo_tags: vec!["r/a:1".into()], ..Default::default() }]);
        let shown = |image: &str, user: &str, id: &str| {
            let spec = v1::ImageSpec { image: image.into(), user_specified_image: user.into(), ..Default::default() };
            image_name(&v1::Container { image: Some(spec), image_id: id.into(), ..Default::default() }, &names)
        };
        assert_eq!(shown("sha256:01", "a", ""), "a");
        assert_eq!(shown("sha256:01", "", ""), "r/a:1");
        assert_eq!(shown("x", "", "sha256:01"), "r/a:1");
        assert_eq!(shown("sha256:0123456789abcdef", "", ""), "0123456789abc");
        assert_eq!(shown("r/b:1", "", "sha256:02"), "r/b:1");
    }

    #[test]
    fn a_strange_exit_code_never_looks_like_success() {
        assert_eq!([0, 1, 137, 255].map(exit_status), [0_u8, 1, 137, 255].map(ExitCode::from));
        assert_eq!([-1, 256, i32::MAX].map(exit_status), [u8::MAX; 3].map(ExitCode::from));
    }
}
