//! Images as volumes of containers: their layers, kept for as long as the container has its writable layer.
//!
//! The claim stands in the container's record beside the layers of its rootfs, so it is as durable as that one, and
//! goes with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_domain::{ContainerId, During, ImageId, Refusal, Result};
use rustix::fs::FileType;

use crate::LayerKey;
use crate::merged::Merged;
use crate::record::{RootfsRecord, encode};
use crate::store::{State, Store, blocking};

impl Store {
    /// Keeps an image's layers for a container that has a rootfs already, and answers with them: the uppermost first,
    /// and an empty one at the bottom, since overlayfs without a writable layer wants two.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] if the image is not here, or has nothing at `part` that can be mounted: a directory or a
    /// regular file. Links are followed, but never out of the image.
    pub async fn claim_volume(self: &Arc<Self>, image: &ImageId, part: Option<&Path>, container: &ContainerId) -> Result<Vec<PathBuf>> {
        let (record, layers) = self.state().claim_volume(image, container)?;
        let mut trees: Vec<PathBuf> = layers.iter().map(|key| self.paths.tree(key)).collect();
        trees.push(self.paths.empty_tree());
        let (path, part) = (self.paths.rootfs_record(container), part.map(Path::to_owned));
        let (store, keys) = (Arc::clone(self), layers.clone());
        let claimed = blocking("claiming an image", move || {
            store.must_be_there(&keys)?;
            coracle_files::replace(&path, &encode(&record)?).during("recording the layers of a container in", path.display())?;
            if let Some(part) = part {
                must_be_there(&trees, &part)?;
            }
            Ok(trees)
        })
        .await;
        if claimed.is_err() {
            self.check_layers(&layers).await?;
        }
        claimed
    }
}

impl State {
    fn claim_volume(&mut self, image: &ImageId, container: &ContainerId) -> Result<(RootfsRecord, Vec<LayerKey>)> {
        let Some(found) = self.catalog.images.get(image).cloned() else {
            return Err(Refusal::not_found("image", image.as_str()).into());
        };
        let layers = self.stack(&found.layers);
        let Some(record) = self.rootfs.get_mut(container) else {
            return Err(Refusal::wrong_state(format!("container {container} has no rootfs")).into());
        };
        record.volumes.extend(layers.iter().copied().filter(|key| !record.layers.contains(key)));
        record.volumes.sort_unstable();
        record.volumes.dedup();
        Ok((record.clone(), layers))
    }
}

fn must_be_there(trees: &[PathBuf], part: &Path) -> Result<()> {
    let found = Merged::open(trees).and_then(|merged| merged.find(part)).during("looking in the image for", part.display())?;
    let kind = found.map(|found| FileType::from_raw_mode(found.stat.st_mode));
    match kind {
        Some(FileType::Directory | FileType::RegularFile) => Ok(()),
        Some(kind) => Err(Refusal::invalid("image_sub_path", format!("{} is a {kind:?} in the image", part.display())).into()),
        None => Err(Refusal::not_found("path in the image", part.to_string_lossy()).into()),
    }
}
