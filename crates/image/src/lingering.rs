//! What a pull that failed has brought in: kept for a while, for it is most often tried again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::store::{Pin, Store};

/// How long the layers of a failed pull wait for a retry.
const GRACE: Duration = Duration::from_secs(600);

/// A pin that outlives a failed or abandoned pull for a while.
pub(crate) struct Lingering {
    pin: Arc<Pin>,
    store: Weak<Store>,
    released: bool,
}

impl Lingering {
    /// A pin on nothing yet.
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self { pin: Arc::new(store.pin()), store: Arc::downgrade(store), released: false }
    }

    /// The pin.
    pub(crate) fn get(&self) -> &Pin {
        &self.pin
    }

    /// An image holds the layers now.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// Deletes the layers that nobody else wants.
    pub(crate) async fn give_up(mut self) {
        self.released = true;
        let (pin, store) = (Arc::clone(&self.pin), Weak::clone(&self.store));
        drop(self);
        unpin(pin, store).await;
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.released {
            return;
        }
        let (pin, store) = (Arc::clone(&self.pin), Weak::clone(&self.store));
        runtime.spawn(async move {
            tokio::time::sleep(GRACE).await;
            unpin(pin, store).await;
        });
    }
}

/// Deletes what only the last holder of a pin kept.
async fn unpin(pin: Arc<Pin>, store: Weak<Store>) {
    drop(pin);
    if let Some(store) = store.upgrade()
        && let Err(error) = store.sweep().await
    {
        tracing::warn!(%error, "cannot delete what a failed pull left");
    }
}
