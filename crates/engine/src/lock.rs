//! What keeps a second daemon away from the same state.
//!
//! A daemon that was killed need not be gone: a thread of it that reads a pipe waits, beyond any signal, for whoever has the pipe
//! locked (see [`crate::exec`]), and so the whole process keeps its lock. Where that is an exec that can be killed, nobody would:
//! execs are killed by daemons. So the next one does it before it has the lock. A daemon that lives is never disturbed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_cgroup::{Cgroup, ExecLeaf, Hierarchy};
use coracle_domain::{During, Failure, FailureKind, Refusal, Result};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use crate::layout::Layout;
use crate::pod::Subject;
use crate::process;
use crate::record::PodRecord;

/// How long the end of a killed daemon is waited for. Then its successor gives up, and whoever started that starts another one.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Keeps a second daemon away from the directory `state`, which is there, for as long as the file is open.
///
/// A record lock, fcntl(2), belongs to this process alone. A flock(2) would be inherited by a monitor that is just being
/// spawned, and outlive a daemon that is killed at that moment.
///
/// # Errors
/// Refused if another daemon serves; fails if one was killed and does not end, whatever it waits for.
pub async fn lock(state: &Path, hierarchy: impl Fn() -> Result<Hierarchy>) -> Result<File> {
    let file = open(state)?;
    let begun = Instant::now();
    while !is_taken(&file, state)? {
        let Some(holder) = holder(&file, state)? else { continue };
        match process::state(holder) {
            // It was ended, but for threads that have not heard of it yet.
            Ok(Some('Z' | 'X')) => end_execs(&file, state, &hierarchy()?, holder)?,
            Ok(None) if holder > 0 => {}
            _ => return Err(Refusal::wrong_state(format!("another daemon serves from {}", state.display())).into()),
        }
        if begun.elapsed() > PATIENCE {
            let problem = format!("process {holder}, the daemon before, was killed and has not ended");
            return Err(Failure::new("locking", state.display(), problem).kind(FailureKind::TimedOut).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(file)
}

fn open(state: &Path) -> Result<File> {
    let path = state.join("lock");
    if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        Layout::new(state).quarantine().take(&path, "it is no regular file");
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).during("opening", path.display())
}

/// Takes the lock; whether it could be had.
fn is_taken(file: &File, state: &Path) -> Result<bool> {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(io::Error::from(error)).during("locking", state.display()),
    }
}

/// The process that has the lock, by its number here: 0 if it is none of this pid namespace. `None`: nobody any more.
fn holder(file: &File, state: &Path) -> Result<Option<i32>> {
    let held = fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).map_err(io::Error::from);
    Ok(held.during("asking for the lock of", state.display())?.map(|held| Pid::as_raw(held.pid)))
}

/// Kills the execs of a dead daemon that still has the lock.
fn end_execs(file: &File, state: &Path, hierarchy: &Hierarchy, dead: i32) -> Result<()> {
    let leaves = leaves(&Layout::new(state), hierarchy);
    // Had another daemon begun meanwhile, some might be its own.
    if holder(file, state)? == Some(dead) {
        for problem in leaves.iter().filter_map(|leaf| leaf.kill().err()) {
            tracing::warn!(error = %problem, "an exec of the daemon before is not killed");
        }
    }
    Ok(())
}

/// The cgroups of all execs in the containers on record. What cannot be read is left out.
fn leaves(layout: &Layout, hierarchy: &Hierarchy) -> Vec<ExecLeaf> {
    let pods = layout.pods_there().unwrap_or_default();
    let records = pods.iter().filter_map(|pod| PodRecord::load(&layout.pod(pod).record()).ok());
    let leaves_in = |record: PodRecord| {
        let pod = Subject::of(&record);
        let locations = record.containers.iter().filter_map(|container| pod.location(hierarchy, &container.id).ok());
        locations.flat_map(|location| Cgroup::open(hierarchy, location).exec_leaves().unwrap_or_default()).collect::<Vec<_>>()
    };
    records.flat_map(leaves_in).collect()
}
