//! What happens in a new process between its birth and its program: a plan carried out.
//!
//! It runs in a copy of the monitor's memory and decides nothing. The first thing that fails is reported to the
//! monitor, and the process ends.

mod beforehand;
mod berth;
pub(crate) mod cgroups;
mod cover;
pub(crate) mod crossing;
pub(crate) mod identity;
mod image;
mod mount;
mod node;
mod procfs;
mod program;
mod root;
mod terminal;
mod view;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use coracle_failpoint::{Point, reach};
use coracle_plan::{PidNamespace, Plan, UserNamespace};
use coracle_sys::namespace::{Namespace, unshare};
use coracle_sys::process::close_others;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use self::beforehand::{Beforehand, Done};
use self::cgroups::Entrances;
use self::program::Missing;
use self::root::Root;
use self::view::View;
use crate::channel::Reporting;
use crate::fault::{OrFault, Result};
use crate::init;
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
pub(crate) fn start(plan: &Plan, birth: Birth<'_>, streams: &Streams, reporting: &Reporting) -> i32 {
    let prepared = part(streams, reporting, birth.neighbour()).and_then(|()| prepare(plan));
    let done = prepared.and_then(|()| match &plan.namespaces.user {
        None => build(plan, birth, reporting),
        Some(user) => cross(plan, user, reporting),
    });
    done.unwrap_or_else(|fault| report(&fault, reporting))
}

/// The container of an exec: its first process, its cgroups, and its user namespace if it has one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) process: BorrowedFd<'a>,
    pub(crate) entrances: &'a Entrances,
    pub(crate) user: Option<&'a UserNamespace>,
    pub(crate) birth: Birth<'a>,
}

/// When a process comes to be in the pid namespace of its program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Birth<'a> {
    /// At once: nobody there may look into it.
    First,
    /// When it has parted with all that is the node's; the namespace is that of this process. Who has CAP_SYS_PTRACE may look into
    /// every process in sight, and through one that is still setting up (`/proc/PID/root`) at the node's files.
    Last(BorrowedFd<'a>),
}

impl<'a> Birth<'a> {
    /// A process that is in the namespace, if this one is not.
    fn neighbour(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::First => None,
            Self::Last(neighbour) => Some(neighbour),
        }
    }
}

/// Becomes a process in the container of `target`.
pub(crate) fn exec(exec: &Exec, target: Target<'_>, streams: &Streams, reporting: &Reporting) -> i32 {
    let entered = target.entrances.enter();
    let done = entered.and_then(|()| part(streams, reporting, Some(target.process))).and_then(|()| join(exec, target, reporting));
    done.unwrap_or_else(|fault| report(&fault, reporting))
}

/// Becomes the init process of a pod with a user namespace.
pub(crate) fn start_init(user: &UserNamespace, reporting: &Reporting) -> i32 {
    let nobody = init::NOBODY.min(user.uids.length.min(user.gids.length).saturating_sub(1));
    let crossed = crossing::open_namespace(user).and_then(|namespace| {
        crossing::enter(&namespace)?;
        unshare(&[Namespace::Mount]).or_fault("making", "a mount namespace")
    });
    let moved = crossed.and_then(|()| crossing::move_on(reporting, || init::run(nobody, reporting)));
    moved.unwrap_or_else(|fault| report(&fault, reporting))
}

fn prepare(plan: &Plan) -> Result<()> {
    cgroups::join(&plan.cgroups.join)?;
    identity::prepare(&plan.process, plan.namespaces.user.as_ref())
}

/// Builds the container in the namespaces of the node that are its own by now.
fn build(plan: &Plan, birth: Birth<'_>, reporting: &Reporting) -> Result<i32> {
    if plan.namespaces.cgroup {
        unshare(&[Namespace::Cgroup]).or_fault("making", "a cgroup namespace")?;
    }
    let mut view = View::new(&plan.root, birth.neighbour())?;
    for step in &plan.steps {
        view.apply(step)?;
        reach(Point::ChildStep);
    }
    drop(view);
    run(plan, birth, reporting)
}

/// Builds the container in a user namespace, which owns its other namespaces. Returns how this process ends if
/// another goes on in its place.
fn cross(plan: &Plan, user: &UserNamespace, reporting: &Reporting) -> Result<i32> {
    let namespace = crossing::open_namespace(user)?;
    let beforehand = beforehand::prepare(plan, namespace.as_fd())?;
    crossing::enter(&namespace)?;
    let namespaces: &[Namespace] = if plan.namespaces.cgroup { &[Namespace::Mount, Namespace::Cgroup] } else { &[Namespace::Mount] };
    unshare(namespaces).or_fault("making namespaces", format_args!("{namespaces:?}"))?;
    let finish = || build_inside(plan, beforehand, reporting).unwrap_or_else(|fault| report(&fault, reporting));
    match plan.namespaces.pid {
        PidNamespace::New => crossing::move_on(reporting, finish),
        _ => Ok(finish()),
    }
}

fn build_inside(plan: &Plan, beforehand: Beforehand, reporting: &Reporting) -> Result<i32> {
    let mut view = View::over(beforehand.root)?;
    for (step, done) in plan.steps.iter().zip(beforehand.steps) {
        match done {
            Done::Everything => {}
            Done::Mount(mount) => view.put(mount.as_fd(), step)?,
            Done::Nothing => view.apply(step)?,
        }
        reach(Point::ChildStep);
    }
    drop(view);
    run(plan, Birth::First, reporting)
}

/// Becomes the program.
fn run(plan: &Plan, birth: Birth<'_>, reporting: &Reporting) -> Result<i32> {
    let terminal = plan.process.terminal.then(|| terminal::make(&plan.process.user, reporting)).transpose()?;
    program::run(&plan.process, terminal.as_ref(), birth, Missing::Make, reporting)
}

/// Enters the container. Returns how this process ends if it does not become the program.
fn join(exec: &Exec, target: Target<'_>, reporting: &Reporting) -> Result<i32> {
    identity::prepare(&exec.process, target.user)?;
    let own = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    let user = if target.user.is_some() { ThreadNameSpaceType::USER } else { ThreadNameSpaceType::empty() };
    move_into_thread_name_spaces(target.process, own | user).or_fault("entering the namespaces of the container", &exec.container)?;
    if target.user.is_some() {
        crossing::become_root()?;
    }
    if exec.is_berth() {
        return berth::run(&exec.process, target.process, reporting);
    }
    let terminal = exec.process.terminal.then(|| terminal::make_for_exec(&exec.process.user)).transpose()?;
    program::run(&exec.process, terminal.as_ref(), target.birth, Missing::Refuse, reporting)
}

/// Parts with what is the monitor's: nothing of it may be held by, or be open to, a container.
fn part(streams: &Streams, reporting: &Reporting, target: Option<BorrowedFd<'_>>) -> Result<()> {
    let stage = "parting from";
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fault(stage, "debuggers")?;
    take_streams([&streams.input, &streams.output, &streams.error]).or_fault(stage, "the monitor's standard streams")?;
    let keep: Vec<BorrowedFd<'_>> = [Some(reporting.as_fd()), target, coracle_failpoint::descriptor()].into_iter().flatten().collect();
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
    let _ = reporting.fail(fault);
    FAILED
}

/// Makes an empty directory the root of this process's mount namespace, in which nothing else is left.
pub(crate) fn enter_empty_root() -> Result<()> {
    let (stage, subject) = ("entering", "an empty root directory");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).or_fault(stage, subject)?;
    let empty = cover::empty_directory()?;
    let directory = Root::open(Path::new("/")).or_fault(stage, subject)?;
    mount::attach(empty.as_fd(), directory.as_fd()).or_fault(stage, subject)?;
    view::pivot_into(&empty).or_fault(stage, subject)
}
