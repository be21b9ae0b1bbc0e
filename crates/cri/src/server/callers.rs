//! Connections as they are accepted: root's only, and a bounded number. When there are too many, the one that has been silent
//! for longest and has no call under way makes room, so that a caller who leaks connections does not lock out the others. It has
//! its descriptor until its server has heard of that; when too many still have theirs, newcomers wait in the socket's queue.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tokio_util::sync::PollSemaphore;
use tonic::transport::server::Connected;

/// How many connections there may be.
const MOST: usize = 512;
/// How many may have made room and still be there.
const MOST_LEAVING: usize = 64;
/// After an accept that failed, most likely for want of descriptors: whoever has to wait stays in the socket's queue.
const PAUSE: Duration = Duration::from_millis(100);

/// What connects to a listener.
#[derive(Debug)]
pub struct Callers {
    listener: UnixListener,
    most: usize,
    present: Vec<Weak<Seat>>,
    /// One for each that may be present, or leaving.
    places: PollSemaphore,
    begun: Instant,
    pause: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Callers {
    /// Whoever connects to `listener`.
    pub fn of(listener: UnixListener) -> Self {
        Self::at_most(MOST, MOST_LEAVING, listener)
    }

    fn at_most(most: usize, leaving: usize, listener: UnixListener) -> Self {
        let places = PollSemaphore::new(Arc::new(Semaphore::new(most + leaving)));
        Self { listener, most, present: Vec::new(), places, begun: Instant::now(), pause: None, waiting: false }
    }

    /// A seat for a newcomer; none if nobody can make room.
    fn seat(&mut self, stream: UnixStream, place: OwnedSemaphorePermit) -> Option<Arc<Seat>> {
        self.present.retain(|seat| seat.strong_count() > 0);
        if self.present.len() >= self.most {
            let idle = self.present.iter().filter_map(Weak::upgrade).filter(|seat| seat.caller.calls.load(Ordering::Acquire) == 0);
            let longest = idle.min_by_key(|seat| seat.last.load(Ordering::Relaxed))?;
            tracing::warn!(most = self.most, "too many connections: one that was idle is closed");
            longest.leave();
            self.present.retain(|seat| !std::ptr::eq(seat.as_ptr(), Arc::as_ptr(&longest)));
        }
        let seat = Arc::new(Seat { stream, begun: self.begun, last: AtomicU64::new(0), caller: Caller::default(), _place: place });
        seat.seen();
        self.present.push(Arc::downgrade(&seat));
        Some(seat)
    }

    fn admit(&mut self, stream: UnixStream, place: OwnedSemaphorePermit) -> Option<Connection> {
        match stream.peer_cred() {
            Ok(peer) if may_call(&peer) => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a caller that is not root is turned away");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "a caller that cannot be asked who it is is turned away");
                return None;
            }
        }
        let seat = self.seat(stream, place);
        if seat.is_none() {
            tracing::warn!(most = self.most, "too many connections, all busy: a new one is turned away");
        }
        seat.map(|seat| Connection { seat })
    }
}

/// This holds however the socket's mode was changed since. Root's group is no word for root: a container's processes may have it.
fn may_call(peer: &UCred) -> bool {
    peer.uid() == rustix::process::geteuid().as_raw()
}

impl Stream for Callers {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let Some(place) = ready!(self.places.poll_acquire(context)) else { return Poll::Ready(None) };
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    if std::mem::take(&mut self.waiting) {
                        tracing::info!("clients are accepted again");
                    }
                    if let Some(connection) = self.admit(stream, place) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                // The listener was shut down.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Poll::Ready(None),
                Err(error) => {
                    if !std::mem::replace(&mut self.waiting, true) {
                        tracing::warn!(%error, "no client can be accepted for now; is LimitNOFILE of the daemon too low?");
                    }
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// A connection's place among all.
#[derive(Debug)]
struct Seat {
    stream: UnixStream,
    begun: Instant,
    /// When it last said or took something, in milliseconds after `begun`.
    last: AtomicU64,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

impl Seat {
    fn seen(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn leave(&self) {
        // Its server hears the end of it.
        let _ = rustix::net::shutdown(self.stream.as_fd(), Shutdown::Both);
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    seat: Arc<Seat>,
}

/// Whose a call is, to be found among a request's extensions, and what that caller has of what all share.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Calls under way.
    pub(super) calls: Arc<AtomicUsize>,
    /// Bytes of requests in work.
    pub(super) bytes: Arc<AtomicUsize>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.seat.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Seat { stream, .. } = &*self.seat;
        loop {
            ready!(stream.poll_read_ready(context))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    self.seat.seen();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Connection {
    fn poll_write_with(&self, context: &mut Context<'_>, write: impl Fn(&UnixStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        let Seat { stream, .. } = &*self.seat;
        loop {
            ready!(stream.poll_write_ready(context))?;
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.seat.seen();
                    return Poll::Ready(done);
                }
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.seat.stream.as_fd(), Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    use super::*;

    async fn closed(stream: &mut UnixStream) -> bool {
        stream.read(&mut [0; 8]).await.map_or(true, |count| count == 0)
    }

    #[tokio::test]
    async fn the_one_that_was_idle_for_longest_makes_room_and_none_that_is_busy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut callers = Callers::at_most(2, 2, UnixListener::bind(&path).unwrap());
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        for at in [10, 20] {
            clients.push(UnixStream::connect(&path).await.unwrap());
            let connection = callers.next().await.unwrap().unwrap();
            connection.seat.last.store(at, Ordering::Relaxed);
            connections.push(connection);
        }
        let calls = |connection: &Connection, count| connection.connect_info().calls.store(count, Ordering::Relaxed);
        calls(&connections[0], 1);
        clients.push(UnixStream::connect(&path).await.unwrap());
        let third = callers.next().await.unwrap().unwrap();
        assert!(closed(&mut clients[1]).await, "the first has a call under way");
        calls(&third, 1);
        let mut fourth = UnixStream::connect(&path).await.unwrap();
        // Nobody can make room.
        assert!(tokio::time::timeout(Duration::from_millis(50), callers.next()).await.is_err());
        assert!(closed(&mut fourth).await);
        calls(&third, 0);
        drop(connections);
        let mut fifth = UnixStream::connect(&path).await.unwrap();
        let mut accepted = callers.next().await.unwrap().unwrap();
        accepted.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        fifth.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn newcomers_wait_until_those_who_made_room_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut callers = Callers::at_most(1, 1, UnixListener::bind(&path).unwrap());
        let mut clients = Vec::new();
        let mut connections = Vec::new();
        for _ in 0..2 {
            clients.push(UnixStream::connect(&path).await.unwrap());
            connections.push(callers.next().await.unwrap().unwrap());
        }
        assert!(closed(&mut clients[0]).await, "it made room");
        clients.push(UnixStream::connect(&path).await.unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(50), callers.next()).await.is_err(), "and has its descriptor still");
        drop(connections.remove(0));
        connections.push(callers.next().await.unwrap().unwrap());
        assert!(closed(&mut clients[1]).await);
    }
}
