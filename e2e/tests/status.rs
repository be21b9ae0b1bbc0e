//! What the runtime tells of itself, and what it says to calls that are not built.

use coracle_e2e::api::{
    CgroupDriver, CheckpointContainerRequest, ImageFsInfoRequest, NetworkConfig, RuntimeConfig, RuntimeConfigRequest, StatusRequest,
    UpdateRuntimeConfigRequest,
};
use coracle_e2e::{Code, ContainerSpec, Node};

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
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let before = node.pod("before").await;
    let old: std::net::Ipv4Addr = before.address().await.parse().expect("an address");
    let update = |cidr: String| {
        let network = Some(NetworkConfig { pod_cidr: cidr });
        UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config: network }) }
    };
    node.cri.runtime().update_runtime_config(UpdateRuntimeConfigRequest { runtime_config: None }).await.expect("an empty update");
    // The upper half of the node's own /24: no other test has it.
    let [a, b, c, _] = old.octets();
    node.cri.runtime().update_runtime_config(update(format!("{a}.{b}.{c}.128/25"))).await.expect("UpdateRuntimeConfig");
    let after = node.pod("after").await;
    let new: std::net::Ipv4Addr = after.address().await.parse().expect("an address");
    assert!(new.octets()[..3] == [a, b, c] && new.octets()[3] > 128, "{new} is not of the new subnet");
    let container = after.start(&ContainerSpec::new("c", &image)).await;
    assert!(container.shell("ip route").await.contains("default via"));
    let status = node.cri.runtime().update_runtime_config(update("no subnet".into())).await.expect_err("that is no subnet");
    assert_eq!(status.code(), Code::InvalidArgument);
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
