//! What containers stand on, and how long it is kept.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coracle_domain::{Error, ImageId, Refusal};
use futures_util::future::join;

use super::{Node, base, container, in_mount_namespace, sample};
use crate::testing::{Tar, TestImage, gzip_layer};
use crate::{Digest, read_file};

#[tokio::test(flavor = "multi_thread")]
async fn the_rootfs_is_the_layers_and_an_empty_one_on_top() {
    let node = Node::new().await;
    let root = Tar::new().entry(tar::EntryType::Directory, "./", "", b"", |h| {
        h.set_mode(0o711);
        h.set_uid(4)
    });
    let image = TestImage::new(
        "sample",
        &[
            gzip_layer(base()),
            gzip_layer(root),
            gzip_layer(Tar::new().dir("etc").file("etc/.wh.gone", "").symlink("etc/alias", "/etc/passwd")),
        ],
    );
    node.registry.push("app", "latest", &image);
    let id = node.pull("app").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    assert_eq!(rootfs.lower.len(), 3);
    assert!(rootfs.lower[0].join("etc/alias").is_symlink() && rootfs.lower[2].join("etc/passwd").exists());
    let upper = std::fs::metadata(&rootfs.upper).unwrap();
    assert_eq!((upper.mode() & 0o7777, upper.uid()), (0o711, 4));
    let read = |path: &str, limit| read_file(&rootfs, Path::new(path), limit);
    assert!(read("/etc/alias", 100).unwrap().unwrap().starts_with(b"root:"));
    assert_eq!(read("/etc/gone", 100).unwrap(), None);
    assert!(read("/etc/passwd", 5).is_err() && read("/etc", 100).is_err());
    std::os::unix::fs::symlink("/../../../../../../../../etc/hostname", rootfs.upper.join("escape")).unwrap();
    assert_eq!(read("escape", 1 << 20).unwrap(), None);

    assert!(matches!(node.store.prepare_rootfs(&id, &container(1), None).await, Err(Error::Refused(Refusal::WrongState { .. }))));
    let nobody: ImageId = Digest::of(b"no image").to_string().parse().unwrap();
    assert!(matches!(node.store.prepare_rootfs(&nobody, &container(2), None).await, Err(Error::Refused(Refusal::NotFound { .. }))));
    assert!(node.store.writable_usage(&container(1)).unwrap().inodes >= 1);
    assert!(node.store.container_usage().bytes > 0);
    node.store.remove_rootfs(&container(1)).await.unwrap();
    node.store.remove_rootfs(&container(1)).await.unwrap();
    assert!(node.names("containers").is_empty() && node.store.rootfs(&container(1)).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_and_one_with_the_same_layer_twice_can_be_mounted() {
    let node = Node::new().await;
    node.registry.push("empty", "latest", &TestImage::new("empty", &[]));
    let id = node.pull("empty").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    assert_eq!(rootfs.lower.len(), 1);
    assert!(rootfs.lower[0].is_dir());
    let layer = || gzip_layer(base());
    node.registry.push("twice", "latest", &TestImage::new("twice", &[layer(), gzip_layer(Tar::new().file("x", "")), layer()]));
    let id = node.pull("twice").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(2), None).await.unwrap();
    assert_eq!(rootfs.lower.len(), 2);
    assert!(rootfs.lower[0].join("etc/passwd").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_leans_on_others_is_completed_for_each_chain() {
    let node = Node::new().await;
    let leaning = || gzip_layer(Tar::new().file("srv/file", ""));
    let with_mode = |mode| gzip_layer(Tar::new().entry(tar::EntryType::Directory, "srv", "", b"", move |h| h.set_mode(mode)));
    let mut modes = Vec::new();
    for (name, mode) in [("one", 0o700), ("two", 0o1777)] {
        node.registry.push(name, "latest", &TestImage::new(name, &[with_mode(mode), leaning()]));
        let id = node.pull(name).await.unwrap();
        let rootfs = node.store.prepare_rootfs(&id, &container(u8::try_from(mode & 0x7f).unwrap()), None).await.unwrap();
        modes.push(std::fs::metadata(rootfs.lower[0].join("srv")).unwrap().mode() & 0o7777);
        assert!(rootfs.lower[0].parent().unwrap().file_name().unwrap().to_str().unwrap().starts_with("chain-"));
    }
    assert_eq!(modes, [0o700, 0o1777]);
    // Twice in one image, on different grounds.
    let image = TestImage::new("both", &[leaning(), with_mode(0o750), leaning()]);
    node.registry.push("both", "latest", &image);
    let id = node.pull("both").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(9), None).await.unwrap();
    let mode = |at: usize| std::fs::metadata(rootfs.lower[at].join("srv")).unwrap().mode() & 0o7777;
    assert_eq!((mode(0), mode(1), mode(2)), (0o750, 0o750, 0o755));
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_spares_what_others_use() {
    let node = Node::new().await;
    let shared = || gzip_layer(base());
    node.registry.push("a", "one", &TestImage::new("a", &[shared(), gzip_layer(Tar::new().file("only-a", ""))]));
    node.registry.push("a", "two", &TestImage::new("a", &[shared(), gzip_layer(Tar::new().file("only-a", ""))]));
    node.registry.push("b", "latest", &TestImage::new("b", &[shared()]));
    let a = node.pull("a:one").await.unwrap();
    assert_eq!(node.pull("a:two").await.unwrap(), a);
    assert_eq!(node.store.find(a.as_str()).unwrap().repo_tags.len(), 2);
    node.pull("b").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&a, &container(1), None).await.unwrap();
    // By one tag all tags go; a container keeps its layers.
    node.store.remove(&node.registry.reference("a:one")).await.unwrap();
    assert!(node.store.find(&node.registry.reference("a:two")).is_none() && node.store.find(a.as_str()).is_none());
    assert!(rootfs.lower.iter().all(|tree| tree.is_dir()));
    node.store.remove_rootfs(&container(1)).await.unwrap();
    assert_eq!(node.names("layers").len(), 2, "the shared one and the empty one");
    let before = node.store.usage();
    // Concurrently and repeatedly.
    let name = node.registry.reference("b");
    let removals = (0..8).map(|_| node.store.remove(&name));
    for removed in futures_util::future::join_all(removals).await {
        removed.unwrap();
    }
    node.store.remove("no such image").await.unwrap();
    assert!(node.store.usage().bytes < before.bytes);
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volumes_layers_stay_as_long_as_the_container_that_has_it() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let layers = [
        gzip_layer(Tar::new().dir("data").file("data/old", "1").file("data/gone", "")),
        gzip_layer(Tar::new().dir("data").file("data/.wh.gone", "").symlink("out", "/../../etc").symlink("alias", "/data/old")),
    ];
    node.registry.push("model", "latest", &TestImage::new("model", &layers));
    let (app, model) = (node.pull("app").await.unwrap(), node.pull("model").await.unwrap());
    let early = node.store.claim_volume(&model, None, &container(1)).await;
    assert!(matches!(early, Err(Error::Refused(Refusal::WrongState { .. }))), "a claim goes with a rootfs: {early:?}");
    node.store.prepare_rootfs(&app, &container(1), None).await.unwrap();
    for (part, there) in [("data", true), ("/data/old", true), ("alias", true), ("data/gone", false), ("out/passwd", false), ("out", false)]
    {
        let claimed = node.store.claim_volume(&model, Some(Path::new(part)), &container(1)).await;
        assert_eq!(claimed.is_ok(), there, "{part}: {claimed:?}");
    }
    let trees = node.store.claim_volume(&model, None, &container(1)).await.unwrap();
    assert!(trees.len() == 3 && trees[1].join("data/gone").exists() && std::fs::read_dir(&trees[2]).unwrap().next().is_none());
    node.store.remove(model.as_str()).await.unwrap();
    let late = node.store.claim_volume(&model, None, &container(1)).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::NotFound { .. }))), "{late:?}");
    let node = node.restart("this boot").await;
    node.store.sweep_rootfs(&HashSet::from([container(1)])).await.unwrap();
    assert!(trees.iter().all(|tree| tree.is_dir()), "the container has it still");
    node.store.remove_rootfs(&container(1)).await.unwrap();
    node.store.remove(app.as_str()).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_shows_the_rootfs_as_it_was_meant() {
    let node = Node::new().await;
    let low = Tar::new().dir("d").file("d/low", "").file("d/gone", "").dir("o").file("o/low", "").dir("r").file("r/low", "").file("f", "");
    let top = Tar::new().dir("d").file("d/.wh.gone", "").file("d/new", "").dir("o").file("o/.wh..wh..opq", "").file("o/new", "");
    let top = top.file(".wh.r", "").file("r/new", "").file(".wh.f", "");
    node.registry.push("app", "latest", &TestImage::new("app", &[gzip_layer(low), gzip_layer(top)]));
    let id = node.pull("app").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    let target = node.scratch.path().join("merged");
    std::fs::create_dir(&target).unwrap();
    let lower: Vec<_> = rootfs.lower.iter().map(|path| path.to_str().unwrap()).collect();
    let (upper, work, lower) = (rootfs.upper.display(), rootfs.work.display(), lower.join(":"));
    let target = target.display();
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},volatile");
    let (mounted, listing) = in_mount_namespace(&format!("mount -t overlay none -o {options} {target}; cd {target}; find . | sort"));
    assert!(mounted, "{listing}");
    assert_eq!(listing.lines().collect::<Vec<_>>(), [".", "./d", "./d/low", "./d/new", "./o", "./o/new", "./r", "./r/new"]);
}

#[test]
fn an_image_and_its_last_container_that_go_together_leave_nothing() {
    // What blocks is done in the order in which it was asked for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let node = Node::new().await;
        node.registry.push("app", "latest", &sample());
        let id = node.pull("app").await.unwrap();
        node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
        node.store.make_durable().await.unwrap();
        let (removed, released) = join(node.store.remove(id.as_str()), node.store.remove_rootfs(&container(1))).await;
        removed.and(released).unwrap();
        node.assert_empty().await;
    });
}
