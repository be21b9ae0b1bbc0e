//! What is damaged, deleted by somebody, or cannot be looked at.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Node, base, container, sample};
use crate::read_file;
use crate::testing::{Tar, TestImage, gzip_layer};

/// What may have become of a file.
const DAMAGES: [&str; 7] = ["empty", "half", "zeroes", "noise", "another shape", "directory", "link"];

fn damage(path: &Path, how: &str) {
    let whole = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    match how {
        "empty" => std::fs::write(path, ""),
        "half" => std::fs::write(path, &whole[..whole.len() / 2]),
        "zeroes" => std::fs::write(path, vec![0; whole.len()]),
        "noise" => std::fs::write(path, [0xff, 0x7b, 0x00, 0x80].repeat(40)),
        "another shape" => std::fs::write(path, r#"{"version":"1","id":7,"layers":"none"}"#),
        "directory" => std::fs::create_dir_all(path.join("with/content")),
        "link" => std::os::unix::fs::symlink("/dev/zero", path),
        other => panic!("{other}"),
    }
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_damage_to_any_file_costs_one_image_at_most_and_a_pull_repairs_it() {
    let mut node = Node::new().await;
    for name in ["hit", "spared"] {
        let layer = gzip_layer(Tar::new().dir("etc").file("etc/name", name));
        node.registry.push(name, "latest", &TestImage::new(name, &[layer]));
    }
    let (hit, spared) = (node.pull("hit").await.unwrap(), node.pull("spared").await.unwrap());
    node.store.make_durable().await.unwrap();
    let image = node.store.list().into_iter().find(|image| image.id == hit).unwrap();
    let manifest = *image.manifests.keys().next().unwrap();
    let root = node.root();
    let own = [
        node.store.paths.image_record(&hit),
        root.join("images/blobs/sha256").join(hit.digits()),
        root.join("images/blobs/sha256").join(manifest.digits()),
        node.store.paths.layer(&image.layers[0]).join("record.json"),
    ];
    let common = [root.join("images/index.json"), root.join("images/oci-layout")];
    drop(image);
    for path in own.iter().chain(&common) {
        for how in DAMAGES {
            damage(path, how);
            node = node.restart("this boot").await;
            let here: Vec<_> = node.store.list().iter().map(|image| image.id.clone()).collect();
            assert!(here.contains(&spared), "{} {how}", path.display());
            assert_eq!(here.contains(&hit), common.contains(path), "{} {how}", path.display());
            assert_eq!(node.pull("hit").await.unwrap(), hit, "{} {how}", path.display());
            node.store.make_durable().await.unwrap();
            let rootfs = node.store.prepare_rootfs(&hit, &container(1), None).await.unwrap();
            assert_eq!(read_file(&rootfs, Path::new("/etc/name"), 100).unwrap().as_deref(), Some(&b"hit"[..]));
            node.store.remove_rootfs(&container(1)).await.unwrap();
            assert!(path.symlink_metadata().unwrap().is_file(), "{} {how}: it is right again", path.display());
        }
    }
    assert!((1..=32).contains(&node.names("quarantine").len()), "{:?}", node.names("quarantine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_stays_for_the_container_on_it_and_goes_after_it() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    let held = std::fs::File::open(&rootfs.lower[0]).unwrap();
    node.store.make_durable().await.unwrap();
    damage(&rootfs.lower[0].with_file_name("record.json"), "half");
    let node = node.restart("this boot").await;
    assert!(node.store.list().is_empty());
    node.settle_tmp().await;
    assert!(held.metadata().unwrap().nlink() > 0 && !rootfs.lower[0].exists(), "what is mounted is there, and has made way");
    node.pull("app").await.unwrap();
    assert!(rootfs.lower[0].exists());
    let node = node.restart("this boot").await;
    assert_eq!(node.names("layers").len(), 4, "the container is still there: {:?}", node.names("layers"));
    node.store.remove_rootfs(&container(1)).await.unwrap();
    node.store.remove(id.as_str()).await.unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.names("layers"), ["empty"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_somebody_deletes_is_named_and_brought_back_by_a_pull() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.push("other", "latest", &TestImage::new("other", &[gzip_layer(base())]));
    let (id, other) = (node.pull("app").await.unwrap(), node.pull("other").await.unwrap());
    let top = node.store.find(id.as_str()).unwrap().layers[1];
    let path = node.store.paths.layer(&top);
    for round in 1..4 {
        // Until it is, its record is written in the background.
        node.store.make_durable().await.unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        if round == 2 {
            // The pull is the first to find out.
            assert_eq!(node.pull("app").await.unwrap(), id);
            assert!(path.join("fs").is_dir());
            continue;
        }
        let error = node.store.prepare_rootfs(&id, &container(round), None).await.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(node.store.list().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), std::slice::from_ref(&other));
        assert_eq!(node.pull("app").await.unwrap(), id);
        node.store.prepare_rootfs(&id, &container(round), None).await.unwrap();
    }
    node.store.make_durable().await.unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let error = node.store.claim_volume(&id, None, &container(1)).await.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(node.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_looked_at_is_not_lost() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let tree = node.store.paths.tree(&node.store.list()[0].layers[1]);
    let aside = tree.with_file_name("aside");
    std::fs::rename(&tree, &aside).unwrap();
    // Neither there nor absent: ELOOP.
    std::os::unix::fs::symlink("fs", &tree).unwrap();
    let error = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap_err().to_string();
    assert!(error.contains(tree.to_str().unwrap()) && !error.contains("somebody deleted it"), "{error}");
    assert!(node.failure("app").await.to_string().contains(tree.to_str().unwrap()));
    std::fs::remove_file(&tree).unwrap();
    std::fs::rename(&aside, &tree).unwrap();
    node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_taken_for_lost_stays_for_the_container_on_it_when_it_is_pulled_again() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    let held = std::fs::File::open(&rootfs.lower[0]).unwrap();
    node.store.make_durable().await.unwrap();
    let aside = rootfs.lower[0].with_file_name("aside");
    std::fs::rename(&rootfs.lower[0], &aside).unwrap();
    node.store.prepare_rootfs(&id, &container(2), None).await.unwrap_err();
    std::fs::rename(&aside, &rootfs.lower[0]).unwrap();
    node.pull("app").await.unwrap();
    node.settle_tmp().await;
    assert!(held.metadata().unwrap().nlink() > 0 && rootfs.lower[0].exists());
    node.store.remove_rootfs(&container(1)).await.unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.names("layers").len(), 3, "{:?}", node.names("layers"));
}
