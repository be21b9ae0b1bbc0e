//! Copying between a program's descriptors and a client's streams.
//!
//! Outwards, bytes are read only once there is room for them: a client that does not read leaves them in the
//! program's pipe, and so holds up the program as a pipe's reader does.
//!
//! Pipes are read, written and closed on threads that may block. Who hands a file on to a pipe, or a pipe to a file, has the pipe
//! locked while the file is waited for (Linux, fs/splice.c and fs/pipe.c), and everybody else waits for the lock whatever his
//! flags say.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
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

/// How long what was said last is waited for while somebody has the pipe locked.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is read as it becomes ready.
#[derive(Debug)]
pub(crate) struct Source {
    descriptor: Arc<Receiver>,
    kind: Kind,
    _last: Last,
}

/// What is written as it becomes ready.
#[derive(Debug)]
pub(crate) struct Sink {
    descriptor: Arc<Sender>,
    kind: Kind,
    _last: Last,
}

/// A further descriptor of a pipe, closed after all others of ours, and on a thread that may block.
#[derive(Debug)]
struct Last(Option<OwnedFd>);

impl Last {
    fn of(descriptor: &OwnedFd, kind: Kind) -> io::Result<Self> {
        Ok(Self((kind == Kind::Pipe).then(|| descriptor.try_clone()).transpose()?))
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(last) = self.0.take() {
            tokio::task::spawn_blocking(|| drop(last));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    /// A socket or a terminal, which nobody locks.
    Other,
}

/// Whom a reader asks whether there is something.
#[derive(Clone, Copy)]
enum Asks {
    /// The runtime, which knows what has become ready.
    Runtime,
    /// What the runtime believes to be empty need not be.
    Kernel,
}

/// Makes a descriptor non-blocking, and a pipe roomy.
fn prepare(descriptor: &OwnedFd) -> io::Result<Kind> {
    let flags = fcntl_getfl(descriptor)?;
    fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)?;
    // Only pipes have a size, and theirs is only a matter of speed.
    let Ok(size) = fcntl_getpipe_size(descriptor) else { return Ok(Kind::Other) };
    if size < PIPE {
        let _ = fcntl_setpipe_size(descriptor, PIPE);
    }
    Ok(Kind::Pipe)
}

impl Kind {
    /// Does it where this may be done.
    async fn perform<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Pipe => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Self::Other => Ok(work()),
        }
    }
}

impl Source {
    /// Reads `descriptor`, which from now on does not block.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let kind = prepare(&descriptor)?;
        let last = Last::of(&descriptor, kind)?;
        // Nothing in tokio's pipes is peculiar to pipes.
        Ok(Self { descriptor: Arc::new(Receiver::from_owned_fd_unchecked(descriptor)?), kind, _last: last })
    }

    async fn ready(&self) -> io::Result<()> {
        self.descriptor.readable().await
    }

    /// Adds to `buffer` what there is, as much as it has room for, and says how much that was; nothing: the end.
    async fn read(&self, mut buffer: Vec<u8>, asks: Asks) -> io::Result<(usize, Vec<u8>)> {
        let descriptor = Arc::clone(&self.descriptor);
        let read = move || {
            let mut read = || match rustix::io::read(&descriptor, spare_capacity(&mut buffer)) {
                // So a terminal says that nobody has it open any more.
                Err(Errno::IO) => Ok(0),
                read => Ok(read?),
            };
            let length = match asks {
                Asks::Runtime => descriptor.try_io(read)?,
                Asks::Kernel => read()?,
            };
            Ok((length, buffer))
        };
        self.kind.perform(read).await?
    }
}

impl Sink {
    /// Writes `descriptor`, which from now on does not block.
    pub(crate) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let kind = prepare(&descriptor)?;
        let last = Last::of(&descriptor, kind)?;
        Ok(Self { descriptor: Arc::new(Sender::from_owned_fd_unchecked(descriptor)?), kind, _last: last })
    }

    async fn write_all(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            self.descriptor.writable().await?;
            let (descriptor, content) = (Arc::clone(&self.descriptor), bytes.clone());
            match self.kind.perform(move || descriptor.try_write(&content)).await? {
                Ok(written) => bytes.advance(written),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
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
    let (mut left, mut over) = (None, ended.clone());
    while left != Some(0) {
        if left.is_none() {
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => left = Some(DRAINED),
                () = to.gone() => return Ok(Copied::ClientGone),
                ready = from.ready() => ready?,
            }
        }
        let Ok(room) = to.room().await else { return Ok(Copied::ClientGone) };
        let asks = if left.is_none() { Asks::Runtime } else { Asks::Kernel };
        let read = tokio::select! {
            biased;
            read = from.read(room.buffer(), asks) => read,
            () = to.gone() => return Ok(Copied::ClientGone),
            () = last_words(&mut over) => return Ok(Copied::All),
        };
        match read {
            Ok((0, _)) => return Ok(Copied::All),
            Ok((length, buffer)) => {
                to.send(room, buffer);
                left = left.map(|left: usize| left.saturating_sub(length));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && left.is_some() => return Ok(Copied::All),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Copied::All)
}

/// Waits until a program has been over for so long that who still has its output locked is waited for no more.
async fn last_words(over: &mut watch::Receiver<bool>) {
    let _ = over.wait_for(|over| *over).await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// Reads `from` until its end, or until `ended` says that the program is over, and forgets what was read: a program
/// must not wait for someone to look.
///
/// # Errors
/// Reading failed.
pub(crate) async fn nowhere(from: &Source, mut ended: watch::Receiver<bool>) -> io::Result<()> {
    let reading = async || {
        from.ready().await?;
        from.read(Vec::with_capacity(CHUNK), Asks::Runtime).await
    };
    loop {
        let read = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
            read = reading() => read,
        };
        match read {
            Ok((0, _)) => return Ok(()),
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
        to.write_all(bytes).await?;
    }
    Ok(())
}
