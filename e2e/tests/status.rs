//! What the runtime tells of itself, and what it says to calls that are not built.

use std::os::unix::fs::MetadataExt;

use coracle_e2e::api::{
    CgroupDriver, CheckpointContainerRequest, ContainerStatusRequest, ImageFsInfoRequest, LinuxContainerResources, NamespaceMode,
    PodSandboxStatusRequest, RuntimeConfigRequest, StatusRequest, UpdateContainerResourcesRequest, UpdateRuntimeConfigRequest,
};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, wire};
use serde_json::{Value, json};

#[tokio::test]
async fn the_version_names_the_runtime() {
    let node = Node::start().await;
    let version = node.cri.version().await.expect("Version");
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty() && !version.version.is_empty(), "{version:?}");
    assert!(node.target.is_foreign() || version.runtime_name == "coracle", "installers parse it: {version:?}");
    node.finish().await;
}

#[tokio::test]
async fn the_runtime_and_its_network_are_ready() {
    let node = Node::start().await;
    let answer = node.cri.runtime().status(StatusRequest { verbose: true }).await.expect("Status").into_inner();
    let conditions = answer.status.expect("a status").conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == name).unwrap_or_else(|| panic!("no {name}"));
        assert!(condition.status, "{condition:?}");
    }
    if !node.target.is_foreign() {
        assert!(
            answer.runtime_handlers.iter().any(|handler| handler.name.is_empty()),
            "the default handler is told: {:?}",
            answer.runtime_handlers
        );
        assert!(answer.features.is_some_and(|features| features.supplemental_groups_policy));
    }
    node.finish().await;
}

#[tokio::test]
async fn the_cgroup_driver_is_told() {
    let Some(node) = Node::own().await else { return };
    let answer = node.cri.runtime().runtime_config(RuntimeConfigRequest {}).await.expect("RuntimeConfig").into_inner();
    assert_eq!(answer.linux.map(|linux| linux.cgroup_driver()), Some(CgroupDriver::Cgroupfs), "there is no systemd driver yet");
    node.finish().await;
}

#[tokio::test]
async fn the_image_file_system_is_told_before_anything_is_pulled() {
    let node = Node::start().await;
    let answer = node.cri.images().image_fs_info(ImageFsInfoRequest {}).await.expect("ImageFsInfo").into_inner();
    let first = answer.image_filesystems.first().expect("the kubelet uses the first one");
    assert!(first.fs_id.as_ref().is_some_and(|id| std::path::Path::new(&id.mountpoint).is_dir()), "{first:?}");
    assert!(first.timestamp > 0);
    node.finish().await;
}

#[tokio::test]
async fn the_kubelets_subnet_is_used_by_pods_to_come() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let before = node.pod("before").await;
    let empty = UpdateRuntimeConfigRequest { runtime_config: None };
    node.cri.runtime().update_runtime_config(empty).await.expect("an empty update");
    assert!(before.last_octet().await < 128);
    node.cri.set_pod_cidr(&node.part_of_subnet(128, 25)).await.expect("UpdateRuntimeConfig");
    let after = node.pod("after").await;
    assert!(after.last_octet().await > 128, "it is not of the new subnet");
    let container = after.start(&ContainerSpec::new("c", &image)).await;
    assert!(container.shell("ip route").await.contains("default via"));
    let status = node.cri.set_pod_cidr("no subnet").await.expect_err("that is no subnet");
    assert_eq!(status.code(), Code::InvalidArgument);

    for pod in [before, after] {
        pod.stop().await;
        pod.remove().await;
    }
    // The kubelet does not say it again.
    node.restart().await;
    assert!(node.pod("later").await.last_octet().await > 128, "the next daemon does not know the subnet");
    node.finish().await;
}

/// The `info` of a verbose status.
fn info(info: &std::collections::HashMap<String, String>) -> Value {
    serde_json::from_str(info.get("info").expect("a verbose status has it")).expect("JSON")
}

#[tokio::test]
async fn a_verbose_status_tells_what_tools_look_for() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("verbose").label("tier", "front")).await;
    let spec = ContainerSpec::new("app", &image).variable("COLOUR", "blue").mount("/tmp", "/host", true);
    let container = pod.start(&spec.resources(|r| r.cpu_shares = 512)).await;
    let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let told = info(&node.cri.runtime().container_status(request).await.expect("ContainerStatus").into_inner().info);
    let pid = container.host_pids()[0];
    assert_eq!((&told["pid"], &told["sandboxID"]), (&json!(pid), &json!(pod.id)));
    let config = &told["config"];
    assert_eq!((&config["metadata"]["name"], &config["image"]["image"]), (&json!("app"), &json!(image)));
    assert_eq!((&config["command"], &config["envs"]), (&json!(["/bin/sleep", "100000"]), &json!([{ "key": "COLOUR", "value": "blue" }])));
    assert_eq!(config["mounts"], json!([{ "container_path": "/host", "host_path": "/tmp", "readonly": true }]));
    assert_eq!(config["linux"]["resources"]["cpu_shares"], 512);
    let process = &told["runtimeSpec"]["process"];
    assert_eq!(process["args"], json!(["/bin/sleep", "100000"]));
    assert!(process["env"].as_array().is_some_and(|variables| variables.contains(&json!("COLOUR=blue"))), "as other runtimes show it");

    let guest = ContainerSpec::new("guest", &image).pid_mode(NamespaceMode::Target);
    let guest = pod.start(&guest.security(|s| s.namespace_options.get_or_insert_default().target_id.clone_from(&container.id))).await;
    let request = ContainerStatusRequest { container_id: guest.id.clone(), verbose: true };
    let told = info(&node.cri.runtime().container_status(request).await.expect("ContainerStatus").into_inner().info);
    let namespaces = told["runtimeSpec"]["linux"]["namespaces"].as_array().expect("a list").clone();
    assert!(namespaces.contains(&json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") })), "{namespaces:?}");
    guest.remove().await;

    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = node.cri.runtime().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
    let told = info(&answer.info);
    assert_eq!((&told["config"]["metadata"]["name"], &told["config"]["labels"]["tier"]), (&json!("verbose"), &json!("front")));
    let network = |pid: &dyn std::fmt::Display| std::fs::metadata(format!("/proc/{pid}/ns/net")).expect("it lives").ino();
    assert_eq!(network(&told["pid"]), network(&pid), "its process lives in its network");
    let namespaces = told["runtimeSpec"]["linux"]["namespaces"].as_array().expect("a list").clone();
    let pin = namespaces.iter().find(|namespace| namespace["type"] == "network").and_then(|namespace| namespace["path"].as_str());
    assert_eq!(std::fs::metadata(pin.expect("a path")).expect("a pin").ino(), network(&pid), "the pin is of its network");
    assert!(answer.timestamp > 0);
    assert_eq!(answer.containers_statuses.iter().map(|status| &status.id).collect::<Vec<_>>(), [&container.id]);
    let quiet = node.cri.pod_status(&pod.id).await.expect("PodSandboxStatus");
    assert!(quiet.info.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn limits_are_told_as_they_are_and_not_as_they_were_asked_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("resized").await;
    let spec = ContainerSpec::new("c", &image).resources(|r| (r.cpu_shares, r.memory_limit_in_bytes) = (512, 64 << 20));
    let container = pod.start(&spec).await;
    let linux = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    let change = UpdateContainerResourcesRequest { container_id: container.id.clone(), linux: Some(linux), ..Default::default() };
    node.cri.runtime().update_container_resources(change).await.expect("UpdateContainerResources");
    let told = container.status().await.resources.and_then(|resources| resources.linux).expect("a container has limits");
    assert_eq!((told.memory_limit_in_bytes, told.cpu_shares), (32 << 20, 512), "what was not mentioned stays");
    assert_eq!(container.cgroup_number(&[("memory.limit_in_bytes", ""), ("memory.max", "")]), Some(32 << 20));
    node.finish().await;
}

/// The call came into CRI later than the client library that the harness is built on.
#[tokio::test]
async fn a_pods_resize_is_remembered_and_not_done_again() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("resized").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let resize = |id: &str| {
        let memory_limit = wire::number(4, 64 << 20);
        [wire::bytes(1, id.as_bytes()), wire::bytes(3, &memory_limit)].concat()
    };
    node.cri.raw("UpdatePodSandboxResources", resize(&pod.id)).await.expect("UpdatePodSandboxResources");
    let absent = node.cri.raw("UpdatePodSandboxResources", resize("0123")).await.expect_err("there is no such pod");
    assert_eq!(absent.code(), Code::NotFound);
    let told = async |node: &Node| {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let answer = node.cri.runtime().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
        info(&answer.info)["config"]["linux"]["resources"]["memory_limit_in_bytes"].clone()
    };
    assert_eq!(told(&node).await, json!(64 << 20));
    assert_ne!(container.cgroup_number(&[("memory.limit_in_bytes", ""), ("memory.max", "")]), Some(64 << 20));
    node.restart().await;
    assert_eq!(told(&node).await, json!(64 << 20));
    let again = node.cri.run_pod(&pod.config, "").await.expect("RunPodSandbox, as a retry");
    assert_eq!(again, pod.id, "the request is still known as the pod's own");
    node.finish().await;
}

#[tokio::test]
async fn a_program_that_cannot_run_ends_its_container_with_the_reason() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("absent").await.create(&ContainerSpec::new("c", &image).command(&["/no/such/program"])).await;
    let refused = node.cri.start(&container.id).await.expect_err("there is no such program");
    assert!(refused.message().contains("/no/such/program"), "{refused}");
    let status = container.exited().await;
    assert_eq!((status.reason.as_str(), status.started_at), ("StartError", 0));
    assert!(status.finished_at >= status.created_at && status.message.contains("/no/such/program") && status.exit_code != 0, "{status:?}");
    node.finish().await;
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("unbuilt").await.start(&ContainerSpec::new("c", &image)).await;
    let checkpoint = CheckpointContainerRequest { container_id: container.id.clone(), location: "/nowhere".into(), timeout: 1 };
    let code = |result: Result<(), coracle_e2e::Status>| result.expect_err("not built").code();
    assert_eq!(code(node.cri.runtime().checkpoint_container(checkpoint).await.map(drop)), Code::Unimplemented);
    node.finish().await;
}
