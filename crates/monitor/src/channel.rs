//! The line from a process that is being set up to its monitor: a socket pair that keeps messages apart, and that
//! execve closes. Its end without a fault, after [`Report::Ready`], means that the program was executed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::protocol::Fault;

/// Longer than any message: names in it are bounded by the kernel's own bounds on paths.
const LONGEST: usize = 16 << 10;

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Here is the master side of its terminal (one descriptor).
    Terminal,
    /// Another process, a child of the monitor's as well, goes on in its place (one descriptor: its pidfd).
    Moved {
        /// Its number in the monitor's pid namespace.
        pid: i32,
    },
    /// Here is the file system that it was sent to begin (one descriptor: fsopen(2)'s).
    Begun,
    /// All is set up; what follows is execve.
    Ready,
    /// It cannot go on.
    Failed(Fault),
}

/// The monitor's end: never blocks.
#[derive(Debug)]
pub(crate) struct Listening(OwnedFd);

/// The new process's end.
#[derive(Debug)]
pub(crate) struct Reporting(OwnedFd);

/// What there is to hear.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing yet.
    Nothing,
    /// A report, perhaps with a descriptor.
    Report(Report, Option<OwnedFd>),
    /// No more will come.
    End,
}

/// A new line.
pub(crate) fn new() -> Result<(Listening, Reporting), Errno> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Listening(near), Reporting(far)))
}

impl Listening {
    /// The next report, if there is one.
    pub(crate) fn hear(&self) -> Heard {
        // As long as the report and no longer: each page that this process writes to after a clone is copied first.
        let length = match recv(&self.0, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, length)) if length > 0 => length.min(LONGEST),
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Ok(_) | Err(_) => return Heard::End,
        };
        let mut bytes = vec![0; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => 0,
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match bytes.get(..count).and_then(|bytes| serde_json::from_slice(bytes).ok()) {
            Some(report) => Heard::Report(report, descriptor),
            None => Heard::End,
        }
    }

    /// Waits for the next report, as long as `patience` lasts, if it ends; `None` if none came.
    pub(crate) fn await_report(&self, patience: Option<&Timespec>) -> Option<(Report, Option<OwnedFd>)> {
        poll(&mut [PollFd::new(self, PollFlags::IN)], patience).ok()?;
        match self.hear() {
            Heard::Report(report, descriptor) => Some((report, descriptor)),
            Heard::Nothing | Heard::End => None,
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Reporting {
    /// Tells the monitor.
    pub(crate) fn report(&self, report: &Report) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(report).map_err(|_| Errno::INVAL)?;
        // write(2) and not sendmsg(2): a container's system call filter, in force by now, allows it.
        rustix::io::write(&self.0, &bytes).map(drop)
    }

    /// Tells the monitor whatever it is.
    #[cfg(fuzzing)]
    pub(crate) fn say(&self, bytes: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.0, bytes).map(drop)
    }

    /// Hands the monitor the descriptor of a report that comes with one.
    pub(crate) fn hand_over(&self, report: &Report, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        hand_over(self.0.as_fd(), &serde_json::to_vec(report).map_err(|_| Errno::INVAL)?, descriptor)
    }
}

/// Sends a message with a descriptor over a socket.
pub(crate) fn hand_over(socket: BorrowedFd<'_>, message: &[u8], descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

impl AsFd for Reporting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
