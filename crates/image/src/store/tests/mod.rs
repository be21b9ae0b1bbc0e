//! The whole room against a registry on loopback and a real disk.

mod damage;
mod disk;
mod pull;
mod registry;
mod rootfs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_domain::{ContainerId, Error, Failure, ImageId};
use tempfile::TempDir;

use crate::testing::{Registry, Tar, TestImage, gzip_layer};
use crate::{Credentials, PullRequest, Registries, Secret, Store};

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

/// Runs a script in a mount namespace of its own.
fn in_mount_namespace(script: &str) -> (bool, String) {
    let output = std::process::Command::new("unshare").args(["--mount", "sh", "-ec", script]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}
