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

/// Longer than any message: what is in a fault may be spelled with six bytes for one.
const LONGEST: usize = 8 * LONGEST_SUBJECT;
/// How many bytes of a fault's subject are told: the kernel's own bound on paths. Callers may name what is longer.
const LONGEST_SUBJECT: usize = 4 << 10;

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
            Err(_) => return Heard::End,
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let report = bytes.get(..count).and_then(|bytes| serde_json::from_slice(bytes).ok());
        // Not the line's end, which can mean that all is well.
        let unreadable = || Report::Failed(Fault::new("understanding", "a process that is being set up", Errno::PROTO));
        Heard::Report(report.unwrap_or_else(unreadable), descriptor)
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

    /// Tells the monitor why this process cannot go on.
    pub(crate) fn fail(&self, fault: &Fault) -> Result<(), Errno> {
        let Fault { stage, subject, errno } = fault;
        self.report(&Report::Failed(Fault { stage: stage.clone(), subject: cut(subject), errno: *errno }))
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

/// As much of a subject as is told, in whole characters.
fn cut(subject: &str) -> String {
    if subject.len() <= LONGEST_SUBJECT {
        return subject.to_owned();
    }
    let end = subject.char_indices().map(|(start, _)| start).take_while(|start| *start <= LONGEST_SUBJECT).last();
    let (told, _) = subject.split_at(end.unwrap_or_default());
    format!("{told}…")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listening: &Listening) -> Fault {
        match listening.hear() {
            Heard::Report(Report::Failed(fault), None) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn of_a_long_subject_whole_characters_are_told_and_the_error_arrives() {
        let (listening, reporting) = new().unwrap();
        for character in ["a", "é", "€", "\u{1}"] {
            let subject = character.repeat(300_000);
            reporting.fail(&Fault::new("executing the program", &subject, Errno::NAMETOOLONG)).unwrap();
            let fault = heard(&listening);
            let told = fault.subject.strip_suffix('…').unwrap();
            assert!(subject.starts_with(told) && told.len() > LONGEST_SUBJECT - 3, "{} bytes", told.len());
            assert_eq!((fault.stage.as_str(), fault.errno), ("executing the program", Errno::NAMETOOLONG.raw_os_error()));
        }
        let path = "a".repeat(LONGEST_SUBJECT);
        reporting.fail(&Fault::new("executing the program", &path, Errno::NOENT)).unwrap();
        assert_eq!(heard(&listening).subject, path);
    }

    #[test]
    fn what_cannot_be_understood_is_a_fault_and_not_the_end() {
        let (listening, reporting) = new().unwrap();
        for message in [&b"{"[..], br#""Danced""#, &[b' '; 2 * LONGEST]] {
            rustix::io::write(&reporting, message).unwrap();
            assert_eq!(heard(&listening).errno, Errno::PROTO.raw_os_error());
        }
        drop(reporting);
        assert!(matches!(listening.hear(), Heard::End));
    }
}
