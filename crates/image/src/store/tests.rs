//! The whole room against a registry on loopback and a real disk.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_domain::{ContainerId, Error, Failure, FailureKind, ImageId, Refusal};
use tempfile::TempDir;

use crate::testing::{GZIP_LAYER, Guard, OCI_INDEX, OCI_MANIFEST, Registry, Tar, TestImage, gzip, gzip_layer};
use crate::{Credentials, Digest, PullRequest, Registries, Secret, Store, read_file};

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    scratch: TempDir,
    store: Arc<Store>,
    registry: Registry,
}

fn registries() -> Registries {
    let quick = Duration::from_millis(10);
    Registries { retry_pause: quick, stall_timeout: Duration::from_secs(5), ..Registries::default() }
}

impl Node {
    async fn new() -> Self {
        Self::with(registries()).await
    }

    async fn with(registries: Registries) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = open(&scratch, registries, "this boot").await;
        Self { scratch, store, registry: Registry::start().await }
    }

    /// Closes the store and opens it again.
    async fn restart(self, boot: &str) -> Self {
        let Self { scratch, store, registry } = self;
        let weak = Arc::downgrade(&store);
        drop(store);
        while weak.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let store = open(&scratch, registries(), boot).await;
        Self { scratch, store, registry }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("lib")
    }

    async fn pull(&self, name: &str) -> coracle_domain::Result<ImageId> {
        self.pull_with(name, None).await
    }

    async fn pull_with(&self, name: &str, credentials: Option<Credentials>) -> coracle_domain::Result<ImageId> {
        self.store.pull(PullRequest { reference: self.registry.reference(name), credentials }).await
    }

    async fn failure(&self, name: &str) -> Failure {
        match self.pull(name).await {
            Err(Error::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.root().join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// No image, layer or half-made thing is there. Deleting happens on another thread, so it may take a moment.
    async fn assert_empty(&self) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let empty = self.names("layers") == ["empty"] && self.names("tmp").is_empty() && self.names("records").is_empty();
            if empty && self.names("images/blobs/sha256").is_empty() && self.store.list().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!(
            "left: {:?} {:?} {:?} {:?}",
            self.names("layers"),
            self.names("tmp"),
            self.names("records"),
            self.names("images/blobs/sha256")
        );
    }

    async fn settle_tmp(&self) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.names("tmp").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("tmp holds {:?}", self.names("tmp"));
    }
}

async fn open(scratch: &TempDir, registries: Registries, boot: &str) -> Arc<Store> {
    Store::open_in_boot(&scratch.path().join("lib"), &scratch.path().join("run"), registries, boot.into()).await.unwrap()
}

fn container(digit: u8) -> ContainerId {
    ContainerId::from_entropy([digit; 32])
}

fn base() -> Tar {
    Tar::new().dir("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n").file("etc/gone", "")
}

fn sample() -> TestImage {
    let top = Tar::new().dir("etc").file("etc/.wh.gone", "").symlink("etc/alias", "/etc/passwd");
    TestImage::new("sample", &[gzip_layer(base()), gzip_layer(top)])
}

fn basic() -> Option<Credentials> {
    Some(Credentials::Basic { username: "user".into(), password: Secret::new("secret") })
}

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
async fn credentials_reach_the_registry_that_asks() {
    for guard in [Guard::Basic, Guard::Bearer] {
        let node = Node::new().await;
        node.registry.push("private", "latest", &sample());
        node.registry.shelf().guard = guard;
        assert_eq!(node.failure("private").await.kind, FailureKind::Denied);
        let wrong = Some(Credentials::Basic { username: "user".into(), password: Secret::new("wrong") });
        let Err(Error::Failed(failure)) = node.pull_with("private", wrong).await else { panic!() };
        assert_eq!(failure.kind, FailureKind::Denied);
        assert!(!failure.to_string().contains("wrong"), "{failure}");
        node.pull_with("private", basic()).await.unwrap();
    }
    let node = Node::new().await;
    node.registry.push("private", "latest", &sample());
    node.registry.shelf().guard = Guard::Bearer;
    node.pull_with("private", Some(Credentials::RegistryToken(Secret::new("t0ken")))).await.unwrap();
    let other = Node { registry: node.registry.clone(), ..Node::new().await };
    other.pull_with("private", Some(Credentials::IdentityToken(Secret::new("identity")))).await.unwrap();
    let scope = |seen: &crate::testing::Seen| seen.body.contains("scope=repository%3Aprivate%3Apull");
    assert!(node.registry.shelf().seen.iter().any(scope));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_credentials() {
    let (node, store_host) = (Node::new().await, Registry::start().await);
    let image = sample();
    node.registry.push("app", "latest", &image);
    store_host.push("app", "latest", &image);
    node.registry.shelf().guard = Guard::Basic;
    node.registry.shelf().redirect = Some(store_host.address.to_string());
    node.pull_with("app", basic()).await.unwrap();
    assert!(store_host.count("GET", "/blobs/") >= 3);
    assert!(store_host.shelf().seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_registry_must_be_the_one_it_says() {
    let (registry, authority) = Registry::start_encrypted().await;
    registry.push("app", "latest", &sample());
    let scratch = tempfile::tempdir().unwrap();
    let ca_file = scratch.path().join("ca.pem");
    std::fs::write(&ca_file, authority).unwrap();
    let config = |extra: &str| -> Registries { toml::from_str(&format!("[hosts.\"{}\"]\n{extra}", registry.address)).unwrap() };
    let mut trusting = Node::with(config(&format!("ca_file = {ca_file:?}"))).await;
    trusting.registry = registry.clone();
    trusting.pull("app").await.unwrap();
    let mut doubting = Node::with(config("http = false")).await;
    doubting.registry = registry.clone();
    let failure = doubting.failure("app").await;
    assert!(failure.to_string().contains("certificate"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_in_the_clear_is_refused() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().redirect = Some("192.0.2.1".into());
    assert!(node.failure("app").await.to_string().contains("not encrypted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_first_and_never_see_credentials() {
    let (mirror, dead) = (Registry::start().await, "http://127.0.0.1:9");
    let origin = Registry::start().await;
    let config = format!("[hosts.\"{}\"]\nmirrors = [\"{dead}\", \"http://{}\"]", origin.address, mirror.address);
    let mut node = Node::with(Registries { retry_pause: Duration::from_millis(1), ..toml::from_str(&config).unwrap() }).await;
    node.registry = origin;
    let image = sample();
    mirror.push("app", "latest", &image);
    node.pull_with("app", basic()).await.unwrap();
    assert_eq!(node.registry.shelf().seen.len(), 0);
    assert!(mirror.shelf().seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
    assert!(mirror.shelf().seen[0].path.ends_with(&format!("?ns={}", node.registry.address.to_string().replace(':', "%3A"))));
    // What the mirror lacks, the registry itself has.
    node.registry.push("other", "latest", &image);
    node.pull("other").await.unwrap();
    let text = format!("{:?}", node.pull("nowhere").await);
    assert!(text.contains("NotFound"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_is_taken_up_where_it_broke() {
    for ignore_ranges in [false, true] {
        let node = Node::new().await;
        let noise: String =
            (0..20_000u32).map(|n| char::from(b' ' + u8::try_from(n.wrapping_mul(2_654_435_761) >> 25).unwrap() % 90)).collect();
        let image = TestImage::new("big", &[gzip_layer(Tar::new().file("noise", &noise))]);
        node.registry.push("big", "latest", &image);
        node.registry.shelf().cuts = (3, 1000);
        node.registry.shelf().ignore_ranges = ignore_ranges;
        node.pull("big").await.unwrap();
        let shelf = node.registry.shelf();
        assert!(shelf.seen.iter().any(|seen| seen.headers.contains_key("range")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_keeps_hanging_up_is_unavailable() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().cuts = (1000, 10);
    node.registry.shelf().ignore_ranges = true;
    let failure = node.failure("app").await;
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
    node.registry.shelf().status = Some(503);
    let failure = node.failure("app").await;
    assert_eq!((failure.kind, &*failure.stage), (FailureKind::RegistryUnavailable, "fetching the manifest"));
    assert!(failure.to_string().contains(&node.registry.address.to_string()));
    node.assert_empty().await;
    let nobody = PullRequest { reference: "127.0.0.1:9/app".into(), credentials: None };
    let Err(Error::Failed(failure)) = node.store.pull(nobody).await else { panic!() };
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_nothing_is_given_up() {
    let node = Node::with(Registries { stall_timeout: Duration::from_millis(50), ..registries() }).await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let failure = node.failure("app").await;
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
    node.assert_empty().await;
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
    node.store.sweep_rootfs(&HashSet::new()).await.unwrap();
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
    let inner = ["--ignored", "--exact", "store::tests::in_the_second_process"];
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

/// Runs a script in a mount namespace of its own.
fn in_mount_namespace(script: &str) -> (bool, String) {
    let output = std::process::Command::new("unshare").args(["--mount", "sh", "-ec", script]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
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
fn a_full_disk_is_said_to_be_full() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, program) = (scratch.path().display(), std::env::current_exe().unwrap());
    let inner = "store::tests::on_a_full_disk";
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
    let big = gzip_layer(Tar::new().file("big", &"x".repeat(1 << 20)));
    node.registry.push("big", "latest", &TestImage::new("big", &[big]));
    let failure = node.failure("big").await;
    assert_eq!((failure.kind, &*failure.stage), (FailureKind::Exhausted, "unpacking the layer"), "{failure}");
    node.settle_tmp().await;
    // Filled to the brim, it can still be emptied.
    let filled = std::fs::write(node.scratch.path().join("filler"), [0; 1 << 20]);
    assert!(filled.is_err());
    node.store.remove(&node.registry.reference("small")).await.unwrap();
    node.assert_empty().await;
}

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
