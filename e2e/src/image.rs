//! Images of layers: config, manifest and index as the OCI image specification 1.1 has them, or with
//! Docker's media types (distribution, schema 2).

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::layer::{self, Compression};

/// Whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.oci.image.…`
    Oci,
    /// `application/vnd.docker.…`
    Docker,
}

/// Content with its type: a config, a layer or a manifest.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its media type.
    pub media_type: String,
    /// `sha256:` and the digest of `bytes`.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Content of that type.
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { media_type: media_type.into(), digest: digest(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// `sha256:` and the digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The machine's architecture in the image specification's (that is Go's) words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// An image being described.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<(Vec<u8>, Compression)>,
    config: Value,
    architecture: String,
    dialect: Dialect,
    wrong_diff_ids: bool,
}

/// An image ready to be pushed.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The configuration; its digest is the image's id.
    pub config: Blob,
    /// The layers, compressed, lowest first.
    pub layers: Vec<Blob>,
    /// The manifest.
    pub manifest: Blob,
    /// The architecture it is for.
    pub architecture: String,
}

impl BuiltImage {
    /// The image's id in CRI: its config's digest.
    pub fn id(&self) -> &str {
        &self.config.digest
    }
}

impl Image {
    /// An image without layers.
    pub fn scratch() -> Self {
        let environment = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        Self {
            layers: Vec::new(),
            config: json!({ "Env": [environment], "Cmd": ["/bin/sh"] }),
            architecture: architecture().to_owned(),
            dialect: Dialect::Oci,
            wrong_diff_ids: false,
        }
    }

    /// The small system of [`layer::busybox`].
    pub fn busybox() -> Self {
        Self::scratch().layer(layer::busybox(), Compression::Gzip)
    }

    /// One more layer on top, given as a tar archive.
    pub fn layer(mut self, tar: &[u8], compression: Compression) -> Self {
        self.layers.push((tar.to_vec(), compression));
        self
    }

    /// Sets a field of the config's `config` object: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`, `StopSignal`…
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// For another architecture.
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.to_owned();
        self
    }

    /// With other media types.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// With diff ids that are not those of the layers: an image that must be refused.
    pub fn with_wrong_diff_ids(mut self) -> Self {
        self.wrong_diff_ids = true;
        self
    }

    /// Computes digests, config and manifest.
    pub fn build(&self) -> BuiltImage {
        let layers: Vec<Blob> = self.layers.iter().map(|(tar, way)| Blob::new(self.layer_type(*way), layer::compress(tar, *way))).collect();
        let diff_ids: Vec<String> = self.layers.iter().map(|(tar, _)| self.diff_id(tar)).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(self.config_type(), config.to_string().into_bytes());
        let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": self.manifest_type(), "config": config.descriptor(), "layers": descriptors,
        });
        let manifest = Blob::new(self.manifest_type(), manifest.to_string().into_bytes());
        BuiltImage { config, layers, manifest, architecture: self.architecture.clone() }
    }

    fn diff_id(&self, tar: &[u8]) -> String {
        digest(if self.wrong_diff_ids { b"something else" } else { tar })
    }

    fn manifest_type(&self) -> &'static str {
        match self.dialect {
            Dialect::Oci => "application/vnd.oci.image.manifest.v1+json",
            Dialect::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config_type(&self) -> &'static str {
        match self.dialect {
            Dialect::Oci => "application/vnd.oci.image.config.v1+json",
            Dialect::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer_type(&self, compression: Compression) -> &'static str {
        match (self.dialect, compression) {
            (Dialect::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Dialect::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Dialect::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Dialect::Docker, Compression::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Dialect::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Dialect::Docker, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// An index of images for several architectures.
pub fn index(images: &[&BuiltImage]) -> Blob {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
            descriptor
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let document = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    Blob::new(media_type, document.to_string().into_bytes())
}
