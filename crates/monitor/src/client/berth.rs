//! The daemon's end of a berth ([`crate::berth`]).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};

use coracle_domain::{During, Failure, FailureKind, Result};
use coracle_failpoint::{Point, reach};
use coracle_plan::Bytes;
use rustix::io::ioctl_fionbio;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::unix::pipe;

use super::link::send_some;
use super::{Monitor, RunningExec, failure};
use crate::berth::{LONGEST_ORDER, LONGEST_OUTCOME, Order, Outcome};
use crate::protocol::{Exec, MAKES_BERTHS};

const WAITING: &str = "waiting for a program in";
const BERTH: &str = "a process that waits in a container";

/// A process that waits in a container for programs to execute, or a place for one that is still to be made. It ends when this
/// is dropped, once the program that it has executed has ended.
#[derive(Debug)]
pub struct Berth {
    /// A socket: it is read like a pipe, and nobody wants to be woken up when it can be written to.
    socket: pipe::Receiver,
    running: Option<RunningExec>,
}

impl Berth {
    /// A place for one, and its end of the line. What is sent now is carried out once it is there.
    ///
    /// # Errors
    /// The kernel's: there are no descriptors left.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        ioctl_fionbio(&near, true)?;
        Ok((Self { socket: pipe::Receiver::from_file_unchecked(File::from(near))?, running: None }, far))
    }

    /// Whether this monitor can make any.
    pub fn is_made_by(monitor: &Monitor) -> bool {
        monitor.revision >= MAKES_BERTHS
    }

    /// Has it made like `exec`, whose program is left out. `streams` are its end of the line, and two that are not used.
    ///
    /// # Errors
    /// As for [`Monitor::exec`].
    pub async fn make(&mut self, monitor: &Monitor, mut exec: Exec, streams: [OwnedFd; 3]) -> Result<()> {
        // The exec itself may follow while this is still being reaped.
        exec.exec.push_str("-berth");
        exec.process.arguments.clear();
        self.running = Some(monitor.exec(exec, streams).await?);
        Ok(())
    }

    /// Tells it that no more will come, and waits until it is gone: it counts against its container's limits.
    pub async fn end(self) {
        drop(self.socket);
        if let Some(running) = self.running {
            // If the monitor has gone away, there is nobody left to tell.
            let _ = running.exited.await;
        }
    }

    /// Its process id in the node's namespace, if it was made.
    pub fn pid(&self) -> Option<i32> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// Sends it a program to execute with these standard streams. Whether it was sent: it may have ended, or the program's
    /// arguments be too long to be told.
    pub fn order(&self, arguments: Vec<Bytes>, streams: [BorrowedFd<'_>; 3]) -> bool {
        let Ok(message) = serde_json::to_vec(&Order { arguments }) else { return false };
        let sent = message.len() <= LONGEST_ORDER && send_some(&self.socket, &message, &streams).is_ok();
        reach(Point::BerthOrder);
        sent
    }

    /// Waits for the end of the program that was sent: its exit status, or 128 and the number of the signal that killed it.
    /// `None`: it was not executed, and somebody else may try.
    ///
    /// # Errors
    /// The program cannot be executed, or it is not known what became of it.
    pub async fn outcome(&self) -> Result<Option<i32>> {
        loop {
            match self.hear().await? {
                Some(Outcome::Rehearsed) => {}
                Some(Outcome::Ended { code }) => return Ok(Some(code)),
                Some(Outcome::Failed(fault)) => return Err(failure::from(fault)),
                Some(Outcome::Unable) | None => return Ok(None),
            }
        }
    }

    /// What it says next; `None`: it has ended without having read what was sent.
    async fn hear(&self) -> Result<Option<Outcome>> {
        let mut message = vec![0; LONGEST_OUTCOME];
        let received = loop {
            self.socket.readable().await.during(WAITING, BERTH)?;
            match self.socket.try_read(&mut message) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                received => break received,
            }
        };
        let length = match received {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Ok(0) => {
                let failure = Failure::new(WAITING, BERTH, "it was killed, and the program's exit status is lost");
                return Err(failure.kind(FailureKind::Unavailable).into());
            }
            received => received.during(WAITING, BERTH)?,
        };
        reach(Point::BerthOutcome);
        let told = message.get(..length).unwrap_or_default();
        Ok(Some(serde_json::from_slice(told).during("understanding", BERTH)?))
    }
}
