//! A process that has all of an exec but its program, and starts one whenever the daemon says so ([`crate::berth`]).
//!
//! The container's system call filter is in force here as well. What it forbids ends the berth, or is told as
//! [`Outcome::Unable`] before anything of the program was done.

use std::io::{IoSliceMut, Result as IoResult};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_failpoint::{Point, reach};
use coracle_plan::Process;
use coracle_sys::process::close_others;
use coracle_sys::vfork::{Stack, vfork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getpid, getsid, setsid, waitpid};
use rustix::stdio::{dup2_stdin, stderr, stdin, stdout};
use rustix::thread::set_name;

use super::program::{self, Missing, Program};
use super::{FAILED, crossing, identity, take_streams};
use crate::berth::{LONGEST_ORDER, Order, Outcome, PATIENCE};
use crate::channel::Reporting;
use crate::exit;
use crate::fault::{OrFault, Result};
use crate::protocol::Fault;

/// Becomes the berth of the container in which `first` is a process. Returns how this process ends.
pub(super) fn run(process: &Process, first: BorrowedFd<'_>, reporting: &Reporting) -> Result<i32> {
    let stage = "preparing to wait for";
    let subject = "programs to execute";
    crossing::let_children_be_born_beside(first)?;
    let socket = fcntl_dupfd_cloexec(stdin(), 3).or_fault(stage, subject)?;
    dup2_stdin(stdout()).or_fault(stage, subject)?;
    let _ = set_name(c"coracle-berth");
    program::assume(process, Missing::Refuse)?;
    program::make_ready(process, None, subject, reporting)?;
    identity::give_up_loading(process)?;
    let keep: Vec<BorrowedFd<'_>> = [Some(socket.as_fd()), coracle_failpoint::descriptor()].into_iter().flatten().collect();
    // With the line to the monitor: that its end comes means that all is set up.
    close_others(&keep).or_fault(stage, subject)?;
    let mut berth = Berth { process: process.clone(), socket, message: vec![0; LONGEST_ORDER], stack: Stack::new() };
    Ok(berth.serve().map_or_else(|_| FAILED, |()| 0))
}

struct Berth {
    /// With the arguments of the program that is wanted now.
    process: Process,
    socket: OwnedFd,
    message: Vec<u8>,
    stack: Stack,
}

impl Berth {
    /// Carries out orders until no more come.
    fn serve(&mut self) -> IoResult<()> {
        self.rehearse()?;
        while self.is_wanted()? {
            let Some((order, streams)) = self.receive()? else { return Ok(()) };
            let outcome = match streams {
                Some(streams) => self.carry_out(order, streams)?,
                None => Outcome::Unable,
            };
            self.tell(&outcome)?;
        }
        Ok(())
    }

    /// Does once all that comes with a program: were it forbidden, that must be known before one is executed whose end could
    /// not be told.
    fn rehearse(&mut self) -> IoResult<()> {
        program::enter(self.process.working_directory.as_path(), Missing::Refuse)?;
        // Of its own, so that it is seen whether they were taken, and nobody hears what is said there.
        let (_reader, stream) = pipe_with(PipeFlags::CLOEXEC)?;
        let streams = [&stream; 3];
        let pid = vfork(&mut self.stack, || if step_out(streams).and_then(|()| is_out(&stream)) == Ok(true) { 0 } else { FAILED })?;
        if reap(pid)? != 0 {
            return Err(Errno::PERM.into());
        }
        self.tell(&Outcome::Rehearsed)
    }

    fn tell(&self, outcome: &Outcome) -> IoResult<()> {
        let message = serde_json::to_vec(outcome)?;
        let sent = send(&self.socket, &message, SendFlags::NOSIGNAL)?;
        if sent == message.len() { Ok(()) } else { Err(Errno::PERM.into()) }
    }

    /// Waits until something comes; whether it did in time.
    fn is_wanted(&self) -> IoResult<bool> {
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&patience)) {
                Err(Errno::INTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// The next order, with its streams if they came; `None`: there will be no more.
    fn receive(&mut self) -> IoResult<Option<(Order, Option<[OwnedFd; 3]>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let length = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut self.message)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        if length == 0 {
            return Ok(None);
        }
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let streams = descriptors.collect::<Vec<_>>().try_into().ok();
        Ok(Some((serde_json::from_slice(self.message.get(..length).unwrap_or_default())?, streams)))
    }

    fn carry_out(&mut self, order: Order, streams: [OwnedFd; 3]) -> IoResult<Outcome> {
        self.process.arguments = order.arguments;
        let program = match Program::new(&self.process) {
            Ok(program) => program,
            Err(fault) => return Ok(Outcome::Failed(fault)),
        };
        // It may be another directory by now.
        if program::enter(self.process.working_directory.as_path(), Missing::Refuse).is_err() {
            return Ok(Outcome::Unable);
        }
        self.execute(&program, streams)
    }

    /// Executes the program and waits for its end.
    fn execute(&mut self, program: &Program, streams: [OwnedFd; 3]) -> IoResult<Outcome> {
        let mut progress = Progress::None;
        let [input, output, error] = &streams;
        let made = vfork(&mut self.stack, || {
            if step_out([input, output, error]).is_ok() {
                reach(Point::BerthChild);
                progress = Progress::Executing;
                progress = Progress::Failed(program.execute());
            }
            FAILED
        });
        drop(streams);
        let ended = made.and_then(|pid| Ok(reap(pid)?));
        match progress {
            Progress::None => Ok(Outcome::Unable),
            Progress::Executing => Ok(Outcome::Ended { code: ended? }),
            Progress::Failed(fault) => Ok(Outcome::Failed(fault)),
        }
    }
}

/// Takes these standard streams, in a session of its own, as every exec has one: signals to its process group are not for the
/// berth.
fn step_out(streams: [&OwnedFd; 3]) -> std::result::Result<(), Errno> {
    take_streams(streams)?;
    setsid().map(drop)
}

/// How far a new process came before it was another program, or ended.
enum Progress {
    None,
    Executing,
    Failed(Fault),
}

/// Whether that has been done, whatever the kernel has said: a filter can make it say what is not so.
fn is_out(stream: &OwnedFd) -> std::result::Result<bool, Errno> {
    let taken = [fstat(stdin())?, fstat(stdout())?, fstat(stderr())?].iter().map(|stat| stat.st_ino).collect::<Vec<_>>();
    Ok(taken == [fstat(stream)?.st_ino; 3] && getsid(None)? == getpid())
}

fn reap(pid: Pid) -> std::result::Result<i32, Errno> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(exit::code(status)),
            // Only a system call filter makes the kernel say that there is nothing to wait for.
            Ok(None) => return Err(Errno::CHILD),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
