//! Volumes of the host: propagation, read-only mounts, options, targets, devices. Everything is looked at from inside the container
//! and from the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use coracle_e2e::api::{self, MountPropagation};
use coracle_e2e::host::text;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::leaks::tree;
use coracle_e2e::mount::{self, directory, from_host, option, points, read_only, recursively_read_only, refusal, start_with, volume};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, host, skip, wire};

/// A mount point of the host, and its path; `kind` is an option of mount(8).
fn mount_point(node: &Node, name: &str, kind: &str) -> PathBuf {
    let path = directory(node, name);
    fs::create_dir_all(path.join("later")).expect("making a directory");
    host::run("mount", &["--bind", &text(&path), &text(&path)]).expect("making a mount point");
    host::run("mount", &[kind, &text(&path)]).expect("changing its propagation");
    path
}

fn unmount(path: &Path) {
    host::unmount(&["--recursive"], path).expect("unmounting");
}

fn travelling(name: &str, image: &str, source: &Path, propagation: MountPropagation) -> ContainerSpec {
    let spec = ContainerSpec::new(name, image).mount(&text(source), "/s", false);
    spec.with(|config| config.mounts[0].set_propagation(propagation))
}

#[tokio::test]
async fn shared_mounts_travel_both_ways() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let shared = mount_point(&node, "shared", "--make-rshared");
    let pod = node.run(&PodSpec::new("both").privileged()).await;
    let spec = travelling("c", &image, &shared, MountPropagation::PropagationBidirectional).security(|s| s.privileged = true);
    let container = pod.start(&spec).await;
    assert_eq!(container.status().await.mounts[0].propagation(), MountPropagation::PropagationBidirectional);
    let before = points(&node);
    host::run("mount", &["-t", "tmpfs", "none", &text(&shared.join("later"))]).expect("mounting");
    fs::write(shared.join("later/x"), "").expect("writing a file");
    let seen = container.shell("ls /s/later").await;
    container.shell("mkdir /s/own && mount -t tmpfs none /s/own && touch /s/own/y && mount -t tmpfs none /tmp").await;
    let (there, after) = (shared.join("own/y").exists(), points(&node));
    container.remove().await;
    unmount(&shared);
    assert_eq!((seen.as_str(), there), ("x", true));
    let new: Vec<PathBuf> = after.difference(&before).cloned().collect();
    assert_eq!(new, [shared.join("later"), shared.join("own")], "nothing else of the container travels");
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_travel_is_refused() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("refused").privileged()).await;
    let private = mount_point(&node, "private", "--make-private");
    let slave = mount_point(&node, "slave", "--make-shared");
    host::run("mount", &["--make-slave", &text(&slave)]).expect("changing its propagation");
    let by_the_privileged = |spec: ContainerSpec| spec.security(|s| s.privileged = true);
    let (both, inward) = (MountPropagation::PropagationBidirectional, MountPropagation::PropagationHostToContainer);
    let refused = [
        pod.try_create(&by_the_privileged(travelling("a", &image, &private, both))).await,
        pod.try_create(&by_the_privileged(travelling("b", &image, &private.join("later"), inward))).await,
        pod.try_create(&travelling("c", &image, &private, both)).await,
    ];
    unmount(&private);
    unmount(&slave);
    let [both, inward, plain] = refused;
    node.refused(both, Code::FailedPrecondition, &format!("is mounted on {:?} but it is not a shared mount", text(&private)));
    node.refused(inward, Code::FailedPrecondition, &format!("is mounted on {:?} but it is not a shared or slave mount", text(&private)));
    node.refused(plain, Code::InvalidArgument, "privileged");
    node.finish().await;
}

#[tokio::test]
async fn read_only_goes_as_deep_as_asked() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let data = mount_point(&node, "data", "--make-private");
    host::run("mount", &["-t", "tmpfs", "none", &text(&data.join("later"))]).expect("mounting");
    let pod = node.pod("deep").await;
    let volumes =
        [volume("/shallow", &[from_host(&data), read_only()]), volume("/deep", &[from_host(&data), read_only(), recursively_read_only()])];
    let container = start_with(&pod, &ContainerSpec::new("c", &image), &volumes).await;
    let touch = async |path: &str| container.exec(&["/bin/touch", path]).await.stderr.contains("Read-only");
    let found = [touch("/shallow/x").await, touch("/shallow/later/x").await, touch("/deep/x").await, touch("/deep/later/x").await];
    let told = mount::told(&node, &container).await;
    let spec = ContainerSpec::new("refused", &image);
    let mut refusals = Vec::new();
    for propagation in [1, 2] {
        let asked = volume("/v", &[from_host(&data), read_only(), recursively_read_only(), wire::number(5, propagation)]);
        refusals.push(refusal(&node, &pod, &spec, &[asked]).await);
    }
    refusals.push(refusal(&node, &pod, &spec, &[volume("/v", &[from_host(&data), recursively_read_only()])]).await);
    unmount(&data);
    assert_eq!(found, [true, false, true, true]);
    assert_eq!(wire::find(&told[1], 8), [wire::Value::Number(1)], "the status tells it");
    for status in refusals {
        assert_eq!((status.code(), status.message().contains("recursive_read_only")), (Code::InvalidArgument, true), "{status}");
    }
    let features = node.cri.raw("Status", Vec::new()).await.expect("Status");
    for handler in wire::messages(&features, 3) {
        assert_eq!(wire::find(&wire::messages(&handler, 2)[0], 1), [wire::Value::Number(1)], "the kernel has it");
    }
    node.finish().await;
}

#[tokio::test]
async fn mount_options_hold_for_a_volume_and_what_is_mounted_in_it() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let data = mount_point(&node, "data", "--make-private");
    host::run("mount", &["-t", "tmpfs", "none", &text(&data.join("later"))]).expect("mounting");
    let pod = node.run(&PodSpec::new("options").privileged()).await;
    let asked = [from_host(&data), option("noexec"), option("nodev"), option("nosuid")];
    let volumes = [volume("/v", &asked), volume("/free", &[from_host(&data)])];
    let spec = ContainerSpec::new("c", &image).security(|s| s.privileged = true);
    let container = start_with(&pod, &spec, &volumes).await;
    let make = "cp /bin/busybox $d/true; chmod 4755 $d/true; mknod $d/zero c 1 5";
    container.shell(&format!("for d in /free /free/later; do {make}; done")).await;
    let mut found = Vec::new();
    for directory in ["/free", "/free/later", "/v", "/v/later"] {
        let run = container.exec(&["/bin/sh", "-c", &format!("{directory}/true")]).await.code;
        let read = container.exec(&["/bin/sh", "-c", &format!("head -c 1 {directory}/zero | wc -c | grep 1")]).await.code;
        found.push((run == 0, read == 0));
    }
    let flags = container.shell("cut -d' ' -f5,6 /proc/self/mountinfo | grep '^/v' | cut -d' ' -f2").await;
    let bad = refusal(&node, &pod, &ContainerSpec::new("bad", &image), &[volume("/v", &[from_host(&data), option("suid")])]).await;
    let told = mount::told(&node, &container).await;
    unmount(&data);
    assert_eq!(found, [(true, true), (true, true), (false, false), (false, false)]);
    assert!(flags.lines().count() == 2 && flags.lines().all(|line| line.contains("nosuid,nodev,noexec")), "{flags}");
    assert_eq!((bad.code(), bad.message().contains("mount_options")), (Code::InvalidArgument, true), "{bad}");
    assert_eq!(wire::messages(&told[0], 11).concat(), b"noexecnodevnosuid");
    let features = wire::messages(&node.cri.raw("Status", Vec::new()).await.expect("Status"), 4);
    assert_eq!(wire::find(&features[0], 3), [wire::Value::Number(1)], "the runtime says that it honours them");
    node.finish().await;
}

#[tokio::test]
async fn nothing_that_is_supplied_is_clobbered() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let files = directory(&node, "files");
    for name in ["hosts", "resolv.conf", "hostname", "termination", "version"] {
        fs::write(files.join(name), format!("supplied {name}\n")).expect("writing a file");
    }
    let (memory, control, devices) = (directory(&node, "memory"), directory(&node, "control"), directory(&node, "devices"));
    let file = |name: &str| text(&files.join(name));
    let spec = ContainerSpec::new("c", &image)
        .mount(&file("hosts"), "/etc/hosts", false)
        .mount(&file("resolv.conf"), "/etc/resolv.conf", true)
        .mount(&file("hostname"), "/etc/hostname", false)
        .mount(&file("termination"), "/dev/termination-log", false)
        .mount(&file("version"), "/proc/version", true)
        .mount(&text(&memory), "/dev/shm", false)
        .mount(&text(&control), "/sys/fs/cgroup", false);
    let pod = node.pod("supplied").await;
    let container = pod.start(&spec).await;
    let words = container.shell("cat /etc/hosts /etc/resolv.conf /etc/hostname /proc/version").await;
    assert_eq!(words, "supplied hosts\nsupplied resolv.conf\nsupplied hostname\nsupplied version");
    assert_eq!(container.shell("ls /dev/shm /sys/fs/cgroup").await, "/dev/shm:\nmarker\n\n/sys/fs/cgroup:\nmarker");
    container.shell("echo the end >/dev/termination-log; echo x >/dev/shm/new; echo y >>/etc/hosts").await;
    assert_eq!(fs::read_to_string(files.join("termination")).expect("the file"), "the end\n");
    assert_eq!(fs::read_to_string(files.join("hosts")).expect("the file"), "supplied hosts\ny\n");
    assert!(memory.join("new").exists());
    assert_eq!(
        container.shell("echo >/dev/null; ls /dev/pts/ptmx /dev/mqueue -d").await,
        "/dev/mqueue\n/dev/pts/ptmx",
        "the rest of /dev is as ever"
    );
    let whole = pod.start(&ContainerSpec::new("whole", &image).mount(&text(&devices), "/dev", false)).await;
    assert_eq!(whole.shell("ls -A /dev").await, "marker");
    assert_eq!(tree(&devices), BTreeSet::from([devices.join("marker")]), "nothing was made in it");
    node.finish().await;
}

#[tokio::test]
async fn shared_memory_is_as_large_as_ever() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("size").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(container.shell("df -k /dev/shm | tail -n 1 | awk '{print $2}'; stat -c %a /dev/shm").await, "65536\n1777");
    assert_ne!(container.exec(&["/bin/sh", "-c", "head -c 70000000 /dev/zero >/dev/shm/x"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn targets_are_found_or_made_whatever_they_are() {
    let node = Node::start().await;
    let layer = Layer::new()
        .directory("real", 0o755, (0, 0))
        .symlink("link", "/real")
        .symlink("nowhere", "../not/there")
        .directory("run", 0o755, (0, 0))
        .symlink("var/run", "/run");
    let image = Image::busybox().layer(&layer.into_tar(), Compression::Gzip);
    let image = node.pull("targets", &image).await;
    let volumes: Vec<PathBuf> = (0..8).map(|number| directory(&node, &format!("v{number}"))).collect();
    let source = |number: usize| text(&volumes[number]);
    let spec = ContainerSpec::new("c", &image)
        .mount(&source(2), "/a/b/c", false)
        .mount(&source(0), "/a", false)
        .mount(&source(1), "/a/b", true)
        .mount(&source(3), "/link", false)
        .mount(&source(4), "/nowhere/at/all", false)
        .mount(&source(5), "/var/run/secrets", true)
        .mount(&text(&volumes[6].join("marker")), "/etc/motd", true)
        .mount(&text(&volumes[7].join("marker")), "/made/for/it", true);
    fs::create_dir(volumes[1].join("c")).expect("making a directory");
    let pod = node.pod("targets").await;
    let container = pod.start(&spec).await;
    let paths = "/a/marker /a/b/marker /a/b/c/marker /real/marker /not/there/at/all/marker /run/secrets/marker /etc/motd /made/for/it";
    assert_eq!(container.shell(&format!("cat {paths}")).await, "v0\nv1\nv2\nv3\nv4\nv5\nv6\nv7");
    assert_eq!(
        container.shell("for l in /link /nowhere /var/run; do readlink $l; done").await,
        "/real\n../not/there\n/run",
        "links are left as they are"
    );
    let over_a_file = pod.create(&ContainerSpec::new("over", &image).mount(&source(0), "/etc/motd", false)).await;
    let error = node.cri.start(&over_a_file.id).await.expect_err("a directory cannot be put over a file");
    assert!(error.message().contains("/etc/motd"), "{}", error.message());
    let into_read_only =
        pod.create(&ContainerSpec::new("into", &image).mount(&source(0), "/a", true).mount(&source(1), "/a/new", true)).await;
    let error = node.cri.start(&into_read_only.id).await.expect_err("nothing can be made in a read-only volume");
    assert!(error.message().contains("/a/new") && !volumes[0].join("new").exists(), "{}", error.message());
    node.finish().await;
}

#[tokio::test]
async fn devices_can_be_used_as_far_as_permitted() {
    let node = Node::start().await;
    if !Path::new("/dev/fuse").exists() {
        skip("this machine has no device that containers may not use anyway");
        return node.finish().await;
    }
    let image = node.busybox().await;
    let directory = node.scratch().join("devices");
    fs::create_dir_all(directory.join("sub")).expect("making directories");
    host::run("mknod", &[&text(&directory.join("sub/fuse")), "c", "10", "229"]).expect("making a device");
    fs::write(directory.join("no-device"), "").expect("writing a file");
    let pod = node.pod("devices").await;
    let tries = async |name: &str, host: &str, path: &str, permissions: &str| {
        let device = api::Device { container_path: path.into(), host_path: host.into(), permissions: permissions.into() };
        let container = pod.start(&ContainerSpec::new(name, &image).with(|config| config.devices.push(device))).await;
        let node = if path.ends_with("ours") { format!("{path}/sub/fuse") } else { path.to_owned() };
        let opens = async |redirection: &str| container.exec(&["/bin/sh", "-c", &format!(": {redirection}{node}")]).await.code == 0;
        (opens("<").await, opens(">").await)
    };
    assert_eq!(tries("both", "/dev/fuse", "/dev/fuse", "rwm").await, (true, true));
    assert_eq!(tries("read", "/dev/fuse", "/dev/fuse", "r").await, (true, false));
    assert_eq!(tries("write", "/dev/fuse", "/srv/elsewhere", "w").await, (false, true));
    assert_eq!(tries("make", "/dev/fuse", "/dev/fuse", "m").await, (false, false));
    assert_eq!(tries("directory", &text(&directory), "/dev/ours", "rw").await, (true, true));
    let file = api::Device { host_path: text(&directory.join("no-device")), permissions: "r".into(), ..Default::default() };
    let refused = pod.try_create(&ContainerSpec::new("file", &image).with(|config| config.devices.push(file))).await;
    node.refused(refused, Code::InvalidArgument, "no-device");
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
    host::unmount(&[], &shared.join("later")).expect("unmounting");
    host::unmount(&[], &shared).expect("unmounting");
    assert_eq!((seen.as_str(), unseen.as_str()), ("x", ""));
    node.finish().await;
}
