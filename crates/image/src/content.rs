//! The content store: an OCI image layout (OCI image specification, "Image Layout") of manifests and
//! configs. `index.json` is for other tools; it is derived from the records and written anew after each
//! change, so losing it loses nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use coracle_domain::{During, Failure, Result};
use serde_json::json;

use crate::Digest;
use crate::disk::{Workshop, create_directory, list};
use crate::image::Image;

/// `<root>/images`.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    workshop: Workshop,
}

impl Layout {
    pub(crate) fn open(root: PathBuf, workshop: Workshop) -> Result<Self> {
        create_directory(&root.join("blobs/sha256"))?;
        let marker = root.join("oci-layout");
        let content = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let found = coracle_files::read(&marker);
        if found.as_ref().is_ok_and(|found| found == content) {
            return Ok(Self { root, workshop });
        }
        if !found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            tracing::warn!(path = %marker.display(), "the image layout's mark is rubbish; it is written anew");
        }
        if let Err(error) = workshop.write_durably(&marker, content) {
            tracing::warn!(%error, "other tools cannot tell that this is an image layout");
        }
        Ok(Self { root, workshop })
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.digits())
    }

    /// A blob's content, compared with its digest.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let content = coracle_files::read(&path).during("reading the blob", path.display())?;
        if Digest::of(&content) == *digest {
            return Ok(content);
        }
        Err(Failure::new("verifying the blob", path.display(), "its content is not what its name says").into())
    }

    pub(crate) fn write(&self, digest: &Digest, content: &[u8]) -> Result<()> {
        if self.read(digest).is_ok() {
            return Ok(());
        }
        self.workshop.write_durably(&self.blob(digest), content)
    }

    /// Deletes all blobs but these.
    pub(crate) fn retain(&self, keep: &HashSet<Digest>) -> Result<()> {
        for name in list(&self.blobs())? {
            if Digest::from_digits(&name).is_ok_and(|digest| keep.contains(&digest)) {
                continue;
            }
            let path = self.blobs().join(name);
            coracle_files::remove(&path).during("deleting the blob", path.display())?;
            coracle_failpoint::reach(coracle_failpoint::Point::BlobDelete);
        }
        Ok(())
    }

    /// Writes `index.json`. It is nobody's only copy: a failure is a warning.
    pub(crate) fn publish<'a>(&self, images: impl Iterator<Item = &'a Image>) {
        let manifests: Vec<_> = images.flat_map(descriptors).collect();
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
        let path = self.root.join("index.json");
        let content = serde_json::to_vec_pretty(&index).unwrap_or_default();
        match coracle_files::read(&path) {
            Ok(known) if known == content => return,
            Ok(known) if serde_json::from_slice::<serde::de::IgnoredAny>(&known).is_ok() => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(_) => tracing::warn!(path = %path.display(), "the image index is rubbish; it is written anew"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "the image index is damaged; it is written anew"),
        }
        if let Err(error) = self.replace(&path, &content) {
            tracing::warn!(path = %path.display(), %error, "cannot write the image index");
        }
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        coracle_files::replace(path, content).during("writing", path.display())
    }
}

/// One descriptor per name, as `skopeo` and others look them up.
fn descriptors(image: &Image) -> Vec<serde_json::Value> {
    let names = image.record.names.iter();
    let descriptors = names.filter_map(|name| {
        let (media_type, size) = image.manifests.get(&name.manifest)?;
        let reference =
            name.tag.as_ref().map_or_else(|| format!("{}@{}", name.repository, name.resolved), |tag| format!("{}:{tag}", name.repository));
        Some(json!({
            "mediaType": media_type,
            "digest": name.manifest,
            "size": size,
            "annotations": {"org.opencontainers.image.ref.name": reference},
        }))
    });
    descriptors.collect()
}
