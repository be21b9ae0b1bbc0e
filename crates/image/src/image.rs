//! Images as they are told of: immutable pictures, made from a record and the blobs it names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use coracle_domain::{During, Failure, ImageId, Result};
use oci_spec::image::{ImageConfiguration, ImageManifest};

use crate::content::Layout;
use crate::manifest::{Document, parse_document};
use crate::record::ImageRecord;
use crate::{Digest, LayerKey, Reference};

/// An image that is here, complete.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its config's digest.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest` with the digests that its references resolved to, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of manifest, config and compressed layers, as its manifest declares them; never 0.
    pub size: u64,
    /// Whether nobody may remove it to make room.
    pub pinned: bool,
    /// Its config.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<LayerKey>,
    pub(crate) record: ImageRecord,
    /// Its manifests by digest, with media type and length in bytes.
    pub(crate) manifests: BTreeMap<Digest, (String, u64)>,
    /// Bytes that its blobs take in the content store.
    pub(crate) blob_bytes: u64,
}

impl Image {
    /// The user its config names: a name or a number, perhaps with `:` and a group.
    pub fn user(&self) -> Option<&str> {
        self.config.config().as_ref()?.user().as_deref().filter(|user| !user.is_empty())
    }

    /// Reads the blobs that `record` names.
    pub(crate) fn load(record: ImageRecord, layout: &Layout) -> Result<Self> {
        let bytes = layout.read(&config_digest(&record.id))?;
        let config: ImageConfiguration = serde_json::from_slice(&bytes).during("parsing the config of", &record.id)?;
        let mut manifests = BTreeMap::new();
        let mut size = 0;
        for name in &record.names {
            let content = layout.read(&name.manifest)?;
            let manifest = parse_manifest(&content, &name.manifest)?;
            let media_type =
                manifest.media_type().as_ref().map_or("application/vnd.oci.image.manifest.v1+json".into(), ToString::to_string);
            manifests.insert(name.manifest, (media_type, content.len() as u64));
            let parts = manifest.layers().iter().map(|layer| layer.size()).fold(0, u64::saturating_add);
            size = parts.saturating_add(content.len() as u64 + bytes.len() as u64);
        }
        let blob_bytes = bytes.len() as u64 + manifests.values().map(|(_, length)| length).sum::<u64>();
        let tags = record.names.iter().filter_map(|name| Some(format!("{}:{}", name.repository, name.tag.as_ref()?)));
        let digests = record.names.iter().map(|name| format!("{}@{}", name.repository, name.resolved));
        Ok(Self {
            id: record.id.clone(),
            repo_tags: tags.collect::<BTreeSet<_>>().into_iter().collect(),
            repo_digests: digests.collect::<BTreeSet<_>>().into_iter().collect(),
            size: size.max(1),
            pinned: false,
            config,
            layers: record.layers.clone(),
            manifests,
            blob_bytes,
            record,
        })
    }

    /// The blobs to be kept for it.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.manifests.keys().copied().chain([config_digest(&self.id)])
    }

    /// Whether a reference into `repository` resolved to `digest`.
    pub(crate) fn was_resolved_as(&self, digest: &Digest) -> bool {
        self.record.names.iter().any(|name| name.resolved == *digest)
    }
}

/// An id as what it is.
pub(crate) fn config_digest(id: &ImageId) -> Digest {
    // Both types hold exactly 64 hexadecimal digits, so the alternative is never taken.
    Digest::from_digits(id.digits()).unwrap_or_else(|_| Digest::of(&[]))
}

fn parse_manifest(content: &[u8], digest: &Digest) -> Result<Box<ImageManifest>> {
    match parse_document(content, "") {
        Ok(Document::Manifest(manifest)) => Ok(manifest),
        Ok(Document::Index(_)) => Err(Failure::new("parsing the manifest", digest, "it is an index").into()),
        Err(problem) => Err(Failure::new("parsing the manifest", digest, problem).into()),
    }
}

/// All images, and the names that lead to them. Replaced as a whole when one changes.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) images: BTreeMap<ImageId, Arc<Image>>,
    names: HashMap<String, ImageId>,
}

impl Catalog {
    pub(crate) fn new(images: impl IntoIterator<Item = Arc<Image>>) -> Self {
        let images: BTreeMap<_, _> = images.into_iter().map(|image| (image.id.clone(), image)).collect();
        let names = images.values().flat_map(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names.map(|name| (name.clone(), image.id.clone()))
        });
        let names = names.collect();
        Self { images, names }
    }

    /// The image meant by a name, an id with or without its algorithm, or the unique start of one.
    pub(crate) fn find(&self, text: &str) -> Option<Arc<Image>> {
        if let Ok(id) = text.parse::<ImageId>() {
            return self.images.get(&id).cloned();
        }
        let named = text.parse::<Reference>().ok().and_then(|reference| self.names.get(&reference.to_string()));
        named.and_then(|id| self.images.get(id)).cloned().or_else(|| self.find_by_start(text))
    }

    fn find_by_start(&self, text: &str) -> Option<Arc<Image>> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut found = self.images.values().filter(|image| image.id.digits().starts_with(digits));
        let first = found.next()?;
        found.next().is_none().then(|| Arc::clone(first))
    }
}
