//! One daemon's connection: frames in with their descriptors, frames out. It never blocks, and a peer that does not
//! read, or does not speak the protocol, loses it.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use crate::frame::{self, Decoder};
use crate::protocol::Message;

/// How much may wait for a peer that does not read.
const MOST_UNSENT: usize = 1 << 20;
/// How many descriptors may wait for the call they belong to.
const MOST_DESCRIPTORS: usize = 16;
/// Room for an exec with a system call filter.
const READ: usize = 8 << 10;

/// The connection has ended, or must.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// A connected daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    descriptors: VecDeque<OwnedFd>,
    unsent: Vec<u8>,
}

impl Connection {
    /// Takes an accepted socket, which must not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::default(), descriptors: VecDeque::new(), unsent: Vec::new() }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Takes what has come, once.
    pub(crate) fn receive(&mut self) -> Result<(), Closed> {
        let mut bytes = [0; READ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) if received.bytes > 0 => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Ok(_) | Err(_) => return Err(Closed),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.decoder.push(bytes.get(..count).unwrap_or_default());
        if self.descriptors.len() > MOST_DESCRIPTORS { Err(Closed) } else { Ok(()) }
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, Closed> {
        self.decoder.pop().map_err(|_| Closed)
    }

    /// The first `N` descriptors that came, if there are as many.
    pub(crate) fn take_descriptors<const N: usize>(&mut self) -> Option<[OwnedFd; N]> {
        if self.descriptors.len() < N {
            return None;
        }
        self.descriptors.drain(..N).collect::<Vec<_>>().try_into().ok()
    }

    /// Closes descriptors that came with a call which nobody understands.
    pub(crate) fn drop_descriptors(&mut self) {
        self.descriptors.clear();
    }

    /// Sends a message, or queues what the peer does not take now.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Closed> {
        self.unsent.extend(frame::encode(message).map_err(|_| Closed)?);
        self.flush()
    }

    /// Sends what is queued.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        let mut sent = 0;
        while let Some(rest) = self.unsent.get(sent..).filter(|rest| !rest.is_empty()) {
            match send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Closed),
            }
        }
        if sent == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        if self.unsent.len() > MOST_UNSENT { Err(Closed) } else { Ok(()) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::protocol::Reply;

    #[test]
    fn a_peer_that_does_not_read_is_dropped_and_never_waited_for() {
        let (near, _far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let mut connection = Connection::new(near);
        let message = Message::Reply { id: 1, reply: Reply::Done };
        let taken = (0..1_000_000).position(|_| connection.send(&message) == Err(Closed));
        assert!(taken.is_some_and(|taken| taken > 1000));
    }
}
