//! Cgroups as a container and a kubelet see them: the container's own on v2, and the kubelet's around it on v1 and v2.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_e2e::api::{LinuxContainerResources, UpdateContainerResourcesRequest};
use coracle_e2e::{ContainerSpec, Node, PodSpec, eventually, host, skip};

/// Whether all controllers are on cgroup v2.
fn pure_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A pod's cgroup as a kubelet makes it, with a limit of memory, in every hierarchy there is.
struct Kubelet {
    parent: String,
    directories: Vec<PathBuf>,
}

impl Kubelet {
    fn limit(name: &str, memory: u64) -> Self {
        let directories: Vec<_> = host::cgroup_mounts().into_iter().map(|top| top.join(name)).collect();
        for directory in &directories {
            let pod = directory.join("pod1");
            fs::create_dir_all(&pod).expect("making the pod's cgroup");
            if pure_v2() {
                fs::write(directory.join("cgroup.subtree_control"), "+memory +pids").expect("enabling controllers");
            }
            for file in ["memory.max", "memory.limit_in_bytes"].map(|file| pod.join(file)) {
                if file.exists() {
                    fs::write(&file, memory.to_string()).expect("limiting the pod");
                }
            }
        }
        Self { parent: format!("/{name}/pod1"), directories }
    }

    /// What is below the pod's cgroup.
    fn inner(&self) -> Vec<PathBuf> {
        let entries = self.directories.iter().flat_map(|directory| fs::read_dir(directory.join("pod1")).into_iter().flatten().flatten());
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn remove(self) {
        for directory in self.directories {
            fs::remove_dir(directory.join("pod1")).and_then(|()| fs::remove_dir(&directory)).expect("the kubelet's cgroup is left to it");
        }
    }
}

#[tokio::test]
async fn on_v2_a_container_sees_its_own_cgroup_as_the_root() {
    if !pure_v2() {
        skip("the controllers are on cgroup v1");
        return;
    }
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("view").await;
    let files = "cd /sys/fs/cgroup; cat memory.max memory.high pids.max cgroup.procs";
    let spec = ContainerSpec::new("c", &image).script(&format!("cat /proc/self/cgroup; {files}; exec sleep 100000")).resources(|r| {
        r.memory_limit_in_bytes = 64 << 20;
        r.unified = [("memory.high", "50331648"), ("pids.max", "77")].map(|(file, value)| (file.to_owned(), value.to_owned())).into();
    });
    let container = pod.start(&spec).await;
    container.logged("77").await;
    let pid = container.host_pids()[0];
    let ours = fs::read_link("/proc/self/ns/cgroup").expect("our own namespace");
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/cgroup")).expect("the container's namespace"), ours);
    assert_eq!(container.lines("stdout")[..4], ["0::/", "67108864", "50331648", "77"]);
    let values = ["memory.max", "memory.high", "pids.max"].map(|file| host::cgroup_file(pid, file).unwrap_or_default());
    assert_eq!(values, ["67108864", "50331648", "77"]);
    let exec = container.exec(&["/bin/cat", "/proc/self/cgroup"]).await.stdout;
    assert!(exec.starts_with("0::/exec-"), "an exec is in a leaf of its own: {exec:?}");
    assert!(container.exec(&["/bin/mkdir", "/sys/fs/cgroup/x"]).await.stderr.contains("Read-only"));
    node.finish().await;
}

#[tokio::test]
async fn an_exec_leaves_its_cgroup_to_the_next_unless_it_left_something_in_it() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("leaves").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let leaf = async |before: &str| {
        let said = container.shell(&format!("{before} cat /proc/self/cgroup")).await;
        said.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    };
    let Some(first) = leaf("").await else {
        skip("there is no cgroup v2");
        return node.finish().await;
    };
    assert!(first.contains("/exec-"), "{first}");
    assert_eq!(leaf("").await.as_ref(), Some(&first), "nothing was left in it");
    assert_eq!(leaf("setsid sleep 1000 >/dev/null 2>&1 &").await.as_ref(), Some(&first));
    eventually("the end of what was left behind", || async { (container.host_pids().len() == 1).then_some(()) }).await;
    assert_ne!(leaf("").await, Some(first), "something was left in it");
    node.finish().await;
}

#[tokio::test]
async fn what_limits_a_container_while_an_exec_runs_limits_every_exec_after_it() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("limited").await.start(&ContainerSpec::new("c", &image)).await;
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let running =
        tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", "touch /runs; until [ -e /ends ]; do sleep 0.01; done"], 0).await });
    eventually("the exec", || async { container.shell("ls /").await.contains("runs").then_some(()) }).await;
    let linux = LinuxContainerResources { cpuset_cpus: "0".into(), ..Default::default() };
    let change = UpdateContainerResourcesRequest { container_id: container.id.clone(), linux: Some(linux), ..Default::default() };
    if let Err(status) = node.cri.runtime().update_container_resources(change).await {
        skip(format_args!("no container can be kept to a processor: {status}"));
        return node.finish().await;
    }
    container.shell("touch /ends").await;
    running.await.expect("no panic").expect("ExecSync");
    for _ in 0..3 {
        let status = container.shell("cat /proc/self/status").await;
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_kubelets_cgroup_limits_the_pod_and_is_left_to_the_kubelet() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let kubelet = Kubelet::limit(&format!("{}-kubelet", node.footprint.cgroup_root), 24 << 20);
    let parent = kubelet.parent.clone();
    let pod = node.run(&PodSpec::new("limited").with(|config| config.linux.get_or_insert_default().cgroup_parent = parent)).await;
    let modest = pod.start(&ContainerSpec::new("modest", &image)).await;
    let pid = modest.host_pids()[0];
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("reading a process' cgroups");
    assert!(membership.contains(&format!("{}/{}", kubelet.parent, modest.id)), "{membership}");
    let greedy = ContainerSpec::new("greedy", &image).command(&["/bin/awk", "BEGIN { s = \"x\"; while (1) s = s s }"]);
    let (status, _) = pod.run(&greedy).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    assert_eq!(modest.exec(&["/bin/true"]).await.code, 0, "the other container lives on");
    pod.stop().await;
    pod.remove().await;
    assert_eq!(kubelet.inner(), Vec::<PathBuf>::new());
    kubelet.remove();
    node.finish().await;
}
