//! Bytes on their way in: from the connection to whoever reads a stream, bounded.
//!
//! A session keeps a count of the bytes that have arrived and that nobody has read yet. While there are too many, its
//! connection is not read: that is the last resort, for clients that send without asking. One that honours windows
//! (see [`crate::spdy`]) never gets there, and a stream that is not read holds up only itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How many bytes of one session may wait to be read.
pub(crate) const MAX_WAITING: usize = 4 << 20;
/// What the keeping of one chunk costs beside its bytes: many small ones must not cost more than they are counted.
const CHUNK_COST: usize = 128;

/// Less than this is copied out of the buffer it was read into, so that a few bytes that wait do not keep a large buffer.
pub(crate) const WORTH_SHARING: usize = 8 << 10;

/// The count of a session's waiting bytes.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    waiting: AtomicUsize,
    shrunk: Notify,
}

impl Backlog {
    /// Waits until there is room for more. For one waiter.
    pub(crate) async fn room(&self) {
        while self.waiting.load(Ordering::Acquire) >= MAX_WAITING {
            self.shrunk.notified().await;
        }
    }

    pub(crate) fn grew(&self, bytes: usize) {
        self.waiting.fetch_add(bytes + CHUNK_COST, Ordering::AcqRel);
    }

    pub(crate) fn shrank(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes + CHUNK_COST, Ordering::AcqRel);
        self.shrunk.notify_one();
    }
}

/// Who counts what has been read.
pub(crate) trait Tally: Send + Sync {
    /// A chunk of so many bytes was taken off stream `stream`.
    fn consumed(&self, stream: u32, bytes: usize);
}

/// The reading end of a stream, or of one direction of a channel.
pub(crate) struct Incoming {
    stream: u32,
    chunks: UnboundedReceiver<Bytes>,
    session: Arc<dyn Tally>,
}

/// Makes the two ends. What is put into the first must have been counted in the session's [`Backlog`].
pub(crate) fn incoming(stream: u32, session: Arc<dyn Tally>) -> (UnboundedSender<Bytes>, Incoming) {
    let (sender, chunks) = unbounded_channel();
    (sender, Incoming { stream, chunks, session })
}

impl Incoming {
    /// The next bytes; none after the end, however the stream ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.recv().await?;
        self.session.consumed(self.stream, chunk.len());
        Some(chunk)
    }

    /// Reads and forgets until the end.
    pub(crate) async fn discard(&mut self) {
        while self.next().await.is_some() {}
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.chunks.close();
        while let Ok(chunk) = self.chunks.try_recv() {
            self.session.consumed(self.stream, chunk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted(Backlog);

    impl Tally for Counted {
        fn consumed(&self, _: u32, bytes: usize) {
            self.0.shrank(bytes);
        }
    }

    #[tokio::test]
    async fn what_is_not_read_is_counted_until_the_reader_is_gone() {
        let session = Arc::new(Counted(Backlog::default()));
        let (sender, mut reader) = incoming(1, session.clone());
        for _ in 0..3 {
            session.0.grew(MAX_WAITING / 2);
            sender.send(vec![0; MAX_WAITING / 2].into()).unwrap();
        }
        assert!(reader.next().await.is_some());
        let mut room = Box::pin(session.0.room());
        tokio::select! {
            biased;
            () = room.as_mut() => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        drop(reader);
        room.await;
        assert_eq!(session.0.waiting.load(Ordering::Relaxed), 0);
    }
}
