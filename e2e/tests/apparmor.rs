//! AppArmor: which profile a container's processes run under, as they and the host see it, and that it is enforced.
//! What needs the kernel's part is skipped, with a word of it, where the kernel does not have it.

use std::path::Path;

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{Capability, LinuxContainerSecurityContext};
use coracle_e2e::{Code, Container, ContainerSpec, Node, PodSpec, host, profile, skip};

/// What `RuntimeDefault` stands for.
const OURS: &str = "coracle-default (enforce)";
const UNCONFINED: &str = "unconfined";
const CURRENT: [&str; 2] = ["/bin/cat", "/proc/self/attr/current"];

fn enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn lacking() -> bool {
    if !enabled() {
        skip("the kernel's AppArmor is not enabled");
    }
    !enabled()
}

/// A node's profile that forbids to write files, loaded while the value lives.
struct NoWrites {
    name: String,
    file: String,
}

impl NoWrites {
    fn load(directory: &Path) -> Self {
        let name = format!("coracle-e2e-no-writes-{}", std::process::id());
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  deny /** wkl,\n  capability,\n  network,\n  \
             signal,\n  ptrace,\n}}\n"
        );
        let file = directory.join("no-writes").to_string_lossy().into_owned();
        std::fs::write(&file, text).expect("writing a profile");
        host::run("apparmor_parser", &["--replace", "--skip-cache", &file]).expect("loading a profile");
        Self { name, file }
    }

    fn label(&self) -> String {
        format!("{} (enforce)", self.name)
    }
}

impl Drop for NoWrites {
    fn drop(&mut self) {
        let _ = host::run("apparmor_parser", &["--remove", &self.file]);
    }
}

/// Sets CRI's deprecated field.
fn old(context: &mut LinuxContainerSecurityContext, text: &str) {
    #[allow(deprecated)]
    text.clone_into(&mut context.apparmor_profile);
}

/// The profile of a container's first process as the host sees it, and that of an exec as it sees itself.
async fn labels(container: &Container) -> [String; 2] {
    let pid = container.host_pids().into_iter().next().expect("the container runs");
    let first = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).expect("reading a process' label");
    [first.trim().to_owned(), container.exec(&CURRENT).await.stdout]
}

#[tokio::test]
async fn the_runtimes_profile_is_for_all_that_do_not_say_otherwise() {
    if lacking() {
        return;
    }
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("default").privileged()).await;
    let spec = |name: &str| ContainerSpec::new(name, &image).script("trap 'exit 3' TERM; echo ready; sleep 100000 & wait");
    let cases = [
        (spec("nothing"), OURS),
        (spec("new").security(|s| s.apparmor = profile(ProfileType::RuntimeDefault, "")), OURS),
        (spec("old").security(|s| old(s, "runtime/default")), OURS),
        (spec("no-new-privileges").security(|s| s.no_new_privs = true), OURS),
        (spec("unconfined").security(|s| s.apparmor = profile(ProfileType::Unconfined, "")), UNCONFINED),
        (spec("old-unconfined").security(|s| old(s, "unconfined")), UNCONFINED),
        (spec("privileged").security(|s| s.privileged = true), UNCONFINED),
    ];
    for (spec, label) in cases {
        let container = pod.start(&spec).await;
        assert_eq!(labels(&container).await, [label, label], "{spec:?}");
        container.logged("ready").await;
        container.stop(60).await;
        assert_eq!(container.status().await.exit_code, 3, "the runtime may send it the stop signal");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_runtimes_profile_holds_where_all_else_is_open() {
    if lacking() {
        return;
    }
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("open").await;
    let open = |name: &str| {
        ContainerSpec::new(name, &image).security(|s| {
            s.capabilities = Some(Capability { add_capabilities: vec!["ALL".to_owned()], ..Capability::default() });
            s.seccomp = profile(ProfileType::Unconfined, "");
            (s.masked_paths, s.readonly_paths) = (Vec::new(), Vec::new());
        })
    };
    let attempts = ["mount -t tmpfs none /mnt", "echo 1 > /proc/sysrq-trigger", "echo x > /proc/sys/kernel/domainname", "cat /proc/kcore"];
    let confined = pod.start(&open("confined")).await;
    for attempt in attempts {
        let output = confined.exec(&["/bin/sh", "-c", &format!("mkdir -p /mnt; {attempt}")]).await;
        assert_ne!(output.code, 0, "{attempt}: {output:?}");
        assert!(output.stderr.to_lowercase().contains("permission denied"), "{attempt}: {output:?}");
    }
    confined.shell("echo free > /tmp/file && cat /tmp/file /proc/version && echo 5 > /proc/self/oom_score_adj").await;
    confined.shell("sleep 1000 & kill -KILL $! && ls -l /proc/1/exe").await;
    let free = pod.start(&open("free").security(|s| s.apparmor = profile(ProfileType::Unconfined, ""))).await;
    free.shell("mkdir -p /mnt && mount -t tmpfs none /mnt").await;
    node.finish().await;
}

#[tokio::test]
async fn a_loaded_profile_is_enforced_by_its_name() {
    if lacking() {
        return;
    }
    let node = Node::start().await;
    let image = node.busybox().await;
    let loaded = NoWrites::load(node.scratch());
    let pod = node.run(&PodSpec::new("local").privileged()).await;
    let named = format!("localhost/{}", loaded.name);
    let spec = |name: &str| ContainerSpec::new(name, &image);
    let cases = [
        spec("old").security(|s| old(s, &named)),
        spec("new").security(|s| s.apparmor = profile(ProfileType::Localhost, &loaded.name)),
        spec("prefixed").security(|s| s.apparmor = profile(ProfileType::Localhost, &named)),
        spec("both").security(|s| {
            s.apparmor = profile(ProfileType::Localhost, &loaded.name);
            old(s, "localhost/not-loaded");
        }),
        spec("privileged").security(|s| {
            s.apparmor = profile(ProfileType::Localhost, &loaded.name);
            s.privileged = true;
        }),
    ];
    for spec in cases {
        let container = pod.start(&spec).await;
        assert_eq!(labels(&container).await, [loaded.label(), loaded.label()], "{spec:?}");
        let output = container.exec(&["/bin/touch", "/tmp/x"]).await;
        assert!(output.code != 0 && output.stderr.contains("Permission denied"), "{output:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_profile_that_is_not_loaded_fails_the_creation() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("absent").privileged()).await;
    let spec = |name: &str| ContainerSpec::new(name, &image);
    for spec in [
        spec("new").security(|s| s.apparmor = profile(ProfileType::Localhost, "not-loaded")),
        spec("old").security(|s| old(s, "localhost/not-loaded")),
        spec("both").security(|s| {
            s.apparmor = profile(ProfileType::Localhost, "not-loaded");
            old(s, "runtime/default");
        }),
        spec("privileged").security(|s| {
            s.apparmor = profile(ProfileType::Localhost, "not-loaded");
            s.privileged = true;
        }),
    ] {
        node.refused(pod.try_create(&spec).await, Code::InvalidArgument, "not-loaded");
    }
    let listed = node.cri.containers(None).await.expect("ListContainers");
    assert!(listed.iter().all(|container| container.pod_sandbox_id != pod.id), "{listed:?}");
    node.finish().await;
}

#[tokio::test]
async fn without_apparmor_the_default_is_nothing() {
    if enabled() {
        skip("the kernel's AppArmor is enabled");
        return;
    }
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("without").await;
    pod.start(&ContainerSpec::new("nothing", &image)).await;
    pod.start(&ContainerSpec::new("default", &image).security(|s| s.apparmor = profile(ProfileType::RuntimeDefault, ""))).await;
    node.finish().await;
}
