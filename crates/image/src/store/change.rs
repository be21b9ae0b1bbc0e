//! Everything that changes what is on disk: layers and images that come, images that go, and what
//! nobody wants any more.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_domain::{During, Failure, ImageId, Result};
use coracle_failpoint::{Point, reach};
use tokio::sync::oneshot;

use super::load::set_aside;
use super::{Pin, State, Store, blocking};
use crate::disk::Scratch;
use crate::image::{Catalog, Image};
use crate::layer::Applied;
use crate::merged::Merged;
use crate::record::{ImageRecord, LayerRecord, Name, encode};
use crate::tree::measure;
use crate::{Digest, LayerKey};

/// A layer in the workshop: `fs/` in the scratch directory.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) scratch: Scratch,
    pub(crate) applied: Applied,
    /// Taken before anything was written.
    pub(crate) serial: u64,
}

/// An image whose layers are all here.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) id: ImageId,
    pub(crate) layers: Vec<LayerKey>,
    pub(crate) name: Name,
    /// Manifest and config.
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
}

impl Store {
    /// Finishes a layer on top of `below`, the lowest of them first, and puts it into its place.
    pub(crate) async fn keep_layer(self: &Arc<Self>, draft: Draft, key: LayerKey, below: Vec<LayerKey>, pin: &Pin) -> Result<()> {
        let (store, number) = (Arc::clone(self), pin.number);
        // The layers below are pinned: only moving into place needs the others to wait.
        let finished = blocking("finishing a layer", move || store.finish_layer(draft, key, &below)).await?;
        let store = Arc::clone(self);
        let guard = Arc::clone(&self.changes).lock_owned().await;
        blocking("keeping a layer", move || {
            let kept = store.place_layer(finished, key, number);
            drop(guard);
            store.unsynced.notify_one();
            kept
        })
        .await
    }

    fn finish_layer(&self, draft: Draft, key: LayerKey, below: &[LayerKey]) -> Result<(Scratch, LayerRecord)> {
        let Draft { scratch, applied, serial } = draft;
        let trees: Vec<_> = self.state().stack(below).iter().map(|key| self.paths.tree(key)).collect();
        let below = Merged::open(&trees).during("opening the layers below", key)?;
        let finished = applied.finish(&below)?;
        let size = measure(&scratch.path().join("fs")).during("measuring the layer", key)?;
        let record = LayerRecord {
            bytes: size.bytes,
            inodes: size.inodes,
            carries_root: finished.carries_root,
            opaque_root: finished.opaque_root,
            boot: self.boot.clone(),
            durable: false,
            serial,
        };
        let path = scratch.path().join("record.json");
        coracle_files::replace(&path, &encode(&record)?).during("writing", path.display())?;
        reach(Point::LayerRecord);
        Ok((scratch, record))
    }

    fn place_layer(&self, (scratch, record): (Scratch, LayerRecord), key: LayerKey, pin: u64) -> Result<()> {
        if !self.state().pins.contains_key(&pin) {
            return Err(Failure::new("keeping the layer", key, "its pull was given up").into());
        }
        let path = self.paths.layer(&key);
        if !self.state().layers.contains_key(&key) {
            self.make_way(&key)?;
            scratch.keep_as(&path)?;
        }
        self.state().keep(key, record, pin);
        Ok(())
    }

    /// What has a layer's place and is none was left by somebody who got no further, or was taken for lost. There is mostly nothing.
    fn make_way(&self, key: &LayerKey) -> Result<()> {
        let path = self.paths.layer(key);
        if self.state().may_be_mounted(key) { set_aside(&self.paths, &self.workshop, &path) } else { self.workshop.remove(&path).map(drop) }
    }

    /// Adds an image, or a name to one. A tag that led elsewhere leads here now. Without blobs it must be here already: `false` if
    /// it is not any more.
    pub(crate) async fn add_image(self: &Arc<Self>, arrival: Arrival) -> Result<bool> {
        let store = Arc::clone(self);
        let guard = Arc::clone(&self.changes).lock_owned().await;
        blocking("recording an image", move || {
            let added = store.record_image(arrival);
            drop(guard);
            added
        })
        .await
    }

    fn record_image(&self, arrival: Arrival) -> Result<bool> {
        let Arrival { id, layers, name, blobs } = arrival;
        let catalog = self.catalog();
        let known = catalog.images.get(&id).map(|image| image.record.names.clone());
        if known.is_none() && blobs.is_empty() {
            return Ok(false);
        }
        for (digest, content) in &blobs {
            self.layout.write(digest, content)?;
        }
        let names = with_name(known.unwrap_or_default(), name.clone());
        let image = self.write_image(ImageRecord { id: id.clone(), layers, names })?;
        let mut images = catalog.images.clone();
        images.insert(id.clone(), image);
        for other in catalog.images.values().filter(|other| other.id != id) {
            if let Some(record) = without_tag(&other.record, &name) {
                images.insert(other.id.clone(), self.write_image(record)?);
            }
        }
        self.publish(Catalog::new(images.into_values()));
        Ok(true)
    }

    fn write_image(&self, record: ImageRecord) -> Result<Arc<Image>> {
        self.workshop.write_durably(&self.paths.image_record(&record.id), &encode(&record)?)?;
        Ok(Arc::new(Image::load(record, &self.layout)?))
    }

    pub(super) fn publish(&self, catalog: Catalog) {
        let catalog = Arc::new(catalog);
        self.state().catalog = Arc::clone(&catalog);
        self.layout.publish(catalog.images.values().map(AsRef::as_ref));
    }

    /// Removes the image that `name` means, with all its names, and the layers that nobody else wants.
    /// Absence is success. When this returns the image is listed no more and its room is given back.
    ///
    /// # Errors
    /// If the disk refuses.
    pub async fn remove(self: &Arc<Self>, name: &str) -> Result<()> {
        let (store, name) = (Arc::clone(self), name.to_owned());
        let guard = Arc::clone(&self.changes).lock_owned().await;
        let deleted = blocking("removing an image", move || {
            let deleted = store.forget_image(&name);
            drop(guard);
            deleted
        })
        .await?;
        for done in deleted {
            // An error means that the thread is gone, and then so is this process soon.
            let _ = done.await;
        }
        Ok(())
    }

    fn forget_image(&self, name: &str) -> Result<Vec<oneshot::Receiver<()>>> {
        let catalog = self.catalog();
        // Who asks again may not have heard that its layers could not be deleted.
        let Some(image) = catalog.find(name) else { return self.collect_garbage() };
        let path = self.paths.image_record(&image.id);
        coracle_files::remove(&path).during("deleting", path.display())?;
        reach(Point::ImageForget);
        self.publish(Catalog::new(catalog.images.values().filter(|other| other.id != image.id).cloned()));
        self.collect_garbage()
    }

    /// Deletes what nobody wants, after a while: see [`crate::disk`].
    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<()> {
        let store = Arc::clone(self);
        let guard = Arc::clone(&self.changes).lock_owned().await;
        blocking("deleting unused layers", move || {
            let swept = store.collect_garbage();
            drop(guard);
            swept.map(drop)
        })
        .await
    }

    /// Deletes layers and blobs that nobody wants. Only under [`Store::changes`].
    pub(super) fn collect_garbage(&self) -> Result<Vec<oneshot::Receiver<()>>> {
        let unwanted = self.state().take_unwanted();
        let (mut deleted, mut outcome) = (Vec::new(), Ok(()));
        for (key, record) in unwanted {
            match self.workshop.remove(&self.paths.layer(&key)) {
                Ok(done) => deleted.push(done),
                Err(error) => {
                    // It is there still, takes room, and has its turn again.
                    self.state().layers.insert(key, record);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        let blobs: HashSet<Digest> = self.catalog().images.values().flat_map(|image| image.blobs()).collect();
        self.layout.retain(&blobs).and(outcome)?;
        Ok(deleted)
    }
}

impl State {
    /// Adds a layer that is in its place. A pin that was given up meanwhile stays so: the sweep that follows takes the layer.
    fn keep(&mut self, key: LayerKey, record: LayerRecord, pin: u64) {
        self.layers.entry(key).or_insert(record);
        if let Some(pinned) = self.pins.get_mut(&pin) {
            pinned.insert(key);
        }
    }

    /// Forgets the layers that nobody wants, so that nobody claims them any more.
    fn take_unwanted(&mut self) -> Vec<(LayerKey, LayerRecord)> {
        if !self.unclear.is_empty() {
            return Vec::new();
        }
        let wanted = self.wanted();
        self.layers.extract_if(|key, _| !wanted.contains(key)).collect()
    }
}

/// The names with one more. A tag that resolves to something new leaves its old digest behind.
fn with_name(mut names: Vec<Name>, name: Name) -> Vec<Name> {
    for known in names.iter_mut().filter(|known| known.repository == name.repository && known.tag == name.tag) {
        known.tag = None;
    }
    names.push(name);
    let mut kept: Vec<Name> = Vec::new();
    // The latest first, those with a tag before those without: the others may say nothing new.
    names.sort_by_key(|name| (name.tag.is_none(), std::cmp::Reverse(name.at)));
    for name in names {
        let says_nothing = |other: &Name| other.repository == name.repository && other.resolved == name.resolved;
        if name.tag.is_some() || !kept.iter().any(says_nothing) {
            kept.push(name);
        }
    }
    kept
}

/// The record without a tag that `taker` has now; `None` if it has not got it.
fn without_tag(record: &ImageRecord, taker: &Name) -> Option<ImageRecord> {
    let mut changed = record.clone();
    let taken = |name: &&mut Name| name.tag.is_some() && name.tag == taker.tag && name.repository == taker.repository;
    let name = changed.names.iter_mut().find(taken)?;
    name.tag = None;
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_comes_after_its_pull_was_given_up_is_nobodys() {
        let mut state = State::default();
        let record = LayerRecord {
            bytes: 0,
            inodes: 0,
            carries_root: false,
            opaque_root: false,
            boot: "this boot".into(),
            durable: false,
            serial: 2,
        };
        let key = |name: &str| LayerKey::Diff(Digest::of(name.as_bytes()));
        state.pins.insert(7, HashSet::new());
        state.keep(key("wanted"), record.clone(), 7);
        state.keep(key("late"), record, 8);
        assert_eq!(state.take_unwanted().into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [key("late")]);
    }
}
