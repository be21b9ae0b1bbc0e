//! Layers that vanish while the store is open: somebody deleted them. Images that stand on one are forgotten, so that
//! they are not said to be here, and the next pull brings back what is missing.

use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use coracle_domain::{During, Failure, Result};

use super::{State, Store, blocking};
use crate::LayerKey;
use crate::image::Catalog;

const STAGE: &str = "looking for the layer";
const HINT: &str = "somebody deleted it; its images are no longer listed, and pulling them again repairs them";

impl Store {
    /// Fails if one of the layers is not on the disk, or cannot be looked at. Blocks.
    pub(crate) fn must_be_there(&self, layers: &[LayerKey]) -> Result<()> {
        let lost = self.find_lost(layers)?;
        let Some(lost) = lost.first() else { return Ok(()) };
        Err(Failure::new(STAGE, self.paths.tree(lost).display(), Error::from(ErrorKind::NotFound)).hint(HINT).into())
    }

    /// Makes sure that no layer is taken to be here that is not; `true` if all of them are.
    pub(crate) async fn check_layers(self: &Arc<Self>, layers: &[LayerKey]) -> Result<bool> {
        let (store, layers) = (Arc::clone(self), layers.to_vec());
        let lost = blocking("looking for layers", move || store.find_lost(&layers)).await?;
        if lost.is_empty() {
            return Ok(true);
        }
        let store = Arc::clone(self);
        let guard = Arc::clone(&self.changes).lock_owned().await;
        blocking("forgetting lost layers", move || {
            let forgotten = store.forget_lost(&lost);
            drop(guard);
            forgotten
        })
        .await?;
        Ok(false)
    }

    /// Only under [`Store::changes`].
    fn forget_lost(&self, lost: &[LayerKey]) -> Result<()> {
        // Meanwhile a pull may have brought them back.
        let lost = self.find_lost(lost)?;
        let catalog = self.catalog();
        let (broken, whole): (Vec<_>, Vec<_>) =
            catalog.images.values().cloned().partition(|image| image.layers.iter().any(|key| lost.contains(key)));
        for key in &lost {
            tracing::warn!(layer = %self.paths.tree(key).display(), "a layer was deleted by somebody else");
            self.state().layers.remove(key);
        }
        self.publish(Catalog::new(whole));
        for image in broken {
            tracing::warn!(image = %image.id, "an image lost layers; it must be pulled again");
            let path = self.paths.image_record(&image.id);
            coracle_files::remove(&path).during("deleting", path.display())?;
        }
        Ok(())
    }

    /// Those of the layers that are not there.
    fn find_lost(&self, layers: &[LayerKey]) -> Result<Vec<LayerKey>> {
        let mut lost = Vec::new();
        for key in layers {
            let tree = self.paths.tree(key);
            if !is_there(&tree).during(STAGE, tree.display())? {
                lost.push(*key);
            }
        }
        Ok(lost)
    }
}

impl State {
    /// Whether a container may have the layer mounted.
    pub(super) fn may_be_mounted(&self, key: &LayerKey) -> bool {
        !self.unclear.is_empty() || self.rootfs.values().any(|rootfs| rootfs.layers.contains(key) || rootfs.volumes.contains(key))
    }
}

/// An error is no answer: what cannot be looked at now may be there, and be mounted.
fn is_there(tree: &Path) -> std::io::Result<bool> {
    match std::fs::metadata(tree) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}
