//! Namespaces that a user namespace owns. A process of several threads or with privileges to keep cannot make one for
//! itself, so a short-lived child does: born in all the new namespaces, it is given its users by the monitor, does what
//! only they may do, and ends once the monitor has pinned the namespaces and entered those that it lives in.

use std::os::fd::{AsFd, OwnedFd};

use coracle_failpoint::{Point, reach};
use coracle_plan::UserNamespace;
use coracle_sys::namespace::Namespace;
use coracle_sys::process::{NewNamespaces, spawn};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::{PATIENCE, own_namespaces, pin};
use crate::channel::{self, Listening, Report, Reporting};
use crate::child::crossing;
use crate::fault::{OrFault, Result};
use crate::process::Process;
use crate::protocol::{Fault, Prepare};
use crate::sysctl;

/// Makes the pod's user namespace and those that it owns, pins them all, and moves into the latter.
pub(super) fn make(wanted: &Prepare, user: &UserNamespace) -> Result<()> {
    let subject = "a user namespace";
    let (listening, reporting) = channel::new().or_fault("making", "a socket pair")?;
    let (waiting, going) = pipe_with(PipeFlags::CLOEXEC).or_fault("making", "a pipe")?;
    let namespaces =
        NewNamespaces { user: true, network: wanted.network, ipc: wanted.ipc, uts: wanted.hostname.is_some(), ..NewNamespaces::default() };
    let mut going = Some(going);
    let (pid, handle) = spawn(namespaces, None, || {
        // The monitor's end: were it open here, the monitor's death would not be seen.
        drop(going.take());
        live(&waiting, wanted, &reporting)
    })
    .or_fault("making", subject)?;
    let maker = Process::new(pid, handle);
    drop(reporting);
    write_map(&maker, "uid_map", &user.uids.to_string())?;
    write_map(&maker, "gid_map", &user.gids.to_string())?;
    if let Some(going) = &going {
        write(going, b"1").or_fault("making", subject)?;
    }
    await_ready(&listening)?;
    reach(Point::NamespaceMake);
    settle(&maker, wanted, user)
}

/// The child's life, which lasts as long as the monitor holds the other end of its pipe.
fn live(waiting: &OwnedFd, wanted: &Prepare, reporting: &Reporting) -> i32 {
    if read(waiting, &mut [0; 1]) != Ok(1) {
        return 1;
    }
    let _ = match set_parameters(wanted) {
        Ok(()) => reporting.report(&Report::Ready),
        Err(fault) => reporting.fail(&fault),
    };
    let _ = read(waiting, &mut [0; 1]);
    0
}

/// Those of the IPC namespace are their own root user's to set, and not the node's.
fn set_parameters(wanted: &Prepare) -> Result<()> {
    crossing::become_root()?;
    let own = wanted.sysctls.iter().filter(|(name, _)| !sysctl::is_of_node_root(name));
    own.into_iter().try_for_each(|(name, value)| sysctl::set(name, value))
}

fn write_map(maker: &Process, file: &str, map: &str) -> Result<()> {
    let stage = "mapping the ids of the user namespace:";
    let path = format!("/proc/{}/{file}", maker.pid.as_raw_pid());
    let opened = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    opened.and_then(|opened| write(opened, map.as_bytes())).map(drop).or_fault(stage, format_args!("{file} {map}"))
}

fn await_ready(listening: &Listening) -> Result<()> {
    match listening.await_report(Some(&PATIENCE)) {
        Some((Report::Ready, _)) => Ok(()),
        Some((Report::Failed(fault), _)) => Err(fault),
        _ => Err(Fault::new("preparing", "a user namespace", Errno::TIMEDOUT)),
    }
}

fn settle(maker: &Process, wanted: &Prepare, user: &UserNamespace) -> Result<()> {
    let namespace = |name: &str| format!("/proc/{}/ns/{name}", maker.pid.as_raw_pid());
    pin(&namespace("user"), &user.path)?;
    let mut kinds = ThreadNameSpaceType::empty();
    for (kind, name) in own_namespaces(wanted) {
        pin(&namespace(name), &wanted.pins.join(name))?;
        kinds |= match kind {
            Namespace::Network => ThreadNameSpaceType::NETWORK,
            Namespace::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            _ => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        };
    }
    if kinds.is_empty() {
        return Ok(());
    }
    move_into_thread_name_spaces(maker.as_fd(), kinds).or_fault("entering", "the namespaces that a user namespace owns")
}
