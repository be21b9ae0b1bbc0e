//! What a container finds around itself: files, devices, file systems, namespaces, limits; its log, and execs in it. Everything is
//! looked at from inside the container or in the kernel's own files on the host.

use coracle_e2e::api::{self, DnsConfig, NamespaceMode};
use coracle_e2e::host::field;
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, eventually, host, number};

#[tokio::test]
async fn names_are_resolved_as_the_pod_says() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let dns = DnsConfig { servers: vec!["192.0.2.53".into()], searches: vec!["sea.example".into()], options: vec!["ndots:2".into()] };
    let pod = node.run(&PodSpec::new("harbour").with(|config| config.dns_config = Some(dns))).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(container.shell("hostname").await, "harbour");
    assert_eq!(container.shell("cat /etc/hostname").await, "harbour");
    let resolver = container.shell("cat /etc/resolv.conf").await;
    for expected in ["nameserver 192.0.2.53", "search sea.example", "options ndots:2"] {
        assert!(resolver.lines().any(|line| line == expected), "{expected:?} in {resolver:?}");
    }
    let own = pod.address().await;
    assert!(
        container.shell("cat /etc/hosts").await.lines().any(|line| line == format!("{own}\tharbour")),
        "a name for the pod's own address"
    );
    let plain = node.pod("plain").await.start(&ContainerSpec::new("c", &image)).await;
    let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(plain.shell("cat /etc/resolv.conf").await, hosts.trim_end(), "without a configuration it is the host's");
    node.finish().await;
}

#[tokio::test]
async fn the_files_of_names_that_the_caller_mounts_are_the_containers() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("aliased").await;
    let address = pod.address().await;
    let mine = |name: &str, content: &str| {
        let path = node.scratch().join(name);
        std::fs::write(&path, content).expect("writing a file");
        path.to_string_lossy().into_owned()
    };
    // What a kubelet does with hostAliases: its file, writable, over ours.
    let hosts = mine("hosts", &format!("127.0.0.1\tlocalhost\n{address}\taliased\n{address}\tlighthouse.example\tbeacon\n"));
    let (resolver, hostname) = (mine("resolv.conf", "nameserver 192.0.2.7\n"), mine("hostname", "another\n"));
    let spec = ContainerSpec::new("c", &image).script("echo ahoy >/var/www/index.html; exec httpd -f -p 8080 -h /var/www");
    let spec = spec.mount(&hosts, "/etc/hosts", false).mount(&resolver, "/etc/resolv.conf", true).mount(&hostname, "/etc/hostname", true);
    let container = pod.start(&spec).await;
    for name in ["lighthouse.example", "beacon", "aliased"] {
        let fetch = ["/bin/wget", "-q", "-O", "-", &format!("http://{name}:8080/")];
        let fetched =
            eventually("an answer by an alias", || async { Some(container.exec(&fetch).await).filter(|output| output.code == 0) });
        assert_eq!(fetched.await.stdout, "ahoy", "{name}");
    }
    assert_eq!(container.shell("cat /etc/resolv.conf /etc/hostname").await, "nameserver 192.0.2.7\nanother");
    assert_eq!(container.shell("hostname").await, "aliased", "the file does not rename the pod");
    container.shell("echo '192.0.2.9 buoy' >>/etc/hosts").await;
    assert!(std::fs::read_to_string(&hosts).expect("reading a file").contains("buoy"), "it is the caller's file");
    assert_ne!(container.exec(&["/bin/sh", "-c", "echo x >>/etc/resolv.conf"]).await.code, 0, "read-only as asked");
    node.finish().await;
}

#[tokio::test]
async fn devices_are_the_customary_ones_and_those_asked_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("devices").await;
    let device = api::Device { container_path: "/dev/ours".into(), host_path: "/dev/zero".into(), permissions: "rwm".into() };
    let container = pod.start(&ContainerSpec::new("c", &image).with(|config| config.devices.push(device))).await;
    for (path, numbers) in
        [("null", "1,3"), ("zero", "1,5"), ("full", "1,7"), ("random", "1,8"), ("urandom", "1,9"), ("tty", "5,0"), ("ours", "1,5")]
    {
        let script = format!("stat -c %F:%t,%T /dev/{path}");
        assert_eq!(container.shell(&script).await, format!("character special file:{numbers}"), "/dev/{path}");
    }
    assert_eq!(container.shell("echo x >/dev/null; head -c 4 /dev/ours | wc -c; readlink /dev/fd").await, "4\n/proc/self/fd");
    assert!(container.shell("readlink /dev/ptmx").await.ends_with("pts/ptmx"));
    let listing = container.shell("ls /dev").await;
    assert!(!listing.lines().any(|name| name.starts_with("vd") || name.starts_with("sd") || name == "kmsg" || name == "mem"), "{listing}");
    let made = container.exec(&["/bin/sh", "-c", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem"]).await;
    assert_ne!(made.code, 0, "the machine's memory can be read through a made device: {made:?}");
    node.finish().await;
}

#[tokio::test]
async fn kernel_file_systems_are_mounted_safely() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("mounts").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let mounts = container.shell("cat /proc/mounts").await;
    let options = |point: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(point)).unwrap_or_else(|| panic!("{point} in {mounts}"));
        let fields: Vec<&str> = line.split(' ').collect();
        (fields[2].to_owned(), fields[3].split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    for (point, kind, wanted) in [
        ("/", "overlay", &["rw"][..]),
        ("/proc", "proc", &["nosuid", "nodev", "noexec"]),
        ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
        ("/dev", "tmpfs", &["nosuid"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
    ] {
        let (found, flags) = options(point);
        assert_eq!(found, kind, "{point}");
        assert!(wanted.iter().all(|flag| flags.iter().any(|have| have == flag)), "{point}: {wanted:?} in {flags:?}");
    }
    let host = node.scratch().to_string_lossy().into_owned();
    assert!(
        !mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|point| point.starts_with(&host))),
        "the host's mounts show: {mounts}"
    );
    let cgroup = container.exec(&["/bin/sh", "-c", "find /sys/fs/cgroup -name cgroup.procs | head -n 1"]).await.stdout;
    assert!(!cgroup.is_empty(), "the container sees its cgroup");
    assert!(container.exec(&["/bin/sh", "-c", &format!("mkdir $(dirname {cgroup})/x")]).await.stderr.contains("Read-only"));
    node.finish().await;
}

#[tokio::test]
async fn shared_memory_is_the_pods() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("memory").await;
    let (one, two) = (pod.start(&ContainerSpec::new("one", &image)).await, pod.start(&ContainerSpec::new("two", &image)).await);
    one.shell("echo shared >/dev/shm/x").await;
    assert_eq!(two.shell("cat /dev/shm/x").await, "shared");
    let other = node.pod("apart").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(other.shell("ls /dev/shm").await, "");
    assert_eq!(one.shell("readlink /proc/self/ns/ipc").await, two.shell("readlink /proc/self/ns/ipc").await);
    assert_ne!(one.shell("readlink /proc/self/ns/ipc").await, other.shell("readlink /proc/self/ns/ipc").await);
    node.finish().await;
}

#[tokio::test]
async fn processes_are_seen_as_the_pid_mode_says() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let own = node.pod("own").await;
    let container = own.start(&ContainerSpec::new("c", &image)).await;
    assert!(container.shell("cat /proc/1/cmdline | tr '\\0' ' '").await.starts_with("/bin/sleep 100000"), "its first process is number 1");
    let mode = |name: &str, mode: NamespaceMode| {
        let spec = ContainerSpec::new(name, &image);
        spec.security(|s| s.namespace_options.get_or_insert_default().pid = mode.into())
    };
    let shared = PodSpec::new("shared").pid_mode(NamespaceMode::Pod);
    let pod = node.run(&shared).await;
    let one = pod.start(&mode("one", NamespaceMode::Pod).command(&["/bin/sleep", "100001"])).await;
    pod.start(&mode("two", NamespaceMode::Pod).command(&["/bin/sleep", "100002"])).await;
    let seen = one.shell("ps -o args").await;
    assert!(seen.contains("sleep 100001") && seen.contains("sleep 100002"), "{seen}");
    if !node.target.is_foreign() {
        one.shell("(setsid sleep 0.1 &) ; true").await;
        eventually("the orphan to be reaped", || async { (!one.shell("ps -o stat,args").await.contains("Z ")).then_some(()) }).await;
    }
    let mut nodes = PodSpec::new("nodes");
    nodes.namespaces().pid = NamespaceMode::Node.into();
    let pod = node.run(&nodes).await;
    let spy = pod.start(&mode("spy", NamespaceMode::Node)).await;
    assert_eq!(spy.shell("readlink /proc/self/ns/pid").await, host::run("readlink", &["/proc/self/ns/pid"]).expect("ours").trim_end());
    spy.stop(0).await;
    assert_eq!(spy.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn namespaces_are_the_containers_own() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("namespaces").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    for kind in ["mnt", "net", "ipc", "uts", "pid"] {
        let path = format!("/proc/self/ns/{kind}");
        let ours = std::fs::read_link(&path).expect("our own namespace");
        assert_ne!(container.shell(&format!("readlink {path}")).await, ours.to_string_lossy(), "{kind}");
    }
    // Tunnels that some kernels make in every network namespace have no device behind them.
    let links = container.shell("for link in /sys/class/net/*; do [ $(cat $link/type) = 776 ] || basename $link; done").await;
    assert_eq!(links, "eth0\nlo");
    assert_eq!(container.shell("ls /proc/self/fd | wc -l").await, "4", "no descriptor of the runtime's comes along");
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_root_refuses_writes() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).security(|s| s.readonly_rootfs = true);
    let container = node.pod("fixed").await.start(&spec).await;
    assert!(container.exec(&["/bin/touch", "/tmp/x"]).await.stderr.contains("Read-only"));
    assert_eq!(container.exec(&["/bin/touch", "/dev/shm/x"]).await.code, 0, "what is mounted over it is writable still");
    node.finish().await;
}

#[tokio::test]
async fn one_containers_writes_are_not_anothers() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("layers").await;
    let (one, two) = (pod.start(&ContainerSpec::new("one", &image)).await, pod.start(&ContainerSpec::new("two", &image)).await);
    one.shell("echo changed >/etc/motd; rm /etc/passwd; mkdir /new").await;
    assert_eq!(two.shell("cat /etc/motd; ls -d /etc/passwd").await, "welcome aboard\n/etc/passwd");
    one.remove().await;
    let third = pod.start(&ContainerSpec::new("third", &image)).await;
    assert_eq!(third.shell("cat /etc/motd; ls -d /new 2>/dev/null || true").await, "welcome aboard");
    node.finish().await;
}

#[tokio::test]
async fn limits_stand_in_the_cgroups_files() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).resources(|r| {
        r.memory_limit_in_bytes = 64 << 20;
        r.cpu_period = 100_000;
        r.cpu_quota = 50_000;
        r.cpu_shares = 512;
        r.oom_score_adj = 345;
        r.cpuset_cpus = "0".into();
    });
    let container = node.pod("limits").await.start(&spec).await;
    let pid = container.host_pids()[0];
    let first = |names: &[&str]| names.iter().find_map(|name| host::cgroup_file(pid, name)).unwrap_or_else(|| panic!("none of {names:?}"));
    assert_eq!(first(&["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    let quota = host::cgroup_file(pid, "cpu.max").unwrap_or_else(|| first(&["cpu.cfs_quota_us"]) + " " + &first(&["cpu.cfs_period_us"]));
    assert_eq!(quota, "50000 100000");
    assert!(host::cgroup_file(pid, "cpu.weight").is_some() || first(&["cpu.shares"]) == "512");
    assert_eq!(first(&["cpuset.cpus"]), "0");
    assert_eq!(container.shell("cat /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/self/status | cut -f 2").await, "345\n0");
    if !node.target.is_foreign() {
        let told = container.status().await.resources.and_then(|resources| resources.linux).expect("the status tells the limits");
        assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_period, told.cpu_shares), (64 << 20, 50_000, 100_000, 512));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_refused_oom_score_does_not_fail_a_container() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).resources(|r| r.oom_score_adj = -999);
    let container = node.pod("protected").await.start(&spec).await;
    let score: i32 = container.shell("cat /proc/self/oom_score_adj").await.parse().expect("a number");
    assert!((-999..=0).contains(&score), "{score}");
    node.finish().await;
}

#[tokio::test]
async fn logs_are_in_the_format_of_the_field() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("logs").await;
    let script = "echo one; echo two >&2; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf unfinished";
    let container = pod.start(&ContainerSpec::new("c", &image).script(script)).await;
    container.exited().await;
    let records = container.records();
    let out = container.lines("stdout");
    assert_eq!((out[0].as_str(), out[1].as_str(), out[2].len(), out[3].as_str()), ("one", "", 40_000, "unfinished"));
    assert_eq!(out.len(), 4);
    assert_eq!(container.lines("stderr"), ["two"]);
    let long: Vec<_> = records.iter().filter(|record| record.text.starts_with("xx")).collect();
    assert!(long.len() >= 3, "a line over 16 KiB is split");
    assert!(long.iter().all(|record| record.text.len() <= 16 * 1024));
    assert!(long.iter().rev().skip(1).all(|record| !record.full) && long.last().is_some_and(|record| record.full), "P, P, F");
    assert!(records.iter().any(|record| record.text == "unfinished" && !record.full), "a line without an end is partial");
    node.finish().await;
}

#[tokio::test]
async fn a_log_that_was_moved_away_is_opened_anew_when_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("rotated").await;
    let script = "echo before; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; sleep 100000";
    let container = pod.start(&ContainerSpec::new("c", &image).script(script)).await;
    container.logged("before").await;
    let rotated = container.log.with_extension("old");
    std::fs::rename(&container.log, &rotated).expect("moving the log");
    let request = || api::ReopenContainerLogRequest { container_id: container.id.clone() };
    node.cri.runtime().reopen_container_log(request()).await.expect("ReopenContainerLog");
    container.shell("touch /tmp/go").await;
    container.logged("after").await;
    assert_eq!(container.lines("stdout"), ["after"]);
    container.stop(0).await;
    std::fs::remove_file(&container.log).expect("removing the log");
    node.refused(node.cri.runtime().reopen_container_log(request()).await, Code::FailedPrecondition, &container.id);
    assert!(!container.log.exists(), "a stopped container's log is not made anew");
    node.finish().await;
}

#[tokio::test]
async fn an_exec_is_run_as_the_container_is() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image).variable("COLOUR", "blue").security(|s| s.run_as_user = number(1000));
    let spec = spec.with(|config| config.working_dir = "/home/alice".into());
    let container = node.pod("exec").await.start(&spec).await;
    let output = container.exec(&["sh", "-c", "id -u; pwd; echo $COLOUR; echo complaint >&2; exit 9"]).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("1000\n/home/alice\nblue", "complaint", 9));
    for kind in ["mnt", "net", "ipc", "uts", "pid"] {
        let path = format!("/proc/self/ns/{kind}");
        assert_eq!(
            container.shell(&format!("readlink {path}")).await,
            container.shell(&format!("readlink /proc/1/ns/{kind}")).await,
            "{kind}"
        );
    }
    let status = container.shell("grep -E 'CapEff|Seccomp:' /proc/self/status").await;
    assert_eq!((field(&status, "CapEff"), field(&status, "Seccomp")), ("0000000000000000", "2"));
    assert_eq!(container.exec(&["/bin/cat"]).await.stdout, "", "standard input is at its end");
    let large = container.exec(&["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' y"]).await.stdout;
    assert_eq!(large.len(), 3_000_000);
    node.finish().await;
}

#[tokio::test]
async fn an_exec_that_takes_too_long_is_killed_with_its_children() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let container = node.pod("late").await.start(&ContainerSpec::new("c", &image)).await;
    let slow = node.cri.exec(&container.id, &["/bin/sh", "-c", "setsid sleep 54321 & sleep 54321"], 1).await;
    assert_eq!(slow.expect_err("it takes too long").code(), Code::DeadlineExceeded);
    eventually("the end of all that it had started", || async {
        (!container.shell("ps -o args").await.contains("sleep 54321")).then_some(())
    })
    .await;
    let brief = container.exec(&["/bin/sh", "-c", "setsid sleep 54322 & echo done"]).await;
    assert_eq!((brief.stdout.as_str(), brief.code), ("done", 0), "an exec is over when its first process is");
    node.finish().await;
}

#[tokio::test]
async fn kernel_parameters_are_the_pods() {
    let node = Node::start().await;
    let image = node.busybox().await;
    // The first three are safe in Kubernetes' sense, the others must be allowed by the kubelet.
    let parameters = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "20000\t20100"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.msgmax", "9000"),
        ("kernel.sem", "250\t32000\t33\t129"),
        ("fs.mqueue.msg_max", "17"),
        ("net.core.somaxconn", "1234"),
        ("net/ipv4/conf/lo/forwarding", "0"),
    ];
    let file = |name: &str| format!("/proc/sys/{}", if name.contains('/') { name.to_owned() } else { name.replace('.', "/") });
    let nodes = || parameters.map(|(name, _)| std::fs::read_to_string(file(name)).ok());
    let before = nodes();
    let set = |config: &mut api::PodSandboxConfig| {
        let pairs = parameters.map(|(name, value)| (name.to_owned(), value.replace('\t', " ")));
        config.linux.get_or_insert_default().sysctls.extend(pairs);
    };
    let container = node.run(&PodSpec::new("sysctl").with(set)).await.start(&ContainerSpec::new("c", &image)).await;
    for (name, value) in parameters {
        assert_eq!(container.shell(&format!("cat {}", file(name))).await, value, "{name}");
    }
    assert_eq!(nodes(), before, "the node's own are as they were");
    node.finish().await;
}
