//! ExecSync by way of a berth ([`coracle_monitor::berth`]), where one exec follows the other, as probes do.
//!
//! A berth is an offer: whatever a container's rights, its system call filter or its limits do to one, the exec is then made
//! without it. It stays in the exec's leaf, where the next exec finds it.

use std::os::fd::{AsFd, OwnedFd};

use coracle_domain::{During, Result};
use coracle_monitor::client::{Berth, Monitor};
use coracle_monitor::protocol::Exec;
use rustix::fs::{Uid, fchown};

use crate::exec::{PIPES, null};
use crate::leaf::Leaf;

/// Runs a program in a running container to its end: its exit status, or 128 and the number of the signal that killed it.
/// `None`: nothing was done.
pub(crate) async fn run(monitor: &Monitor, exec: &Exec, leaf: &mut Leaf, streams: &[OwnedFd; 3]) -> Result<Option<i32>> {
    if leaf.berth.is_none() && !(leaf.deserves_berth() && Berth::is_made_by(monitor)) {
        return Ok(None);
    }
    give_pipes(exec, streams)?;
    let order = |berth: &Berth| berth.order(exec.process.arguments.clone(), streams.each_ref().map(AsFd::as_fd));
    if let Some(berth) = leaf.berth.take()
        && order(&berth)
    {
        return outcome(berth, leaf).await;
    }
    let (mut berth, end) = Berth::new().during(PIPES, &exec.container)?;
    if !order(&berth) {
        return Ok(None);
    }
    if berth.make(monitor, exec.clone(), [end, null()?, null()?]).await.is_err() {
        leaf.forgo_berths();
        return Ok(None);
    }
    let code = outcome(berth, leaf).await?;
    if code.is_none() {
        leaf.forgo_berths();
    }
    Ok(code)
}

/// What became of the program. A berth that was able stays; another is gone when this returns, lest the exec finds no room
/// beside it in the container's limits.
async fn outcome(berth: Berth, leaf: &mut Leaf) -> Result<Option<i32>> {
    let code = berth.outcome().await?;
    match code {
        Some(_) => leaf.berth = Some(berth),
        None => berth.end().await,
    }
    Ok(code)
}

/// Lets the user open again, through /proc/self/fd, the pipes that are the program's output: a berth may not.
fn give_pipes(exec: &Exec, [_, output, error]: &[OwnedFd; 3]) -> Result<()> {
    match exec.process.user.uid {
        0 => Ok(()),
        user => {
            [output, error].into_iter().try_for_each(|pipe| fchown(pipe, Some(Uid::from_raw(user)), None)).during(PIPES, &exec.container)
        }
    }
}
