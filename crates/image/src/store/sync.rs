//! Layers are unpacked without waiting for the disk. This waits for it, in the background, once for all
//! layers that came meanwhile, and writes down that they are safe.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use coracle_domain::{During, Result};
use tokio::time::timeout;

use super::{Store, blocking};
use crate::LayerKey;
use crate::record::encode;

/// How long after a failure it is tried again, unless there are more layers before.
const RETRY: Duration = Duration::from_secs(60);

impl Store {
    /// Starts the task that makes layers durable. It ends with the store.
    pub(super) fn start_syncing(self: &Arc<Self>) {
        let (bell, weak) = (Arc::clone(&self.unsynced), Arc::downgrade(self));
        self.unsynced.notify_one();
        tokio::spawn(async move {
            let mut failed = false;
            loop {
                if failed {
                    let _ = timeout(RETRY, bell.notified()).await;
                } else {
                    bell.notified().await;
                }
                let Some(store) = weak.upgrade() else { return };
                let outcome = store.make_durable().await;
                if let (Err(error), false) = (&outcome, failed) {
                    tracing::warn!(%error, "cannot make layers durable yet; a reboot would cost them");
                }
                failed = outcome.is_err();
            }
        });
    }

    pub(crate) async fn make_durable(self: &Arc<Self>) -> Result<()> {
        let waiting: Vec<(LayerKey, u64)> =
            self.state().layers.iter().filter(|(_, record)| !record.durable).map(|(key, record)| (*key, record.serial)).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(self);
        blocking("syncing layers", move || store.sync_disk()).await?;
        let (store, guard) = (Arc::clone(self), Arc::clone(&self.changes).lock_owned().await);
        blocking("syncing layers", move || {
            waiting.iter().try_for_each(|(key, serial)| store.mark_durable(key, *serial))?;
            drop(guard);
            store.sync_disk()
        })
        .await
    }

    fn sync_disk(&self) -> Result<()> {
        let root = &self.paths.root;
        let directory = File::open(root).during("opening", root.display())?;
        rustix::fs::syncfs(directory).during("syncing the file system of", root.display())?;
        coracle_failpoint::reach(coracle_failpoint::Point::LayerSync);
        Ok(())
    }

    fn mark_durable(&self, key: &LayerKey, serial: u64) -> Result<()> {
        let record = self.state().layers.get(key).filter(|record| record.serial == serial && !record.durable).cloned();
        // Marked by another round, gone meanwhile, or gone and unpacked again: then it has its turn later.
        let Some(mut record) = record else { return Ok(()) };
        record.durable = true;
        let path = self.paths.layer(key).join("record.json");
        coracle_files::replace(&path, &encode(&record)?).during("marking durable", path.display())?;
        self.state().layers.insert(*key, record);
        Ok(())
    }
}
