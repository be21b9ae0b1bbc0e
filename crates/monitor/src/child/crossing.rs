//! From the node into a pod's user namespace, as its root user; and into a pid namespace that is new, or another process's.
//!
//! A process cannot enter another pid namespace itself, only its children do. So one makes a sibling, a child of the
//! monitor's too, hands the line to the monitor over to it, and ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_plan::{User, UserNamespace};
use coracle_sys::namespace::{Namespace, unshare};
use coracle_sys::process::{send_signal, spawn_sibling};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use super::identity;
use crate::channel::{Report, Reporting};
use crate::fault::{OrFault, Result};

/// Opens a pod's user namespace.
pub(crate) fn open_namespace(user: &UserNamespace) -> Result<OwnedFd> {
    open(&user.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).or_fault("opening the user namespace", user.path.display())
}

/// Enters it.
pub(crate) fn enter(namespace: &OwnedFd) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User)).or_fault("entering", "the pod's user namespace")?;
    become_root()
}

/// Becomes the root user of the user namespace that this process is in.
pub(crate) fn become_root() -> Result<()> {
    identity::become_user(&User::default())
}

/// Has `child` go on in this process's place, as the first process of a new pid namespace. Returns how this one ends.
pub(crate) fn move_on(reporting: &Reporting, child: impl FnOnce() -> i32) -> Result<i32> {
    unshare(&[Namespace::Pid]).or_fault("making", "a pid namespace")?;
    replace(reporting, child)
}

/// Lets those whom this process makes from now on be born in the pid namespace of `process`.
pub(crate) fn let_children_be_born_beside(process: BorrowedFd<'_>) -> Result<()> {
    move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID).or_fault("entering", "the shared pid namespace")
}

/// Has `child` go on in this process's place, in the pid namespace where its children are born. Returns how this one ends.
pub(crate) fn replace(reporting: &Reporting, child: impl FnOnce() -> i32) -> Result<i32> {
    let (stage, subject) = ("making a process in", "a pid namespace");
    let (waiting, going) = pipe_with(PipeFlags::CLOEXEC).or_fault(stage, subject)?;
    let mut going = Some(going);
    let (pid, handle) = spawn_sibling(|| {
        // The other process's end: were it open here, its death would not be seen.
        drop(going.take());
        // The monitor must know of this process before it can end by itself.
        if read(&waiting, &mut [0; 1]) == Ok(1) { child() } else { super::FAILED }
    })
    .or_fault(stage, subject)?;
    let told = reporting.hand_over(&Report::Moved { pid: pid.as_raw_pid() }, handle.as_fd());
    let told = told.and_then(|()| going.as_ref().map_or(Err(Errno::PIPE), |going| write(going, b"1").map(drop)));
    if told.is_err() {
        let _ = send_signal(handle.as_fd(), Signal::KILL.as_raw());
    }
    told.map(|()| 0).or_fault("reporting to", "the monitor")
}
