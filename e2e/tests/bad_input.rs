//! Requests that cannot be granted: each gets the code that its caller looks for and a message that names the
//! object, and leaves nothing behind (`Node::finish` looks).

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{self, Capability, SecurityProfile};
use coracle_e2e::image::Image;
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, number};

/// An id that is nobody's.
const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn an_unknown_pod_is_not_found_except_where_its_absence_is_what_was_asked_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let sandbox = node.complete(&PodSpec::new("nobody")).config;
    node.refused(node.cri.pod_status(NOBODY).await, Code::NotFound, NOBODY);
    node.refused(node.cri.create(NOBODY, &sandbox, &ContainerSpec::new("c", &image).config).await, Code::NotFound, NOBODY);
    if !node.target.is_foreign() {
        node.cri.stop_pod(NOBODY).await.expect("StopPodSandbox");
    }
    node.cri.remove_pod(NOBODY).await.expect("RemovePodSandbox");
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_container_is_not_found_except_where_its_absence_is_what_was_asked_for() {
    let node = Node::start().await;
    node.refused(node.cri.status(NOBODY).await, Code::NotFound, NOBODY);
    node.refused(node.cri.start(NOBODY).await, Code::NotFound, NOBODY);
    node.refused(node.cri.exec(NOBODY, &["/bin/true"], 0).await, Code::NotFound, NOBODY);
    node.refused(node.cri.container_stats(NOBODY).await, Code::NotFound, NOBODY);
    let reopen = api::ReopenContainerLogRequest { container_id: NOBODY.into() };
    node.refused(node.cri.runtime().reopen_container_log(reopen).await, Code::NotFound, NOBODY);
    if !node.target.is_foreign() {
        node.cri.stop(NOBODY, 0).await.expect("StopContainer");
    }
    node.cri.remove(NOBODY).await.expect("RemoveContainer");
    node.finish().await;
}

#[tokio::test]
async fn an_empty_id_never_means_any() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let container = node.pod("only").await.start(&ContainerSpec::new("c", &image)).await;
    node.refused(node.cri.status("").await, Code::InvalidArgument, "container_id");
    node.refused(node.cri.pod_status("").await, Code::InvalidArgument, "pod_sandbox_id");
    assert!(node.cri.remove("").await.is_err_and(|status| status.code() == Code::InvalidArgument));
    assert!(node.cri.remove_pod("").await.is_err_and(|status| status.code() == Code::InvalidArgument));
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0, "nothing was removed");
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_image_is_not_found() {
    let node = Node::start().await;
    let pod = node.pod("imageless").await;
    let absent = format!("{}/never/pulled:1", node.registry.host());
    node.refused(pod.try_create(&ContainerSpec::new("c", &absent)).await, Code::NotFound, &absent);
    assert!(node.cri.image(&absent).await.expect("ImageStatus").is_none());
    node.cri.remove_image(&absent).await.expect("RemoveImage of what is not there");
    node.finish().await;
}

#[tokio::test]
async fn a_malformed_reference_is_invalid() {
    let node = Node::start().await;
    for reference in ["UPPER/Case", "a b", "host/name:bad tag", "host/name@sha256:short", "http://host/name", "name::", "/", "a/../b"] {
        node.refused(node.cri.pull(reference, None).await, Code::InvalidArgument, reference);
    }
    assert!(node.cri.pull("", None).await.is_err(), "no reference at all");
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_handler_is_refused() {
    let node = Node::start().await;
    node.refused(node.try_run(&PodSpec::new("handled").handler("nonesuch")).await, Code::InvalidArgument, "nonesuch");
    assert!(node.pods().await.is_empty());
    node.finish().await;
}

#[tokio::test]
async fn a_pod_needs_a_name() {
    let node = Node::start().await;
    let without = |change: fn(&mut api::PodSandboxConfig)| {
        let mut config = node.complete(&PodSpec::new("named")).config;
        change(&mut config);
        config
    };
    let nameless = without(|config| config.metadata = None);
    node.refused(node.cri.run_pod(&nameless, "").await, Code::InvalidArgument, "metadata");
    if !node.target.is_foreign() {
        let unnamed = without(|config| config.metadata.get_or_insert_default().name.clear());
        node.refused(node.cri.run_pod(&unnamed, "").await, Code::InvalidArgument, "name");
        let climbing = without(|config| config.linux.get_or_insert_default().cgroup_parent = "/../../escape".into());
        node.refused(node.cri.run_pod(&climbing, "").await, Code::InvalidArgument, "cgroup_parent");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_kernel_parameter_of_the_node_is_refused() {
    let node = Node::start().await;
    let before = std::fs::read_to_string("/proc/sys/vm/swappiness").expect("reading a parameter");
    for (name, value) in [("vm.swappiness", "1"), ("kernel.panic", "3"), ("net.ipv4.../../vm/swappiness", "1")] {
        let spec =
            PodSpec::new("sysctl").with(|config| drop(config.linux.get_or_insert_default().sysctls.insert(name.into(), value.into())));
        node.refused(node.try_run(&spec).await, Code::InvalidArgument, name);
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/vm/swappiness").expect("reading a parameter"), before);
    node.finish().await;
}

#[tokio::test]
async fn a_missing_program_is_an_error_of_the_start() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("programs").await;
    for (name, program) in [("absent", "/no/such/program"), ("unfound", "nonesuch-in-path"), ("data", "/etc/motd"), ("directory", "/etc")] {
        let container = pod.create(&ContainerSpec::new(name, &image).command(&[program])).await;
        let status = node.cri.start(&container.id).await.expect_err("it cannot start");
        assert!(status.message().contains(program), "the message does not name {program}: {}", status.message());
        assert!(node.target.is_foreign() || status.code() == Code::InvalidArgument, "{program}: {status}");
        let after = container.exited().await;
        assert_ne!(after.exit_code, 0, "{program}: {after:?}");
        container.remove().await;
    }
    let alive = pod.start(&ContainerSpec::new("alive", &image)).await;
    assert_eq!(alive.exec(&["/bin/true"]).await.code, 0, "the pod is not harmed");
    node.finish().await;
}

#[tokio::test]
async fn a_missing_program_of_an_exec_is_an_error() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("exec").await.start(&ContainerSpec::new("c", &image)).await;
    let status = node.cri.exec(&container.id, &["/no/such/program"], 0).await.expect_err("it cannot start");
    assert!(status.message().contains("/no/such/program"), "{status}");
    assert!(node.cri.exec(&container.id, &[], 0).await.is_err(), "no command at all");
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn an_unknown_user_is_refused() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("users").await;
    let named = ContainerSpec::new("named", &image).security(|s| s.run_as_username = "stowaway".into());
    node.refused(try_both(&node, &pod, &named).await, Code::InvalidArgument, "stowaway");
    let ghostly = node.pull("ghostly", &Image::busybox().set("User", serde_json::json!("ghost:crew"))).await;
    node.refused(try_both(&node, &pod, &ContainerSpec::new("image", &ghostly)).await, Code::InvalidArgument, "ghost");
    let group = ContainerSpec::new("group", &image).security(|s| s.run_as_group = number(5));
    node.refused(try_both(&node, &pod, &group).await, Code::InvalidArgument, "run_as_group");
    node.finish().await;
}

/// Creates a container and starts it; the first refusal.
async fn try_both(node: &Node, pod: &coracle_e2e::Pod, spec: &ContainerSpec) -> Result<(), coracle_e2e::Status> {
    let container = pod.try_create(spec).await?;
    node.cri.start(&container.id).await
}

#[tokio::test]
async fn unusable_mounts_are_refused() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("mounts").await;
    let file = node.scratch().join("file");
    std::fs::write(&file, "x").expect("writing a file");
    let file = file.to_string_lossy().into_owned();
    let over = ContainerSpec::new("over", &image).mount(&file, "/etc", true);
    let status = try_both(&node, &pod, &over).await.expect_err("a file cannot be mounted over a directory");
    assert!(status.message().contains("/etc"), "{status}");
    let beneath = ContainerSpec::new("beneath", &image).mount(&format!("{file}/x"), "/data", true);
    let status = try_both(&node, &pod, &beneath).await.expect_err("nothing lies beneath a file");
    assert!(status.message().contains(&file), "{status}");
    if !node.target.is_foreign() {
        let root = ContainerSpec::new("root", &image).mount("/tmp", "/", true);
        node.refused(try_both(&node, &pod, &root).await, Code::InvalidArgument, "container_path");
        let recursive = ContainerSpec::new("recursive", &image).mount("/tmp", "/data", false);
        let recursive = recursive.with(|config| config.mounts[0].recursive_read_only = true);
        node.refused(try_both(&node, &pod, &recursive).await, Code::InvalidArgument, "recursive_read_only");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_target_that_climbs_stays_within_the_container() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("climb").await;
    let outside = node.scratch().join("outside");
    let target = format!("{}{}", "/..".repeat(20), outside.display());
    let _ = try_both(&node, &pod, &ContainerSpec::new("dots", &image).mount("/tmp", &target, true)).await;
    assert!(!outside.exists(), "a mount's target was made on the host");
    node.finish().await;
}

#[tokio::test]
async fn unknown_words_of_security_are_refused() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("words").await;
    let missing = SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: "/no/such/profile.json".into() };
    let profile = ContainerSpec::new("profile", &image).security(|s| s.seccomp = Some(missing));
    node.refused(try_both(&node, &pod, &profile).await, Code::InvalidArgument, "/no/such/profile.json");
    if !node.target.is_foreign() {
        let paddle = Capability { add_capabilities: vec!["PADDLE".into()], ..Default::default() };
        let capability = ContainerSpec::new("capability", &image).security(|s| s.capabilities = Some(paddle));
        node.refused(try_both(&node, &pod, &capability).await, Code::InvalidArgument, "PADDLE");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_the_state_forbids_is_a_failed_precondition() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("states").await;
    let container = pod.create(&ContainerSpec::new("c", &image)).await;
    node.refused(node.cri.exec(&container.id, &["/bin/true"], 0).await, Code::FailedPrecondition, &container.id);
    container.start().await;
    node.refused(node.cri.start(&container.id).await, Code::FailedPrecondition, &container.id);
    container.stop(0).await;
    node.refused(node.cri.start(&container.id).await, Code::FailedPrecondition, &container.id);
    node.refused(node.cri.exec(&container.id, &["/bin/true"], 0).await, Code::FailedPrecondition, &container.id);
    pod.stop().await;
    node.refused(pod.try_create(&ContainerSpec::new("late", &image)).await, Code::FailedPrecondition, &pod.id);
    node.finish().await;
}

#[tokio::test]
async fn a_failed_create_can_be_tried_again_in_better_words() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("again").await;
    let bad = ContainerSpec::new("c", &image).security(|s| s.run_as_username = "stowaway".into());
    let _ = pod.try_create(&bad).await;
    for container in node.cri.containers(None).await.expect("ListContainers") {
        if container.pod_sandbox_id == pod.id {
            node.cri.remove(&container.id).await.expect("RemoveContainer");
        }
    }
    let good = pod.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(good.exec(&["/bin/true"]).await.code, 0, "no name stays reserved");
    node.finish().await;
}
