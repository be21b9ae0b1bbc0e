//! Images: how they are pulled, what becomes of their layers, how they are listed and removed, and what happens
//! when a pull cannot succeed.

use coracle_e2e::api::{AuthConfig, ImageFilter};
use coracle_e2e::cri::image_spec;
use coracle_e2e::faults::Relay;
use coracle_e2e::image::{Dialect, Image};
use coracle_e2e::layer::{self, Compression, Layer};
use coracle_e2e::registry::{Access, Registry, USER};
use coracle_e2e::{Code, ContainerSpec, Node, eventually, host, leaks};
use serde_json::json;

/// An image of one file that tells it from others; its content is `mark`.
fn marked(mark: &str) -> Image {
    Image::busybox().layer(&Layer::new().file("mark", 0o644, mark.as_bytes()).into_tar(), Compression::Gzip)
}

/// Runs a shell script in a container of an image; what it wrote.
async fn script(node: &Node, image: &str, name: &str, script: &str) -> String {
    let pod = node.pod(name).await;
    let (status, text) = pod.run(&ContainerSpec::new("c", image).script(script)).await;
    assert_eq!(status.exit_code, 0, "{text}");
    text
}

#[tokio::test]
async fn one_image_is_known_by_tag_by_digest_and_by_id() {
    let node = Node::start().await;
    let built = marked(&node.scratch().to_string_lossy()).build();
    let first = node.registry.push("known", "one", &built);
    let second = node.registry.push("known", "two", &built);
    let id = node.cri.pull(&first.reference, None).await.expect("by tag");
    assert_eq!(id, built.id(), "PullImage answers with the config's digest");
    assert_eq!(node.cri.pull(&second.reference, None).await.expect("by the other tag"), id);
    assert_eq!(node.cri.pull(&first.by_digest, None).await.expect("by digest"), id);
    assert_eq!(node.cri.pull(&first.reference, None).await.expect("again"), id);
    let by_id = node.cri.image(&id).await.expect("ImageStatus");
    for name in [&first.reference, &second.reference, &first.by_digest, &id] {
        let found = node.cri.image(name).await.expect("ImageStatus").unwrap_or_else(|| panic!("no image {name}"));
        assert_eq!(found.id, id, "{name}");
        assert_eq!(Some(&found), by_id.as_ref(), "an image looks the same whatever it was asked for by: {name}");
        let mut tags = found.repo_tags.clone();
        tags.sort();
        assert_eq!(tags, [first.reference.clone(), second.reference.clone()]);
        assert_eq!(found.repo_digests, [first.by_digest.as_str()]);
        let wire: usize = built.layers.iter().map(|layer| layer.bytes.len()).sum();
        assert!(found.size >= wire as u64 / 2, "a size that is no size: {}", found.size);
    }
    let all = node.cri.all_images(None).await.expect("ListImages");
    assert_eq!(all.iter().filter(|image| image.id == id).count(), 1, "one image, one entry");
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let filter = ImageFilter { image: Some(image_spec(&second.reference)) };
    let filtered = node.cri.all_images(Some(filter)).await.expect("ListImages");
    assert_eq!(filtered.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    node.finish().await;
}

#[tokio::test]
async fn removing_an_image_by_any_name_removes_all_its_names() {
    let node = Node::start().await;
    let built = marked(&format!("remove {}", node.scratch().display())).build();
    let first = node.registry.push("gone", "one", &built);
    let second = node.registry.push("gone", "two", &built);
    for name in [&second.reference, &first.by_digest, &first.id] {
        node.cri.pull(&first.reference, None).await.expect("PullImage");
        node.cri.pull(&second.reference, None).await.expect("PullImage");
        node.cri.remove_image(name).await.unwrap_or_else(|status| panic!("RemoveImage {name}: {status}"));
        for gone in [&first.reference, &second.reference, &first.by_digest, &first.id] {
            assert!(node.cri.image(gone).await.expect("ImageStatus").is_none(), "{gone} is there after {name} was removed");
        }
        assert!(!node.cri.all_images(None).await.expect("ListImages").iter().any(|image| image.id == first.id));
        node.cri.remove_image(name).await.expect("a second RemoveImage is as good as the first");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_tag_that_moved_names_the_new_image() {
    let node = Node::start().await;
    let here = node.scratch().display().to_string();
    let (old, new) = (marked(&format!("old {here}")).build(), marked(&format!("new {here}")).build());
    let reference = node.registry.push("moving", "latest", &old).reference;
    assert_eq!(node.cri.pull(&reference, None).await.expect("PullImage"), old.id());
    node.registry.push("moving", "latest", &new);
    assert_eq!(node.cri.pull(&reference, None).await.expect("PullImage"), new.id());
    assert_eq!(node.cri.image(&reference).await.expect("ImageStatus").map(|image| image.id).as_deref(), Some(new.id()));
    let untagged = node.cri.image(old.id()).await.expect("ImageStatus").expect("the old image is still there under its id");
    assert!(untagged.repo_tags.is_empty(), "{:?}", untagged.repo_tags);
    node.finish().await;
}

#[tokio::test]
async fn a_running_container_does_not_mind_its_image_being_removed() {
    let node = Node::start().await;
    let image = node.pull("used", &marked(&format!("used {}", node.scratch().display()))).await;
    let pod = node.pod("used").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    node.cri.remove_image(&image).await.expect("RemoveImage");
    assert!(container.shell("cat /mark").await.starts_with("used"));
    node.finish().await;
}

#[tokio::test]
async fn layers_come_plain_by_gzip_and_by_zstd_in_either_dialect() {
    let node = Node::start().await;
    for dialect in [Dialect::Oci, Dialect::Docker] {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            if (dialect, compression) == (Dialect::Docker, Compression::Zstd) && node.target.is_foreign() {
                continue;
            }
            let name = format!("{dialect:?}-{compression:?}").to_lowercase();
            let mark = Layer::new().file("mark", 0o644, name.as_bytes()).into_tar();
            let image = Image::scratch().dialect(dialect).layer(layer::busybox(), compression).layer(&mark, compression);
            let reference = node.pull(&name, &image).await;
            assert_eq!(script(&node, &reference, &name, "cat /mark").await, name);
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let node = Node::start().await;
    let ours = marked("ours").build();
    let other = marked("another machine's").architecture("s390x").build();
    let pushed = node.registry.push_index("index", "1", &[&other, &ours]);
    let id = node.cri.pull(&pushed.reference, None).await.expect("PullImage by tag");
    assert_eq!(id, ours.id());
    assert_eq!(node.cri.pull(&pushed.by_digest, None).await.expect("PullImage by the index's digest"), ours.id());
    assert_eq!(script(&node, &pushed.reference, "index", "cat /mark").await, "ours");
    let foreign = node.registry.push_index("index", "2", &[&other]);
    let refused = node.cri.pull(&foreign.reference, None).await;
    node.refused(refused, Code::NotFound, &foreign.reference);
    node.finish().await;
}

#[tokio::test]
async fn layers_are_applied_exactly() {
    let node = Node::start().await;
    let lower = Layer::new()
        .directory("d", 0o750, (12, 34))
        .owned_file("d/owned", 0o640, (56, 78), b"content")
        .hard_link("d/twin", "d/owned", 0o640, (56, 78))
        .symlink("d/link", "owned")
        .symlink("d/dangling", "/no/where")
        .owned_file("d/suid", 0o4755, (0, 0), b"x")
        .file("d/doomed", 0o644, b"x")
        .directory("opaque", 0o755, (0, 0))
        .file("opaque/hidden", 0o644, b"x")
        .directory("replaced", 0o755, (0, 0))
        .file("replaced/inside", 0o644, b"x")
        .device("d/device", 1, 3)
        .file_with_attribute("d/attribute", ("user.colour", b"blue"), b"x")
        .into_tar();
    let upper = Layer::new()
        .whiteout("d/doomed")
        .opaque("opaque")
        .file("opaque/shown", 0o644, b"x")
        .file("replaced", 0o600, b"now a file")
        .symlink("added", "d")
        .into_tar();
    let image = Image::busybox().layer(&lower, Compression::Gzip).layer(&upper, Compression::Zstd);
    let reference = node.pull("exact", &image).await;
    let container = node.pod("exact").await.start(&ContainerSpec::new("c", &reference)).await;
    let stat = async |path: &str| container.shell(&format!("stat -c '%F %a %u:%g %Y' {path}")).await;
    let time = layer::MODIFIED;
    let directory = stat("/d").await;
    assert!(directory.starts_with("directory 750 12:34"), "{directory}");
    assert!(node.target.is_foreign() || directory.ends_with(&time.to_string()), "the layer above does not carry it: {directory}");
    assert_eq!(stat("/d/owned").await, format!("regular file 640 56:78 {time}"));
    assert_eq!(stat("/d/suid").await, format!("regular file 4755 0:0 {time}"));
    assert_eq!(container.shell("cat /d/link /added/twin").await, "contentcontent");
    assert_eq!(container.shell("stat -c %i /d/owned /d/twin | uniq | wc -l").await, "1", "hard links are one file");
    assert_eq!(container.shell("readlink /d/dangling").await, "/no/where");
    assert_eq!(container.shell("stat -c '%F %t,%T' /d/device").await, "character special file 1,3");
    assert_eq!(container.exec(&["/bin/ls", "/d/doomed"]).await.code, 1, "a whiteout removes");
    assert_eq!(container.shell("ls -A /opaque").await, "shown", "an opaque directory starts anew");
    assert_eq!(container.shell("cat /replaced").await, "now a file");
    assert_eq!(container.shell("find / -xdev -name '.wh*' | wc -l").await, "0", "no marker is left");
    let attribute = container.exec(&["/bin/sh", "-c", "command -v getfattr >/dev/null && getfattr -n user.colour /d/attribute"]).await;
    assert!(attribute.code != 0 || attribute.stdout.contains("blue"), "{attribute:?}");
    node.finish().await;
}

#[tokio::test]
async fn an_archive_cannot_write_outside_its_root() {
    let node = Node::start().await;
    let outside = node.scratch().join("outside");
    std::fs::create_dir(&outside).expect("making a directory");
    let target = outside.to_string_lossy().into_owned();
    let climbs = "../".repeat(20);
    for (number, layer) in [
        Layer::new().symlink("door", &target).file("door/in", 0o644, b"x"),
        Layer::new().symlink("door", &format!("{climbs}{target}")).file("door/in", 0o644, b"x"),
        Layer::new().file(&format!("{climbs}{}", target.trim_start_matches('/')), 0o644, b"x"),
        Layer::new().file(&format!("{target}/in"), 0o644, b"x"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = Image::busybox().layer(&layer.into_tar(), Compression::Gzip);
        let pushed = node.push(&format!("escape-{number}"), &image);
        // Whether it is refused or kept within its root is all one.
        let _ = node.cri.pull(&pushed.reference, None).await;
        assert_eq!(leaks::tree(&outside).len(), 0, "archive {number} wrote outside");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_asks_for_a_password_gets_it() {
    let node = Node::start().await;
    let registry = Registry::start(&node.scratch().join("locked"), Access::Password);
    let pushed = registry.push("secret", "1", &marked("secret").build());
    let auth = |username: &str, password: &str| AuthConfig { username: username.into(), password: password.into(), ..Default::default() };
    for wrong in [None, Some(auth(USER.0, "oar-handle-secret"))] {
        let status = node.cri.pull(&pushed.reference, wrong).await.expect_err("without the right password");
        assert!(!status.message().contains("oar-handle-secret"), "a password is told: {status}");
        node.refused(Err::<(), _>(status), Code::PermissionDenied, &pushed.reference);
    }
    assert_eq!(node.cri.pull(&pushed.reference, Some(auth(USER.0, USER.1))).await.expect("PullImage"), pushed.id);
    node.cri.remove_image(&pushed.reference).await.expect("RemoveImage");
    let encoded = AuthConfig { auth: "Y29yYWNsZTpwYWRkbGU=".into(), ..Default::default() };
    assert_eq!(node.cri.pull(&pushed.reference, Some(encoded)).await.expect("PullImage with auth"), pushed.id);
    node.finish().await;
}

#[tokio::test]
async fn what_is_not_in_the_registry_is_not_found() {
    let node = Node::start().await;
    let absent = format!("{}/no/such/image:1", node.registry.host());
    node.refused(node.cri.pull(&absent, None).await, Code::NotFound, &absent);
    assert!(node.cri.image(&absent).await.expect("ImageStatus").is_none());
    node.finish().await;
}

#[tokio::test]
async fn an_absent_registry_is_said_to_be_unavailable() {
    let node = Node::start().await;
    // Port 1 is nobody's.
    let reference = "127.0.0.1:1/lost:1";
    let status = node.cri.pull(reference, None).await.expect_err("nobody listens there");
    if !node.target.is_foreign() {
        // The kubelet looks for its sentinel in messages of code Unknown only.
        assert_eq!(status.code(), Code::Unknown, "{status}");
        assert!(status.message().starts_with("RegistryUnavailable") && status.message().contains(reference), "{status}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let Some(node) = Node::own().await else { return };
    let built = marked(&format!("rotten {}", node.scratch().display())).build();
    let rotten = &built.layers[1];
    let pushed = node.registry.push("rotten", "1", &built);
    node.registry.corrupt(rotten);
    let status = node.cri.pull(&pushed.reference, None).await.expect_err("a corrupt layer");
    assert!(status.message().contains(&rotten.digest), "the message names the layer: {status}");
    assert!(node.cri.image(&pushed.reference).await.expect("ImageStatus").is_none());
    nothing_is_left(&node, &rotten.digest).await;
    let good = node.pull("good", &marked("good")).await;
    assert_eq!(script(&node, &good, "good", "cat /mark").await, "good", "the next pull is not harmed");
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_diff_id_says_is_refused() {
    let node = Node::start().await;
    let pushed = node.push("liar", &marked(&format!("liar {}", node.scratch().display())).with_wrong_diff_ids());
    let status = node.cri.pull(&pushed.reference, None).await.expect_err("wrong diff ids");
    assert!(!status.message().is_empty());
    assert!(node.cri.image(&pushed.reference).await.expect("ImageStatus").is_none());
    node.finish().await;
}

#[tokio::test]
async fn a_layer_that_is_no_archive_is_refused() {
    let node = Node::start().await;
    let noise = noise(4096, b"no archive");
    let pushed = node.push("noise", &Image::busybox().layer(&noise, Compression::Gzip));
    let status = node.cri.pull(&pushed.reference, None).await.expect_err("noise is no archive");
    assert!(!status.message().is_empty());
    assert!(node.cri.image(&pushed.reference).await.expect("ImageStatus").is_none());
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_hangs_up_fails_the_pull_and_a_later_one_succeeds() {
    let node = Node::start().await;
    let noise = Layer::new().file("noise", 0o644, &noise(2 << 20, node.scratch().to_string_lossy().as_bytes())).into_tar();
    let built = marked("interrupted").layer(&noise, Compression::Gzip).build();
    let pushed = node.registry.push("interrupted", "1", &built);
    let relay = Relay::hanging_up_after(300_000, node.registry.address());
    let reference = format!("{}/interrupted:1", relay.host());
    let status = node.cri.pull(&reference, None).await.expect_err("the registry hangs up");
    assert!(relay.has_hung_up(), "the relay hung up");
    assert!(node.target.is_foreign() || status.message().contains(&reference), "the message names the image: {status}");
    assert!(node.cri.image(&reference).await.expect("ImageStatus").is_none());
    assert_eq!(node.cri.pull(&pushed.reference, None).await.expect("directly"), pushed.id);
    assert!(script(&node, &pushed.reference, "interrupted", "cat /mark").await.starts_with("interrupted"));
    node.finish().await;
}

#[tokio::test]
async fn a_full_disk_fails_the_pull_and_deleting_makes_room() {
    let mount = |footprint: &leaks::Footprint| {
        let storage = footprint.storage.to_string_lossy().into_owned();
        host::run("mount", &["-t", "tmpfs", "-o", "size=24m", "none", &storage]).expect("mounting a small file system");
    };
    let Some(node) = Node::own_with(mount).await else { return };
    let storage = node.footprint.storage.to_string_lossy().into_owned();
    let small = node.pull("small", &marked("small")).await;
    let ballast = Layer::new().file("ballast", 0o644, &vec![7; 40 << 20]).into_tar();
    let large = node.push("large", &Image::busybox().layer(&ballast, Compression::Gzip));
    let status = node.cri.pull(&large.reference, None).await.expect_err("it does not fit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("No space left"), "{status}");
    assert!(node.cri.image(&large.reference).await.expect("ImageStatus").is_none());
    eventually("what was fetched in vain to give its room back", || async { (free_space(&storage) > 16 << 20).then_some(()) }).await;
    assert_eq!(script(&node, &small, "small", "cat /mark").await, "small", "what was there still works");
    let filler = node.footprint.storage.join("filler");
    let _ = std::fs::write(&filler, vec![1; 24 << 20]);
    node.cri.remove_image(&small).await.expect("an image can be removed from a full disk");
    std::fs::remove_file(&filler).expect("removing the filler");
    for pod in node.pods().await {
        node.cri.remove_pod(&pod.id).await.expect("a pod can be removed");
    }
    let directory = node.footprint.storage.clone();
    node.finish().await;
    assert!(!directory.exists(), "the node takes its file system with it");
}

/// Bytes that are free on the file system at `path`.
fn free_space(path: &str) -> u64 {
    let text = host::run("df", &["--output=avail", "-B1", path]).expect("df");
    text.lines().last().and_then(|line| line.trim().parse().ok()).expect("a number")
}

#[tokio::test]
async fn simultaneous_pulls_of_one_image_share_the_work() {
    let node = Node::start().await;
    let pushed = node.push("shared", &marked(&format!("shared {}", node.scratch().display())));
    let pulls = (0..6).map(|_| node.cri.pull(&pushed.reference, None));
    for id in futures_util::future::join_all(pulls).await {
        assert_eq!(id.expect("PullImage"), pushed.id);
    }
    assert!(script(&node, &pushed.reference, "shared", "cat /mark").await.starts_with("shared"));
    node.finish().await;
}

#[tokio::test]
async fn the_images_file_system_is_told_before_and_after_a_pull() {
    let Some(node) = Node::own().await else { return };
    let usage = async || {
        let answer = node.cri.images().image_fs_info(coracle_e2e::api::ImageFsInfoRequest {}).await.expect("ImageFsInfo");
        answer.into_inner().image_filesystems.into_iter().next().expect("one file system at least")
    };
    let before = usage().await;
    assert!(before.timestamp > 0);
    assert!(
        before.fs_id.as_ref().is_some_and(|id| node.footprint.storage.starts_with(&id.mountpoint)
            || id.mountpoint.starts_with(&*node.footprint.storage.to_string_lossy()))
    );
    node.busybox().await;
    let used = |usage: &coracle_e2e::api::FilesystemUsage| usage.used_bytes.map_or(0, |bytes| bytes.value);
    let after = usage().await;
    assert!(used(&after) > used(&before) + 500_000, "{before:?} {after:?}");
    node.finish().await;
}

#[tokio::test]
async fn images_survive_the_daemon() {
    let Some(mut node) = Node::own().await else { return };
    let reference = node.pull("lasting", &marked("lasting")).await;
    let before = node.cri.image(&reference).await.expect("ImageStatus");
    node.restart().await;
    assert_eq!(node.cri.image(&reference).await.expect("ImageStatus"), before);
    assert_eq!(script(&node, &reference, "lasting", "cat /mark").await, "lasting");
    node.finish().await;
}

#[tokio::test]
async fn the_user_of_an_image_is_told() {
    let node = Node::start().await;
    let named = node.pull("named", &Image::busybox().set("User", json!("alice"))).await;
    let numbered = node.pull("numbered", &Image::busybox().set("User", json!("1000:1000"))).await;
    let status = async |reference: &str| node.cri.image(reference).await.expect("ImageStatus").expect("it is there");
    assert_eq!(status(&named).await.username, "alice");
    assert_eq!(status(&numbered).await.uid.map(|uid| uid.value), Some(1000), "kubelet's runAsNonRoot looks at it");
    node.finish().await;
}

/// Bytes that do not compress, told apart by a seed.
fn noise(length: usize, seed: &[u8]) -> Vec<u8> {
    let mut state = seed.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(length).collect()
}

/// Waits until the storage directory holds nothing of a layer that was refused, nor anything half done.
async fn nothing_is_left(node: &Node, digest: &str) {
    let hex = digest.trim_start_matches("sha256:");
    let storage = &node.footprint.storage;
    eventually("the remains of a failed pull to go", || async {
        let tree = leaks::tree(storage);
        let of_layer = tree.iter().any(|path| path.to_string_lossy().contains(hex));
        let half_done = tree
            .iter()
            .filter_map(|path| path.strip_prefix(storage).ok())
            .any(|path| path.starts_with("tmp") && path.components().count() > 1);
        (!of_layer && !half_done).then_some(())
    })
    .await;
}
