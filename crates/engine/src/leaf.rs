//! The cgroups of execs: each has one of its own, so that all it leaves behind can be killed with it.
//!
//! Making and removing one costs more than the rest of what the daemon does for an exec, so that of an exec that left
//! nothing behind is kept for the next one in its container, together with the berth in it, if there is one. All go with
//! the container, whoever made them.
//!
//! What waits in the kernel, most often for a dead disk, cannot be killed. Few such execs are borne in a container, for each may
//! keep threads of the daemon's waiting (see [`crate::exec`]), and the next one would most likely end like them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use coracle_cgroup::{Cgroup, ExecLeaf};
use coracle_domain::{ContainerId, Failure, FailureKind, Result};
use coracle_monitor::berth::PATIENCE;
use coracle_monitor::client::Berth;
use coracle_plan::Cgroups;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::live::LiveContainer;
use crate::undead::{self, Named};

/// How many a container keeps: as many as it has probes that may coincide. Each costs a descriptor.
const MOST_IDLE: usize = 3;
/// How many execs that cannot be killed a container may have.
const MOST_UNDEAD: usize = 4;
/// How many execs a container may have under way, those that are being killed included. Each may keep a few threads waiting, which
/// everybody needs: all together must be far fewer than there may be.
const MOST: usize = 128;

/// A leaf in which no program runs, and the process that waits for one there, if one does.
#[derive(Debug)]
struct Idle {
    leaf: ExecLeaf,
    berth: Option<Berth>,
    /// How often the leaves had been forgotten when it was made.
    generation: usize,
}

impl Idle {
    /// Whether nobody else is in it. A berth that has ended meanwhile is forgotten.
    fn is_at_rest(&mut self) -> bool {
        if self.berth.as_ref().and_then(Berth::pid).is_some_and(|berth| self.leaf.holds_only(berth)) {
            return true;
        }
        self.berth = None;
        self.leaf.is_empty()
    }
}

/// What is left of an exec whose processes were killed and have not ended.
#[derive(Debug)]
struct Undead {
    leaf: ExecLeaf,
    /// As of [`Leaf`].
    pipes: Vec<OwnedFd>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Undead {
    fn drop(&mut self) {
        // A container may have ended without them.
        let pipes = std::mem::take(&mut self.pipes);
        tokio::task::spawn_blocking(|| drop(pipes));
    }
}

/// A container's leaves that no exec has: in which no program runs, or one that has not ended with its exec.
#[derive(Debug)]
pub(crate) struct Leaves {
    kept: Mutex<Kept>,
    /// One for each exec that there may be.
    places: Arc<Semaphore>,
}

impl Default for Leaves {
    fn default() -> Self {
        Self { kept: Mutex::default(), places: Arc::new(Semaphore::new(MOST)) }
    }
}

#[derive(Debug, Default)]
struct Kept {
    idle: Vec<Idle>,
    undead: Vec<Undead>,
    /// When the last one was kept.
    last: Option<Instant>,
    /// Whether berths were found not to work in this container.
    is_without_berths: bool,
    /// How often all leaves were forgotten, also those in which a program ran.
    generation: usize,
}

impl Leaves {
    /// A leaf without programs: one that was kept, or a new one of this name.
    fn take(&self, cgroup: &Cgroup, name: &str) -> Result<Idle> {
        while let Some(mut idle) = self.kept().idle.pop() {
            // A container with power over its cgroups may have removed it, or put something there: then it keeps it.
            if idle.is_at_rest() {
                return Ok(idle);
            }
        }
        let generation = self.kept().generation;
        // One mkdir(2) in memory: shorter than handing it to another thread would take.
        Ok(Idle { leaf: cgroup.exec_leaf(name)?, berth: None, generation })
    }

    /// A place for one more exec of the container, if that can be borne however it ends.
    ///
    /// # Errors
    /// Too many do not end. For a probe that is as if its own had not. Or too many are under way.
    fn bear(&self, container: &ContainerId) -> Result<OwnedSemaphorePermit> {
        let failure = |problem: String| Failure::new("running a command in container", container, problem);
        let mut kept = self.kept();
        kept.undead.retain(|undead| undead.leaf.populated().unwrap_or(true));
        if kept.undead.len() < MOST_UNDEAD {
            let too_many = |_| failure(format!("{MOST} execs are under way in it")).kind(FailureKind::Exhausted).into();
            return Arc::clone(&self.places).try_acquire_owned().map_err(too_many);
        }
        let left = undead::left_of(kept.undead.iter().map(|undead| undead.leaf.processes()))?;
        let failure = failure(format!("earlier execs were killed and have not ended: {}", Named(&left))).kind(FailureKind::TimedOut);
        Err(failure.hint(undead::HINT).into())
    }

    /// Keeps a leaf that is at rest; returns one that cannot be kept.
    fn keep(&self, mut left: Idle) -> Option<ExecLeaf> {
        let mut kept = self.kept();
        if kept.idle.len() >= MOST_IDLE || left.generation != kept.generation || !left.is_at_rest() {
            return Some(left.leaf);
        }
        kept.idle.push(left);
        kept.last = Some(Instant::now());
        None
    }

    /// Forgets all of them: an exec in one would miss a hierarchy that its container has joined since. They are removed
    /// with the container, and those in which programs still run, when these have ended.
    pub(crate) fn forget(&self) {
        let mut kept = self.kept();
        kept.idle.clear();
        kept.generation += 1;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of an exec may still run when its own process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Something,
}

/// The cgroup of one exec. Its processes are killed and it is removed when this is dropped, off the caller's path.
#[derive(Debug)]
pub(crate) struct Leaf {
    container: Arc<LiveContainer>,
    leaf: Option<ExecLeaf>,
    /// The exec's, until nothing is left of it.
    place: Option<OwnedSemaphorePermit>,
    /// The process in it that waits for the exec's program, if one does.
    pub(crate) berth: Option<Berth>,
    /// As of [`Idle`].
    generation: usize,
    /// Of an exec that nobody talks to, our ends of the pipes that its processes write to, open until these have ended: whoever
    /// closes one for good may have to wait for as long, be it a process that is just being forked with all of our descriptors.
    pub(crate) pipes: Vec<OwnedFd>,
}

impl Leaf {
    /// One for an exec of this name, which is unique in the container with this id.
    ///
    /// # Errors
    /// Too many execs in the container do not end, or are under way; or it cannot be made.
    pub(crate) fn new(container: &Arc<LiveContainer>, id: &ContainerId, name: &str) -> Result<Self> {
        let place = Some(container.leaves.bear(id)?);
        let Idle { leaf, berth, generation } = container.leaves.take(&container.cgroup, name)?;
        Ok(Self { container: Arc::clone(container), leaf: Some(leaf), place, berth, generation, pipes: Vec::new() })
    }

    /// What its processes are put into.
    pub(crate) fn cgroups(&self) -> Cgroups {
        self.leaf.as_ref().map(|leaf| Cgroups { unified: leaf.dir.clone(), join: leaf.join.clone() }).unwrap_or_default()
    }

    /// Whether execs come one so soon after the other that a berth would not wait in vain.
    pub(crate) fn deserves_berth(&self) -> bool {
        let kept = self.container.leaves.kept();
        !kept.is_without_berths && kept.last.is_some_and(|last| last.elapsed() < PATIENCE)
    }

    /// Takes note that no berth works in this container.
    pub(crate) fn forgo_berths(&self) {
        self.container.leaves.kept().is_without_berths = true;
    }

    /// Takes note that the exec's own process has ended: if it left nothing behind, another exec can have the leaf.
    pub(crate) fn vacate(&mut self) -> Left {
        let (berth, generation) = (self.berth.take(), self.generation);
        self.leaf = self.leaf.take().and_then(|leaf| self.container.leaves.keep(Idle { leaf, berth, generation }));
        if self.leaf.is_none() { Left::Nothing } else { Left::Something }
    }

    /// Kills its processes and waits until they are gone.
    pub(crate) async fn end(&mut self) {
        if let Some(ending) = self.begin_end() {
            // It cannot fail but by a panic, which was reported.
            let _ = ending.await;
        }
    }

    fn begin_end(&mut self) -> Option<JoinHandle<()>> {
        let (leaf, _place) = (self.leaf.take()?, self.place.take()?);
        let (pipes, container) = (std::mem::take(&mut self.pipes), Arc::clone(&self.container));
        Some(tokio::task::spawn_blocking(move || {
            if !is_removed(&leaf) {
                container.leaves.kept().undead.push(Undead { leaf, pipes, _place });
            }
        }))
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        drop(self.begin_end());
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
fn end(leaf: ExecLeaf) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || _ = is_removed(&leaf))
}

/// Kills what is in a leaf and removes it, unless its processes do not end. Blocks.
fn is_removed(leaf: &ExecLeaf) -> bool {
    let removed = leaf.remove();
    if let Err(error) = &removed {
        tracing::warn!(%error, "the cgroup of an exec is left for its container's end");
    }
    removed.is_ok()
}
