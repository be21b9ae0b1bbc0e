//! Mounts with the fields that the generated types of CRI lack, made of bytes: image volumes, options, recursive read-only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use tonic::Status;

use crate::{Container, ContainerSpec, Node, Pod, api, wire};

/// A field `mounts` of ContainerConfig: the Mount at `target`, with `more` of its fields.
pub fn volume(target: &str, more: &[Vec<u8>]) -> Vec<u8> {
    wire::bytes(7, &[wire::bytes(1, target.as_bytes()), more.concat()].concat())
}

/// The field `host_path`.
pub fn from_host(path: &Path) -> Vec<u8> {
    wire::bytes(2, path.to_string_lossy().as_bytes())
}

/// The field `readonly`.
pub fn read_only() -> Vec<u8> {
    wire::number(3, 1)
}

/// The field `recursive_read_only`.
pub fn recursively_read_only() -> Vec<u8> {
    wire::number(8, 1)
}

/// The fields `image` and `image_sub_path`.
pub fn from_image(name: &str, part: &str) -> Vec<u8> {
    [wire::bytes(9, &wire::bytes(1, name.as_bytes())), wire::bytes(10, part.as_bytes())].concat()
}

/// One of the field `mount_options`.
pub fn option(word: &str) -> Vec<u8> {
    wire::bytes(11, word.as_bytes())
}

/// Creates and starts a container with `volumes`.
pub async fn start_with(pod: &Pod, spec: &ContainerSpec, volumes: &[Vec<u8>]) -> Container {
    let container = pod.create_with(spec, &volumes.concat()).await;
    container.start().await;
    container
}

/// CreateContainer with `volumes`, which must be turned down.
pub async fn refusal(node: &Node, pod: &Pod, spec: &ContainerSpec, volumes: &[Vec<u8>]) -> Status {
    let request = api::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(spec.config.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    let message = [request.encode_to_vec(), wire::bytes(2, &volumes.concat())].concat();
    node.cri.raw("CreateContainer", message).await.expect_err("this container must be refused")
}

/// A directory of the host with a file `marker` in it.
pub fn directory(node: &Node, name: &str) -> PathBuf {
    let path = node.scratch().join(name);
    fs::create_dir_all(&path).expect("making a directory");
    fs::write(path.join("marker"), format!("{name}\n")).expect("writing a file");
    path
}

/// The mounts of a container's status, as messages.
pub async fn told(node: &Node, container: &Container) -> Vec<Vec<u8>> {
    let answer = node.cri.raw("ContainerStatus", wire::bytes(1, container.id.as_bytes())).await.expect("ContainerStatus");
    wire::messages(&wire::messages(&answer, 1)[0], 14)
}

/// The host's mount points that are the node's; elsewhere are those of other tests.
pub fn points(node: &Node) -> BTreeSet<PathBuf> {
    node.footprint.mounts().into_iter().collect()
}
