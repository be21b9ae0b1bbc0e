//! Pulling: from a reference to an image in the store.
//!
//! ```text
//!   reference ─> digest ─> [index ─> platform] ─> manifest ─> config ─┐
//!                  └ known? done                                      ├─> layers, all at once ─> record
//!   per layer: here already? done; else fetch ─> verify ─> decompress ─> verify ─> apply ─> rename
//! ```
//!
//! Callers who ask for the same thing with the same credentials share one attempt; it ends when the last
//! of them has gone. A failed attempt leaves its complete layers for a while, so that a retry gets further, unless it failed for
//! want of room.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use coracle_domain::{During, Error, Failure, ImageId, Refusal, Result};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::failure::{is_for_want_of_room, share, wrap};
use crate::image::config_digest;
use crate::layer::{apply::NOTES_LIMIT, chain_ids, stream::unpack};
use crate::lingering::Lingering;
use crate::manifest::{self, CONFIG_LIMIT, Document, LayerDescriptor};
use crate::record::Name;
use crate::registry::{Chunk, Credentials, Fetched, MANIFEST_STAGE, Source};
use crate::store::{Arrival, Draft, Pin, Store, on_own_thread};
use crate::usage::now;
use crate::{Digest, LayerKey, Reference, Target};

/// Layers of one pull that are looked at together; fewer of them are downloaded.
const LAYERS_AT_ONCE: usize = 8;
/// Pieces of a blob between network and disk; each is some tens of KiB.
const PIECES: usize = 16;

/// What to pull, and with which credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PullRequest {
    /// As the caller wrote it.
    pub reference: String,
    /// Sent to the reference's registry if it asks, and to nobody else.
    pub credentials: Option<Credentials>,
}

/// The pulls under way.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<PullRequest, Weak<Attempt>>>);

type Outcome = Result<ImageId, Arc<Error>>;

/// A pull under way; it is broken off when nobody holds it any more.
#[derive(Debug)]
struct Attempt {
    outcome: watch::Receiver<Option<Outcome>>,
    task: AbortHandle,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Pulls an image, or finds that what is here is what the registry has.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for a malformed reference, [`Refusal::NotFound`] if the registry has no such
    /// image, `FailureKind::Denied` and `RegistryUnavailable` as they say,
    /// `Exhausted` for a full disk; anything else with stage and object.
    pub async fn pull(self: &Arc<Self>, request: PullRequest) -> Result<ImageId> {
        let reference: Reference =
            request.reference.parse().map_err(|problem| Refusal::invalid("image", format!("{:?}: {problem}", request.reference)))?;
        // Different spellings of a name are one pull.
        let request = PullRequest { reference: reference.to_string(), ..request };
        let attempt = self.join_or_start(request, reference);
        let mut outcome = attempt.outcome.clone();
        let finished = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match finished {
            Ok(Some(Ok(id))) => Ok(id),
            Ok(Some(Err(error))) => Err(share(error)),
            Ok(None) | Err(_) => Err(Failure::new("pulling", "an image", "the pull was broken off").into()),
        }
    }

    fn join_or_start(self: &Arc<Self>, request: PullRequest, reference: Reference) -> Arc<Attempt> {
        let mut pulls = self.pulls.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, attempt| attempt.strong_count() > 0);
        if let Some(attempt) = pulls.get(&request).and_then(Weak::upgrade) {
            return attempt;
        }
        let (sender, outcome) = watch::channel(None);
        let (store, credentials) = (Arc::clone(self), request.credentials.clone());
        let (key, weak) = (request.clone(), Arc::downgrade(self));
        let task = tokio::spawn(async move {
            let pulled = Pull::new(store, reference, credentials).run().await.map_err(Arc::new);
            if let Some(store) = weak.upgrade() {
                // Whoever comes from now on wants a fresh answer.
                store.pulls.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            }
            sender.send_replace(Some(pulled));
        });
        let attempt = Arc::new(Attempt { outcome, task: task.abort_handle() });
        pulls.insert(request, Arc::downgrade(&attempt));
        attempt
    }
}

/// One attempt.
struct Pull {
    store: Arc<Store>,
    reference: Reference,
    /// The reference's text, for messages.
    name: String,
    source: Source,
    /// One permit per layer that may be downloaded at the same time.
    downloads: Semaphore,
}

/// A manifest that was chosen, and what the reference had resolved to.
struct Resolved {
    digest: Digest,
    manifest: Fetched,
    parsed: Box<ImageManifest>,
}

impl Pull {
    fn new(store: Arc<Store>, reference: Reference, credentials: Option<Credentials>) -> Self {
        let source = Source::new(&store.client, &reference, credentials);
        let downloads = Semaphore::new(store.client.registries.concurrent_downloads.max(1));
        Self { name: reference.to_string(), store, reference, source, downloads }
    }

    async fn run(self) -> Result<ImageId> {
        if let Some(id) = self.recheck().await? {
            return Ok(id);
        }
        let resolved = self.resolve().await?;
        let id = ImageId::try_from(resolved.parsed.config().digest().to_string()).during("reading the manifest of", &self.name)?;
        let config_bytes = self.config(&resolved.parsed).await?;
        let layers = self.describe_layers(&resolved, &config_bytes)?;
        let mut pin = Lingering::new(&self.store);
        let blobs = vec![(config_digest(&id), config_bytes), (resolved.manifest.digest, resolved.manifest.bytes)];
        let name = self.name_for(resolved.digest, resolved.manifest.digest);
        let added = async {
            let layers = self.obtain_all(&layers, pin.get()).await?;
            self.store.add_image(Arrival { id: id.clone(), layers, name, blobs }).await
        };
        match added.await {
            Ok(_) => pin.release(),
            Err(error) => {
                // A retry needs room more than layers.
                if is_for_want_of_room(&error) {
                    pin.give_up().await;
                }
                return Err(error);
            }
        }
        Ok(id)
    }

    fn name_for(&self, resolved: Digest, manifest: Digest) -> Name {
        let tag = match self.reference.target() {
            Target::Tag(tag) => Some(tag.clone()),
            Target::Digest(_) => None,
        };
        Name { repository: self.reference.name(), tag, resolved, manifest, at: now() }
    }

    /// Asks the registry only for the digest, if what we have from this repository may be it.
    async fn recheck(&self) -> Result<Option<ImageId>> {
        let repository = self.reference.name();
        let catalog = self.store.catalog();
        let mut known = catalog.images.values().filter(|image| image.record.names.iter().any(|name| name.repository == repository));
        if known.clone().next().is_none() {
            return Ok(None);
        }
        // Not every registry answers this question: the full one will show what is wrong.
        let Ok(Some(digest)) = self.source.current_digest(self.reference.target()).await else { return Ok(None) };
        let Some(image) = known.find(|image| image.was_resolved_as(&digest)) else { return Ok(None) };
        if !self.store.check_layers(&image.layers).await? {
            return Ok(None);
        }
        // While all that was asked it may have been removed, or lost a name.
        let Some(image) = self.store.catalog().images.get(&image.id).cloned() else { return Ok(None) };
        let names = &image.record.names;
        let Some(manifest) = names.iter().find(|name| name.resolved == digest).map(|name| name.manifest) else { return Ok(None) };
        let name = self.name_for(digest, manifest);
        let says_nothing =
            |known: &Name| known.repository == name.repository && known.resolved == digest && (name.tag.is_none() || known.tag == name.tag);
        if !names.iter().any(says_nothing) {
            let arrival = Arrival { id: image.id.clone(), layers: image.layers.clone(), name, blobs: Vec::new() };
            let pin = self.store.pin();
            if image.layers.iter().any(|key| self.store.claim(&[*key], &pin).is_none()) {
                // It was removed this moment.
                return Ok(None);
            }
            if !self.store.add_image(arrival).await? {
                return Ok(None);
            }
        }
        Ok(Some(image.id.clone()))
    }

    async fn resolve(&self) -> Result<Resolved> {
        let first = self.fetch(self.reference.target()).await?;
        let digest = first.digest;
        let (manifest, parsed) = match self.parse(&first)? {
            Document::Manifest(parsed) => (first, parsed),
            Document::Index(index) => {
                let chosen = manifest::choose(&index).map_err(|problem| self.broken("choosing from the index of", problem))?;
                let chosen = chosen.ok_or_else(|| Refusal::not_found("image", format!("{} for {}", self.name, manifest::here())))?;
                let manifest = self.fetch(&Target::Digest(chosen.digest)).await?;
                match self.parse(&manifest)? {
                    Document::Manifest(parsed) => (manifest, parsed),
                    Document::Index(_) => return Err(self.broken("choosing from the index of", "its entry is an index again")),
                }
            }
        };
        Ok(Resolved { digest, manifest, parsed })
    }

    async fn fetch(&self, target: &Target) -> Result<Fetched> {
        self.source.manifest(target).await.map_err(|error| error.during(MANIFEST_STAGE, &self.name, &self.name))
    }

    fn parse(&self, fetched: &Fetched) -> Result<Document> {
        manifest::parse_document(&fetched.bytes, &fetched.media_type)
            .map_err(|problem| self.broken("reading the manifest of", format!("{}: {problem}", fetched.digest)))
    }

    async fn config(&self, manifest: &ImageManifest) -> Result<Vec<u8>> {
        let blob = manifest::blob(manifest.config()).during("reading the manifest of", &self.name)?;
        let fetched = self.source.read(blob, CONFIG_LIMIT).await;
        fetched.map_err(|error| error.during("fetching the config", &blob.digest.to_string(), &self.name))
    }

    fn describe_layers(&self, resolved: &Resolved, config: &[u8]) -> Result<Vec<LayerDescriptor>> {
        let config: ImageConfiguration = serde_json::from_slice(config).during("reading the config of", &self.name)?;
        manifest::check_platform(&config).map_err(|problem| self.broken("checking the platform of", problem))?;
        manifest::layers(&resolved.parsed, &config).map_err(|problem| self.broken("reading the manifest of", problem))
    }

    fn broken(&self, stage: &'static str, problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Failure::new(stage, &self.name, problem).into()
    }

    /// Brings all layers in and answers with their keys, in the same order.
    async fn obtain_all(&self, layers: &[LayerDescriptor], pin: &Pin) -> Result<Vec<LayerKey>> {
        let chains = chain_ids(layers.iter().map(|layer| layer.diff_id));
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for (layer, chain) in layers.iter().zip(&chains) {
            if seen.insert(layer.diff_id) {
                wanted.push(async move { self.obtain(layer, *chain, pin).await.map(|obtained| (layer.diff_id, obtained)) });
            }
        }
        let mut obtained = self.gather(stream::iter(wanted).buffer_unordered(LAYERS_AT_ONCE)).await?;

        let mut keys: Vec<LayerKey> = Vec::new();
        for (layer, chain) in layers.iter().zip(&chains) {
            let key = match obtained.remove(&layer.diff_id) {
                Some(Obtained::Here(key @ LayerKey::Diff(_))) => {
                    // It may come again further up.
                    obtained.insert(layer.diff_id, Obtained::Here(key));
                    key
                }
                Some(Obtained::Here(key)) => key,
                Some(Obtained::Incomplete(draft)) => self.complete(*draft, *chain, &keys, pin).await?,
                None => self.obtain_again(layer, *chain, &keys, pin).await?,
            };
            keys.push(key);
        }
        Ok(keys)
    }

    /// Waits for all layers. What was noted of those that lean on others is kept until then, and therefore bounded.
    async fn gather(&self, layers: impl Stream<Item = Result<(Digest, Obtained)>>) -> Result<HashMap<Digest, Obtained>> {
        let (mut gathered, mut noted) = (HashMap::new(), 0);
        let mut layers = std::pin::pin!(layers);
        while let Some((diff_id, obtained)) = layers.try_next().await? {
            if let Obtained::Incomplete(draft) = &obtained {
                noted += draft.applied.noted();
            }
            if noted > NOTES_LIMIT {
                return Err(self.broken("unpacking the layers of", "together they leave too much to the layers below them"));
            }
            gathered.insert(diff_id, obtained);
        }
        Ok(gathered)
    }

    /// A layer that leans on those below it, and stands on different ones in the same image.
    async fn obtain_again(&self, layer: &LayerDescriptor, chain: Digest, below: &[LayerKey], pin: &Pin) -> Result<LayerKey> {
        match self.obtain(layer, chain, pin).await? {
            Obtained::Here(key) => Ok(key),
            Obtained::Incomplete(draft) => self.complete(*draft, chain, below, pin).await,
        }
    }

    async fn complete(&self, draft: Draft, chain: Digest, below: &[LayerKey], pin: &Pin) -> Result<LayerKey> {
        let key = LayerKey::Chain(chain);
        self.store.keep_layer(draft, key, below.to_vec(), pin).await?;
        Ok(key)
    }

    /// Finds a layer here, or fetches and unpacks it.
    async fn obtain(&self, layer: &LayerDescriptor, chain: Digest, pin: &Pin) -> Result<Obtained> {
        let fetching = self.store.fetching((self.reference.registry().to_owned(), layer.blob.digest));
        let _alone = fetching.lock().await;
        let key = LayerKey::Diff(layer.diff_id);
        if let Some(key) = self.store.claim(&[key, LayerKey::Chain(chain)], pin)
            && self.store.check_layers(&[key]).await?
        {
            return Ok(Obtained::Here(key));
        }
        let draft = self.unpack(layer).await?;
        if !draft.applied.is_self_contained() {
            return Ok(Obtained::Incomplete(Box::new(draft)));
        }
        self.store.keep_layer(draft, key, Vec::new(), pin).await?;
        Ok(Obtained::Here(key))
    }

    async fn unpack(&self, layer: &LayerDescriptor) -> Result<Draft> {
        let _permit = self.downloads.acquire().await.during("waiting to download", &self.name)?;
        let digest = layer.blob.digest.to_string();
        let (sender, receiver) = mpsc::channel::<Chunk>(PIECES);
        let (workshop, diff_id, serial) = (self.store.workshop.clone(), layer.diff_id, self.store.state().next_serial());
        let applying = on_own_thread("unpacking a layer", move || {
            let scratch = workshop.scratch()?;
            let tree = scratch.path().join("fs");
            std::fs::create_dir(&tree).during("making the layer's directory", tree.display())?;
            set_root_mode(&tree)?;
            coracle_failpoint::reach(coracle_failpoint::Point::LayerTree);
            let applied = unpack(&tree, receiver, diff_id)?;
            Ok(Draft { scratch, applied, serial })
        });
        let (fetched, unpacked) = tokio::join!(self.source.download(layer.blob, sender), applying);
        // A download that failed makes unpacking fail too, or the content that it found to be wrong did.
        fetched.map_err(|error| error.during("fetching the layer", &digest, &self.name))?;
        unpacked.map_err(|error| wrap("unpacking the layer", format!("{digest} of {}", self.name), error))
    }
}

enum Obtained {
    Here(LayerKey),
    /// Unpacked, but wanting for something from the layers below.
    Incomplete(Box<Draft>),
}

fn set_root_mode(tree: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(tree, std::fs::Permissions::from_mode(0o755)).during("setting the mode of", tree.display())
}
