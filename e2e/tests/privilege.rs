//! Who a container's processes are and what they may do: users of hostile images, capabilities, privileged containers,
//! file systems that refuse writes, system call filters. Looked at from inside and in the kernel's own files on the host.

use std::fs;

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{self, Capability, Int64Value, LinuxContainerSecurityContext, SecurityProfile};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::program::{self, Gate, one_call};
use coracle_e2e::{Code, ContainerSpec, Node, Pod, PodSpec, host};
use serde_json::{Value, json};

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The value of a line of a file like `/proc/self/status`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

/// Our own bounding set, which is the daemon's.
fn bounding_set() -> String {
    field(&fs::read_to_string("/proc/self/status").expect("our own status"), "CapBnd").to_owned()
}

async fn privileged_pod(node: &Node, name: &str) -> Pod {
    let privileged = |config: &mut api::PodSandboxConfig| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    };
    node.run(&PodSpec::new(name).with(privileged)).await
}

fn profile(kind: ProfileType, file: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: file.to_owned() })
}

/// Writes a profile and refers to it.
fn local_profile(node: &Node, name: &str, content: &str) -> Option<SecurityProfile> {
    let file = node.scratch().join(name);
    fs::write(&file, content).expect("writing a profile");
    profile(ProfileType::Localhost, &file.to_string_lossy())
}

#[tokio::test]
async fn accounts_are_looked_up_inside_the_image_only() {
    let node = Node::start().await;
    let outside = node.scratch().join("passwd");
    fs::write(&outside, "intruder:x:4444:4444::/:/bin/sh\n").expect("writing a file");
    let built = async |name: &str, layer: Layer| node.pull(name, &Image::busybox().layer(&layer.into_tar(), Compression::Plain)).await;
    let led_out = built("led-out", Layer::new().symlink("etc/passwd", &outside.to_string_lossy())).await;
    let climbing = format!("../../../../../../..{}", outside.display());
    let climbs = built("climbs", Layer::new().symlink("etc/passwd", &climbing)).await;
    let inside = Layer::new().symlink("etc/passwd", "../../srv/passwd").file("srv/passwd", 0o644, b"intruder:x:4445:46::/srv:/bin/sh\n");
    let inside = built("inside", inside).await;
    let garbage = b"\xff\xfe\0\n::::\nintruder\nintruder:x:99999999999:1::/:\n#intruder:x:1:1::/:\nintruder:x:4446:47::/:/bin/sh";
    let garbage = built("garbage", Layer::new().file("etc/passwd", 0o644, garbage)).await;
    let huge = built("huge", Layer::new().file("etc/passwd", 0o644, &vec![b'\n'; 5 << 20])).await;
    let device = built("device", Layer::new().device("etc/passwd", 1, 5)).await;

    let pod = node.pod("accounts").await;
    let intruder = |name: &str, image: &str| ContainerSpec::new(name, image).security(|s| s.run_as_username = "intruder".into());
    for (name, image) in [("led-out", &led_out), ("climbs", &climbs)] {
        node.refused(pod.try_create(&intruder(name, image)).await, Code::InvalidArgument, "intruder");
    }
    let id = |spec: ContainerSpec| spec.command(&["/bin/busybox", "sh", "-c", "echo $(id -u):$(id -g):$HOME"]);
    assert_eq!(pod.run(&id(intruder("inside", &inside))).await.1, "4445:46:/srv");
    assert_eq!(pod.run(&id(intruder("garbage", &garbage))).await.1, "4446:47:/");
    for (name, image) in [("huge", &huge), ("device", &device)] {
        node.refused(pod.try_create(&intruder(name, image)).await, Code::Internal, "/etc/passwd");
    }
    node.finish().await;
}

#[tokio::test]
async fn users_that_make_no_sense_are_refused_and_named() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("nobody").await;
    type Change = fn(&mut LinuxContainerSecurityContext);
    let cases: [(&str, Change, &str); 4] = [
        ("name", |s| s.run_as_username = "stowaway".into(), "stowaway"),
        ("group", |s| s.run_as_group = number(7), "run_as_group"),
        (
            "both",
            |s| {
                s.run_as_user = number(0);
                s.run_as_username = "root".into();
            },
            "run_as_username",
        ),
        ("negative", |s| s.supplemental_groups = vec![-1], "supplemental_groups"),
    ];
    for (name, change, subject) in cases {
        node.refused(pod.try_create(&ContainerSpec::new(name, &image).security(change)).await, Code::InvalidArgument, subject);
    }
    let strangers = node.pull("strangers", &Image::busybox().set("User", json!("alice:smugglers"))).await;
    node.refused(pod.try_create(&ContainerSpec::new("strangers", &strangers)).await, Code::InvalidArgument, "smugglers");
    let alone = PodSpec::new("alone").with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().run_as_group = number(7);
    });
    node.refused(node.try_run(&alone).await, Code::InvalidArgument, "run_as_group");
    node.finish().await;
}

#[tokio::test]
async fn an_images_user_may_be_named_with_a_group_and_is_told() {
    let Some(node) = Node::own().await else { return };
    let pod = node.pod("users").await;
    let cases =
        [("alice:staff", (1000, 50), vec![10, 50]), ("alice:7", (1000, 7), vec![7, 10, 50]), ("1000:wheel", (1000, 10), vec![10, 50])];
    for (index, (user, (uid, gid), groups)) in cases.into_iter().enumerate() {
        let image = node.pull(&format!("user-{index}"), &Image::busybox().set("User", json!(user))).await;
        let container = pod.start(&ContainerSpec::new(&format!("c{index}"), &image)).await;
        let ids = "echo $(id -u):$(id -g):$(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')";
        let listed: String = groups.iter().map(|group| format!("{group} ")).collect();
        assert_eq!(container.shell(ids).await, format!("{uid}:{gid}:{}", listed.trim_end()), "{user}");
        let told = container.status().await.user.and_then(|user| user.linux).expect("the status tells the user");
        let mut told_groups = told.supplemental_groups;
        told_groups.sort_unstable();
        assert_eq!((told.uid, told.gid, told_groups), (uid, gid, groups), "{user}");
    }
    let features = node.cri.runtime().status(api::StatusRequest { verbose: false }).await.expect("Status").into_inner().features;
    assert!(features.expect("features are told").supplemental_groups_policy);
    node.finish().await;
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
        add_ambient_capabilities: words(&["NET_BIND_SERVICE", "KILL"]),
        drop_capabilities: words(&["ALL", "KILL"]),
        ..Default::default()
    };
    let container = pod.start(&spec("bind", bind)).await;
    for path in ["/proc/1/status", "/proc/self/status"] {
        assert_eq!(sets(&container.shell(&format!("cat {path}")).await), [0x400; 5].map(|set| format!("{set:016x}")), "{path}");
    }
    let all = Capability { add_ambient_capabilities: words(&["ALL"]), ..Default::default() };
    let container = pod.start(&spec("all", all)).await;
    assert_eq!(sets(&container.shell("cat /proc/1/status").await), [0; 5].map(|_| bounding_set()));
    let plain = pod.start(&spec("plain", Capability { add_capabilities: words(&["SYS_TIME"]), ..Default::default() })).await;
    assert_eq!(field(&plain.shell("cat /proc/1/status").await, "CapEff"), format!("{:016x}", 0), "only root has what is not ambient");
    node.finish().await;
}

#[tokio::test]
async fn all_capabilities_are_those_the_runtime_has() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("all").await;
    let with = |name: &str, add: &[&str], drop: &[&str]| {
        let change = Capability { add_capabilities: words(add), drop_capabilities: words(drop), ..Default::default() };
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
    let pod = privileged_pod(&node, "privileged").await;
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
    node.refused(node.pod("plain").await.try_create(&spec_privileged(&image)).await, Code::InvalidArgument, "privileged");
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

#[tokio::test]
async fn the_deprecated_seccomp_field_is_understood() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("deprecated").await;
    let rules =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42 }] });
    let file = local_profile(&node, "local.json", &rules.to_string()).expect("a profile").localhost_ref;
    let cases = [("", "0"), ("unconfined", "0"), ("runtime/default", "2"), ("docker/default", "2"), (&format!("localhost/{file}"), "2")];
    #[allow(deprecated)]
    let spec = |name: &str, path: &str| {
        ContainerSpec::new(name, &image).security(|s| {
            s.seccomp = None;
            s.seccomp_profile_path = path.to_owned();
        })
    };
    for (index, (path, expected)) in cases.into_iter().enumerate() {
        let script = "grep ^Seccomp: /proc/self/status | tr -dc 0-9; mkdir /tmp/x 2>&1 | grep -o 'No message' || true";
        let (status, text) = pod.run(&spec(&format!("c{index}"), path).script(script)).await;
        let expected = if path.starts_with("localhost/") { "2No message" } else { expected };
        assert_eq!((status.exit_code, text.as_str()), (0, expected), "{path:?}");
    }
    node.refused(pod.try_create(&spec("unknown", "the/best")).await, Code::InvalidArgument, "the/best");
    node.finish().await;
}

#[tokio::test]
async fn profiles_that_cannot_be_used_are_refused_when_the_container_is_created() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("unusable").await;
    let refused = async |name: &str, seccomp: Option<SecurityProfile>, code: Code, subject: &str| {
        let spec = ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp);
        node.refused(pod.try_create(&spec).await, code, subject);
    };
    refused("missing", profile(ProfileType::Localhost, "/no/such/file.json"), Code::InvalidArgument, "/no/such/file.json").await;
    refused("relative", profile(ProfileType::Localhost, "file.json"), Code::InvalidArgument, "file.json").await;
    refused("nameless", profile(ProfileType::Localhost, ""), Code::InvalidArgument, "localhost_ref").await;
    refused("directory", profile(ProfileType::Localhost, "/etc"), Code::InvalidArgument, "regular file").await;
    refused("endless", profile(ProfileType::Localhost, "/dev/zero"), Code::InvalidArgument, "regular file").await;
    refused("garbage", local_profile(&node, "garbage", "{ no profile"), Code::InvalidArgument, "malformed").await;
    let action =
        |action: &str| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": action }] }).to_string();
    refused("action", local_profile(&node, "action", &action("SCMP_ACT_PANIC")), Code::InvalidArgument, "SCMP_ACT_PANIC").await;
    refused("notify", local_profile(&node, "notify", &action("SCMP_ACT_NOTIFY")), Code::Unimplemented, "SCMP_ACT_NOTIFY").await;
    let errno = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 100_000 }).to_string();
    refused("errno", local_profile(&node, "errno", &errno), Code::InvalidArgument, "100000").await;
    node.finish().await;
}

/// The profile that allows everything but what `rules` say.
fn rules(rules: Value) -> String {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules }).to_string()
}

#[tokio::test]
async fn every_action_of_a_profile_is_taken() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("actions").await;
    let run = async |name: &str, rule: Value, script: &str| {
        let seccomp = local_profile(&node, name, &rules(json!([rule])));
        let container = pod.start(&ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp)).await;
        container.exec(&["/bin/sh", "-c", script]).await
    };
    let mkdir = |action: &str| json!({ "names": ["mkdir", "mkdirat"], "action": action });
    assert_eq!(run("log", mkdir("SCMP_ACT_LOG"), "mkdir /tmp/x").await.code, 0);
    assert!(run("trace", mkdir("SCMP_ACT_TRACE"), "mkdir /tmp/x").await.stderr.contains("not implemented"), "nobody traces it");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        assert_eq!(run(action, mkdir(action), "mkdir /tmp/x").await.code, 128 + 31, "{action}: killed by SIGSYS");
    }
    // Modes are the second argument: no directory that its group may write to.
    let shared = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30,
        "args": [{ "index": 1, "value": 0o020, "valueTwo": 0o020, "op": "SCMP_CMP_MASKED_EQ" }] });
    let made = run("arguments", shared, "umask 0; mkdir -m 700 /tmp/x && echo made; busybox mkdir -m 770 /tmp/y; mkdir /tmp/z").await;
    assert!(made.stdout == "made" || made.stderr.contains("Read-only"), "{made:?}");
    assert!(made.stderr.contains("Read-only"), "{made:?}");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_open_the_calls_they_are_for() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("capable").await;
    let with = |name: &str, capability: &str| {
        let change = Capability { add_capabilities: words(&[capability]), ..Default::default() };
        ContainerSpec::new(name, &image).security(|s| s.capabilities = Some(change)).without_apparmor()
    };
    let admin = pod.start(&with("admin", "SYS_ADMIN")).await;
    assert_eq!(admin.shell("grep ^Seccomp: /proc/self/status | tr -dc 0-9").await, "2");
    admin.shell("mount -t tmpfs none /tmp && umount /tmp && unshare -m true && unshare -U true && hostname changed").await;
    let modest = pod.start(&with("modest", "SYS_TIME")).await;
    for script in ["mount -t tmpfs none /tmp", "unshare -m true", "unshare -U true", "hostname changed"] {
        assert_ne!(modest.exec(&["/bin/sh", "-c", script]).await.code, 0, "{script}");
    }
    node.finish().await;
}

#[tokio::test]
async fn no_gate_leads_around_the_filter() {
    let node = Node::start().await;
    if !program::AVAILABLE {
        return node.finish().await;
    }
    const NEW_USER_NAMESPACE: u32 = 0x1000_0000;
    let programs = Layer::new()
        .file("bin/native", 0o755, &one_call(Gate::Native, 272, NEW_USER_NAMESPACE)) // unshare
        .file("bin/compat", 0o755, &one_call(Gate::Compat, 310, NEW_USER_NAMESPACE)) // the same in 32 bits
        .file("bin/x32", 0o755, &one_call(Gate::Native, 0x4000_0000 | 272, NEW_USER_NAMESPACE))
        .file("bin/harmless", 0o755, &one_call(Gate::Compat, 20, 0)) // getpid in 32 bits
        .file("bin/future", 0o755, &one_call(Gate::Native, 999, 0));
    let image = node.pull("gates", &Image::busybox().layer(&programs.into_tar(), Compression::Plain)).await;
    let pod = node.pod("gates").await;
    let start = async |name: &str, seccomp| pod.start(&ContainerSpec::new(name, &image).security(|s| s.seccomp = seccomp)).await;
    let code = async |container: &coracle_e2e::Container, program: &str| container.exec(&[&format!("/bin/{program}")]).await.code;
    const EPERM: i32 = 1;
    const ENOSYS: i32 = 38;

    let open = start("open", None).await;
    assert_eq!((code(&open, "native").await, code(&open, "future").await), (0, ENOSYS));
    // A kernel without 32 bits answers `int 0x80` with a signal; user-mode Linux takes the number for one of 64 bits, where
    // this one writes nothing and says so.
    let compat = code(&open, "compat").await == 0 && code(&open, "harmless").await != 0;

    let standard = start("standard", profile(ProfileType::RuntimeDefault, "")).await;
    assert_eq!(code(&standard, "native").await, EPERM);
    assert_eq!(code(&standard, "x32").await, ENOSYS);
    assert_eq!(code(&standard, "future").await, ENOSYS, "a program may fall back from a call that nobody knows yet");
    if compat {
        assert_eq!(code(&standard, "compat").await, EPERM);
        assert_ne!(code(&standard, "harmless").await, EPERM, "32 bits are not closed as such");
    }

    let denied = json!([{ "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }]);
    let both = start("both", local_profile(&node, "both", &rules(denied.clone()))).await;
    assert_eq!(code(&both, "native").await, 13);
    if compat {
        assert_eq!(code(&both, "compat").await, 13, "the profile names both architectures");
    }
    let one = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied }).to_string();
    let native = start("native", local_profile(&node, "one", &one)).await;
    assert_eq!(code(&native, "native").await, 13);
    for around in ["x32"].into_iter().chain(compat.then_some("compat")) {
        let code = code(&native, around).await;
        assert!(code >= 128 || code == ENOSYS, "{around}: an architecture that the profile does not name is closed: {code}");
    }
    node.finish().await;
}
