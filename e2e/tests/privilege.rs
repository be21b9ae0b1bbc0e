//! What a container's processes may do: capabilities, privileged containers, paths that are hidden or refuse writes, new
//! privileges. Looked at from inside and in the kernel's own files on the host.

use std::fs;

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{self, Capability};
use coracle_e2e::host::field;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::program::{self, Gate, one_call};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, host, number, profile, strings};

/// Our own bounding set, which is the daemon's.
fn bounding_set() -> String {
    field(&fs::read_to_string("/proc/self/status").expect("our own status"), "CapBnd").to_owned()
}

#[tokio::test]
async fn ambient_capabilities_reach_users_other_than_root() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("ambient").await;
    let spec = |name: &str, change: Capability| {
        ContainerSpec::new(name, &image).security(|s| {
            s.run_as_user = number(1000);
            s.capabilities = Some(change);
        })
    };
    let sets = |status: &str| ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| field(status, set).to_owned());
    let bind = Capability {
        add_ambient_capabilities: strings(&["NET_BIND_SERVICE", "KILL"]),
        drop_capabilities: strings(&["ALL", "KILL"]),
        ..Default::default()
    };
    let container = pod.start(&spec("bind", bind)).await;
    for path in ["/proc/1/status", "/proc/self/status"] {
        assert_eq!(sets(&container.shell(&format!("cat {path}")).await), [0x400; 5].map(|set| format!("{set:016x}")), "{path}");
    }
    let all = Capability { add_ambient_capabilities: strings(&["ALL"]), ..Default::default() };
    let container = pod.start(&spec("all", all)).await;
    assert_eq!(sets(&container.shell("cat /proc/1/status").await), [0; 5].map(|_| bounding_set()));
    let plain = pod.start(&spec("plain", Capability { add_capabilities: strings(&["SYS_TIME"]), ..Default::default() })).await;
    assert_eq!(field(&plain.shell("cat /proc/1/status").await, "CapEff"), format!("{:016x}", 0), "only root has what is not ambient");
    node.finish().await;
}

#[tokio::test]
async fn all_capabilities_are_those_the_runtime_has() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("all").await;
    let with = |name: &str, add: &[&str], drop: &[&str]| {
        let change = Capability { add_capabilities: strings(add), drop_capabilities: strings(drop), ..Default::default() };
        ContainerSpec::new(name, &image).security(|s| s.capabilities = Some(change)).command(&["/bin/cat", "/proc/self/status"])
    };
    let all = pod.run(&with("all", &["ALL"], &[])).await.1;
    assert_eq!((field(&all, "CapEff"), field(&all, "CapBnd")), (bounding_set().as_str(), bounding_set().as_str()));
    assert_eq!(field(&all, "CapInh"), format!("{:016x}", 0), "nothing is left for programs with capabilities of their own");
    let none = pod.run(&with("none", &[], &["all"])).await.1;
    assert_eq!((field(&none, "CapEff"), field(&none, "CapBnd")), ("0000000000000000", "0000000000000000"));
    let but_one = u64::from_str_radix(&bounding_set(), 16).expect("a mask") & !(1 << 13);
    assert_eq!(field(&pod.run(&with("but-one", &["ALL"], &["CAP_NET_RAW"])).await.1, "CapEff"), format!("{but_one:016x}"));
    node.refused(pod.try_create(&with("unknown", &["SWIM"], &[])).await, Code::InvalidArgument, "SWIM");
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_has_the_machine() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let missing = profile(ProfileType::Localhost, "/no/such/profile.json");
    let pod = node.run(&PodSpec::new("privileged").privileged()).await;
    let spec = ContainerSpec::new("c", &image).security(|s| {
        s.privileged = true;
        s.seccomp = missing;
    });
    let container = pod.start(&spec).await;
    let status = container.shell("cat /proc/self/status").await;
    assert_eq!((field(&status, "CapEff"), field(&status, "Seccomp")), (bounding_set().as_str(), "0"), "a profile is not even looked for");
    let mounts = container.shell("cat /proc/mounts").await;
    let options = |point: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(point));
        line.and_then(|line| line.split(' ').nth(3)).unwrap_or_else(|| panic!("{point} in {mounts}")).to_owned()
    };
    assert!(options("/sys").starts_with("rw,") && !mounts.contains(" /proc/kcore "), "{mounts}");
    assert!(mounts.lines().filter(|line| line.contains(" /sys/fs/cgroup/")).all(|line| line.contains(" rw,")), "{mounts}");
    container.shell("d=$(dirname $(find /sys/fs/cgroup -name cgroup.procs | head -n 1)); mkdir $d/x && rmdir $d/x").await;
    container.shell("test -r /proc/timer_list && echo 0 >/proc/sys/net/ipv4/ip_forward && mount -t tmpfs none /tmp && umount /tmp").await;
    let devices = |listing: &str| listing.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let find = "find /dev -mindepth 1 -maxdepth 1 '(' -type b -o -type c ')'";
    let nodes = devices(&host::run("sh", &["-c", find]).expect("the node's devices"));
    let theirs = devices(&container.shell(find).await);
    let absent: Vec<_> =
        nodes.iter().filter(|path| !theirs.contains(*path) && !["/dev/console", "/dev/ptmx"].contains(&path.as_str())).collect();
    assert!(absent.is_empty(), "{absent:?}");
    assert_eq!(container.shell("mknod /tmp/kmsg c 1 11 && exec 3</tmp/kmsg && echo opened").await, "opened", "no device is closed to it");
    let modest = pod.start(&ContainerSpec::new("modest", &image)).await;
    let status = modest.shell("cat /proc/self/status").await;
    assert_eq!((field(&status, "CapEff"), field(&status, "Seccomp")), ("00000000a80425fb", "2"), "its neighbour is none");
    assert_ne!(modest.exec(&["/bin/sh", "-c", "mkdir /sys/fs/cgroup/x || mount -t tmpfs none /tmp"]).await.code, 0);
    let mut plain = node.pod("plain").await;
    node.refused(plain.try_create(&spec_privileged(&image)).await, Code::InvalidArgument, "privileged");
    // So the kubelet tells of a pod to which a privileged container has come.
    plain.config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let status = plain.start(&spec_privileged(&image)).await.shell("cat /proc/self/status").await;
    assert_eq!(field(&status, "CapEff"), bounding_set());
    node.finish().await;
}

#[tokio::test]
async fn selinux_labels_mean_nothing_where_there_is_no_selinux() {
    let node = Node::start().await;
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let options =
        || Some(api::SeLinuxOption { user: "sailor_u".into(), r#type: "sail_t".into(), level: "s0:c1,c2".into(), ..Default::default() });
    let labelled = |config: &mut api::PodSandboxConfig| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().selinux_options = options();
    };
    let pod = node.run(&PodSpec::new("labels").with(labelled)).await;
    let volume = node.scratch().join("volume");
    fs::create_dir(&volume).expect("making a directory");
    let spec = ContainerSpec::new("c", &image).security(|s| s.selinux_options = options());
    let spec = spec.mount(&volume.to_string_lossy(), "/data", false).with(|config| config.mounts[0].selinux_relabel = true);
    let container = pod.start(&spec).await;
    container.shell("touch /data/x /dev/shm/x").await;
    assert!(!container.shell("cat /proc/mounts").await.contains("context="));
    let mut label = [0; 128];
    assert!(rustix::fs::getxattr(&volume, "security.selinux", &mut label[..]).is_err(), "nothing is labelled");
    assert!(container.status().await.mounts[0].selinux_relabel, "the status tells what was asked for");
    node.finish().await;
}

fn spec_privileged(image: &str) -> ContainerSpec {
    ContainerSpec::new("privileged", image).security(|s| s.privileged = true)
}

#[tokio::test]
async fn a_root_that_refuses_writes_lets_volumes_take_them() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let volume = node.scratch().join("volume");
    fs::create_dir(&volume).expect("making a directory");
    let path = volume.to_string_lossy().into_owned();
    let spec = ContainerSpec::new("c", &image).security(|s| s.readonly_rootfs = true);
    let container = node.pod("fixed").await.start(&spec.mount(&path, "/data", false).mount(&path, "/made/for/it", true)).await;
    container.shell("echo written >/data/x && cat /made/for/it/x && echo x >/dev/shm/x && echo x >/dev/null").await;
    assert_eq!(fs::read_to_string(volume.join("x")).expect("the file is there"), "written\n");
    for place in ["/x", "/etc/x", "/made/x", "/made/for/it/y", "/etc/hostname", "/etc/resolv.conf", "/sys/x"] {
        let refused = container.exec(&["/bin/touch", place]).await;
        assert!(refused.code != 0, "{place}: {refused:?}");
        assert!(refused.stderr.contains("Read-only") || place == "/sys/x", "{place}: {refused:?}");
    }
    assert_ne!(container.exec(&["/bin/mount", "-o", "remount,rw", "/"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn proc_and_sys_are_open_as_far_as_the_paths_say() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("proc").await;
    let usual = pod.start(&ContainerSpec::new("usual", &image)).await;
    let open = pod
        .start(
            &ContainerSpec::new("open", &image)
                .security(|s| {
                    s.masked_paths.clear();
                    s.readonly_paths.clear();
                })
                .without_apparmor(),
        )
        .await;
    let mounts = |text: String| text.lines().filter(|line| line.split(' ').nth(1).is_some_and(|p| p.starts_with("/proc/"))).count();
    assert_eq!(mounts(open.shell("cat /proc/mounts").await), 0, "an empty list leaves all of /proc open");
    assert_ne!(mounts(usual.shell("cat /proc/mounts").await), 0);
    open.shell("echo 63 >/proc/sys/net/ipv4/ip_default_ttl && ls /sys/firmware").await;
    // Of these, what the kernel has.
    let secrets = "cat $(ls /proc/keys /proc/timer_list 2>/dev/null) </dev/null";
    assert_ne!(open.shell(secrets).await, "");
    assert_eq!(usual.shell(secrets).await, "");
    assert!(usual.exec(&["/bin/sh", "-c", "echo 62 >/proc/sys/net/ipv4/ip_default_ttl"]).await.stderr.contains("Read-only"));
    for container in [&usual, &open] {
        assert_ne!(container.exec(&["/bin/sh", "-c", "echo 1 >/sys/kernel/profiling"]).await.code, 0, "sysfs refuses writes either way");
        assert!(container.exec(&["/bin/mkdir", "/sys/fs/cgroup/x"]).await.stderr.contains("Read-only"));
    }
    node.finish().await;
}

#[tokio::test]
async fn a_set_user_id_program_gains_nothing_where_new_privileges_are_forbidden() {
    let node = Node::start().await;
    if !program::AVAILABLE {
        return node.finish().await;
    }
    // geteuid: the exit code is the user's number, or its lowest eight bits.
    let layer = Layer::new().file("bin/whoever", 0o4755, &one_call(Gate::Native, 107, 0)).into_tar();
    let image = node.pull("setuid", &Image::busybox().layer(&layer, Compression::Plain)).await;
    let pod = node.pod("escalation").await;
    for (name, forbidden, code) in [("allowed", false, 0), ("forbidden", true, 100)] {
        let spec = ContainerSpec::new(name, &image).security(|s| {
            s.run_as_user = number(100);
            s.no_new_privs = forbidden;
        });
        let container = pod.start(&spec).await;
        assert_eq!(container.exec(&["/bin/whoever"]).await.code, code, "{name}");
        assert_eq!(container.shell("grep NoNewPrivs /proc/1/status | tr -dc 01").await, if forbidden { "1" } else { "0" });
    }
    node.finish().await;
}

/// The file `/proc/self/status` that the container `spec` sees, in a pod of its own.
async fn own_status(node: &Node, spec: ContainerSpec) -> String {
    let name = &spec.config.metadata.as_ref().expect("a container has a name").name;
    let pod = node.pod(&format!("status-{name}")).await;
    let (status, text) = pod.run(&spec.command(&["/bin/cat", "/proc/self/status"])).await;
    assert_eq!(status.exit_code, 0, "{status:?}");
    text
}

#[tokio::test]
async fn capabilities_are_the_customary_ones_and_change_as_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let named = |name: &str| ContainerSpec::new(name, &image);
    let capability = |add: &[&str], drop: &[&str]| {
        Some(Capability { add_capabilities: strings(add), drop_capabilities: strings(drop), ..Default::default() })
    };
    let customary = own_status(&node, named("customary")).await;
    assert_eq!(field(&customary, "CapEff"), "00000000a80425fb");
    assert_eq!(field(&customary, "CapBnd"), "00000000a80425fb");
    let one = own_status(&node, named("one").security(|s| s.capabilities = capability(&["NET_BIND_SERVICE"], &["ALL"]))).await;
    assert_eq!(field(&one, "CapEff"), "0000000000000400");
    assert_eq!(field(&one, "CapBnd"), "0000000000000400");
    let more = own_status(&node, named("more").security(|s| s.capabilities = capability(&["SYS_PTRACE"], &["CHOWN"]))).await;
    assert_eq!(field(&more, "CapEff"), "00000000a80c25fa");
    let user = own_status(&node, named("user").security(|s| s.run_as_user = number(1000))).await;
    assert_eq!(field(&user, "CapEff"), "0000000000000000", "a user other than root has none in effect");
    let bounding = bounding_set();
    let pod = node.run(&PodSpec::new("privileged").privileged()).await;
    let spec = named("privileged").security(|s| s.privileged = true).command(&["/bin/cat", "/proc/self/status"]);
    assert_eq!(field(&pod.run(&spec).await.1, "CapEff"), bounding, "privileged is all that the runtime itself may have");
    node.finish().await;
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("masks").await;
    let masked = pod
        .start(&ContainerSpec::new("masked", &image).security(|s| {
            s.masked_paths = strings(&["/proc/uptime", "/home", "/not/there"]);
            s.readonly_paths = strings(&["/proc/sys", "/var", "/not/there/either"]);
        }))
        .await;
    assert_eq!(masked.exec(&["/bin/cat", "/proc/uptime"]).await.stdout, "", "a masked file is empty");
    assert_eq!(masked.exec(&["/bin/ls", "/home"]).await.stdout, "", "a masked directory is empty");
    assert_ne!(masked.exec(&["/bin/touch", "/home/x"]).await.code, 0, "and nothing can be put there");
    assert!(masked.exec(&["/bin/touch", "/var/x"]).await.stderr.contains("Read-only"));
    assert_ne!(masked.exec(&["/bin/sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]).await.code, 0);
    assert_eq!(masked.exec(&["/bin/touch", "/tmp/x"]).await.code, 0, "everything else is as it was");
    let bare = ContainerSpec::new("bare", &image).security(|s| {
        s.masked_paths.clear();
        s.readonly_paths.clear();
    });
    let bare = pod.start(&bare).await;
    assert_ne!(bare.shell("cat /proc/uptime").await, "");
    assert_eq!(bare.shell("ls /home").await, "alice");
    node.finish().await;
}

#[tokio::test]
async fn the_default_paths_hide_the_machine() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("defaults").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(container.shell("head -c 16 /proc/kcore | wc -c").await, "0");
    assert_eq!(container.shell("ls /sys/firmware | wc -l").await, "0");
    for path in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/kernel/profiling"] {
        let write = container.exec(&["/bin/sh", "-c", &format!("echo >{path}")]).await;
        assert_ne!(write.code, 0, "{path} can be written: {write:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn new_privileges_are_refused_when_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let refused = own_status(&node, ContainerSpec::new("refused", &image).security(|s| s.no_new_privs = true)).await;
    assert_eq!(field(&refused, "NoNewPrivs"), "1");
    let allowed = own_status(&node, ContainerSpec::new("allowed", &image)).await;
    assert_eq!(field(&allowed, "NoNewPrivs"), "0");
    node.finish().await;
}
