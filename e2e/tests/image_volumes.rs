//! Images as volumes: what is seen of them, how they are told, how long they are kept, and which are refused.

use std::fs;

use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::mount::{from_image, option, points, read_only, refusal, start_with, told, volume};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, skip, wire};

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
    let told: Vec<_> = told(&node, &container).await;
    let images: Vec<_> = told.iter().map(|mount| (text_of(mount, 1), image_of(mount))).collect();
    assert_eq!(images[0], ("/by/id".to_owned(), (id.clone(), id.clone())));
    assert_eq!(images[1], ("/by/name".to_owned(), (name.clone(), id.clone())), "the digest is told whatever the image was called");
    assert_eq!(text_of(&told[2], 10), "weights");
    assert_eq!(points(&node), before, "nothing is mounted on the host");
    node.finish().await;
}

fn text_of(message: &[u8], field: u32) -> String {
    wire::messages(message, field).first().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

/// The image of a mount: as it was called, and as it was found.
fn image_of(mount: &[u8]) -> (String, String) {
    let image = wire::messages(mount, 9).first().cloned().unwrap_or_default();
    (text_of(&image, 1), text_of(&image, 20))
}

#[tokio::test]
async fn an_image_is_a_volume_for_users_of_a_pods_own_too() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let name = node.pull("model", &model()).await;
    let Ok(pod) = node.try_run(&PodSpec::new("users").users(1_310_720, 65_536)).await else {
        skip("pods cannot have users of their own here");
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
