//! A real registry on loopback (Debian's `docker-registry`), and a small client that pushes to any registry
//! over plain HTTP (OCI distribution specification 1.1: one POST and one PUT for a blob, one PUT for a manifest).

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;

use crate::image::{self, Blob, BuiltImage};
use crate::{DEADLINE, host};

/// The account of a registry that asks for one.
pub const USER: (&str, &str) = ("coracle", "paddle");
/// The same for the registry: user and bcrypt hash.
const HTPASSWD: &str = "coracle:$2b$04$CcQ.edHPCktRtHu/UodhJ.0AJUTrs2OD9SyCjA8QMOntvy8IhUcby\n";

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// [`USER`] only, by basic authentication.
    Password,
}

/// An image that a registry holds.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `host:port/name:tag`.
    pub reference: String,
    /// `host:port/name@sha256:…`.
    pub by_digest: String,
    /// The image's id (of the first image of an index): the digest of its config.
    pub id: String,
}

/// A registry process with its own storage. It ends when this value is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    storage: PathBuf,
    client: Client,
}

impl Registry {
    /// Starts a registry that keeps its files in `directory`. Panics if it does not come up.
    pub fn start(directory: &Path, access: Access) -> Self {
        fs::create_dir_all(directory).expect("making the registry's directory");
        // Held, so that it is this registry that answers there and not that of another test.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host::free_port(Ipv4Addr::LOCALHOST)));
        let storage = directory.join("storage");
        let config = write_config(directory, &storage, address, access);
        let log = File::options().create(true).append(true).open(directory.join("log")).expect("opening the registry's log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicating a descriptor"))
            .stderr(log)
            .spawn()
            .expect("docker-registry (Debian's package of that name) is installed");
        let account = (access == Access::Password).then_some(USER);
        let mut registry = Self { process, storage, client: Client { address, account } };
        registry.await_answer(&directory.join("log"));
        registry
    }

    fn await_answer(&mut self, log: &Path) {
        let begin = Instant::now();
        while !self.client.is_up() {
            let ended = self.process.try_wait().expect("looking at the registry's process");
            let log = || fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_none() && begin.elapsed() < DEADLINE, "docker-registry does not start ({ended:?}):\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `host:port`.
    pub fn host(&self) -> String {
        self.client.address.to_string()
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.client.address
    }

    /// The process, for whoever must know what is not a leak.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Pushes an image under a tag.
    pub fn push(&self, name: &str, tag: &str, image: &BuiltImage) -> Pushed {
        self.client.push(name, tag, image).expect("pushing an image")
    }

    /// Pushes images and an index of them under a tag.
    pub fn push_index(&self, name: &str, tag: &str, images: &[&BuiltImage]) -> Pushed {
        self.client.push_index(name, tag, images).expect("pushing an index")
    }

    /// Changes a byte in the middle of a stored blob, behind the registry's back.
    pub fn corrupt(&self, blob: &Blob) {
        let hex = blob.digest.trim_start_matches("sha256:");
        let path = self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let file = File::options().write(true).open(&path).expect("opening a stored blob");
        let middle = blob.bytes.len() / 2;
        file.write_all_at(&[!blob.bytes[middle]], middle as u64).expect("changing a stored blob");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn write_config(directory: &Path, storage: &Path, address: SocketAddr, access: Access) -> PathBuf {
    let mut config = format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
        storage.display()
    );
    if access == Access::Password {
        let accounts = directory.join("htpasswd");
        fs::write(&accounts, HTPASSWD).expect("writing the registry's accounts");
        config.push_str(&format!("auth:\n  htpasswd:\n    realm: harbour\n    path: {}\n", accounts.display()));
    }
    let path = directory.join("config.yml");
    File::create(&path).and_then(|mut file| file.write_all(config.as_bytes())).expect("writing the registry's configuration");
    path
}

/// Pushes to a registry that speaks plain HTTP.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    account: Option<(&'static str, &'static str)>,
}

impl Client {
    /// A client without an account.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, account: None }
    }

    /// Pushes an image under a tag.
    pub fn push(&self, name: &str, tag: &str, image: &BuiltImage) -> Result<Pushed, ureq::Error> {
        self.push_content(name, image)?;
        self.put_manifest(name, tag, &image.manifest)?;
        Ok(self.pushed(name, tag, &image.manifest, image.id()))
    }

    /// Pushes images and an index of them under a tag.
    pub fn push_index(&self, name: &str, tag: &str, images: &[&BuiltImage]) -> Result<Pushed, ureq::Error> {
        for image in images {
            self.push_content(name, image)?;
            self.put_manifest(name, &image.manifest.digest, &image.manifest)?;
        }
        let index = image::index(images);
        self.put_manifest(name, tag, &index)?;
        Ok(self.pushed(name, tag, &index, images.first().map_or("", |image| image.id())))
    }

    fn pushed(&self, name: &str, tag: &str, manifest: &Blob, id: &str) -> Pushed {
        let repository = format!("{}/{name}", self.address);
        Pushed { reference: format!("{repository}:{tag}"), by_digest: format!("{repository}@{}", manifest.digest), id: id.to_owned() }
    }

    fn is_up(&self) -> bool {
        ureq_agent().get(format!("http://{}/v2/", self.address)).header("authorization", self.authorization()).call().is_ok()
    }

    fn push_content(&self, name: &str, image: &BuiltImage) -> Result<(), ureq::Error> {
        image.layers.iter().chain([&image.config]).try_for_each(|blob| self.put_blob(name, blob))
    }

    fn put_blob(&self, name: &str, blob: &Blob) -> Result<(), ureq::Error> {
        let agent = ureq_agent();
        let uploads = format!("http://{}/v2/{name}/blobs/uploads/", self.address);
        let begun = agent.post(uploads).header("authorization", self.authorization()).send_empty()?;
        let location = begun.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let base = if location.starts_with('/') { format!("http://{}", self.address) } else { String::new() };
        let separator = if location.contains('?') { '&' } else { '?' };
        let upload = format!("{base}{location}{separator}digest={}", blob.digest);
        let request = agent.put(upload).header("authorization", self.authorization()).header("content-type", "application/octet-stream");
        request.send(&blob.bytes[..]).map(|_| ())
    }

    fn put_manifest(&self, name: &str, reference: &str, manifest: &Blob) -> Result<(), ureq::Error> {
        let url = format!("http://{}/v2/{name}/manifests/{reference}", self.address);
        let request = ureq_agent().put(url).header("authorization", self.authorization()).header("content-type", &manifest.media_type);
        request.send(&manifest.bytes[..]).map(|_| ())
    }

    fn authorization(&self) -> String {
        let Some((user, password)) = self.account else {
            return String::from("none");
        };
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
    }
}

fn ureq_agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).proxy(None).build().into()
}
