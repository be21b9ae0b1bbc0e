//! Doors for the fuzz targets into what is private here. Built for them only.

use std::path::Path;

use bytes::Bytes;
use oci_spec::image::ImageConfiguration;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::manifest::{self, Document};
use crate::merged::Merged;
use crate::record::{ImageRecord, LayerRecord, RootfsRecord};
use crate::registry::{Chunk, parse_challenges};
use crate::{Digest, LayerKey, Reference};

/// Names and headers: what is accepted is written as it is read.
pub fn text(text: &str) {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(key) = text.parse::<LayerKey>() {
        assert_eq!(key.to_string(), text);
    }
    for challenge in parse_challenges(text) {
        let _ = (challenge.get("realm"), challenge.get("scope"));
    }
}

/// An index or a manifest, and a config, apart by a NUL byte.
pub fn documents(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (document, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let config = serde_json::from_slice::<ImageConfiguration>(config);
    if let Ok(config) = &config {
        let _ = manifest::check_platform(config);
    }
    match (manifest::parse_document(document, ""), config) {
        (Ok(Document::Index(index)), _) => drop(manifest::choose(&index)),
        (Ok(Document::Manifest(manifest)), Ok(config)) => {
            if let Ok(layers) = manifest::layers(&manifest, &config) {
                assert_eq!(layers.len(), config.rootfs().diff_ids().len());
            }
        }
        _ => {}
    }
}

/// Records of images, layers and root file systems.
pub fn record(json: &[u8]) {
    again::<ImageRecord>(json);
    again::<LayerRecord>(json);
    again::<RootfsRecord>(json);
}

fn again<T: Serialize + DeserializeOwned>(json: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<T>(json) {
        let written = serde_json::to_vec(&record).unwrap();
        let read: T = serde_json::from_slice(&written).unwrap();
        assert_eq!(serde_json::to_vec(&read).unwrap(), written);
    }
}

/// A layer's archive, compressed or not, unpacked into the empty `directory` with nothing below.
pub fn unpack(directory: &Path, bytes: &[u8]) {
    let (sender, chunks) = mpsc::channel(2);
    sender.try_send(Chunk::Data(Bytes::copy_from_slice(bytes))).ok().unwrap();
    sender.try_send(Chunk::End).ok().unwrap();
    if let Ok(applied) = crate::layer::unpack_unverified(directory, chunks) {
        let _ = applied.finish(&Merged::open(&[]).unwrap());
    }
}
