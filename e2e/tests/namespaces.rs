//! Which namespaces a pod's containers share, and with whom: looked at from inside and from the node. Pods with users of
//! their own have a file for themselves.

use coracle_e2e::api::NamespaceMode;
use coracle_e2e::{Code, Container, ContainerSpec, Node, PodSpec, eventually, host, number};

const CLOCKS: &str = "coracle.dev/time-offsets";

fn with_target(name: &str, image: &str, target: &str) -> ContainerSpec {
    ContainerSpec::new(name, image)
        .pid_mode(NamespaceMode::Target)
        .security(|s| s.namespace_options.get_or_insert_default().target_id = target.to_owned())
}

fn first_process(container: &Container) -> i32 {
    *container.host_pids().first().expect("it runs")
}

/// A namespace of a container's, and ours of the same kind.
fn with_ours(container: &Container, kind: &str) -> (u64, u64) {
    (host::namespace(first_process(container), kind), host::namespace(std::process::id().cast_signed(), kind))
}

#[tokio::test]
async fn a_pods_shared_process_ids_have_an_init_that_reaps() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = PodSpec::new("shared").pid_mode(NamespaceMode::Pod);
    let pod = node.run(&spec).await;
    let one = pod.start(&ContainerSpec::new("one", &image).pid_mode(NamespaceMode::Pod).command(&["/bin/sleep", "100001"])).await;
    let two = pod.start(&ContainerSpec::new("two", &image).pid_mode(NamespaceMode::Pod).without_apparmor()).await;
    assert_eq!(host::namespace(first_process(&one), "pid"), host::namespace(first_process(&two), "pid"));
    let (theirs, ours) = with_ours(&one, "pid");
    assert_ne!(theirs, ours);
    assert_ne!(host::namespace(first_process(&one), "mnt"), host::namespace(first_process(&two), "mnt"));
    let init = two.shell("cat /proc/1/comm; readlink /proc/1/exe || echo unreadable").await;
    if !node.target.is_foreign() {
        assert_eq!(init, "coracle-init\nunreadable", "nobody may look into it");
        // The kernel says yes and does nothing: no signal from inside ends an init.
        two.shell("kill -9 1").await;
    }
    two.shell("for n in 1 2 3; do (setsid sleep 0.0$n &) ; done").await;
    eventually("the orphans to be reaped", || async {
        let listed = two.shell("ps -o stat,args").await;
        (!listed.contains("Z ") && !listed.contains("sleep 0.0")).then_some(())
    })
    .await;
    one.stop(0).await;
    assert!(two.shell("ps -o args").await.contains("sleep 100000"), "the others live on");
    node.finish().await;
}

#[tokio::test]
async fn a_container_may_see_those_of_another_one() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("target").await;
    let app = pod.start(&ContainerSpec::new("app", &image).command(&["/bin/sleep", "100003"])).await;
    let debug = pod.start(&with_target("debug", &image, &app.id)).await;
    assert_eq!(host::namespace(first_process(&debug), "pid"), host::namespace(first_process(&app), "pid"));
    assert_ne!(host::namespace(first_process(&debug), "mnt"), host::namespace(first_process(&app), "mnt"));
    assert_eq!(debug.shell("cat /proc/1/cmdline | tr '\\0' ' '").await, "/bin/sleep 100003");
    assert_eq!(debug.shell("cat /proc/1/root/etc/motd").await, "welcome aboard", "its files too");
    assert!(app.shell("ps -o args").await.contains("sleep 100000"), "they see each other");
    let elsewhere = node.pod("elsewhere").await;
    node.refused(elsewhere.try_create(&with_target("stranger", &image, &app.id)).await, Code::InvalidArgument, "target_id");
    app.stop(0).await;
    assert_eq!(debug.exited().await.exit_code, 137, "without its first process nobody can live there");
    node.refused(pod.try_create(&with_target("late", &image, &app.id)).await, Code::FailedPrecondition, &app.id);
    node.finish().await;
}

#[tokio::test]
async fn a_container_cannot_share_what_its_pod_does_not() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("own").await;
    node.refused(
        pod.try_create(&ContainerSpec::new("c", &image).pid_mode(NamespaceMode::Pod)).await,
        Code::InvalidArgument,
        "namespace_options.pid",
    );
    node.finish().await;
}

#[tokio::test]
async fn the_nodes_namespaces_are_the_nodes() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let mut spec = PodSpec::new("nodes").host_network();
    (spec.namespaces().pid, spec.namespaces().ipc) = (NamespaceMode::Node.into(), NamespaceMode::Node.into());
    let pod = node.run(&spec).await;
    let container = pod.start(&ContainerSpec::new("c", &image).pid_mode(NamespaceMode::Node)).await;
    for kind in ["net", "ipc", "pid", "uts", "user", "time"] {
        let (theirs, ours) = with_ours(&container, kind);
        assert_eq!(theirs, ours, "{kind}");
    }
    assert_ne!(with_ours(&container, "mnt").0, with_ours(&container, "mnt").1);
    let ours = format!("/dev/shm/{}", node.scratch().file_name().expect("a name").to_string_lossy());
    std::fs::write(&ours, "the node's").expect("writing to /dev/shm");
    let seen = container.exec(&["/bin/cat", &ours]).await;
    std::fs::remove_file(&ours).expect("removing what was made");
    assert_eq!(seen.stdout, "the node's");
    container.shell(&format!("test -d /proc/{}", std::process::id())).await;
    let options = pod.status().await.linux.and_then(|linux| linux.namespaces?.options).expect("the status tells them");
    assert_eq!((options.network(), options.pid(), options.ipc()), (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node));
    node.finish().await;
}

#[tokio::test]
async fn a_pods_ipc_and_name_are_its_containers_and_nobody_elses() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let (pod, other) = (node.pod("here").await, node.pod("there").await);
    let spec = |name: &str| ContainerSpec::new(name, &image);
    let (one, two, stranger) = (pod.start(&spec("one")).await, pod.start(&spec("two")).await, other.start(&spec("c")).await);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(host::namespace(first_process(&one), kind), host::namespace(first_process(&two), kind), "{kind}");
        assert_ne!(host::namespace(first_process(&one), kind), host::namespace(first_process(&stranger), kind), "{kind}");
        assert_ne!(with_ours(&one, kind).0, with_ours(&one, kind).1, "{kind}");
    }
    assert_eq!((one.shell("hostname").await, stranger.shell("hostname").await), ("here".to_owned(), "there".to_owned()));
    node.finish().await;
}

#[tokio::test]
async fn the_view_of_cgroups_begins_at_the_containers_own() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("cgroups").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let seen = container.shell("cat /proc/1/cgroup").await;
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_ne!(with_ours(&container, "cgroup").0, with_ours(&container, "cgroup").1);
        assert_eq!(seen, "0::/", "nothing of the node's tree is told");
        assert!(container.shell("ls /sys/fs/cgroup").await.contains("memory.max"));
    } else {
        // With version 1 a path in there names a directory that is mounted, as tools of that time expect.
        assert!(seen.contains(&container.id), "{seen}");
        assert!(container.shell("ls /sys/fs/cgroup/memory").await.contains("memory.limit_in_bytes"));
    }
    assert_ne!(
        container
            .exec(&["/bin/sh", "-c", "find /sys/fs/cgroup -type d -exec mkdir {}/x ';' 2>/dev/null; find /sys/fs/cgroup -name x | grep x"])
            .await
            .code,
        0
    );
    node.finish().await;
}

#[tokio::test]
async fn parameters_safe_and_unsafe_are_set_in_the_pods_namespaces_alone() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let parameters = [
        ("net.ipv4.ip_unprivileged_port_start", "81"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net.core.somaxconn", "1234"),
        ("kernel.msgmax", "65000"),
        ("kernel.sem", "100 12800 10 100"),
        ("fs.mqueue.queues_max", "7"),
    ];
    let paths: Vec<String> = parameters.iter().map(|(name, _)| format!("/proc/sys/{}", name.replace('.', "/"))).collect();
    let ours = || paths.iter().map(|path| std::fs::read_to_string(path).expect(path)).collect::<Vec<_>>();
    let before = ours();
    let spec = PodSpec::new("sysctls").with(|config| {
        let sysctls = &mut config.linux.get_or_insert_default().sysctls;
        sysctls.extend(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())));
    });
    let pod = node.run(&spec).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let inside = container.shell(&format!("cat {} | tr '\\t' ' '", paths.join(" "))).await;
    assert_eq!(inside.lines().collect::<Vec<_>>(), parameters.map(|(_, value)| value));
    assert_eq!(ours(), before);
    assert_eq!(container.exec(&["/bin/sh", "-c", "echo 1 > /proc/sys/net/core/somaxconn"]).await.code, 1, "they are not its to change");
    node.finish().await;
}

#[tokio::test]
async fn whoever_is_not_root_may_listen_on_any_port_and_ask_for_echoes() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("ports").await;
    let container = pod.start(&ContainerSpec::new("c", &image).security(|s| s.run_as_user = number(1000))).await;
    // busybox's ping only knows the sockets that are root's.
    assert_eq!(container.shell("httpd -p 80 -h /tmp && cat /proc/sys/net/ipv4/ping_group_range").await, "0\t2147483647");
    node.finish().await;
}

fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no uptime: {text:?}"))
}

/// How far a container's uptime is ahead of the node's, in whole minutes, as execs and first processes see it.
async fn minutes_ahead(container: &Container) -> f64 {
    let ours = uptime(&std::fs::read_to_string("/proc/uptime").expect("the node's uptime"));
    ((uptime(&container.shell("cat /proc/uptime").await) - ours) / 60.0).round()
}

#[tokio::test]
async fn a_pods_clocks_are_ahead_by_what_its_annotation_says() {
    let mut node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("ahead").annotation(CLOCKS, "monotonic=-1.5,boottime=86400")).await;
    let container = pod.start(&ContainerSpec::new("c", &image).script("cat /proc/uptime /proc/self/timens_offsets; sleep 100000")).await;
    container.logged("boottime").await;
    let log = container.lines("stdout");
    let offsets: Vec<Vec<&str>> = log[1..].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(offsets, [["monotonic", "-2", "500000000"], ["boottime", "86400", "0"]]);
    let ours = uptime(&std::fs::read_to_string("/proc/uptime").expect("the node's uptime"));
    assert!(uptime(&log[0]) > ours + 80_000.0, "{log:?} and {ours} here");
    assert_eq!(minutes_ahead(&container).await, 1440.0, "an exec sees them too");
    assert_ne!(with_ours(&container, "time").0, with_ours(&container, "time").1);
    let spec = PodSpec::new("both").users(1_310_720, 65_536).annotation(CLOCKS, "boottime=3600.000000001").pid_mode(NamespaceMode::Pod);
    // Where the node can give users at all: see their own tests.
    if let Ok(both) = node.try_run(&spec).await {
        let container = both.start(&ContainerSpec::new("c", &image).pid_mode(NamespaceMode::Pod)).await;
        assert_eq!(minutes_ahead(&container).await, 60.0);
        assert_eq!(container.shell("id -u; awk '{ print $2 }' /proc/self/uid_map").await, "0\n1310720");
    }
    let plain = node.pod("plain").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(minutes_ahead(&plain).await, 0.0);
    node.restart().await;
    assert_eq!(minutes_ahead(&container).await, 1440.0);
    assert_eq!(minutes_ahead(&pod.start(&ContainerSpec::new("late", &image)).await).await, 1440.0, "a later container has them");
    node.finish().await;
}

#[tokio::test]
async fn clocks_that_cannot_be_are_refused() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    for (index, text) in ["", "3600", "realtime=5", "monotonic=1,monotonic=2", "boottime=1h", "boottime=5 "].into_iter().enumerate() {
        let spec = PodSpec::new(&format!("bad{index}")).annotation(CLOCKS, text);
        node.refused(node.try_run(&spec).await, Code::InvalidArgument, CLOCKS);
    }
    let before_the_beginning = PodSpec::new("back").annotation(CLOCKS, "boottime=-4000000000");
    node.refused(node.try_run(&before_the_beginning).await, Code::InvalidArgument, "before 0");
    let annotated = PodSpec::new("other").annotation("example.org/time-offsets", "whatever");
    assert!(node.try_run(&annotated).await.is_ok());
    node.finish().await;
}
