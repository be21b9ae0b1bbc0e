//! What a pull brings, what it refuses, and what pulls of the same share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_domain::{Error, FailureKind, Refusal};

use super::{Node, base, container, open, registries, sample};
use crate::record::Name;
use crate::store::Arrival;
use crate::testing::{GZIP_LAYER, Guard, OCI_INDEX, OCI_MANIFEST, Registry, Tar, TestImage, TestLayer, gzip, gzip_layer};
use crate::{Digest, PullRequest, Registries, read_file};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_by_tag_and_found_by_all_its_names() {
    let node = Node::new().await;
    let image = sample();
    node.registry.push("lib/app", "v1", &image);
    let id = node.pull("lib/app:v1").await.unwrap();
    assert_eq!(id.as_str(), image.id());
    let digest = Digest::of(&image.manifest);
    for name in [
        node.registry.reference("lib/app:v1"),
        node.registry.reference(&format!("lib/app@{digest}")),
        image.id(),
        image.id()[7..].into(),
        image.id()[7..20].into(),
    ] {
        assert_eq!(node.store.find(&name).map(|image| image.id.clone()), Some(id.clone()), "{name}");
    }
    let found = &node.store.list()[0];
    assert_eq!(found.repo_tags, [node.registry.reference("lib/app:v1")]);
    assert_eq!(found.repo_digests, [node.registry.reference(&format!("lib/app@{digest}"))]);
    assert_eq!(found.user(), Some("1000:1000"));
    let sizes = image.manifest.len() + image.config.len() + image.layers.iter().map(Vec::len).sum::<usize>();
    assert_eq!(found.size, sizes as u64);
    assert!(node.store.usage().bytes > 8192 && node.store.usage().inodes > 5);
    // What other tools read.
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(node.root().join("images/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], digest.to_string());
    assert_eq!(node.names("images/blobs/sha256").len(), 2, "layers are not kept packed");
    node.settle_tmp().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_for_this_machine() {
    let node = Node::new().await;
    let image = sample();
    node.registry.push("app", "unused", &image);
    node.registry.put_manifest("app", "multi", OCI_INDEX, &image.index());
    let id = node.pull("app:multi").await.unwrap();
    assert_eq!(id.as_str(), image.id());
    let by_index = node.registry.reference(&format!("app@{}", Digest::of(&image.index())));
    assert_eq!(node.store.list()[0].repo_digests, std::slice::from_ref(&by_index));
    assert!(node.store.find(&by_index).is_some());
    // By digest: no tag, and the same image.
    let other = Node { registry: node.registry.clone(), ..Node::new().await };
    assert_eq!(other.pull(&format!("app@{}", Digest::of(&image.manifest))).await.unwrap(), id);
    assert!(other.store.list()[0].repo_tags.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_in_gzip_zstd_and_plain_and_in_dockers_types() {
    let node = Node::new().await;
    let tar = |name: &str| Tar::new().file(name, &"content".repeat(1000)).bytes();
    let (members, zstd, plain, odd) = (tar("a"), tar("b"), tar("c"), tar("d"));
    let several: Vec<u8> = members.chunks(3000).flat_map(gzip).collect();
    let image = TestImage::new(
        "kinds",
        &[
            (GZIP_LAYER, several, Digest::of(&members)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", zstd::encode_all(&zstd[..], 3).unwrap(), Digest::of(&zstd)),
            ("application/vnd.oci.image.layer.v1.tar", plain.clone(), Digest::of(&plain)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", odd.clone(), Digest::of(&odd)),
        ],
    );
    node.registry.push("kinds", "latest", &image);
    let id = node.pull("kinds").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(read_file(&rootfs, Path::new(name), 1 << 20).unwrap().unwrap().len(), 7000, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_makes_no_sense_is_refused() {
    let node = Node::new().await;
    for bad in ["UPPER", "a:b:c", "a@sha256:12"] {
        assert!(matches!(node.pull(bad).await, Err(Error::Refused(Refusal::Invalid { .. }))), "{bad}");
    }
    assert!(matches!(node.pull("nothing").await, Err(Error::Refused(Refusal::NotFound { noun: "image", .. }))));
    let huge = format!("{{\"schemaVersion\":2,\"pad\":\"{}\"}}", "x".repeat(5 << 20));
    node.registry.put_manifest("huge", "latest", OCI_MANIFEST, huge.as_bytes());
    assert!(node.failure("huge").await.to_string().contains("more than 4194304 bytes"));
    node.registry.put_manifest("rubbish", "latest", OCI_MANIFEST, b"<html>");
    assert_eq!(node.failure("rubbish").await.stage, "reading the manifest of");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_it_should_be_leaves_nothing() {
    let node = Node::new().await;
    let good = sample();
    // A blob whose bytes changed on the way.
    node.registry.push("corrupt", "latest", &good);
    let path = format!("corrupt/blobs/{}", Digest::of(&good.layers[1]));
    node.registry.shelf().content.get_mut(&path).unwrap().1[40] ^= 1;
    let failure = node.failure("corrupt").await;
    assert_eq!(failure.stage, "fetching the layer", "{failure}");
    assert!(failure.to_string().contains(&Digest::of(&good.layers[1]).to_string()));
    // A blob that is itself, but not the archive that the config promises.
    let (media_type, blob, _) = gzip_layer(base());
    node.registry.push("lying", "latest", &TestImage::new("lying", &[(media_type, blob, Digest::of(b"other"))]));
    let failure = node.failure("lying").await;
    assert!(failure.to_string().contains("verifying the diff id"), "{failure}");
    // Neither gzip nor an archive.
    let junk = [b"\x1f\x8b\x08\x00".to_vec(), vec![0xff; 100]].concat();
    node.registry.push("junk", "latest", &TestImage::new("junk", &[(GZIP_LAYER, junk, Digest::of(b""))]));
    assert_eq!(node.failure("junk").await.stage, "unpacking the layer");
    // More layers than the config knows, and a layer that is none.
    let text = gzip_layer(base());
    node.registry.push("artifact", "latest", &TestImage::new("artifact", &[("text/plain", text.1, text.2)]));
    assert!(node.failure("artifact").await.to_string().contains("text/plain"));
    assert!(node.store.list().is_empty());
    let node = node.restart("this boot").await;
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_want_the_same_share_one_pull() {
    let node = Node::new().await;
    let image = sample();
    node.registry.push("app", "latest", &image);
    node.registry.push("other", "latest", &image);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    node.registry.shelf().gate = Some(Arc::clone(&gate));
    let pulls = futures_util::future::join_all(["app", "app:latest", "app", "other"].map(|name| node.pull(name)));
    let open = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.add_permits(1000);
    };
    let (pulled, ()) = tokio::join!(pulls, open);
    for id in pulled {
        assert_eq!(id.unwrap().as_str(), image.id());
    }
    assert_eq!(node.registry.count("GET", "app/manifests/latest"), 1);
    for layer in &image.layers {
        assert_eq!(node.registry.count("GET", &Digest::of(layer).to_string()), 1, "each layer is fetched once");
    }
    // All fail together, too, each with the whole story.
    let pulls = futures_util::future::join_all([node.pull("nope"), node.pull("nope")]);
    assert!(pulls.await.iter().all(|pulled| matches!(pulled, Err(Error::Refused(Refusal::NotFound { .. })))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_holds_up_its_own_pulls_only() {
    let node = Node::new().await;
    // They claim to have the other's layer, answer with a config, and then no more.
    let mut waiting = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let slow = Registry::start().await;
        let image = TestImage::new(name, &[gzip_layer(base()), gzip_layer(Tar::new().file(name, ""))]);
        slow.push(name, "latest", &image);
        slow.shelf().gate = Some(Arc::new(tokio::sync::Semaphore::new(1)));
        let (store, reference) = (Arc::clone(&node.store), slow.reference(name));
        waiting.push(tokio::spawn(async move { store.pull(PullRequest { reference, credentials: None }).await }));
        let begin = std::time::Instant::now();
        while slow.count("GET", &image.id()) == 0 {
            assert!(begin.elapsed() < super::PATIENCE, "it never began");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.registry.push("app", "latest", &sample());
    node.pull("app").await.unwrap();
    for pull in waiting {
        assert!(!pull.is_finished());
        pull.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_pull_ends_and_leaves_nothing() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().gate = Some(Arc::new(tokio::sync::Semaphore::new(1)));
    assert!(tokio::time::timeout(Duration::from_millis(150), node.pull("app")).await.is_err());
    node.registry.shelf().gate = None;
    node.assert_empty().await;
    node.pull("app").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_present_image_costs_one_question() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.pull("app").await.unwrap();
    node.registry.shelf().seen.clear();
    node.pull("app").await.unwrap();
    let seen: Vec<_> = node.registry.shelf().seen.iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(seen, ["HEAD"]);
    // But the registry is asked: it may not let us any more.
    node.registry.shelf().guard = Guard::Basic;
    assert_eq!(node.failure("app").await.kind, FailureKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_for_an_image_that_is_removed_this_moment_brings_nothing() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let image = node.store.find(id.as_str()).unwrap();
    let name = Name { tag: Some("other".into()), ..image.record.names[0].clone() };
    let arrival = || Arrival { id: id.clone(), layers: image.layers.clone(), name: name.clone(), blobs: Vec::new() };
    assert!(node.store.add_image(arrival()).await.unwrap());
    node.store.remove(id.as_str()).await.unwrap();
    assert!(!node.store.add_image(arrival()).await.unwrap());
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_on_and_its_old_image_stays_without_it() {
    let node = Node::new().await;
    let (old, new) = (TestImage::new("old", &[gzip_layer(base())]), TestImage::new("new", &[gzip_layer(base())]));
    node.registry.push("app", "latest", &old);
    let old_id = node.pull("app").await.unwrap();
    node.registry.push("app", "latest", &new);
    let new_id = node.pull("app").await.unwrap();
    let check = |node: &Node| {
        assert_eq!(node.store.find(&node.registry.reference("app")).unwrap().id, new_id);
        let old_image = node.store.find(old_id.as_str()).unwrap();
        assert!(old_image.repo_tags.is_empty());
        assert_eq!(old_image.repo_digests.len(), 1);
    };
    check(&node);
    let node = node.restart("this boot").await;
    check(&node);
}

/// A layer that leans on those below it and is long in saying so: some 70 MiB of names.
fn wordy_layer(name: &str) -> TestLayer {
    let way = ["d"; 18].map(|name| name.repeat(200)).join("/");
    let tar = (0..2_300).fold(Tar::new(), |tar, number| {
        let path = format!("{name}-{number}/{way}/file");
        tar.pax(&[("path", path.as_bytes())]).file("short", "")
    });
    gzip_layer(tar)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_of_all_layers_of_an_image_is_bounded() {
    // Disks take their time over this many directories.
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = open(&scratch, registries(), "this boot").await;
    let node = Node { scratch, store, registry: Registry::start().await };
    node.registry.push("wordy", "latest", &TestImage::new("wordy", &["one", "two"].map(wordy_layer)));
    let failure = node.failure("wordy").await;
    assert_eq!(failure.stage, "unpacking the layers of", "no layer is too much for itself: {failure}");
    node.settle_tmp().await;
}

#[test]
fn slow_downloads_hold_up_nothing_else_that_blocks() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(2).build().unwrap();
    runtime.block_on(async {
        // Nobody gives up before the removal would.
        let node = Node::with(Registries { stall_timeout: super::PATIENCE * 2, ..registries() }).await;
        let layers = ["one", "two", "three"].map(|name| gzip_layer(Tar::new().file(name, "")));
        let image = TestImage::new("slow", &layers);
        node.registry.push("slow", "latest", &image);
        let gate = Arc::new(tokio::sync::Semaphore::new(1));
        node.registry.shelf().gate = Some(Arc::clone(&gate));
        let meanwhile = async {
            let begin = std::time::Instant::now();
            while node.registry.count("GET", &image.id()) == 0 {
                assert!(begin.elapsed() < super::PATIENCE, "it never began");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let removed = tokio::time::timeout(super::PATIENCE, node.store.remove("no such image")).await;
            gate.add_permits(1000);
            removed
        };
        let (pulled, removed) = tokio::join!(node.pull("slow"), meanwhile);
        removed.unwrap().unwrap();
        assert_eq!(pulled.unwrap().as_str(), image.id());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_while_the_registry_is_asked_about_it_is_pulled_anew() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    // Its layers stay, so that only the image is missing.
    node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    node.registry.shelf().gate = Some(Arc::clone(&gate));
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.store.remove(id.as_str()).await.unwrap();
        let (joined, ()) = tokio::join!(node.pull("app"), async { gate.add_permits(1000) });
        joined
    };
    let (first, joined) = tokio::join!(node.pull("app"), meanwhile);
    assert_eq!((first.unwrap(), joined.unwrap()), (id.clone(), id.clone()));
    assert!(node.store.find(id.as_str()).is_some());
}
