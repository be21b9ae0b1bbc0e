//! A proc file system of a pid namespace in which this process is not. It shows the one of whoever begins it (fsopen(2)), so that
//! somebody has to be sent there.
//!
//! Who lives there and may trace can look into whoever comes, and lead it. So the one that is sent has nothing of the node's:
//! it sees the files that its neighbour sees, its only descriptors are a line to its maker and the container's standard streams,
//! and its rights hold in a user namespace of its own alone, where the kernel makes such.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_sys::namespace::{Namespace, unshare};
use coracle_sys::process::{NewNamespaces, close_others, spawn, spawn_sibling};
use rustix::fs::{PROC_SUPER_MAGIC, fstatfs};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces, set_capabilities};

use super::mount::{self, Filesystem};
use super::root::Root;
use crate::channel::{self, Report, Reporting};
use crate::fault::{OrFault, Result};
use crate::protocol::Fault;

/// The kind of file system that this is.
pub(crate) const KIND: &str = "proc";

const STAGE: &str = "beginning a proc file system in";
const SUBJECT: &str = "the shared pid namespace";

/// Mounts one that shows the pid namespace of `neighbour` at `target` beneath `root`. This process must have no children.
pub(crate) fn mount(filesystem: &Filesystem<'_>, neighbour: BorrowedFd<'_>, root: &Root, target: &Path) -> Result<()> {
    let subject = format!("{KIND} on {}", target.display());
    let mount = filesystem.finish(&begin(neighbour)?, &subject)?;
    // Who lives there may have had another one sent.
    match fstatfs(&mount) {
        Ok(found) if found.f_type != PROC_SUPER_MAGIC => return Err(Errno::INVAL).or_fault("mounting", subject),
        looked => drop(looked.or_fault("mounting", &subject)?),
    }
    mount::put(mount.as_fd(), root, target, &subject)
}

fn begin(process: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (listening, reporting) = channel::new().or_fault(STAGE, SUBJECT)?;
    spawn(NewNamespaces::default(), None, || done(send(process, &reporting), &reporting)).or_fault(STAGE, SUBJECT)?;
    drop(reporting);
    let answer = listening.await_report(None);
    // Both that were made: nobody in sight of the container is to be left of them.
    while !matches!(wait(WaitOptions::empty()), Err(Errno::CHILD)) {}
    match answer {
        Some((Report::Begun, Some(context))) => Ok(context),
        Some((Report::Failed(fault), _)) => Err(fault),
        Some(_) | None => Err(Fault::new(STAGE, SUBJECT, Errno::SRCH)),
    }
}

/// Gives everything up, and has a sibling born in the namespace of `process`.
fn send(process: BorrowedFd<'_>, reporting: &Reporting) -> Result<()> {
    close_others(&[process, reporting.as_fd()]).or_fault("parting from", "descriptors")?;
    let kinds = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(process, kinds).or_fault("entering", SUBJECT)?;
    // A kernel that makes none leaves it the node's; the one right that beginning a file system takes is kept in any case.
    let _ = unshare(&[Namespace::User, Namespace::Mount]);
    let right = CapabilitySet::SYS_ADMIN;
    set_capabilities(None, CapabilitySets { effective: right, permitted: right, inheritable: CapabilitySet::empty() })
        .or_fault("giving up", "capabilities")?;
    close_others(&[reporting.as_fd()]).or_fault("parting from", "descriptors")?;
    spawn_sibling(|| done(open(reporting), reporting)).map(drop).or_fault(STAGE, SUBJECT)
}

fn open(reporting: &Reporting) -> Result<()> {
    let context = mount::begin(KIND).or_fault(STAGE, SUBJECT)?;
    reporting.hand_over(&Report::Begun, context.as_fd()).or_fault(STAGE, SUBJECT)
}

fn done(outcome: Result<()>, reporting: &Reporting) -> i32 {
    outcome.map_or_else(|fault| super::report(&fault, reporting), |()| 0)
}
