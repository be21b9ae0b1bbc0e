//! The sending side of one stream.

use std::sync::Arc;

use tokio::sync::Notify;

use super::frame::Reset;
use super::state::{Shared, Taken};
use crate::outgoing::{CHUNK, Gone, Slot};

/// Sends on one stream. Dropped unfinished, it resets the stream.
pub(crate) struct Writer {
    stream: u32,
    shared: Arc<Shared>,
    changed: Arc<Notify>,
}

/// Leave to send: bytes of the stream's and the session's windows, and a slot in the queue.
pub(crate) struct Room {
    stream: u32,
    bytes: usize,
    shared: Arc<Shared>,
    slot: Option<Slot>,
}

impl Writer {
    pub(super) fn new(stream: u32, shared: Arc<Shared>, changed: Arc<Notify>) -> Self {
        Self { stream, shared, changed }
    }

    /// Waits for the windows, and then for a slot: a stream that has no window takes no slot from others.
    pub(crate) async fn room(&self) -> Result<Room, Gone> {
        let bytes = loop {
            match self.shared.take(self.stream, CHUNK) {
                Taken::Bytes(bytes) => break bytes,
                Taken::Nothing => self.changed.notified().await,
                Taken::Gone => return Err(Gone),
            }
        };
        let mut room = Room { stream: self.stream, bytes, shared: self.shared.clone(), slot: None };
        room.slot = Some(self.shared.slots.clone().acquire_owned().await.map_err(|_| Gone)?);
        Ok(room)
    }

    /// Resolves when the stream is no more. It and `room` are not to be waited for at the same time.
    pub(crate) async fn gone(&self) {
        while self.shared.writable(self.stream) {
            self.changed.notified().await;
        }
    }

    /// Sends what fits into `room`.
    pub(crate) fn send(&self, mut room: Room, payload: Vec<u8>) {
        let length = payload.len();
        if let (Some(slot), 1..) = (room.slot.take(), length)
            && self.shared.send(self.stream, payload, slot)
        {
            room.bytes = room.bytes.saturating_sub(length);
        }
    }

    /// Nothing more will be sent.
    pub(crate) fn finish(self) {
        self.shared.finish(self.stream);
    }

    /// Ends the stream in both directions.
    pub(crate) fn reset(self, why: Reset) {
        self.shared.reset(self.stream, why);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.abandon(self.stream);
    }
}

impl Room {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shared.give_back(self.stream, self.bytes);
        }
    }
}
