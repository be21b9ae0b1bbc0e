//! The first process of a pid namespace that a pod's containers share. It reaps, and can do nothing else: its root is
//! an empty directory, it holds no descriptors and no capabilities, and nobody may look into it, for the containers
//! are its neighbours. It ends with its monitor, however that ends.

use std::convert::Infallible;
use std::os::fd::AsFd;

use coracle_sys::process::close_others;
use coracle_sys::signal::SignalQueue;
use rustix::fs::{Gid, Mode, OFlags, Uid, open};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal, WaitOptions, set_dumpable_behavior, set_parent_process_death_signal, wait};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::channel::{Report, Reporting};
use crate::child;
use crate::fault::{OrFault, Result};

/// The user that owns nothing, by custom.
pub(crate) const NOBODY: u32 = 65_534;

/// Becomes the init process, as `user`.
pub(crate) fn run(user: u32, reporting: &Reporting) -> i32 {
    let queue = match confine(user, reporting) {
        Ok(queue) => queue,
        Err(fault) => {
            let _ = reporting.fail(&fault);
            return 1;
        }
    };
    // A monitor that was killed before its death was a signal to this process is not there to be told.
    if reporting.report(&Report::Ready).is_err() {
        return 1;
    }
    // It holds no descriptors but its own queue of signals.
    let _ = close_others(&[queue.as_fd()]);
    let Err(_) = reap(&queue);
    1
}

fn confine(user: u32, reporting: &Reporting) -> Result<SignalQueue> {
    let stage = "confining";
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_fault(stage, "the init process")?;
    silence().or_fault(stage, "standard streams")?;
    close_others(&[reporting.as_fd()]).or_fault(stage, "descriptors")?;
    child::enter_empty_root()?;
    let _ = set_name(c"coracle-init");
    child::identity::drop_bounding(0).or_fault(stage, "capabilities")?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[]).or_fault(stage, "groups")?;
    set_thread_res_gid(gid, gid, gid).or_fault(stage, "group")?;
    set_thread_res_uid(uid, uid, uid).or_fault(stage, "user")?;
    set_no_new_privs(true).or_fault(stage, "privileges")?;
    // Last, since a change of user makes the kernel forget it.
    set_parent_process_death_signal(Some(Signal::KILL)).or_fault(stage, "its life to the monitor's")?;
    SignalQueue::new(&[Signal::CHILD.as_raw()], true).or_fault(stage, "signals")
}

fn silence() -> std::result::Result<(), Errno> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)
}

fn reap(queue: &SignalQueue) -> std::io::Result<Infallible> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => {
                queue.next()?;
            }
        }
    }
}
