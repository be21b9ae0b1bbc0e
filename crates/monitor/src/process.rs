//! Making processes, in the pid namespace and cgroup they belong to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use coracle_failpoint::{Point, reach};
use coracle_plan::Cgroups;
use coracle_sys::process::{NewNamespaces, send_signal, spawn};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use crate::fault::{OrFault, Result};

/// A process the monitor made and has not reaped.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its number in the node's pid namespace.
    pub(crate) pid: Pid,
    handle: OwnedFd,
}

impl Process {
    /// One that was made just now.
    pub(crate) fn new(pid: Pid, handle: OwnedFd) -> Self {
        Self { pid, handle }
    }

    /// One that another process made, in its own place, by the number and pidfd that it reported.
    pub(crate) fn moved(pid: i32, handle: OwnedFd) -> Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(Errno::INVAL).or_fault("taking note of process", pid)?;
        Ok(Self::new(pid, handle))
    }

    /// Sends a signal; a process that has ended needs none.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        match send_signal(self.handle.as_fd(), signal) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {}
            done => done.or_fault("sending signal", format_args!("{signal} to process {}", self.pid.as_raw_pid()))?,
        }
        reach(Point::ProcessSignal);
        Ok(())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// In which pid namespace a new process lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// The monitor's, which is the node's.
    Node,
    /// A new one.
    New,
    /// That of another process.
    Of(&'a Process),
}

/// Makes a process that runs `child`.
pub(crate) fn make(place: Place<'_>, mounts: bool, cgroups: &Cgroups, child: impl FnOnce() -> i32) -> Result<Process> {
    let stage = "making a process";
    let cgroup = match &cgroups.unified {
        Some(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Some(open(path, flags, Mode::empty()).or_fault("opening the cgroup", path.display())?)
        }
        None => None,
    };
    let namespaces = NewNamespaces { mount: mounts, pid: matches!(place, Place::New), ..NewNamespaces::default() };
    let subject = || cgroups.unified.as_ref().map_or_else(|| "clone3".to_owned(), |path| format!("in cgroup {}", path.display()));
    let home = match place {
        Place::Of(process) => Some(move_children_to(process)?),
        Place::Node | Place::New => None,
    };
    let made = spawn(namespaces, cgroup.as_ref().map(AsFd::as_fd), child);
    if let Some(home) = home
        && move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::ProcessID)).is_err()
    {
        // Every later process would be born in the wrong place; nothing can be put right from here.
        std::process::abort();
    }
    let (pid, handle) = made.or_fault(stage, subject())?;
    reach(Point::ProcessMake);
    Ok(Process::new(pid, handle))
}

/// Lets the next children be born in the pid namespace of `process`; returns the way back.
fn move_children_to(process: &Process) -> Result<&'static OwnedFd> {
    let subject = process.pid.as_raw_pid();
    let home = home()?;
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .or_fault("entering the pid namespace of process", subject)?;
    Ok(home)
}

/// The monitor's own pid namespace, opened once.
fn home() -> Result<&'static OwnedFd> {
    static HOME: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let path = "/proc/self/ns/pid";
    let opened = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).or_fault("opening", path)?;
    Ok(HOME.get_or_init(|| opened))
}
