//! The cgroups of execs: each has one of its own, so that all it leaves behind can be killed with it.
//!
//! Making and removing one costs more than the rest of what the daemon does for an exec, so that of an exec that left
//! nothing behind is kept for the next one in its container. All go with the container, whoever made them.

use std::sync::{Arc, Mutex, PoisonError};

use coracle_cgroup::{Cgroup, ExecLeaf};
use coracle_domain::Result;
use coracle_plan::Cgroups;
use tokio::task::JoinHandle;

use crate::live::LiveContainer;

/// How many a container keeps: as many as it has probes that may coincide. Each costs a descriptor.
const MOST_IDLE: usize = 3;

/// A container's leaves in which nothing runs.
#[derive(Debug, Default)]
pub(crate) struct IdleLeaves(Mutex<Vec<ExecLeaf>>);

impl IdleLeaves {
    /// An empty leaf: one that was kept, or a new one of this name.
    fn take(&self, cgroup: &Cgroup, name: &str) -> Result<ExecLeaf> {
        while let Some(leaf) = self.pop() {
            // A container with power over its cgroups may have removed it, or put something there: then it keeps it.
            if leaf.is_empty() {
                return Ok(leaf);
            }
        }
        // One mkdir(2) in memory: shorter than handing it to another thread would take.
        cgroup.exec_leaf(name)
    }

    fn pop(&self) -> Option<ExecLeaf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps an empty leaf; returns one that cannot be kept.
    fn keep(&self, leaf: ExecLeaf) -> Option<ExecLeaf> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MOST_IDLE || !leaf.is_empty() {
            return Some(leaf);
        }
        idle.push(leaf);
        None
    }

    /// Forgets all of them: an exec in one would miss a hierarchy that its container has joined since. They are removed
    /// with the container.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The cgroup of one exec. Its processes are killed and it is removed when this is dropped, off the caller's path.
#[derive(Debug)]
pub(crate) struct Leaf {
    container: Arc<LiveContainer>,
    leaf: Option<ExecLeaf>,
}

impl Leaf {
    /// One for an exec of this name, which is unique in the container.
    pub(crate) fn new(container: &Arc<LiveContainer>, name: &str) -> Result<Self> {
        let leaf = container.leaves.take(&container.cgroup, name)?;
        Ok(Self { container: Arc::clone(container), leaf: Some(leaf) })
    }

    /// What its processes are put into.
    pub(crate) fn cgroups(&self) -> Cgroups {
        self.leaf.as_ref().map(|leaf| Cgroups { unified: leaf.dir.clone(), join: leaf.join.clone() }).unwrap_or_default()
    }

    /// Takes note that the exec's own process has ended: if it left nothing behind, another exec can have the leaf.
    pub(crate) fn vacate(&mut self) {
        self.leaf = self.leaf.take().and_then(|leaf| self.container.leaves.keep(leaf));
    }

    /// Kills its processes and waits until they are gone.
    pub(crate) async fn end(&mut self) {
        if let Some(leaf) = self.leaf.take() {
            // It cannot fail but by a panic, which was reported.
            let _ = end(leaf).await;
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        drop(self.leaf.take().map(end));
    }
}

/// Begins to kill all execs in a container, of whichever daemon, and to remove their leaves. Where there is none, this is
/// one look into a directory.
pub(crate) fn end_all(container: &Cgroup) -> Vec<JoinHandle<()>> {
    let leaves = container.exec_leaves().unwrap_or_else(|error| {
        tracing::warn!(%error, "execs may go on until their container's end");
        Vec::new()
    });
    leaves.into_iter().map(end).collect()
}

/// Begins to kill what is in a leaf and to remove it.
pub(crate) fn end(leaf: ExecLeaf) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = leaf.remove() {
            tracing::warn!(%error, "the cgroup of an exec is left for its container's end");
        }
    })
}
