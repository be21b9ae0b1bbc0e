//! What the disk does to the store: restarts, reboots, rubbish, lost writes, no room.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_domain::FailureKind;
use tokio::sync::Semaphore;

use super::{Node, PATIENCE, base, container, in_mount_namespace, registries, sample};
use crate::testing::{Tar, TestImage, gzip_layer};
use crate::{PullRequest, Store};

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let rootfs = node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    let orphan = node.store.prepare_rootfs(&id, &container(2), None).await.unwrap();
    let usage = node.store.usage();
    std::fs::create_dir(node.root().join("tmp/half-made")).unwrap();
    std::fs::create_dir(node.root().join("layers/not-a-layer")).unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.store.list()[0].id, id);
    assert_eq!((node.store.usage().bytes, node.store.usage().inodes), (usage.bytes, usage.inodes));
    assert_eq!(node.store.rootfs(&container(1)), Some(rootfs));
    node.store.remove(id.as_str()).await.unwrap();
    node.store.sweep_rootfs(&HashSet::from([container(1)])).await.unwrap();
    assert!(!orphan.upper.exists());
    assert_eq!(node.names("layers").len(), 3, "the container keeps its layers: {:?}", node.names("layers"));
    node.store.sweep_rootfs(&HashSet::new()).await.unwrap();
    node.assert_empty().await;
    assert_eq!(std::fs::read_dir(node.scratch.path().join("run")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_costs_what_was_not_synced_and_no_more() {
    let node = Node::new().await;
    node.registry.push("safe", "latest", &TestImage::new("safe", &[gzip_layer(base())]));
    node.registry.push("unsafe", "latest", &TestImage::new("unsafe", &[gzip_layer(base()), gzip_layer(Tar::new().file("new", ""))]));
    let safe = node.pull("safe").await.unwrap();
    node.store.make_durable().await.unwrap();
    node.pull("unsafe").await.unwrap();
    node.store.make_durable().await.unwrap();
    // As if the second layer's mark had not reached the disk.
    let layers = node.store.find(&node.registry.reference("unsafe")).unwrap().layers.clone();
    let path = node.store.paths.layer(&layers[1]).join("record.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("\"durable\": true", "\"durable\": false");
    std::fs::write(&path, text).unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.store.list().len(), 2, "the same boot knows its files");
    node.store.make_durable().await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"durable\": true"), "{text}");
    std::fs::write(&path, text.replace("\"durable\": true", "\"durable\": false")).unwrap();
    let node = node.restart("next boot").await;
    assert_eq!(node.store.list().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [safe]);
    node.pull("unsafe").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_leaves_nothing_of_layers_that_were_not_synced_though_containers_used_them() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    node.store.prepare_rootfs(&id, &container(1), None).await.unwrap();
    node.store.make_durable().await.unwrap();
    let layer = node.store.paths.layer(&node.store.list()[0].layers[0]);
    let record = std::fs::read_to_string(layer.join("record.json")).unwrap();
    std::fs::write(layer.join("record.json"), record.replace("\"durable\": true", "\"durable\": false")).unwrap();
    std::fs::remove_file(node.store.paths.rootfs_record(&container(1))).unwrap();
    let node = node.restart("next boot").await;
    let known = layer.file_name().unwrap().to_str().unwrap();
    assert!(!node.names("layers").iter().any(|name| name.starts_with(known)), "{:?}", node.names("layers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_stands_in_two_records_does_not_come_back() {
    let node = Node::new().await;
    let (old, new) = (TestImage::new("old", &[gzip_layer(base())]), TestImage::new("new", &[gzip_layer(base())]));
    node.registry.push("app", "latest", &old);
    let old = node.pull("app").await.unwrap();
    node.store.make_durable().await.unwrap();
    let path = node.store.paths.image_record(&old);
    let with_tag = std::fs::read(&path).unwrap();
    node.registry.push("app", "latest", &new);
    let new = node.pull("app").await.unwrap();
    // What is left by who is killed between the two records.
    std::fs::write(&path, with_tag).unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.store.find(&node.registry.reference("app")).unwrap().id, new);
    node.store.remove(new.as_str()).await.unwrap();
    let node = node.restart("this boot").await;
    assert!(node.store.find(&node.registry.reference("app")).is_none());
    assert_eq!(node.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_deleted_is_when_it_is_asked_for_again() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    let (blobs, aside) = (node.root().join("images/blobs/sha256"), node.root().join("aside"));
    std::fs::rename(&blobs, &aside).unwrap();
    std::fs::write(&blobs, "no directory").unwrap();
    node.store.remove(id.as_str()).await.unwrap_err();
    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(&aside, &blobs).unwrap();
    node.store.remove(id.as_str()).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_on_disk_costs_only_its_own_subject() {
    let node = Node::new().await;
    for name in ["a", "b", "c"] {
        node.registry.push(name, "latest", &TestImage::new(name, &[gzip_layer(Tar::new().file(name, ""))]));
    }
    let (a, b, c) = (node.pull("a").await.unwrap(), node.pull("b").await.unwrap(), node.pull("c").await.unwrap());
    node.store.prepare_rootfs(&c, &container(1), None).await.unwrap();
    node.store.make_durable().await.unwrap();
    std::fs::write(node.root().join("images/index.json"), "{").unwrap();
    std::fs::write(node.root().join("images/oci-layout"), "").unwrap();
    std::fs::write(node.root().join(format!("records/{}.json", a.digits())), "").unwrap();
    std::fs::write(node.root().join(format!("images/blobs/sha256/{}", b.digits())), "x").unwrap();
    std::fs::write(node.scratch.path().join("run").join(format!("{}.json", container(1))), "").unwrap();
    let node = node.restart("this boot").await;
    assert_eq!(node.store.list().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), std::slice::from_ref(&c));
    let index = std::fs::read_to_string(node.root().join("images/index.json")).unwrap();
    assert!(index.contains("c:latest") && !index.contains("a:latest"));
    // Nobody knows what the container stands on, so nothing is deleted from under it.
    node.store.remove(c.as_str()).await.unwrap();
    assert_eq!(node.names("layers").len(), 4);
    node.store.remove_rootfs(&container(1)).await.unwrap();
    node.store.sweep_rootfs(&HashSet::new()).await.unwrap();
    assert_eq!(node.names("layers"), ["empty"]);
    for name in ["a", "b", "c"] {
        node.pull(name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_kept_out() {
    let node = Node::new().await;
    let inner = ["--ignored", "--exact", "store::tests::disk::in_the_second_process"];
    let second =
        std::process::Command::new(std::env::current_exe().unwrap()).args(inner).env("STORE", node.scratch.path()).output().unwrap();
    let output = String::from_utf8_lossy(&second.stdout);
    assert!(second.status.success() && output.contains("1 passed"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_second_process_is_kept_out, in the second process"]
async fn in_the_second_process() {
    let scratch = std::path::PathBuf::from(std::env::var_os("STORE").unwrap());
    let second = Store::open(&scratch.join("lib"), &scratch.join("run"), registries()).await;
    assert!(second.unwrap_err().to_string().contains("another process"));
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, program) = (scratch.path().display(), std::env::current_exe().unwrap());
    let inner = "store::tests::disk::on_a_full_disk";
    let script =
        format!("mount -t tmpfs -o size=400k none {directory}; TMPDIR={directory} {} --ignored --exact {inner}", program.display());
    let (passed, output) = in_mount_namespace(&script);
    assert!(passed && output.contains("1 passed"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_full_disk_is_said_to_be_full, on a small disk"]
async fn on_a_full_disk() {
    let node = Node::new().await;
    node.registry.push("small", "latest", &sample());
    node.pull("small").await.unwrap();
    let before = node.names("layers");
    let (fits, big) = (gzip_layer(Tar::new().file("fits", "")), gzip_layer(Tar::new().file("big", &"x".repeat(1 << 20))));
    // What fits may be written while the other has taken all there is.
    for (layers, stages) in [(vec![big.clone()], &["unpacking the layer"][..]), (vec![fits, big], &["unpacking the layer", "writing"])] {
        node.registry.push("big", "latest", &TestImage::new("big", &layers));
        let failure = node.failure("big").await;
        assert!(failure.kind == FailureKind::Exhausted && stages.contains(&&*failure.stage), "{failure}");
        node.settle_tmp().await;
        assert_eq!(node.names("layers"), before, "what fitted has gone too");
    }
    // Filled to the brim, it can still be emptied.
    let filled = std::fs::write(node.scratch.path().join("filler"), [0; 1 << 20]);
    assert!(filled.is_err());
    node.store.remove(&node.registry.reference("small")).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_were_under_way_when_writes_were_lost_are_pulled_again_after_a_reboot() {
    let node = Node::new().await;
    node.registry.push("under-way", "latest", &sample());
    node.registry.push("later", "latest", &TestImage::new("later", &[gzip_layer(Tar::new().file("later", ""))]));
    let gate = Arc::new(Semaphore::new(1));
    node.registry.shelf().gate = Some(Arc::clone(&gate));
    let lose = async {
        let begin = Instant::now();
        while node.names("tmp").len() < 2 {
            assert!(begin.elapsed() < PATIENCE, "they never came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.store.note_lost_writes("a test says so");
        gate.add_permits(1000);
    };
    let (id, ()) = tokio::join!(node.pull("under-way"), lose);
    let id = id.unwrap();
    let safe = |node: &Node| node.store.state().layers.values().filter(|record| record.durable).count();
    node.store.make_durable().await.unwrap();
    assert_eq!((node.store.list().len(), safe(&node)), (1, 0));
    let later = node.pull("later").await.unwrap();
    node.store.make_durable().await.unwrap();
    assert_eq!(safe(&node), 1);
    let node = node.restart("this boot").await;
    node.store.sweep_rootfs(&HashSet::new()).await.unwrap();
    let node = node.restart("this boot").await;
    node.store.make_durable().await.unwrap();
    assert_eq!((node.store.list().len(), safe(&node)), (2, 1), "the next process knows");
    let node = node.restart("next boot").await;
    assert_eq!(node.store.list().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [later]);
    assert_eq!(node.pull("under-way").await.unwrap(), id);
}

#[test]
fn what_a_disk_may_have_lost_is_never_said_to_be_safe() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, program) = (scratch.path().display(), std::env::current_exe().unwrap());
    let inner = "store::tests::disk::on_a_disk_that_loses_writes";
    let script = format!(
        "mount -t tmpfs -o size=24m none {directory}; truncate -s 64M {directory}/disk; mkdir {directory}/mnt; \
         mkfs.ext4 -q -O ^has_journal {directory}/disk; mount -o loop,errors=continue {directory}/disk {directory}/mnt; \
         TMPDIR={directory}/mnt {} --ignored --exact {inner}",
        program.display()
    );
    let (passed, output) = in_mount_namespace(&script);
    assert!(passed && output.contains("1 passed"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by what_a_disk_may_have_lost_is_never_said_to_be_safe, on a disk whose own file has no room for all of it"]
async fn on_a_disk_that_loses_writes() {
    let node = Node::new().await;
    let layers = ["one", "two"].map(|name| gzip_layer(Tar::new().file(name, &name.repeat(1 << 20))));
    node.registry.push("app", "latest", &TestImage::new("app", &layers));
    let gate = Arc::new(Semaphore::new(2));
    node.registry.shelf().gate = Some(Arc::clone(&gate));
    let filler = std::env::temp_dir().with_file_name("filler");
    std::fs::write(&filler, vec![1; 32 << 20]).unwrap_err();
    let pull = tokio::spawn({
        let (store, reference) = (Arc::clone(&node.store), node.registry.reference("app"));
        async move { store.pull(PullRequest { reference, credentials: None }).await }
    });
    // The gate lets the config and one of the layers pass.
    let begin = Instant::now();
    while node.store.state().layers.is_empty() {
        assert!(begin.elapsed() < PATIENCE, "it never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The store may have heard of it already.
    let _ = node.store.make_durable().await;
    std::fs::remove_file(&filler).unwrap();
    node.store.make_durable().await.unwrap();
    assert!(node.store.state().layers.values().all(|record| !record.durable));
    pull.abort();
}

#[test]
fn a_writable_layer_that_cannot_be_removed_keeps_no_other() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, program) = (scratch.path().display(), std::env::current_exe().unwrap());
    let inner = "store::tests::disk::with_a_mount_on_a_writable_layer";
    let (passed, output) = in_mount_namespace(&format!("TMPDIR={directory} {} --ignored --exact {inner}", program.display()));
    assert!(passed && output.contains("1 passed"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_writable_layer_that_cannot_be_removed_keeps_no_other, where its mounts are nobody else's"]
async fn with_a_mount_on_a_writable_layer() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    let id = node.pull("app").await.unwrap();
    for digit in 1..10 {
        node.store.prepare_rootfs(&id, &container(digit), None).await.unwrap();
    }
    let node = node.restart("this boot").await;
    let stuck = node.store.paths.container(&container(5));
    let run =
        |program: &str, args: &[&str]| assert!(std::process::Command::new(program).args(args).arg(&stuck).status().unwrap().success());
    run("mount", &["-t", "tmpfs", "none"]);
    let error = node.store.sweep_rootfs(&HashSet::new()).await.unwrap_err().to_string();
    assert!(error.contains(stuck.to_str().unwrap()), "{error}");
    assert_eq!(node.names("containers"), [container(5).to_string()]);
    run("umount", &[]);
    node.store.sweep_rootfs(&HashSet::new()).await.unwrap();
    assert!(node.names("containers").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_marked_keeps_no_other_from_it() {
    let node = Node::new().await;
    let layers: Vec<_> = (1..10).map(|number| gzip_layer(Tar::new().file(&format!("file{number}"), ""))).collect();
    node.registry.push("app", "latest", &TestImage::new("app", &layers));
    let id = node.pull("app").await.unwrap();
    node.store.make_durable().await.unwrap();
    let deleted = node.store.find(id.as_str()).unwrap().layers[4];
    std::fs::remove_dir_all(node.store.paths.layer(&deleted)).unwrap();
    node.store.state().layers.values_mut().for_each(|record| record.durable = false);
    node.store.make_durable().await.unwrap_err();
    let state = node.store.state();
    assert!(state.layers.iter().all(|(key, record)| record.durable == (*key != deleted)));
}
