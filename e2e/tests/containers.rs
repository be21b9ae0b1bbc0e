//! What a container finds around itself: identity, files, devices, namespaces, limits; and how its end is told.
//! Everything is looked at from inside the container or in the kernel's own files on the host.

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{self, Capability, ContainerStatus, DnsConfig, Int64Value, MountPropagation, NamespaceMode, SecurityProfile};
use coracle_e2e::image::Image;
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, eventually, host};
use serde_json::json;

/// A whole number as CRI's optional fields have it.
fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

/// Lines of the file `/proc/self/status` that the container `spec` sees.
async fn own_status(node: &Node, spec: ContainerSpec) -> String {
    let pod = node.pod(&format!("status-{}", rand_name(&spec))).await;
    let (status, text) = pod.run(&spec.command(&["/bin/cat", "/proc/self/status"])).await;
    assert_eq!(status.exit_code, 0, "{status:?}");
    text
}

fn rand_name(spec: &ContainerSpec) -> String {
    spec.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
}

/// The value of a line of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).split_once(':').expect("a colon").1.trim()
}

#[tokio::test]
async fn command_arguments_environment_and_directory_come_from_request_or_image() {
    let node = Node::start().await;
    let told = Image::busybox()
        .set("Entrypoint", json!(["/bin/echo", "entrypoint"]))
        .set("Cmd", json!(["cmd"]))
        .set("Env", json!(["PATH=/bin", "FROM=image", "BOTH=image"]))
        .set("WorkingDir", json!("/srv/made/for/it"));
    let image = node.pull("told", &told).await;
    let pod = node.pod("words").await;
    let named = |name: &str| ContainerSpec::new(name, &image).image_command();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    assert_eq!(pod.run(&named("image")).await.1, "entrypoint cmd");
    assert_eq!(pod.run(&named("args").with(|config| config.args = words(&["args"]))).await.1, "entrypoint args");
    assert_eq!(
        pod.run(&named("command").command(&["/bin/echo", "command"])).await.1,
        "command",
        "the image's arguments go with its entrypoint"
    );
    let both = named("both").command(&["/bin/echo", "command"]).with(|config| config.args = words(&["args"]));
    assert_eq!(pod.run(&both).await.1, "command args");
    let environment = named("environment").command(&["env"]).variable("BOTH", "request").variable("ODD", "a=b\n\"c\" $HOME é");
    let text = pod.run(&environment).await.1;
    for expected in ["FROM=image", "BOTH=request", "PATH=/bin", "ODD=a=b\n\"c\" $HOME é"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!text.contains("BOTH=image"), "{text}");
    assert_eq!(pod.run(&named("directory").command(&["pwd"])).await.1, "/srv/made/for/it", "it is made if the image lacks it");
    let elsewhere = named("elsewhere").command(&["pwd"]).with(|config| config.working_dir = "/home/alice".into());
    assert_eq!(pod.run(&elsewhere).await.1, "/home/alice");
    node.finish().await;
}

#[tokio::test]
async fn the_user_comes_from_request_or_image() {
    let node = Node::start().await;
    let plain = node.busybox().await;
    let alice = node.pull("alice", &Image::busybox().set("User", json!("alice"))).await;
    let numbers = node.pull("numbers", &Image::busybox().set("User", json!("4321:8765"))).await;
    let pod = node.pod("users").await;
    let id = "echo $(id -u):$(id -g):$(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '):$HOME";
    let cases = [
        ("root", ContainerSpec::new("root", &plain), "0:0:0 :/root"),
        ("image-name", ContainerSpec::new("image-name", &alice), "1000:1000:10 50 1000 :/home/alice"),
        ("image-numbers", ContainerSpec::new("image-numbers", &numbers), "4321:8765:8765 :/"),
        ("uid", ContainerSpec::new("uid", &plain).security(|s| s.run_as_user = number(1000)), "1000:1000:10 50 1000 :/home/alice"),
        ("name", ContainerSpec::new("name", &plain).security(|s| s.run_as_username = "alice".into()), "1000:1000:10 50 1000 :/home/alice"),
        ("stranger", ContainerSpec::new("stranger", &plain).security(|s| s.run_as_user = number(7)), "7:0:0 :/"),
        (
            "group",
            ContainerSpec::new("group", &plain).security(|s| {
                s.run_as_user = number(7);
                s.run_as_group = number(8);
                s.supplemental_groups = vec![9, 11];
            }),
            "7:8:8 9 11 :/",
        ),
    ];
    for (name, spec, expected) in cases {
        let (status, text) = pod.run(&spec.script(id)).await;
        assert_eq!(status.exit_code, 0, "{name}");
        if node.target.is_foreign() {
            assert_eq!(text.splitn(3, ':').take(2).collect::<Vec<_>>(), expected.splitn(3, ':').take(2).collect::<Vec<_>>(), "{name}");
        } else {
            assert_eq!(text, expected, "{name}");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn strict_groups_leave_out_those_of_the_image() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("groups").await;
    let spec = ContainerSpec::new("strict", &image).script("id -G; sleep 100000").security(|s| {
        s.run_as_user = number(1000);
        s.supplemental_groups = vec![77];
        s.set_supplemental_groups_policy(api::SupplementalGroupsPolicy::Strict);
    });
    let container = pod.start(&spec).await;
    container.logged("1000").await;
    assert_eq!(container.lines("stdout"), ["1000 77"]);
    let user = container.status().await.user.and_then(|user| user.linux).expect("the status tells the user");
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert!(user.supplemental_groups.contains(&77) && !user.supplemental_groups.contains(&10), "{user:?}");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_are_the_customary_ones_and_change_as_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let named = |name: &str| ContainerSpec::new(name, &image);
    let capability = |add: &[&str], drop: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Some(Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Default::default() })
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
    let bounding = field(&std::fs::read_to_string("/proc/self/status").expect("our own status"), "CapBnd").to_owned();
    let privileged = PodSpec::new("privileged").with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    });
    let pod = node.run(&privileged).await;
    let spec = named("privileged").security(|s| s.privileged = true).command(&["/bin/cat", "/proc/self/status"]);
    assert_eq!(field(&pod.run(&spec).await.1, "CapEff"), bounding, "privileged is all that the runtime itself may have");
    node.finish().await;
}

#[tokio::test]
async fn paths_are_masked_and_read_only_as_asked() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("masks").await;
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
    let masked = pod
        .start(&ContainerSpec::new("masked", &image).security(|s| {
            s.masked_paths = paths(&["/proc/uptime", "/home", "/not/there"]);
            s.readonly_paths = paths(&["/proc/sys", "/var", "/not/there/either"]);
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

#[tokio::test]
async fn system_calls_are_filtered_by_the_profile() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("seccomp").await;
    let filter = "grep ^Seccomp: /proc/self/status | tr -dc 0-9";
    let profile = |kind: ProfileType, file: &str| Some(SecurityProfile { profile_type: kind.into(), localhost_ref: file.to_owned() });
    let standard = pod.start(&ContainerSpec::new("standard", &image)).await;
    assert_eq!(standard.shell(filter).await, "2", "an exec is filtered too");
    let unshare = standard.exec(&["/bin/unshare", "-U", "/bin/true"]).await;
    assert!(unshare.stderr.contains("not permitted"), "{unshare:?}");
    assert_ne!(standard.exec(&["/bin/mount", "-t", "tmpfs", "none", "/tmp"]).await.code, 0);
    let open = pod.start(&ContainerSpec::new("open", &image).security(|s| s.seccomp = profile(ProfileType::Unconfined, ""))).await;
    assert_eq!(open.shell(filter).await, "0");
    let absent = pod.start(&ContainerSpec::new("absent", &image).security(|s| s.seccomp = None)).await;
    assert_eq!(absent.shell(filter).await, "0", "no profile is no confinement");
    let file = node.scratch().join("no-mkdir.json");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30 }],
    });
    std::fs::write(&file, rules.to_string()).expect("writing a profile");
    let local = profile(ProfileType::Localhost, &file.to_string_lossy());
    let local = pod.start(&ContainerSpec::new("local", &image).security(|s| s.seccomp = local)).await;
    assert!(local.exec(&["/bin/mkdir", "/tmp/x"]).await.stderr.contains("Read-only file system"), "the profile's own errno is returned");
    assert_eq!(local.exec(&["/bin/touch", "/tmp/x"]).await.code, 0);
    node.finish().await;
}

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
    let mut shared = PodSpec::new("shared");
    shared.namespaces().pid = NamespaceMode::Pod.into();
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
async fn bind_mounts_show_the_hosts_files() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let host = node.scratch().join("mounts");
    std::fs::create_dir_all(host.join("data/inner")).expect("making directories");
    std::fs::write(host.join("data/file"), "from the host\n").expect("writing a file");
    std::os::unix::fs::symlink("data", host.join("link")).expect("making a link");
    let path = |name: &str| host.join(name).to_string_lossy().into_owned();
    let spec = ContainerSpec::new("c", &image)
        .mount(&path("data"), "/data", false)
        .mount(&path("data"), "/fixed", true)
        .mount(&path("data/file"), "/etc/hosts", true)
        .mount(&path("link"), "/through-link", false)
        .mount(&path("made/at/once"), "/made", false)
        .mount(&path("data/inner"), "/data/over", false);
    let container = node.pod("binds").await.start(&spec).await;
    assert_eq!(container.shell("cat /data/file /fixed/file /etc/hosts /through-link/file | uniq").await, "from the host");
    container.shell("echo from inside >/data/new; touch /made/x /data/over/y").await;
    assert_eq!(std::fs::read_to_string(host.join("data/new")).expect("the file is there"), "from inside\n");
    assert!(host.join("made/at/once/x").exists(), "a missing source is made");
    assert!(host.join("data/inner/y").exists(), "mounts nest in any order");
    assert!(container.exec(&["/bin/touch", "/fixed/z"]).await.stderr.contains("Read-only"));
    assert!(container.exec(&["/bin/sh", "-c", "echo >>/etc/hosts"]).await.stderr.contains("Read-only"));
    let told = container.status().await.mounts;
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(told.iter().any(|mount| mount.container_path == "/fixed" && mount.readonly && mount.host_path == path("data")));
    node.finish().await;
}

#[tokio::test]
async fn mounts_travel_only_as_far_as_they_may() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let shared = node.scratch().join("shared");
    std::fs::create_dir_all(shared.join("later")).expect("making directories");
    let source = shared.to_string_lossy().into_owned();
    host::run("mount", &["--bind", &source, &source]).expect("making a mount point");
    host::run("mount", &["--make-rshared", &source]).expect("sharing it");
    let pod = node.pod("travel").await;
    let slave = ContainerSpec::new("slave", &image).mount(&source, "/s", false);
    let slave = slave.with(|config| config.mounts[0].set_propagation(MountPropagation::PropagationHostToContainer));
    let (slave, private) = (pod.start(&slave).await, pod.start(&ContainerSpec::new("private", &image).mount(&source, "/s", false)).await);
    let later = shared.join("later").to_string_lossy().into_owned();
    host::run("mount", &["-t", "tmpfs", "none", &later]).expect("mounting");
    std::fs::write(shared.join("later/x"), "").expect("writing a file");
    let (seen, unseen) = (slave.shell("ls /s/later").await, private.shell("ls /s/later").await);
    host::run("umount", &[&later]).expect("unmounting");
    host::run("umount", &[&source]).expect("unmounting");
    assert_eq!((seen.as_str(), unseen.as_str()), ("x", ""));
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

/// How a container ended: its code and the reason told for it.
fn ending(status: &ContainerStatus) -> (i32, &str) {
    (status.exit_code, status.reason.as_str())
}

#[tokio::test]
async fn exit_codes_are_the_programs_own() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("codes").await;
    let run = async |name: &str, script: &str| pod.run(&ContainerSpec::new(name, &image).script(script)).await.0;
    assert_eq!(ending(&run("good", "true").await), (0, "Completed"));
    assert_eq!(ending(&run("three", "exit 3").await), (3, "Error"));
    assert_eq!(ending(&run("large", "exit 255").await), (255, "Error"));
    // The first process of a pid namespace is hit by no signal but KILL, so the others are tried in a shared one.
    let mut shared = PodSpec::new("signals");
    shared.namespaces().pid = NamespaceMode::Pod.into();
    let pod = node.run(&shared).await;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        let spec =
            ContainerSpec::new(signal, &image).security(|s| s.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into());
        let container = pod.start(&spec).await;
        host::run("kill", &[&format!("-{signal}"), &container.host_pids()[0].to_string()]).expect("sending a signal");
        assert_eq!(ending(&container.exited().await), (code, "Error"), "{signal}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_kernel_killing_for_memory_is_told() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("greedy").await;
    let limited = |name: &str| ContainerSpec::new(name, &image).resources(|r| r.memory_limit_in_bytes = 24 << 20);
    let greedy = limited("greedy").command(&["/bin/awk", "BEGIN { s = \"x\"; while (1) s = s s }"]);
    let (status, _) = pod.run(&greedy).await;
    assert_eq!(ending(&status), (137, "OOMKilled"), "{status:?}");
    let (status, _) = pod.run(&limited("modest").script("exit 5")).await;
    assert_eq!(ending(&status), (5, "Error"), "a limit that was not reached is no reason");
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
async fn a_terminal_is_one() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let spec = ContainerSpec::new("c", &image)
        .script("tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2")
        .with(|config| config.tty = true);
    let container = node.pod("terminal").await.start(&spec).await;
    assert_eq!(container.exited().await.exit_code, 0);
    let lines = container.lines("stdout");
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end_matches('\r')).collect();
    assert!(lines[0].starts_with("/dev/"), "{lines:?}");
    assert_eq!(lines[1..], ["all", "err"], "a terminal has one stream");
    assert!(container.lines("stderr").is_empty());
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
async fn the_images_stop_signal_is_sent() {
    let node = Node::start().await;
    let image = node.pull("signal", &Image::busybox().set("StopSignal", json!("SIGUSR1"))).await;
    let spec = ContainerSpec::new("c", &image).script("trap 'exit 41' USR1; trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done");
    let container = node.pod("signal").await.start(&spec).await;
    container.logged("ready").await;
    container.stop(60).await;
    assert_eq!(container.status().await.exit_code, 41);
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
