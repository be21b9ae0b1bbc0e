//! One daemon's connection: frames in with their descriptors, frames out. It never blocks, and a peer that does not
//! read, or does not speak the protocol, loses it.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send};

use crate::frame::{self, Decoder};
use crate::protocol::Message;

/// How much may wait for a peer that does not read.
const MOST_UNSENT: usize = 1 << 20;
/// How many descriptors a call brings at most.
const MOST_DESCRIPTORS: usize = 3;
/// How many calls may have brought descriptors that wait for the rest of theirs.
const MOST_BROUGHT: usize = 5;
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
    /// What each call brought, apart: without room for all of its descriptors it is short, and must not take another's.
    brought: VecDeque<Vec<OwnedFd>>,
    unsent: Vec<u8>,
}

impl Connection {
    /// Takes an accepted socket, which must not block.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, decoder: Decoder::default(), brought: VecDeque::new(), unsent: Vec::new() }
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
        let received = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) if received.bytes > 0 => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Ok(_) | Err(_) => return Err(Closed),
        };
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors: Vec<OwnedFd> = descriptors.collect();
        // The kernel reads no further than to the next ones.
        if !descriptors.is_empty() || received.flags.contains(ReturnFlags::CTRUNC) {
            self.brought.push_back(descriptors);
        }
        self.decoder.push(bytes.get(..received.bytes).unwrap_or_default());
        if self.brought.len() > MOST_BROUGHT { Err(Closed) } else { Ok(()) }
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, Closed> {
        self.decoder.pop().map_err(|_| Closed)
    }

    /// The descriptors of the next call that brought any, if it brought `N`.
    pub(crate) fn take_descriptors<const N: usize>(&mut self) -> Option<[OwnedFd; N]> {
        self.brought.pop_front()?.try_into().ok()
    }

    /// Closes descriptors that came with a call which nobody understands.
    pub(crate) fn drop_descriptors(&mut self) {
        self.brought.clear();
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
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::unix::fs::MetadataExt;

    use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, SocketType, sendmsg, socketpair};

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

    #[test]
    fn a_call_that_comes_without_all_of_its_descriptors_takes_none_of_another_call() {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let mut connection = Connection::new(near);
        let files = [(); 3].map(|()| tempfile::tempfile().unwrap());
        let number = |file: &File| file.metadata().unwrap().ino();
        for count in [1, 3, 2] {
            let descriptors: Vec<_> = files.iter().take(count).map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&far, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL).unwrap();
        }
        (0..3).for_each(|_| connection.receive().unwrap());
        assert!(connection.take_descriptors::<3>().is_none());
        let taken = connection.take_descriptors::<3>().unwrap().map(File::from);
        assert_eq!(taken.each_ref().map(number), files.each_ref().map(number));
        assert!(connection.take_descriptors::<3>().is_none());
    }
}
