//! What happens in a new process between its birth and its program: a plan carried out.
//!
//! It runs in a copy of the monitor's memory and decides nothing. The first thing that fails is reported to the
//! monitor, and the process ends.

mod cgroups;
mod cover;
pub(crate) mod identity;
mod image;
mod mount;
mod node;
mod program;
mod root;
mod terminal;
mod view;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_plan::{Plan, Process};
use coracle_sys::namespace::{Namespace, unshare};
use coracle_sys::process::close_others;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use self::program::Missing;
use self::root::Root;
use self::view::View;
use crate::channel::{Report, Reporting};
use crate::fault::{OrFault, Result};
use crate::protocol::{Exec, Fault};

/// The exit code of a process that could not be set up; nobody but the monitor sees it.
const FAILED: i32 = 125;

/// The standard streams of a new process.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) error: OwnedFd,
}

/// Becomes a container's first process.
pub(crate) fn start(plan: &Plan, streams: &Streams, reporting: &Reporting) -> i32 {
    let Err(fault) = part(streams, reporting, None).and_then(|()| build(plan, reporting));
    report(&fault, reporting)
}

/// Becomes a process in the container of `target`, its first process.
pub(crate) fn exec(exec: &Exec, target: BorrowedFd<'_>, streams: &Streams, reporting: &Reporting) -> i32 {
    let Err(fault) = part(streams, reporting, Some(target)).and_then(|()| join(exec, target, reporting));
    report(&fault, reporting)
}

fn build(plan: &Plan, reporting: &Reporting) -> Result<Infallible> {
    cgroups::join(&plan.cgroups)?;
    if plan.namespaces.cgroup {
        unshare(&[Namespace::Cgroup]).or_fault("making", "a cgroup namespace")?;
    }
    identity::prepare(&plan.process)?;
    lead_session(&plan.process)?;
    let mut view = View::new(&plan.root)?;
    for step in &plan.steps {
        view.apply(step)?;
    }
    if plan.process.terminal {
        let terminal = terminal::make(&plan.process.user, reporting)?;
        terminal::take(&terminal)?;
    }
    program::run(&plan.process, Missing::Make, reporting)
}

fn join(exec: &Exec, target: BorrowedFd<'_>, reporting: &Reporting) -> Result<Infallible> {
    cgroups::join(&exec.cgroups)?;
    identity::prepare(&exec.process)?;
    lead_session(&exec.process)?;
    move_into_thread_name_spaces(target, ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP)
        .or_fault("entering the namespaces of the container", &exec.container)?;
    program::run(&exec.process, Missing::Refuse, reporting)
}

fn lead_session(process: &Process) -> Result<()> {
    let program = process.arguments.first().map(|name| String::from_utf8_lossy(&name.0)).unwrap_or_default();
    setsid().map(drop).or_fault("making a session for", program)
}

/// Parts with what is the monitor's: nothing of it may be held by, or be open to, a container.
fn part(streams: &Streams, reporting: &Reporting, target: Option<BorrowedFd<'_>>) -> Result<()> {
    let stage = "parting from";
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fault(stage, "debuggers")?;
    take_streams([&streams.input, &streams.output, &streams.error]).or_fault(stage, "the monitor's standard streams")?;
    let keep: Vec<BorrowedFd<'_>> = [Some(reporting.as_fd()), target].into_iter().flatten().collect();
    close_others(&keep).or_fault(stage, "the monitor's descriptors")?;
    umask(Mode::empty());
    Ok(())
}

fn take_streams([input, output, error]: [&OwnedFd; 3]) -> std::result::Result<(), Errno> {
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(error)
}

fn report(fault: &Fault, reporting: &Reporting) -> i32 {
    // If the monitor cannot hear it, it sees that the process ended before it was ready.
    let _ = reporting.report(&Report::Failed(fault.clone()));
    FAILED
}

/// Makes an empty directory the root of this process's mount namespace, by way of `place`, a directory.
pub(crate) fn enter_empty_root(place: &Path) -> Result<()> {
    let stage = "entering an empty root at";
    let empty = cover::empty_directory()?;
    let directory = Root::open(place).or_fault(stage, place.display())?;
    mount::attach(empty.as_fd(), directory.as_fd()).or_fault(stage, place.display())?;
    view::pivot_into(&empty).or_fault(stage, place.display())
}
