//! Pods with users of their own: what they see inside, and who they are on the node.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use coracle_e2e::api::{self, Capability, MountPropagation, NamespaceMode};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{self, Compression, Layer};
use coracle_e2e::{Code, Container, ContainerSpec, Node, Pod, PodSpec, host, number, skip, users};

/// The node's user that is root in the pods of these tests.
const ROOT: u32 = 1_310_720;
const LENGTH: u32 = 65_536;

/// A node whose kernel and file system can give pods users of their own, or a word on why not.
async fn node() -> Option<Node> {
    let node = Node::start().await;
    let request = api::StatusRequest { verbose: true };
    let status = node.cri.runtime().status(request).await.expect("Status").into_inner();
    let able = |handler: &api::RuntimeHandler| handler.features.is_some_and(|features| features.user_namespaces);
    if status.runtime_handlers.iter().any(able) {
        return Some(node);
    }
    skip(format_args!("no user namespaces here: {:?}", status.info.get("config")));
    node.finish().await;
    None
}

async fn pod(node: &Node, name: &str) -> Pod {
    node.run(&PodSpec::new(name).users(ROOT, LENGTH)).await
}

/// The first process of a container that has one.
fn first_process(container: &Container) -> i32 {
    *container.host_pids().first().expect("it runs")
}

/// A directory of the node with a file of root's, a file of root's of the pod, and nothing else.
fn volume(node: &Node, name: &str) -> PathBuf {
    let path = node.scratch().join(name);
    fs::create_dir(&path).expect("making a directory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    for (name, owner) in [("roots", 0), ("pods", ROOT)] {
        fs::write(path.join(name), name).expect("writing");
        chown(path.join(name), Some(owner), Some(owner)).expect("chown");
    }
    path
}

fn all_capabilities(security: &mut api::LinuxContainerSecurityContext) {
    security.capabilities = Some(Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
}

#[tokio::test]
async fn root_of_a_pod_is_nobody_special_on_the_node() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = pod(&node, "root").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let pid = first_process(&container);
    assert_eq!(host::status_field(pid, "Uid").split_whitespace().next(), Some("1310720"));
    assert_eq!(host::status_field(pid, "Gid").split_whitespace().next(), Some("1310720"));
    for map in ["uid_map", "gid_map"] {
        let shown = container.shell(&format!("cat /proc/1/{map}; cat /proc/self/{map}")).await;
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["0", "1310720", "65536"], ["0", "1310720", "65536"]], "its own, and its exec's");
    }
    assert_eq!(container.shell("id -u; id -g; stat -c %u:%g /bin/busybox /etc/motd /home/alice").await, "0\n0\n0:0\n0:0\n1000:1000");
    for kind in ["user", "mnt", "net", "ipc", "uts", "pid"] {
        assert_ne!(host::namespace(pid, kind), host::namespace(std::process::id().cast_signed(), kind), "{kind}");
    }
    let told = pod.status().await.linux.and_then(|linux| linux.namespaces?.options?.userns_options);
    assert_eq!(told, Some(users(ROOT, LENGTH)));
    let alice = pod.start(&ContainerSpec::new("alice", &image).security(|s| s.run_as_username = "alice".into())).await;
    assert_eq!(host::status_field(first_process(&alice), "Uid").split_whitespace().next(), Some("1311720"));
    assert_eq!(alice.shell("id -u; echo hi > /dev/stdout").await, "1000\nhi");
    node.finish().await;
}

#[tokio::test]
async fn the_image_is_its_own_and_can_be_changed() {
    let Some(node) = node().await else { return };
    let program = layer::busybox_program();
    let extra = Layer::new().file("usr/bin/crontab", 0o4755, &program).owned_file("etc/hers", 0o600, (1000, 1000), b"secret").into_tar();
    let image = node.pull("suid", &Image::busybox().layer(&extra, Compression::Gzip)).await;
    let pod = pod(&node, "image").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let script = "echo x > /made && chown 1000:1000 /made && echo more >> /etc/hers && chown 0:0 /etc/motd && chmod 640 /etc/motd \
                  && mv /var/www /var/w && stat -c %u:%g:%a /made /etc/hers /etc/motd /";
    assert_eq!(container.shell(script).await, "1000:1000:644\n1000:1000:600\n0:0:640\n0:0:755");
    let upper = node.footprint.storage.join("containers").join(&container.id).join("upper");
    for (path, owner) in [("", ROOT), ("made", ROOT + 1000), ("etc/hers", ROOT + 1000), ("etc/motd", ROOT), ("var/w", ROOT)] {
        let metadata = fs::metadata(upper.join(path)).expect("it is in the writable layer");
        assert_eq!((metadata.uid(), metadata.gid()), (owner, owner), "{path:?} on the node");
    }
    let alice = pod.start(&ContainerSpec::new("alice", &image).security(|s| s.run_as_username = "alice".into())).await;
    let suid = alice.exec(&["/usr/bin/crontab", "-l"]).await;
    assert!(!suid.stderr.contains("must be suid"), "set-user-id programs of the image work: {suid:?}");
    let plain = alice.exec(&["/bin/crontab", "-l"]).await;
    assert!(plain.stderr.contains("must be suid"), "{plain:?}");
    assert_eq!(alice.exec(&["/bin/cat", "/root/x"]).await.code, 1);
    let fixed = ContainerSpec::new("fixed", &image).security(|s| s.readonly_rootfs = true);
    assert!(pod.start(&fixed).await.exec(&["/bin/touch", "/x"]).await.stderr.contains("Read-only"));
    node.finish().await;
}

#[tokio::test]
async fn a_volume_is_mapped_where_that_is_asked_for() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let (mapped, plain) = (volume(&node, "mapped"), volume(&node, "plain"));
    let pod = pod(&node, "volumes").await;
    let spec = ContainerSpec::new("c", &image).mapped_mount(mapped.to_str().expect("text"), "/mapped", &users(ROOT, LENGTH)).mount(
        plain.to_str().expect("text"),
        "/plain",
        false,
    );
    let container = pod.start(&spec).await;
    let owners = container.shell("stat -c %u:%g /mapped/roots /mapped/pods /plain/roots /plain/pods").await;
    assert_eq!(owners, "0:0\n65534:65534\n65534:65534\n0:0");
    container.shell("echo new > /mapped/new && chown 7:8 /mapped/new && echo changed > /mapped/roots").await;
    let new = fs::metadata(mapped.join("new")).expect("it is there");
    assert_eq!((new.uid(), new.gid()), (7, 8), "the node sees the numbers that the pod does");
    assert_eq!(fs::read_to_string(mapped.join("roots")).expect("it is there"), "changed\n");
    assert_ne!(container.exec(&["/bin/touch", "/plain/new"]).await.code, 0, "the node's root is somebody else");
    let mounts = container.status().await.mounts;
    assert_eq!(
        mounts.iter().find(|mount| mount.container_path == "/mapped").map(|mount| mount.uid_mappings.clone()),
        Some(users(ROOT, LENGTH).uids)
    );
    node.finish().await;
}

#[tokio::test]
async fn mounts_of_the_node_arrive_and_none_go_back() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = pod(&node, "propagation").await;
    let shared = node.scratch().join("shared");
    fs::create_dir(&shared).expect("making a directory");
    host::run("mount", &["-t", "tmpfs", "tmpfs", shared.to_str().expect("text")]).expect("mounting");
    host::run("mount", &["--make-shared", shared.to_str().expect("text")]).expect("sharing");
    fs::create_dir(shared.join("late")).expect("making a directory");
    let with = |propagation: MountPropagation| {
        ContainerSpec::new("c", &image).mount(shared.to_str().expect("text"), "/shared", false).with(|config| {
            config.mounts[0].set_propagation(propagation);
        })
    };
    let container = pod.start(&with(MountPropagation::PropagationHostToContainer).security(all_capabilities).without_apparmor()).await;
    let late = shared.join("late");
    host::run("mount", &["-t", "tmpfs", "-o", "mode=777", "late", late.to_str().expect("text")]).expect("mounting");
    fs::write(late.join("hello"), "hello").expect("writing");
    let seen = container.shell("cat /shared/late/hello").await;
    container.shell("mount -t tmpfs inside /shared/late && test ! -e /shared/late/hello").await;
    let unharmed = late.join("hello").exists();
    let refused =
        pod.try_create(&with(MountPropagation::PropagationBidirectional).with(|c| c.metadata.get_or_insert_default().attempt = 1)).await;
    for path in [&late, &shared] {
        host::unmount(&[], path).expect("unmounting");
    }
    assert_eq!(seen, "hello");
    assert!(unharmed, "what is mounted inside stays inside");
    node.refused(refused, Code::InvalidArgument, "propagation");
    node.finish().await;
}

#[tokio::test]
async fn its_other_namespaces_are_its_to_change() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("owner").users(ROOT, LENGTH).with(|config| {
        let sysctls = &mut config.linux.get_or_insert_default().sysctls;
        for (name, value) in [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "20")] {
            sysctls.insert(name.into(), value.into());
        }
    });
    let pod = node.run(&spec).await;
    let able = ContainerSpec::new("able", &image).security(all_capabilities).security(|s| s.readonly_paths.clear()).without_apparmor();
    let container = pod.start(&able).await;
    let told = container.shell("cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced fs/mqueue/msg_max").await;
    assert_eq!(told, "80\n1\n20");
    container
        .shell("ip link add name probe0 type veth peer name probe1 && ip addr add 10.99.0.1/24 dev probe0 && ip link del probe0")
        .await;
    container
        .shell("echo 1 > /proc/sys/net/ipv4/ip_forward && mount -t tmpfs x /tmp && touch /tmp/x && umount /tmp && hostname changed")
        .await;
    assert_ne!(container.exec(&["/bin/sh", "-c", "echo 1 > /proc/sys/kernel/panic"]).await.code, 0, "the node's are not");
    assert_ne!(container.exec(&["/bin/mknod", "/tmp/sda", "b", "8", "0"]).await.code, 0);
    assert_ne!(container.exec(&["/bin/sh", "-c", "echo 1 > /sys/kernel/profiling"]).await.code, 0);
    let pid = first_process(&container);
    assert_eq!(host::namespace(pid, "user"), fs::metadata(pin(&node, &pod, "user")).expect("it is pinned").ino());
    let plain = pod.start(&ContainerSpec::new("plain", &image)).await;
    assert_ne!(plain.exec(&["/bin/ip", "link", "add", "name", "probe0", "type", "veth"]).await.code, 0);
    assert!(plain.shell("ls -l /sys/class/net").await.contains("eth0"));
    node.finish().await;
}

fn pin(node: &Node, pod: &Pod, kind: &str) -> PathBuf {
    node.footprint.state.join("pods").join(&pod.id).join("ns").join(kind)
}

#[tokio::test]
async fn devices_terminal_and_files_are_as_in_any_pod() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = pod(&node, "files").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    container.shell("echo x > /dev/null && head -c 8 /dev/urandom | wc -c && head -c 4 /dev/zero | od -c").await;
    container.shell("echo shared > /dev/shm/x && test -w /etc/resolv.conf && test -w /etc/hosts && cat /etc/hostname").await;
    assert_eq!(container.shell("stat -c %u:%a /dev/shm /etc/hosts").await, "0:1777\n0:644");
    assert_eq!(
        container.shell("head -c 16 /proc/kcore | wc -c; ls /sys/firmware | wc -l; ls -d /dev/mqueue /dev/pts/ptmx").await,
        "0\n0\n/dev/mqueue\n/dev/pts/ptmx"
    );
    let other = pod.start(&ContainerSpec::new("other", &image).security(|s| s.run_as_username = "alice".into())).await;
    assert_eq!(other.shell("cat /dev/shm/x; echo y > /dev/shm/y; stat -c %u /dev/shm/y").await, "shared\n1000");
    let script = "tty; test -t 0 && test -t 1 && echo terminal > /dev/console; stat -c %u:%g /dev/pts/0; sleep 100000";
    let terminal = ContainerSpec::new("terminal", &image).script(script).with(|config| config.tty = true);
    let terminal = pod.start(&terminal).await;
    terminal.logged("0:5").await;
    assert_eq!(terminal.lines("stdout"), ["/dev/pts/0", "terminal", "0:5"]);
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_is_root_of_its_pod_only() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("privileged").users(ROOT, LENGTH).privileged();
    let pod = node.run(&spec).await;
    let container = pod.start(&ContainerSpec::new("c", &image).security(|s| s.privileged = true)).await;
    container.shell("mount -t tmpfs x /tmp && echo 1 > /proc/sys/net/ipv4/ip_forward").await;
    for script in ["echo 1 > /proc/sys/kernel/panic", "echo 0 > /sys/kernel/profiling", "cat /proc/1/root/etc/shadow > /dev/kmsg"] {
        assert_ne!(container.exec(&["/bin/sh", "-c", script]).await.code, 0, "{script}");
    }
    let disks = "for d in $(find /dev -type b); do head -c 1 $d > /dev/null 2>&1 && echo $d; done; true";
    assert_eq!(container.shell(disks).await, "", "the node's disks stay the node's");
    node.finish().await;
}

#[tokio::test]
async fn containers_share_process_ids_with_their_pod_alone() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("pids").users(ROOT, LENGTH).pid_mode(NamespaceMode::Pod);
    let pod = node.run(&spec).await;
    let shared = |name: &str| ContainerSpec::new(name, &image).pid_mode(NamespaceMode::Pod);
    let one = pod.start(&shared("one").command(&["/bin/sleep", "4242"])).await;
    let two = pod.start(&shared("two")).await;
    let listed = two.shell("ps -o pid,user,args").await;
    assert!(listed.contains("sleep 4242") && listed.contains("coracle-init"), "{listed}");
    assert_eq!(host::namespace(first_process(&one), "pid"), host::namespace(first_process(&two), "pid"));
    two.shell("sh -c 'sleep 0.1 & exit' ; true").await;
    let own = pod.start(&ContainerSpec::new("own", &image)).await;
    assert!(!own.shell("ps").await.contains("sleep 4242"));
    let debug = ContainerSpec::new("debug", &image).security(|s| {
        let options = s.namespace_options.get_or_insert_default();
        options.set_pid(NamespaceMode::Target);
        options.target_id = own.id.clone();
    });
    let debug = pod.start(&debug).await;
    assert_eq!(host::namespace(first_process(&debug), "pid"), host::namespace(first_process(&own), "pid"));
    assert_eq!(debug.shell("cat /proc/1/cmdline | tr '\\0' ' '").await, "/bin/sleep 100000");
    let refused = ContainerSpec::new("node", &image).pid_mode(NamespaceMode::Node);
    node.refused(pod.try_create(&refused).await, Code::InvalidArgument, "user namespace");
    node.finish().await;
}

#[tokio::test]
async fn pods_with_users_of_their_own_are_strangers() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let one = node.run(&PodSpec::new("one").users(ROOT, LENGTH)).await;
    let two = node.run(&PodSpec::new("two").users(ROOT + LENGTH, LENGTH)).await;
    let (one, two) = (one.start(&ContainerSpec::new("c", &image)).await, two.start(&ContainerSpec::new("c", &image)).await);
    let (first, second) = (first_process(&one), first_process(&two));
    assert_ne!(host::namespace(first, "user"), host::namespace(second, "user"));
    assert_eq!(host::status_field(second, "Uid").split_whitespace().next(), Some("1376256"));
    for container in [&one, &two] {
        assert_eq!(container.shell("stat -c %u /bin/busybox; id -u").await, "0\n0", "of one image");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_nodes_network_can_be_used_but_not_changed() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("hostnet").host_network().users(ROOT, LENGTH)).await;
    let container = pod.start(&ContainerSpec::new("c", &image).security(all_capabilities)).await;
    let own = std::process::id().cast_signed();
    assert_eq!(host::namespace(first_process(&container), "net"), host::namespace(own, "net"));
    assert_ne!(host::namespace(first_process(&container), "user"), host::namespace(own, "user"));
    container.shell("test -e /sys/class/net/lo").await;
    assert_ne!(container.exec(&["/bin/ip", "link", "add", "name", "probe0", "type", "veth"]).await.code, 0);
    assert_ne!(container.exec(&["/bin/sh", "-c", "echo 1 > /sys/class/net/lo/mtu"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_mapped_is_refused() {
    let Some(node) = node().await else { return };
    let image = node.busybox().await;
    let spoiled = |change: fn(&mut api::UserNamespace)| {
        let mut spec = PodSpec::new("spoiled").users(ROOT, LENGTH);
        change(spec.namespaces().userns_options.get_or_insert_default());
        spec
    };
    let bad: [fn(&mut api::UserNamespace); 6] = [
        |users| users.uids.push(api::IdMapping { host_id: 5_000_000, container_id: 65_536, length: 10 }),
        |users| users.gids[0].container_id = 1,
        |users| users.gids.clear(),
        |users| users.uids[0].length = 0,
        |users| users.set_mode(NamespaceMode::Container),
        |users| users.set_mode(NamespaceMode::Target),
    ];
    for change in bad {
        node.refused(node.try_run(&spoiled(change)).await, Code::InvalidArgument, "userns_options");
    }
    let mut spec = PodSpec::new("ipc").users(ROOT, LENGTH);
    spec.namespaces().ipc = NamespaceMode::Node.into();
    node.refused(node.try_run(&spec).await, Code::InvalidArgument, "IPC");
    let pod = pod(&node, "good").await;
    let with = |name: &str, users: api::UserNamespace| {
        ContainerSpec::new(name, &image).security(|s| s.namespace_options.get_or_insert_default().userns_options = Some(users))
    };
    node.refused(pod.try_create(&with("other", users(ROOT + 1, LENGTH))).await, Code::InvalidArgument, "userns_options");
    let node_users = api::UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    node.refused(pod.try_create(&with("node", node_users)).await, Code::InvalidArgument, "userns_options");
    let source = volume(&node, "volume");
    let mount = ContainerSpec::new("mount", &image).mapped_mount(source.to_str().expect("text"), "/x", &users(ROOT + 1, LENGTH));
    node.refused(pod.try_create(&mount).await, Code::InvalidArgument, "uidMappings");
    let beyond = ContainerSpec::new("beyond", &image).security(|s| s.run_as_user = number(70_000));
    node.refused(pod.try_create(&beyond).await, Code::InvalidArgument, "user 70000");
    assert!(pod.try_create(&with("same", users(ROOT, LENGTH))).await.is_ok());
    node.finish().await;
}

#[tokio::test]
async fn it_outlives_the_daemon_and_leaves_nothing() {
    let Some(mut node) = node().await else { return };
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let spec = PodSpec::new("lasting").users(ROOT, LENGTH).pid_mode(NamespaceMode::Pod);
    let pod = node.run(&spec).await;
    let container = pod.start(&ContainerSpec::new("c", &image).script("trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done")).await;
    container.logged("up").await;
    node.restart().await;
    assert_eq!(container.shell("id -u; awk '{print $2}' /proc/self/uid_map").await, format!("0\n{ROOT}"));
    let late = pod.start(&ContainerSpec::new("late", &image)).await;
    assert_eq!(late.shell("stat -c %u /bin/busybox").await, "0");
    container.stop(10).await;
    assert_eq!(container.exited().await.exit_code, 7);
    for round in 0..10 {
        let quick = pod.run(&ContainerSpec::new(&format!("quick{round}"), &image).command(&["/bin/false"])).await;
        assert_eq!(quick.0.exit_code, 1);
    }
    let missing = pod.create(&ContainerSpec::new("missing", &image).command(&["/no/such/program"])).await;
    let refused = node.cri.start(&missing.id).await;
    assert!(refused.is_err_and(|status| status.message().contains("/no/such/program")));
    node.kill_daemon();
    node.start_daemon().await;
    pod.stop().await;
    assert!(!pin(&node, &pod, "user").exists() || fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| !mounts.contains(&pod.id)));
    node.finish().await;
}
