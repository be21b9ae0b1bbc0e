//! Layers are unpacked without waiting for the disk. This waits for it, in the background, once for all
//! layers that came meanwhile, and writes down that they are safe.
//!
//! The kernel says once to each open file that writes were lost, perhaps not at all to one that is opened later, and never which
//! (syncfs(2)). So one descriptor is held and asked, and layers that were here or under way when it heard of a loss are not marked
//! in this boot. The next one drops them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coracle_domain::{During, Failure, Result};
use tokio::time::timeout;

use super::{State, Store, blocking};
use crate::LayerKey;
use crate::failure::for_all;
use crate::record::{LayerRecord, encode};

/// How long after a failure it is tried again, unless there are more layers before.
const RETRY: Duration = Duration::from_secs(60);

const HINT: &str = "layers that were not safe yet are not until they are pulled again, as after a reboot";

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
                    tracing::warn!(%error, "cannot make layers durable; a reboot would cost them");
                }
                failed = outcome.is_err();
            }
        });
    }

    pub(crate) async fn make_durable(self: &Arc<Self>) -> Result<()> {
        let waiting = self.state().unsynced();
        if waiting.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(self);
        blocking("syncing layers", move || store.sync_disk()).await?;
        let (store, guard) = (Arc::clone(self), Arc::clone(&self.changes).lock_owned().await);
        blocking("syncing layers", move || {
            let marked = for_all(&waiting, |(key, serial)| store.mark_durable(key, *serial));
            drop(guard);
            store.sync_disk().and(marked)
        })
        .await
    }

    fn sync_disk(&self) -> Result<()> {
        // Held until what was lost is known, for whoever asks next hears no more of it.
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = rustix::fs::syncfs(&*disk) {
            self.note_lost_writes(&error.to_string());
            return Err(Failure::new("syncing the file system of", self.paths.root.display(), error).hint(HINT).into());
        }
        coracle_failpoint::reach(coracle_failpoint::Point::LayerSync);
        Ok(())
    }

    /// Keeps layers from being marked that were begun before now, by this process and by those that come after it.
    pub(super) fn note_lost_writes(&self, reason: &str) {
        self.state().distrust_all();
        let path = self.paths.lost_writes();
        if let Err(error) = coracle_files::replace(&path, reason.as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "the next process will not know that writes were lost");
        }
    }

    fn mark_durable(&self, key: &LayerKey, serial: u64) -> Result<()> {
        let record = {
            let state = self.state();
            state.layers.get(key).filter(|record| record.serial == serial && state.may_be_marked(record)).cloned()
        };
        // Marked by another round, gone meanwhile, or gone and unpacked again: then it has its turn later.
        let Some(mut record) = record else { return Ok(()) };
        record.durable = true;
        let path = self.paths.layer(key).join("record.json");
        coracle_files::replace(&path, &encode(&record)?).during("marking durable", path.display())?;
        self.state().layers.insert(*key, record);
        Ok(())
    }
}

impl State {
    /// The layers that are to be marked once the disk is synced, with their serials.
    fn unsynced(&self) -> Vec<(LayerKey, u64)> {
        self.layers.iter().filter(|(_, record)| self.may_be_marked(record)).map(|(key, record)| (*key, record.serial)).collect()
    }

    fn may_be_marked(&self, record: &LayerRecord) -> bool {
        !record.durable && record.serial >= self.intact_from
    }

    fn distrust_all(&mut self) {
        self.intact_from = self.next_serial();
    }
}
