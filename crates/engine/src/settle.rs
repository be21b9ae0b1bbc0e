//! What a daemon does after its start while it serves already: it looks what the node can, and sweeps what carries our names and
//! belongs to no pod.
//!
//! New things are made meanwhile, and must not be taken for leftovers. So whatever is swept was there when the daemon began,
//! or is nobody's by a look at the claims that came after the look at the thing: a pod has a directory before it has
//! anything else. Where something new depends on all this it waits ([`Later`]).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_domain::{ContainerId, Result};
use tokio::sync::watch;

use crate::pod::containers_in;
use crate::{Shared, cgroups, probe};

/// What is known only some time after the start.
#[derive(Debug)]
pub(crate) struct Later<T>(watch::Sender<Option<T>>);

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl<T: Clone> Later<T> {
    fn set(&self, value: T) {
        self.0.send_replace(Some(value));
    }

    /// Waits until it is known.
    pub(crate) async fn get(&self) -> T {
        let mut news = self.0.subscribe();
        loop {
            let known = news.borrow_and_update().clone();
            if let Some(known) = known {
                return known;
            }
            // The sender is borrowed here, so there is one.
            let _ = news.changed().await;
        }
    }
}

/// Begins with all of it. Of the pods' links on the node these are known.
pub(crate) fn begin(shared: &Arc<Shared>, links: HashSet<String>) {
    let sweeping = Arc::clone(shared);
    tokio::spawn(async move {
        warn_of(sweeping.network.sweep(&links).await);
        sweeping.links_swept.set(());
    });
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        shared.user_namespaces.set(probe_user_namespaces(shared.images.root().to_owned()).await);
        // What nobody waits for leaves the processors to those who do.
        shared.index.recoveries().wait_for_all().await;
        warm_up(shared.node.capabilities);
        warn_of(sweep_cgroups(&shared).await);
        warn_of(sweep_writable_layers(&shared).await);
    });
}

/// Finds out whether pods can have user namespaces. That they cannot is no fault until one asks.
async fn probe_user_namespaces(storage: PathBuf) -> std::result::Result<(), String> {
    let probed = cgroups::blocking(move || probe::user_namespaces(&storage)).await.map_err(|error| error.to_string());
    if let Err(reason) = &probed {
        tracing::info!(reason, "pods cannot have user namespaces on this node");
    }
    probed
}

/// Compiles the default system call filter, which takes some milliseconds, before the first container wants it.
fn warm_up(capabilities: u64) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = coracle_spec::seccomp::warm_up(capabilities) {
            tracing::warn!(%error, "the default system call filter cannot be compiled");
        }
    });
}

async fn sweep_cgroups(shared: &Arc<Shared>) -> Result<()> {
    let shared = Arc::clone(shared);
    cgroups::blocking(move || {
        let swept = shared.hierarchy.sweep(|pod| shared.layout.may_have(pod));
        swept.failures.into_iter().map(Err).for_each(warn_of::<()>);
        Ok(())
    })
    .await
}

/// Writable layers are claimed by records and by directories: a container that is being made has no record yet, and one that
/// was damaged no directory.
async fn sweep_writable_layers(shared: &Arc<Shared>) -> Result<()> {
    let looking = Arc::clone(shared);
    let known = cgroups::blocking(move || {
        let mut known: HashSet<ContainerId> = HashSet::new();
        for pod in looking.layout.pods_there()? {
            known.extend(containers_in(&looking.layout.pod(&pod)));
        }
        known.extend(looking.index.pods_now().iter().flat_map(|pod| &pod.containers).map(|container| container.id.clone()));
        Ok(known)
    });
    shared.images.sweep_rootfs(&known.await?).await
}

/// A failure costs room, not service.
fn warn_of<T>(swept: Result<T>) {
    if let Err(error) = swept {
        tracing::warn!(%error, "leftovers could not be swept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_known_yet_is_waited_for_by_all() {
        let later = Arc::new(Later::default());
        let waiting: Vec<_> = [(); 2].map(|()| Arc::clone(&later)).map(|later| tokio::spawn(async move { later.get().await })).into();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        later.set(7);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), 7);
        }
        assert_eq!(later.get().await, 7);
    }
}
