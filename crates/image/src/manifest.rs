//! Manifests, indexes and configs (OCI image specification 1.1; Docker image manifest version 2, schema
//! 2): which media types we read, which entry of an index is ours, and whether a document makes sense.
//! Pure: bytes in, types out.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Platform};

use crate::registry::Blob;
use crate::{Digest, InvalidDigest};

/// The longest manifest or index, bytes.
pub(crate) const MANIFEST_LIMIT: usize = 4 << 20;
/// The longest image config, bytes.
pub(crate) const CONFIG_LIMIT: u64 = 8 << 20;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What we ask registries for.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// What a reference led to.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// A layer as manifest and config together describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerDescriptor {
    pub(crate) blob: Blob,
    /// Of the uncompressed archive.
    pub(crate) diff_id: Digest,
}

/// Reads a document of the type that it, or else its server, claims.
pub(crate) fn parse_document(bytes: &[u8], served_as: &str) -> Result<Document, String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON document: {error}"))?;
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Err("it is of Docker's schema 1, which nobody builds any more; push the image again with a current tool".into());
    }
    // A document that could be read either way would be two images under one digest.
    let (has_layers, has_manifests) = (value.get("layers").is_some(), value.get("manifests").is_some());
    if has_layers && has_manifests {
        return Err("it is a manifest and an index at once".into());
    }
    let claimed = value.get("mediaType").and_then(serde_json::Value::as_str).unwrap_or(served_as);
    let is_index = match claimed {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        _ => has_manifests,
    };
    let unreadable = |error: serde_json::Error| error.to_string();
    if is_index {
        serde_json::from_value(value).map(Document::Index).map_err(unreadable)
    } else {
        serde_json::from_value(value).map(Document::Manifest).map_err(unreadable)
    }
}

/// The index entry for the machine we run on; `None` if the index has none.
pub(crate) fn choose(index: &ImageIndex) -> Result<Option<Blob>, String> {
    let entries = index.manifests().iter();
    // Entries without a platform come last: they may be anything, and where they are all there is they are it.
    let ranked = entries.filter_map(|entry| rank(entry.platform().as_ref()).map(|rank| (rank, entry)));
    let best = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, entry)| blob(entry)).transpose().map_err(|error| format!("the index entry for {}: {error}", here()))
}

/// How well a platform suits this machine; `None`: not at all.
fn rank(platform: Option<&Platform>) -> Option<u8> {
    let Some(platform) = platform else { return Some(0) };
    let suits = platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture();
    if !suits {
        return None;
    }
    match (architecture(), platform.variant().as_deref()) {
        ("amd64", None | Some("v1" | "")) | ("arm64", None | Some("v8" | "")) => Some(10),
        // Higher variants need instructions that we do not look for.
        ("amd64" | "arm64", Some(_)) => None,
        (_, _) => Some(5),
    }
}

/// Whether a config is for this machine. Configs that do not say are believed to be.
pub(crate) fn check_platform(config: &ImageConfiguration) -> Result<(), String> {
    let (os, arch) = (config.os().to_string(), config.architecture().to_string());
    let suits = (os.is_empty() || os == "linux") && (arch.is_empty() || arch == architecture());
    if suits { Ok(()) } else { Err(format!("the image is for {os}/{arch}, this machine is {}", here())) }
}

/// This machine's platform.
pub(crate) fn here() -> String {
    format!("linux/{}", architecture())
}

/// This machine in the words of GOARCH.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Pairs a manifest's layers with its config's diff ids, the lowest first.
pub(crate) fn layers(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<LayerDescriptor>, String> {
    let (descriptors, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
    if descriptors.len() != diff_ids.len() {
        return Err(format!("the manifest has {} layers, its config {}", descriptors.len(), diff_ids.len()));
    }
    let pairs = descriptors.iter().zip(diff_ids);
    pairs
        .map(|(descriptor, diff_id)| layer(descriptor, diff_id).map_err(|problem| format!("layer {}: {problem}", descriptor.digest())))
        .collect()
}

fn layer(descriptor: &Descriptor, diff_id: &str) -> Result<LayerDescriptor, String> {
    let media_type = descriptor.media_type().to_string();
    let base = media_type.split('+').next().unwrap_or_default().trim_end_matches(".gzip").trim_end_matches(".zstd");
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.diff",
    ];
    if !known.contains(&base) {
        return Err(format!("{media_type} is no archive of files; this is not a container image"));
    }
    let diff_id = diff_id.parse().map_err(|error: InvalidDigest| format!("its diff id {diff_id:?}: {error}"))?;
    Ok(LayerDescriptor { blob: blob(descriptor).map_err(|error| error.to_string())?, diff_id })
}

/// What a descriptor points to.
pub(crate) fn blob(descriptor: &Descriptor) -> Result<Blob, InvalidDigest> {
    Ok(Blob { digest: descriptor.digest().to_string().parse()?, size: descriptor.size() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digit: &str, platform: &str) -> String {
        format!(r#"{{"mediaType":"{OCI_MANIFEST}","size":1,"digest":"sha256:{}"{platform}}}"#, digit.repeat(64))
    }

    fn index(entries: &[String]) -> ImageIndex {
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, entries.join(","));
        match parse_document(text.as_bytes(), "").unwrap() {
            Document::Index(index) => *index,
            Document::Manifest(_) => panic!("not an index"),
        }
    }

    fn platform(os: &str, arch: &str, variant: &str) -> String {
        let variant = if variant.is_empty() { String::new() } else { format!(r#","variant":"{variant}""#) };
        format!(r#","platform":{{"os":"{os}","architecture":"{arch}"{variant}}}"#)
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
        let entries = [
            entry("a", &platform("unknown", "unknown", "")),
            entry("b", &platform("linux", other, "")),
            entry("c", &platform("windows", architecture(), "")),
            entry("d", &platform("linux", architecture(), "v99")),
            entry("e", &platform("linux", architecture(), "")),
        ];
        assert_eq!(choose(&index(&entries)).unwrap().unwrap().digest.digits(), "e".repeat(64));
        assert!(choose(&index(&entries[..4])).unwrap().is_none());
    }

    #[test]
    fn ambiguous_old_and_garbled_documents_are_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#,
            r#"{"schemaVersion":2,"config":{"mediaType":"x","size":1,"digest":"sha256:../../x"},"layers":[]}"#,
        ] {
            assert!(parse_document(bad.as_bytes(), OCI_MANIFEST).is_err(), "{bad}");
        }
    }
}
