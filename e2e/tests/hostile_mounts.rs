//! What hostile images, links that change under way and the kernel's own links make of volumes and their targets: nothing that leads
//! out of the container.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_e2e::host::text;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::leaks::tree;
use coracle_e2e::mount::{directory, points};
use coracle_e2e::{ContainerSpec, Node, PodSpec, api};

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
    let pod = node.run(&PodSpec::new("hostile").privileged()).await;
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

/// Containers that want something beneath `one`, which may be a link by the time it is looked at: a mount, a file, a device, a
/// working directory, something covered.
fn beneath(image: &str, volume: &Path, round: usize) -> ContainerSpec {
    let spec = ContainerSpec::new(&format!("c{round}"), image).mount(&text(volume), "/vol", false);
    match round % 5 {
        0 => spec.mount(&text(volume), "/vol/one/deep/point", false),
        1 => spec.mount(&text(&volume.join("marker")), "/vol/one/deep/new/file", true),
        2 => spec.with(|config| {
            let (container_path, host_path) = ("/vol/one/deep/device".into(), "/dev/zero".into());
            config.devices.push(api::Device { container_path, host_path, permissions: "rw".into() });
        }),
        3 => spec.with(|config| config.working_dir = "/vol/one/deep/work".into()),
        _ => spec.security(|s| {
            s.masked_paths.push("/vol/one/deep/point".into());
            s.readonly_paths.push("/vol/one/deep".into());
        }),
    }
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
        for _ in 0..5 {
            round += 1;
            pod.start(&beneath(&image, &volume, round)).await.remove().await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let swapper = swap(volume.clone(), Arc::clone(&stop));
        let mounts = points(&node);
        for _ in 0..20 {
            round += 1;
            let container = pod.create(&beneath(&image, &volume, round)).await;
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
