//! Bytes on their way out: from whoever has them to the connection, never more than the client takes.
//!
//! First one asks for room, then one reads, then one sends: bytes for which there is no room stay where they came
//! from, in the container's pipe. A session has a fixed number of slots for data on its way to the connection, so
//! that what it keeps is bounded however many streams it has.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::spdy;
use crate::websocket;

/// How many bytes are sent at a time.
pub(crate) const CHUNK: usize = 64 << 10;
/// How many chunks of one session may be on their way to the connection.
const SLOTS: usize = 16;

/// The stream, or the whole session, is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// A place for one chunk on its way to the connection.
pub(crate) type Slot = OwnedSemaphorePermit;

/// The slots of a session.
pub(crate) fn slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(SLOTS))
}

/// The writing end of a stream, or of one direction of a channel. Dropped unfinished, it resets its stream.
pub(crate) enum Outgoing {
    Spdy(spdy::Writer),
    WebSocket(websocket::Writer),
}

/// Leave to send so many bytes on one stream. What is not used is given back.
pub(crate) enum Room {
    Spdy(spdy::Room),
    WebSocket(websocket::Room),
}

impl Room {
    /// An empty buffer, as large as what may be put into it.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        match self {
            Self::Spdy(room) => Vec::with_capacity(room.bytes()),
            Self::WebSocket(room) => room.buffer(),
        }
    }
}

impl Outgoing {
    /// Waits until something may be sent.
    pub(crate) async fn room(&self) -> Result<Room, Gone> {
        Ok(match self {
            Self::Spdy(writer) => Room::Spdy(writer.room().await?),
            Self::WebSocket(writer) => Room::WebSocket(writer.room().await?),
        })
    }

    /// Resolves when nothing can be sent any more: the client has reset the stream, or is no more.
    pub(crate) async fn gone(&self) {
        match self {
            Self::Spdy(writer) => writer.gone().await,
            Self::WebSocket(writer) => writer.gone().await,
        }
    }

    /// Sends what was put into the buffer that `room` gave.
    pub(crate) fn send(&self, room: Room, mut filled: Vec<u8>) {
        // A few keystrokes need not keep a whole chunk's memory.
        if filled.len() < filled.capacity() / 8 {
            filled.shrink_to_fit();
        }
        match (self, room) {
            (Self::Spdy(writer), Room::Spdy(room)) => writer.send(room, filled),
            (Self::WebSocket(writer), Room::WebSocket(room)) => writer.send(room, filled),
            // Room comes from the stream that it is used on.
            _ => {}
        }
    }

    /// Sends all of `bytes`.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let room = self.room().await?;
            let mut buffer = room.buffer();
            let (now, later) = bytes.split_at((buffer.capacity() - buffer.len()).min(bytes.len()));
            buffer.extend_from_slice(now);
            self.send(room, buffer);
            bytes = later;
        }
        Ok(())
    }

    /// Says that nothing more will be sent; whether the protocol has words for it.
    pub(crate) fn finish(self) -> bool {
        match self {
            Self::Spdy(writer) => {
                writer.finish();
                true
            }
            Self::WebSocket(_) => false,
        }
    }
}
