//! Volumes: images, propagation, read-only mounts, options, targets; and what a hostile image makes of them. Everything is
//! looked at from inside the container and from the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_e2e::api::{self, MountPropagation};
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::leaks::tree;
use coracle_e2e::{Code, Container, ContainerSpec, Node, Pod, PodSpec, host, wire};
use prost::Message;
use tonic::Status;

/// A field `mounts` of ContainerConfig: CRI's Mount with fields that the generated types lack.
fn volume(target: &str, more: &[Vec<u8>]) -> Vec<u8> {
    wire::bytes(7, &[wire::bytes(1, target.as_bytes()), more.concat()].concat())
}

fn from_host(path: &Path) -> Vec<u8> {
    wire::bytes(2, path.to_string_lossy().as_bytes())
}

fn read_only() -> Vec<u8> {
    wire::number(3, 1)
}

fn recursively_read_only() -> Vec<u8> {
    wire::number(8, 1)
}

fn from_image(name: &str, part: &str) -> Vec<u8> {
    [wire::bytes(9, &wire::bytes(1, name.as_bytes())), wire::bytes(10, part.as_bytes())].concat()
}

fn option(word: &str) -> Vec<u8> {
    wire::bytes(11, word.as_bytes())
}

async fn start_with(pod: &Pod, spec: &ContainerSpec, volumes: &[Vec<u8>]) -> Container {
    let container = pod.create_with(spec, &volumes.concat()).await;
    container.start().await;
    container
}

/// CreateContainer with `volumes`, which must be turned down.
async fn refusal(node: &Node, pod: &Pod, spec: &ContainerSpec, volumes: &[Vec<u8>]) -> Status {
    let request = api::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(spec.config.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    let message = [request.encode_to_vec(), wire::bytes(2, &volumes.concat())].concat();
    node.cri.raw("CreateContainer", message).await.expect_err("this container must be refused")
}

fn privileged(name: &str) -> PodSpec {
    PodSpec::new(name).with(|config| config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true)
}

/// A directory of the host with a file `marker` in it.
fn directory(node: &Node, name: &str) -> PathBuf {
    let path = node.scratch().join(name);
    fs::create_dir_all(&path).expect("making a directory");
    fs::write(path.join("marker"), format!("{name}\n")).expect("writing a file");
    path
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// An image that is data, a program and some traps.
fn model() -> Image {
    let busybox = fs::read("/usr/bin/busybox").or_else(|_| fs::read("/bin/busybox")).expect("busybox-static is installed");
    let lower = Layer::new()
        .directory("bin", 0o755, (0, 0))
        .file("bin/echo", 0o755, &busybox)
        .directory("weights", 0o750, (1000, 50))
        .owned_file("weights/large", 0o640, (1000, 50), b"large\n")
        .file("weights/gone", 0o644, b"")
        .directory("old", 0o755, (0, 0))
        .file("old/file", 0o644, b"")
        .file("readme", 0o644, b"read me\n");
    let upper = Layer::new()
        .directory("weights", 0o750, (1000, 50))
        .whiteout("weights/gone")
        .whiteout("old")
        .symlink("alias", "/weights")
        .symlink("up", "../../../../../../../../../etc")
        .symlink("host", "/etc/passwd")
        .symlink("magic", "/proc/self/root");
    Image::scratch().layer(&lower.into_tar(), Compression::Gzip).layer(&upper.into_tar(), Compression::Gzip)
}

#[tokio::test]
async fn an_image_is_a_read_only_volume() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let name = node.pull("model", &model()).await;
    let id = node.cri.image(&name).await.expect("ImageStatus").expect("it is here").id;
    let pod = node.pod("images").await;
    let before = points(&node);
    let volumes = [
        volume("/by/id", &[read_only(), from_image(&id, "")]),
        volume("/by/name", &[read_only(), from_image(&name, "")]),
        volume("/part", &[read_only(), from_image(&id, "weights")]),
        volume("/etc/file", &[read_only(), from_image(&id, "weights/large")]),
        volume("/alias", &[read_only(), from_image(&id, "alias")]),
        volume("/still", &[read_only(), from_image(&id, ""), option("noexec")]),
    ];
    let container = start_with(&pod, &ContainerSpec::new("c", &image), &volumes).await;
    assert_eq!(container.shell("cd /by/id; ls -A; ls -A weights").await, "alias\nbin\nhost\nmagic\nreadme\nup\nweights\nlarge");
    assert_eq!(container.shell("cat /by/name/readme /part/large /etc/file /alias/large").await, "read me\nlarge\nlarge\nlarge");
    assert_eq!(container.shell("stat -c %a:%u:%g /by/id/weights /part /etc/file").await, "750:1000:50\n750:1000:50\n640:1000:50");
    assert_eq!(container.shell("/by/id/bin/echo runs").await, "runs");
    assert_ne!(container.exec(&["/bin/sh", "-c", "/still/bin/echo"]).await.code, 0, "noexec is honoured");
    for script in ["touch /by/id/x", "rm /part/large", "echo >/etc/file", "mount -o remount,rw /by/id"] {
        let output = container.exec(&["/bin/sh", "-c", script]).await;
        assert!(output.code != 0, "{script}: {output:?}");
    }
    let told: Vec<_> = node.told_mounts(&container).await;
    let images: Vec<_> = told.iter().map(|mount| (text_of(mount, 1), image_of(mount))).collect();
    assert_eq!(images[0], ("/by/id".to_owned(), (id.clone(), id.clone())));
    assert_eq!(images[1], ("/by/name".to_owned(), (name.clone(), id.clone())), "the digest is told whatever the image was called");
    assert_eq!(text_of(&told[2], 10), "weights");
    assert_eq!(points(&node), before, "nothing is mounted on the host");
    node.finish().await;
}

trait Told {
    async fn told_mounts(&self, container: &Container) -> Vec<Vec<u8>>;
}

impl Told for Node {
    /// The mounts of a container's status, as messages.
    async fn told_mounts(&self, container: &Container) -> Vec<Vec<u8>> {
        let answer = self.cri.raw("ContainerStatus", wire::bytes(1, container.id.as_bytes())).await.expect("ContainerStatus");
        messages(&messages(&answer, 1)[0], 14)
    }
}

fn messages(message: &[u8], field: u32) -> Vec<Vec<u8>> {
    let values = wire::find(message, field).into_iter();
    values.filter_map(|value| if let wire::Value::Bytes(bytes) = value { Some(bytes) } else { None }).collect()
}

fn text_of(message: &[u8], field: u32) -> String {
    messages(message, field).first().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

/// The image of a mount: as it was called, and as it was found.
fn image_of(mount: &[u8]) -> (String, String) {
    let image = messages(mount, 9).first().cloned().unwrap_or_default();
    (text_of(&image, 1), text_of(&image, 20))
}

#[tokio::test]
async fn an_image_is_a_volume_for_users_of_a_pods_own_too() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let name = node.pull("model", &model()).await;
    let Ok(pod) = node.try_run(&PodSpec::new("users").users(1_310_720, 65_536)).await else {
        eprintln!("skipped: pods cannot have users of their own here");
        return node.finish().await;
    };
    let volumes = [
        volume("/all", &[read_only(), from_image(&name, "")]),
        volume("/part", &[read_only(), from_image(&name, "weights")]),
        volume("/own", &[read_only(), from_image(&image, "etc/motd")]),
    ];
    let container = start_with(&pod, &ContainerSpec::new("c", &image), &volumes).await;
    assert_eq!(container.shell("stat -c %u:%g /all/readme /all/weights /part /own").await, "0:0\n1000:50\n1000:50\n0:0");
    assert_eq!(container.shell("cat /all/readme /part/large /own").await, "read me\nlarge\nwelcome aboard");
    assert_ne!(container.exec(&["/bin/touch", "/all/x"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn an_image_volume_that_cannot_be_is_refused_in_the_kubelets_word() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let name = node.pull("model", &model()).await;
    let pod = node.pod("refused").await;
    let spec = ContainerSpec::new("c", &image);
    let absent = format!("sha256:{}", "0".repeat(64));
    let cases = [
        (from_image(&absent, ""), absent.as_str()),
        (from_image("no/such:image", ""), "no/such:image"),
        (from_image(&name, "weights/gone"), "weights/gone"),
        (from_image(&name, "old/file"), "old/file"),
        (from_image(&name, "up"), "up"),
        (from_image(&name, "host"), "host"),
        (from_image(&name, "magic"), "magic"),
    ];
    for (source, subject) in cases {
        let status = refusal(&node, &pod, &spec, &[volume("/v", &[read_only(), source])]).await;
        assert_eq!(status.code(), Code::Unknown, "{}", status.message());
        assert!(status.message().starts_with("ImageVolumeMountFailed: ") && status.message().contains(subject), "{}", status.message());
    }
    let writable = refusal(&node, &pod, &spec, &[volume("/v", &[from_image(&name, "")])]).await;
    assert_eq!((writable.code(), writable.message().contains("readonly")), (Code::InvalidArgument, true), "{}", writable.message());
    let climbing = refusal(&node, &pod, &spec, &[volume("/v", &[read_only(), from_image(&name, "../x")])]).await;
    assert_eq!(climbing.code(), Code::InvalidArgument, "{}", climbing.message());
    assert_eq!(node.cri.containers(None).await.expect("ListContainers"), []);
    node.finish().await;
}

#[tokio::test]
async fn an_image_in_use_as_a_volume_keeps_its_layers() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let name = node.pull("model", &model()).await;
    let pod = node.pod("kept").await;
    let waiting = pod.create_with(&ContainerSpec::new("waiting", &image), &volume("/v", &[read_only(), from_image(&name, "")])).await;
    let running = start_with(&pod, &ContainerSpec::new("running", &image), &[volume("/v", &[read_only(), from_image(&name, "")])]).await;
    let layers = |node: &Node| fs::read_dir(node.footprint.storage.join("layers")).expect("the layers").count();
    let before = layers(&node);
    node.cri.remove_image(&name).await.expect("RemoveImage, as of an image that a container was made from");
    assert!(node.cri.image(&name).await.expect("ImageStatus").is_none(), "it is not listed");
    assert_eq!(layers(&node), before, "its layers stay");
    node.restart().await;
    assert_eq!(layers(&node), before, "a restarted daemon knows of them");
    waiting.start().await;
    assert_eq!(waiting.shell("cat /v/weights/large").await, "large");
    assert_eq!(running.shell("cat /v/weights/large; /v/bin/echo runs").await, "large\nruns");
    waiting.remove().await;
    node.restart().await;
    assert_eq!(layers(&node), before, "one container is left");
    running.remove().await;
    node.restart().await;
    assert_eq!(layers(&node), before - 2, "nobody wants them");
    node.finish().await;
}

#[tokio::test]
async fn an_image_of_many_layers_is_a_volume_like_any() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let numbers = 0..200_usize;
    let layer = |number: &usize| Layer::new().file(&format!("l{number}"), 0o644, b"").file("top", 0o644, number.to_string().as_bytes());
    let many = numbers.clone().fold(Image::scratch(), |image, number| image.layer(&layer(&number).into_tar(), Compression::Plain));
    let many = node.pull("many", &many).await;
    let empty = node.pull("empty", &Image::scratch()).await;
    let pod = node.pod("layers").await;
    let volumes = [volume("/v", &[read_only(), from_image(&many, "")]), volume("/none", &[read_only(), from_image(&empty, "")])];
    let container = start_with(&pod, &ContainerSpec::new("c", &image), &volumes).await;
    assert_eq!(container.shell("ls /v | wc -l; cat /v/top; ls -A /none | wc -l").await, "201\n1990");
    assert_ne!(container.exec(&["/bin/touch", "/none/x"]).await.code, 0, "also an empty one is read-only");
    node.finish().await;
}

/// A mount point of the host, and its path; `kind` is an option of mount(8).
fn mount_point(node: &Node, name: &str, kind: &str) -> PathBuf {
    let path = directory(node, name);
    fs::create_dir_all(path.join("later")).expect("making a directory");
    host::run("mount", &["--bind", &text(&path), &text(&path)]).expect("making a mount point");
    host::run("mount", &[kind, &text(&path)]).expect("changing its propagation");
    path
}

/// The host's mount points in the node's scratch directory; elsewhere are those of other tests.
fn points(node: &Node) -> BTreeSet<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the host's mounts");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(node.scratch())).collect()
}

fn unmount(path: &Path) {
    host::run("umount", &["-R", &text(path)]).expect("unmounting");
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
    let pod = node.run(&privileged("both")).await;
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
    let pod = node.run(&privileged("refused")).await;
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
    let told = node.told_mounts(&container).await;
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
    for handler in messages(&features, 3) {
        assert_eq!(wire::find(&messages(&handler, 2)[0], 1), [wire::Value::Number(1)], "the kernel has it");
    }
    node.finish().await;
}

#[tokio::test]
async fn mount_options_hold_for_a_volume_and_what_is_mounted_in_it() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let data = mount_point(&node, "data", "--make-private");
    host::run("mount", &["-t", "tmpfs", "none", &text(&data.join("later"))]).expect("mounting");
    let pod = node.run(&privileged("options")).await;
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
    let told = node.told_mounts(&container).await;
    unmount(&data);
    assert_eq!(found, [(true, true), (true, true), (false, false), (false, false)]);
    assert!(flags.lines().count() == 2 && flags.lines().all(|line| line.contains("nosuid,nodev,noexec")), "{flags}");
    assert_eq!((bad.code(), bad.message().contains("mount_options")), (Code::InvalidArgument, true), "{bad}");
    assert_eq!(messages(&told[0], 11).concat(), b"noexecnodevnosuid");
    let features = messages(&node.cri.raw("Status", Vec::new()).await.expect("Status"), 4);
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
        eprintln!("skipped: this machine has no device that containers may not use anyway");
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

/// Everything in a directory, with what it is.
fn picture(directory: &Path) -> Vec<String> {
    let describe = |path: &PathBuf| {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        let content = if metadata.is_file() { fs::read(path).expect("it can be read") } else { Vec::new() };
        format!("{} {:?} {:?} {content:?}", path.display(), metadata.file_type(), metadata.permissions())
    };
    tree(directory).iter().map(describe).collect()
}

#[tokio::test]
async fn a_hostile_image_leads_nothing_outside() {
    let Some(node) = Node::own().await else { return };
    let outside = directory(&node, "outside");
    fs::create_dir(outside.join("sub")).expect("making a directory");
    let volume = directory(&node, "volume");
    let (absolute, climbing) = (text(&outside), format!("../../../../../../../..{}", text(&outside)));
    let mut layer = Layer::new();
    for (index, link) in ["proc", "sys", "dev", "target", "job", "masked", "fixed", "node", "run"].iter().enumerate() {
        let way = if index % 2 == 0 { &absolute } else { &climbing };
        layer = layer.symlink(link, &format!("{way}/{link}"));
    }
    layer = layer
        .symlink("etc/resolv.conf", &format!("../..{climbing}/marker"))
        .symlink("etc/hosts", &format!("{absolute}/sub/hosts"))
        .symlink("etc/hostname", "/proc/sys/kernel/hostname");
    let image =
        Image::busybox().layer(&layer.into_tar(), Compression::Gzip).set("Volumes", serde_json::json!({ "/target/of/the/image": {} }));
    let image = node.pull("hostile", &image).await;
    let before = picture(&outside);
    let pod = node.run(&privileged("hostile")).await;
    let mounts = points(&node);
    for is_privileged in [false, true] {
        let device = |path: &str| api::Device { container_path: path.into(), host_path: "/dev/zero".into(), permissions: "rwm".into() };
        let spec = ContainerSpec::new(if is_privileged { "privileged" } else { "plain" }, &image)
            .mount(&text(&volume), "/target/vol", false)
            .mount(&text(&volume.join("marker")), "/run/secrets/token", true)
            .with(|config| {
                config.working_dir = "/job/here".into();
                config.devices.extend([device("/node/zero"), device("/dev/ours")]);
            })
            .security(|s| {
                s.privileged = is_privileged;
                s.masked_paths.extend(["/masked/marker".to_owned(), "/masked/sub".to_owned()]);
                s.readonly_paths.push("/fixed/sub".to_owned());
            });
        let container = pod.start(&spec).await;
        let script = format!(
            "cd {absolute}; cat target/vol/marker run/secrets/token; ls -d proc/self sys/kernel dev/null dev/ours node/zero job/here"
        );
        let seen = "volume\nvolume\ndev/null\ndev/ours\njob/here\nnode/zero\nproc/self\nsys/kernel";
        assert_eq!(container.shell(&script).await, seen, "all of it is inside");
        assert_eq!(picture(&outside), before);
        assert_eq!(picture(&volume).len(), 1, "also a volume is left alone: {:?}", picture(&volume));
        assert_eq!(points(&node), mounts);
    }
    node.finish().await;
}

#[tokio::test]
async fn an_image_cannot_have_devices_made_in_a_volume() {
    let Some(node) = Node::own().await else { return };
    let layer = Layer::new().directory("vol", 0o755, (0, 0)).symlink("dev", "/vol");
    let image = node.pull("dev-link", &Image::busybox().layer(&layer.into_tar(), Compression::Gzip)).await;
    let volume = directory(&node, "volume");
    let container = node.pod("link").await.start(&ContainerSpec::new("c", &image).mount(&text(&volume), "/vol", false)).await;
    assert_eq!(container.shell("ls -A /vol").await, "marker");
    assert_eq!(tree(&volume), BTreeSet::from([volume.join("marker")]));
    node.finish().await;
}

#[tokio::test]
async fn links_of_the_kernels_own_lead_nowhere() {
    let Some(node) = Node::own().await else { return };
    let outside = directory(&node, "outside");
    let layer = (3..12).fold(Layer::new(), |layer, number| layer.symlink(&format!("fd{number}"), &format!("/proc/self/fd/{number}")));
    let layer = layer.symlink("cwd", "/proc/self/cwd").symlink("root", "/proc/self/root").symlink("init", "/proc/1/root");
    let image = node.pull("magic", &Image::busybox().layer(&layer.into_tar(), Compression::Gzip)).await;
    let pod = node.pod("magic").await;
    let beneath = text(&outside);
    let names = (3..12).map(|number| format!("fd{number}")).chain(["cwd", "root", "init"].map(str::to_owned));
    for name in names {
        let target = ContainerSpec::new(&format!("t-{name}"), &image).mount(&beneath, &format!("/{name}{beneath}/x"), false);
        let target = pod.create(&target).await;
        let work = ContainerSpec::new(&format!("w-{name}"), &image).with(|config| config.working_dir = format!("/{name}{beneath}/y"));
        let work = pod.create(&work).await;
        for container in [&target, &work] {
            if node.cri.start(&container.id).await.is_ok() {
                assert_eq!(container.exec(&["/bin/ls", &format!("{beneath}/marker")]).await.code, 1, "{name} leads outside");
            }
        }
        assert_eq!(tree(&outside), BTreeSet::from([outside.join("marker")]), "{name}");
    }
    node.finish().await;
}

/// Swaps two names of a directory, as fast as the kernel can, until told to stop.
fn swap(directory: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    std::thread::spawn(move || {
        let (one, other) = (directory.join("one"), directory.join("other"));
        let mut swaps = 0;
        while !stop.load(Ordering::Relaxed) {
            renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("swapping");
            swaps += 1;
        }
        swaps
    })
}

#[tokio::test]
async fn links_that_change_under_way_lead_nothing_outside() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let outside = directory(&node, "outside");
    fs::create_dir(outside.join("deep")).expect("making a directory");
    let before = picture(&outside);
    let pod = node.pod("race").await;
    let (mut started, mut round) = (0, 0);
    for link in [text(&outside), format!("../../../../../../../../../../../..{}", text(&outside)), "../../../../../..".to_owned()] {
        let volume = directory(&node, &format!("volume{round}"));
        fs::create_dir_all(volume.join("one/deep/point")).expect("making directories");
        symlink(&link, volume.join("other")).expect("making a link");
        let stop = Arc::new(AtomicBool::new(false));
        let swapper = swap(volume.clone(), Arc::clone(&stop));
        let mounts = points(&node);
        for _ in 0..12 {
            round += 1;
            let device =
                api::Device { container_path: "/vol/one/deep/device".into(), host_path: "/dev/zero".into(), permissions: "rw".into() };
            let spec = ContainerSpec::new(&format!("c{round}"), &image)
                .mount(&text(&volume), "/vol", false)
                .mount(&text(&volume), "/vol/one/deep/point", false)
                .mount(&text(&volume.join("marker")), "/vol/one/deep/new/file", true)
                .with(|config| {
                    config.working_dir = "/vol/one/deep/work".into();
                    config.devices.push(device);
                })
                .security(|s| {
                    s.masked_paths.push("/vol/one/deep/point".into());
                    s.readonly_paths.push("/vol/one/deep".into());
                });
            let container = pod.create(&spec).await;
            started += usize::from(node.cri.start(&container.id).await.is_ok());
            container.remove().await;
        }
        stop.store(true, Ordering::Relaxed);
        let swaps = swapper.join().expect("the swapping thread");
        assert!(swaps > 1000, "the race was none: {swaps} swaps");
        assert_eq!(picture(&outside), before);
        assert_eq!(points(&node), mounts);
    }
    eprintln!("{started} of {round} containers started");
    node.finish().await;
}
