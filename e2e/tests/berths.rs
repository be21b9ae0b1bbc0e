//! Execs that follow each other, which a process that waits in the container executes: nobody inside can tell, nobody can
//! reach it, and it stays no longer than it is wanted. Looked at from inside and in the kernel's own files on the host.

use std::collections::BTreeSet;
use std::fs::{self, FileType};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{Capability, NamespaceMode, SecurityProfile};
use coracle_e2e::{Code, Container, ContainerSpec, Node, Output, PodSpec, eventually, host, number, skip};
use serde_json::json;

/// All that a program can see of how it was made, but for what differs from one process to the next.
const EVERYTHING: &str = "umask; id; pwd; env | sort; \
    grep -vE '^(Pid|PPid|Tgid|NStgid|NSpid|NSpgid|NSsid|Vm|Rss|Hugetlb|voluntary|nonvoluntary|SigQ|Cpus|Mems|Shd)' /proc/self/status; \
    cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup; \
    for n in /proc/self/ns/*; do readlink $n; done; \
    for f in /proc/$$/fd/*; do echo ${f##*/} $(readlink $f | sed 's/[0-9]*//g'); done; \
    awk '{ print $4, $5 == $1, $6 == $1, $7, $19 }' /proc/$$/stat; \
    cat /proc/self/attr/current 2>&1; \
    for f in 0 1 2; do [ -r /dev/fd/$f ] && echo r$f; [ -w /dev/fd/$f ] && echo w$f; done; echo again >/proc/self/fd/1";

/// Whether execs have cgroups of their own, without which there are no berths.
fn has_leaves() -> bool {
    host::cgroup_mounts().iter().any(|mount| mount.join("cgroup.procs").exists() && mount.join("cgroup.subtree_control").exists())
}

/// A node, where there can be berths.
async fn node() -> Option<Node> {
    if !has_leaves() {
        skip("execs have no cgroups of their own without cgroup v2");
        return None;
    }
    Node::own().await
}

/// The processes that wait in a container.
fn berths(container: &Container) -> BTreeSet<i32> {
    let is_berth = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "coracle-berth");
    container.host_pids().into_iter().filter(is_berth).collect()
}

/// Executes something until a process waits for more, which then is the only one.
async fn with_berth(container: &Container) -> i32 {
    eventually("a process that waits", || async {
        assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
        berths(container).first().copied()
    })
    .await
}

/// What a script says when a process that waits has executed it, and still waits.
async fn by_berth(container: &Container, script: &str) -> Output {
    eventually("an exec by a process that waits", || async {
        let waiting = with_berth(container).await;
        let output = container.exec(&["/bin/sh", "-c", script]).await;
        berths(container).contains(&waiting).then_some(output)
    })
    .await
}

#[tokio::test]
async fn a_program_cannot_tell_how_it_was_made() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("parity").await;
    let plain = ContainerSpec::new("plain", &image);
    let user =
        ContainerSpec::new("user", &image).variable("A", "b c").with(|config| config.working_dir = "/var/work".into()).security(|s| {
            s.run_as_user = number(1234);
            s.run_as_group = number(56);
            s.supplemental_groups = vec![7, 8];
            s.no_new_privs = true;
            s.capabilities = Some(Capability { add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()], ..Default::default() });
        });
    let unconfined = SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() };
    let free = ContainerSpec::new("free", &image).security(|s| s.seccomp = Some(unconfined));
    for spec in [plain, user, free] {
        let container = pod.start(&spec).await;
        let first = container.exec(&["/bin/sh", "-c", EVERYTHING]).await;
        assert!(first.code == 0 && first.stdout.ends_with("again"), "{first:?}");
        assert!(berths(&container).is_empty(), "nothing waits after a single exec");
        if has_leaves() {
            for _ in 0..3 {
                assert_eq!(by_berth(&container, EVERYTHING).await, first);
            }
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn what_waits_is_in_sight_of_nobody_and_holds_nothing_of_the_nodes() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let container = node.pod("sight").await.start(&ContainerSpec::new("c", &image).security(|s| s.run_as_user = number(1234))).await;
    let first = container.host_pids()[0];
    let seen = by_berth(&container, "echo /proc/[0-9]*; kill -9 -1").await;
    assert_eq!(seen.stdout.split_whitespace().count(), 2, "the first process and the shell: {seen:?}");
    let waiting = with_berth(&container).await;
    for kind in ["mnt", "cgroup", "net", "ipc", "uts"] {
        assert_eq!(host::namespace(waiting, kind), host::namespace(first, kind), "{kind}");
    }
    for name in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "Uid", "Gid", "Groups", "Seccomp", "NoNewPrivs"] {
        assert_eq!(host::status_field(waiting, name), host::status_field(first, name), "{name}");
    }
    let open: Vec<FileType> = fs::read_dir(format!("/proc/{waiting}/fd"))
        .expect("its descriptors")
        .filter_map(|entry| Some(fs::metadata(entry.ok()?.path()).ok()?.file_type()))
        .collect();
    assert!(open.len() == 4 && open.iter().filter(|kind| kind.is_char_device()).count() == 3, "three times nothing: {open:?}");
    assert!(open.iter().any(|kind| kind.is_socket()), "and the line to the daemon: {open:?}");
    // Only root may look into what cannot be dumped.
    assert_eq!(fs::metadata(format!("/proc/{waiting}/environ")).expect("its files").uid(), 0);
    node.finish().await;
}

#[tokio::test]
async fn every_end_of_a_program_is_told() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let container = node.pod("ends").await.start(&ContainerSpec::new("c", &image)).await;
    let alone = container.host_pids();
    let missing = node.cri.exec(&container.id, &["/no/such"], 0).await;
    let output = by_berth(&container, "echo out; echo err >&2; cat; exit 7").await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("out", "err", 7));
    assert_eq!(by_berth(&container, "kill -9 $$").await.code, 137);
    with_berth(&container).await;
    let again = node.cri.exec(&container.id, &["/no/such"], 0).await;
    assert_eq!(format!("{:?}", again.as_ref().map_err(|s| s.message())), format!("{:?}", missing.as_ref().map_err(|s| s.message())));
    node.refused(again, Code::InvalidArgument, "/no/such");
    with_berth(&container).await;
    let long = "x".repeat(100_000);
    assert_eq!(container.exec(&["/bin/echo", &long]).await.stdout, long, "longer than it is told");

    with_berth(&container).await;
    assert_eq!(container.shell("sleep 77777 </dev/null >/dev/null 2>&1 & echo left").await, "left");
    let left = |pid: &i32| host::command_line(*pid).ends_with("sleep 77777");
    eventually("what an exec left behind is gone", || async { (!container.host_pids().iter().any(left)).then_some(()) }).await;

    with_berth(&container).await;
    let late = node.cri.exec(&container.id, &["/bin/sh", "-c", "sleep 100000 & sleep 100000"], 1).await;
    node.refused(late, Code::DeadlineExceeded, "no end after 1 s");
    assert_eq!(container.host_pids(), alone, "nothing is left of an exec that came to no end, nor of what waited for it");
    assert_eq!(by_berth(&container, "echo on").await.stdout, "on");
    node.finish().await;
}

#[tokio::test]
async fn what_waits_ends_with_its_container_with_the_daemon_and_by_itself() {
    let Some(mut node) = node().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("patience").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let waiting = with_berth(&container).await;
    eventually("it has waited long enough", || async { (!host::is_alive(waiting)).then_some(()) }).await;
    let waiting = with_berth(&container).await;
    node.kill_daemon();
    eventually("it ends with the daemon", || async { (!host::is_alive(waiting)).then_some(()) }).await;
    node.start_daemon().await;
    let waiting = with_berth(&container).await;
    node.restart().await;
    eventually("the next daemon has no use for it", || async { (!host::is_alive(waiting)).then_some(()) }).await;
    let waiting = with_berth(&container).await;
    container.stop(0).await;
    eventually("it ends with its container", || async { (!host::is_alive(waiting)).then_some(()) }).await;
    node.finish().await;
}

#[tokio::test]
async fn nothing_waits_where_somebody_may_look_into_it() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let tracer = |name: &str| {
        ContainerSpec::new(name, &image)
            .security(|s| s.capabilities = Some(Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() }))
    };
    let alone = async |container: &Container| {
        for _ in 0..4 {
            container.shell("true").await;
            assert_eq!(berths(container), BTreeSet::new());
        }
    };
    alone(&node.pod("tracer").await.start(&tracer("c")).await).await;
    let spec = PodSpec::new("shared").pid_mode(NamespaceMode::Pod);
    alone(&node.run(&spec).await.start(&ContainerSpec::new("c", &image).pid_mode(NamespaceMode::Pod)).await).await;

    let pod = node.pod("debugged").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let waiting = with_berth(&container).await;
    let target = |spec: ContainerSpec| {
        spec.pid_mode(NamespaceMode::Target).security(|s| s.namespace_options.get_or_insert_default().target_id = container.id.clone())
    };
    let debugger = pod.start(&target(tracer("debugger"))).await;
    alone(&container).await;
    assert!(!host::is_alive(waiting));
    debugger.stop(0).await;
    with_berth(&container).await;
    node.finish().await;
}

#[tokio::test]
async fn a_filter_that_forbids_waiting_forbids_no_exec() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("filters").await;
    for (number, calls) in [
        json!(["recvmsg"]),
        json!(["sendto", "send"]),
        json!(["poll", "ppoll"]),
        json!(["clone", "vfork", "fork"]),
        json!(["wait4", "waitid"]),
        json!(["setsid"]),
        json!(["dup2", "dup3"]),
        json!(["openat2"]),
        json!(["capset"]),
        json!(["close_range"]),
    ]
    .into_iter()
    .enumerate()
    {
        for (action, errno) in [("SCMP_ACT_ERRNO", 1), ("SCMP_ACT_ERRNO", 0), ("SCMP_ACT_KILL_PROCESS", 0)] {
            let name = format!("{number}-{action}-{errno}").to_lowercase().replace('_', "-");
            let rules = json!([{ "names": calls, "action": action, "errnoRet": errno }]);
            let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules });
            let file = node.scratch().join(&name);
            fs::write(&file, profile.to_string()).expect("writing a profile");
            let seccomp = SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: file.to_string_lossy().into() };
            let container = pod.start(&ContainerSpec::new(&name, &image).security(|s| s.seccomp = Some(seccomp))).await;
            for _ in 0..4 {
                let output = container.exec(&["/bin/echo", "said"]).await;
                assert_eq!((output.stdout.as_str(), output.code), ("said", 0), "{calls} {action} {errno}: {output:?}");
            }
            container.stop(0).await;
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn what_waits_takes_no_room_that_an_exec_needs() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("room").await;
    let limit = |container: &Container, processes: usize| {
        let files = container.cgroups().expect("it runs").into_iter().map(|cgroup| cgroup.join("pids.max"));
        for file in files.filter(|file| file.exists()) {
            fs::write(file, processes.to_string()).expect("limiting the container's processes");
        }
    };
    let tight = pod.start(&ContainerSpec::new("tight", &image)).await;
    limit(&tight, 2);
    for _ in 0..6 {
        assert_eq!(tight.exec(&["/bin/true"]).await.code, 0);
    }
    assert!(berths(&tight).is_empty(), "there is room for the exec alone");

    let tightened = pod.start(&ContainerSpec::new("tightened", &image)).await;
    for _ in 0..3 {
        limit(&tightened, 3);
        with_berth(&tightened).await;
        limit(&tightened, 2);
        assert_eq!(tightened.exec(&["/bin/true"]).await.code, 0, "it gives way");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_working_directory_is_the_one_that_is_there() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).with(|config| config.working_dir = "/tmp/place".into());
    let container = node.pod("directory").await.start(&spec).await;
    by_berth(&container, "cd /; rm -r /tmp/place; mkdir /tmp/place; touch /tmp/place/new").await;
    assert_eq!(by_berth(&container, "pwd; ls").await.stdout, "/tmp/place\nnew");
    by_berth(&container, "cd /; rm -r /tmp/place; touch /tmp/place").await;
    let refused = node.cri.exec(&container.id, &["/bin/true"], 0).await.expect_err("there is no working directory");
    assert!(refused.message().contains("entering the working directory"), "{refused:?}");
    node.finish().await;
}

#[tokio::test]
async fn what_waits_keeps_nothing_of_what_it_has_executed() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let container = node.pod("memory").await.start(&ContainerSpec::new("c", &image)).await;
    let data = |pid: i32| host::status_field(pid, "VmData");
    let (small, large) = eventually("three hundred execs in a row", || async {
        let waiting = with_berth(&container).await;
        for _ in 0..20 {
            container.exec(&["true"]).await;
        }
        let small = data(waiting);
        for _ in 0..300 {
            container.exec(&["true", "with", "arguments"]).await;
        }
        berths(&container).contains(&waiting).then(|| (small, data(waiting)))
    })
    .await;
    assert_eq!(small, large);
    node.finish().await;
}
