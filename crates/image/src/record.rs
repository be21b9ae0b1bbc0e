//! What is written down about images, layers and writable layers, one small JSON file each.
//!
//! A record is a versioned enum and is replaced by renaming. One that cannot be read is put aside
//! with a warning and costs nothing but its own subject.

use std::path::Path;

use coracle_domain::{During, ImageId, Result};
use coracle_files::Quarantine;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Digest, LayerKey};

/// An image: `<root>/records/<config digits>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: ImageId,
    /// The lowest first.
    pub(crate) layers: Vec<LayerKey>,
    pub(crate) names: Vec<Name>,
}

/// One way in which an image was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Name {
    /// `registry/repository`.
    pub(crate) repository: String,
    /// Absent where it was asked for by digest, or the tag has moved on to another image.
    pub(crate) tag: Option<String>,
    /// What the reference resolved to: an index's digest or the manifest's.
    pub(crate) resolved: Digest,
    /// The manifest's digest.
    pub(crate) manifest: Digest,
    /// When, in nanoseconds since the epoch.
    pub(crate) at: i64,
}

/// An unpacked layer: `<root>/layers/<key>/record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Allocated on disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Whether it says what the root directory is like.
    pub(crate) carries_root: bool,
    /// Whether it hides all that lies below.
    pub(crate) opaque_root: bool,
    /// The boot that unpacked it (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot: String,
    /// Whether its files are known to be on the disk and not only in memory.
    pub(crate) durable: bool,
    /// Tells this unpacking from another one of the same layer, and those that began earlier from those that began later.
    #[serde(skip)]
    pub(crate) serial: u64,
}

/// What a container's rootfs stands on: `<runtime>/<container id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootfsRecord {
    pub(crate) image: ImageId,
    /// The uppermost first, each once.
    pub(crate) layers: Vec<LayerKey>,
    /// Those of images that the container has as volumes, in no order.
    #[serde(default)]
    pub(crate) volumes: Vec<LayerKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "version")]
enum Versioned<T> {
    #[serde(rename = "1")]
    V1(T),
}

/// A record's text.
pub(crate) fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Versioned::V1(record)).during("encoding", "a record")
}

/// Reads a record; `None` if there is none or it is damaged and put aside.
pub(crate) fn load<T: DeserializeOwned>(path: &Path, quarantine: &Quarantine) -> Option<T> {
    let read = coracle_files::read(path).and_then(|content| Ok(serde_json::from_slice(&content)?));
    match read {
        Ok(Versioned::V1(record)) => Some(record),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => None,
        Err(error) => {
            quarantine.take(path, error);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text_and_rubbish_is_moved_aside() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.json");
        let id: ImageId = Digest::of(b"").to_string().parse().unwrap();
        let layers = vec![LayerKey::Diff(Digest::of(b"a")), LayerKey::Chain(Digest::of(b"b"))];
        let record = RootfsRecord { image: id, layers, volumes: vec![LayerKey::Diff(Digest::of(b"c"))] };
        std::fs::write(&path, encode(&record).unwrap()).unwrap();
        let aside = scratch.path().join("quarantine");
        let quarantine = Quarantine::at(aside.clone());
        assert_eq!(load::<RootfsRecord>(&path, &quarantine), Some(record.clone()));
        let rubbish = [&b""[..], b"{", b"{\"version\":\"2\"}", &encode(&record).unwrap()[..40]];
        for rubbish in rubbish {
            std::fs::write(&path, rubbish).unwrap();
            assert_eq!(load::<RootfsRecord>(&path, &quarantine), None);
            assert!(!path.exists());
        }
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), rubbish.len());
        assert_eq!(load::<RootfsRecord>(&path, &quarantine), None);
    }
}
