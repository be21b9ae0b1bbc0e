//! Copying between a program's descriptors and a client's streams.
//!
//! Outwards, bytes are read only once there is room for them: a client that does not read leaves them in the
//! program's pipe, and so holds up the program as a pipe's reader does.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::watch;

use crate::flow::Incoming;
use crate::outgoing::{CHUNK, Outgoing};

/// What a pipe may hold: enough that program and daemon need not take turns for every chunk.
const PIPE: usize = 256 << 10;

/// How much is copied after a program's end: no pipe or socket buffer holds more, and whoever is left behind may write
/// for ever.
const DRAINED: usize = 1 << 20;

/// What is read as it becomes ready.
#[derive(Debug)]
pub(crate) struct Source(Receiver);

/// What is written as it becomes ready.
#[derive(Debug)]
pub(crate) struct Sink(Sender);

/// Makes a descriptor non-blocking, and a pipe roomy.
fn prepare(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    let flags = fcntl_getfl(&descriptor)?;
    fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
    // Only pipes have a size, and theirs is only a matter of speed.
    if fcntl_getpipe_size(&descriptor).is_ok_and(|size| size < PIPE) {
        let _ = fcntl_setpipe_size(&descriptor, PIPE);
    }
    Ok(descriptor)
}

impl Source {
    /// Reads `descriptor`, which from now on does not block.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // Nothing in tokio's pipes is peculiar to pipes.
        Receiver::from_owned_fd_unchecked(prepare(descriptor)?).map(Self)
    }

    fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match rustix::io::read(&self.0, spare_capacity(buffer)) {
            // So a terminal says that nobody has it open any more.
            Err(Errno::IO) => Ok(0),
            read => Ok(read?),
        }
    }
}

impl Sink {
    /// Writes `descriptor`, which from now on does not block.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Sender::from_owned_fd_unchecked(prepare(descriptor)?).map(Self)
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why copying outwards ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// There is no more.
    All,
    /// The client takes no more.
    ClientGone,
}

/// Copies what is read from `from` until its end, or until the client takes no more.
///
/// Once `ended` says so, the program is over: then what is there is copied, and the end is where nothing is.
///
/// # Errors
/// Reading failed.
pub(crate) async fn outwards(from: &Source, to: &Outgoing, mut ended: watch::Receiver<bool>) -> io::Result<Copied> {
    let mut left = None;
    while left != Some(0) {
        if left.is_none() {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => left = Some(DRAINED),
                () = to.gone() => return Ok(Copied::ClientGone),
                ready = from.0.readable() => ready?,
            }
        }
        let Ok(room) = to.room().await else { return Ok(Copied::ClientGone) };
        let mut buffer = room.buffer();
        let read = match left {
            None => from.0.try_io(|| from.read(&mut buffer)),
            // What tokio believes to be empty need not be.
            Some(_) => from.read(&mut buffer),
        };
        match read {
            Ok(0) => return Ok(Copied::All),
            Ok(read) => {
                to.send(room, buffer);
                left = left.map(|left: usize| left.saturating_sub(read));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && left.is_some() => return Ok(Copied::All),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Copied::All)
}

/// Reads `from` until its end, or until `ended` says that the program is over, and forgets what was read: a program
/// must not wait for someone to look.
///
/// # Errors
/// Reading failed.
pub(crate) async fn nowhere(from: &Source, mut ended: watch::Receiver<bool>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
            ready = from.0.readable() => ready?,
        }
        buffer.clear();
        match from.0.try_io(|| from.read(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies what the client sends to `to` until the client's end.
///
/// # Errors
/// Writing failed: nobody reads there any more.
pub(crate) async fn inwards(from: &mut Incoming, to: &Sink) -> io::Result<()> {
    while let Some(bytes) = from.next().await {
        to.write_all(&bytes).await?;
    }
    Ok(())
}
