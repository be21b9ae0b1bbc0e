//! What a session's tasks share: its streams, both sides' windows, and the queue of frames to be written.
//!
//! ```text
//!                 SYN_STREAM            FIN from us
//!   (unknown) ───────────────> open ─────────────────> half-closed (local)
//!                               │  \                        │
//!                  FIN from them│   \RST_STREAM             │FIN from them
//!                               v    \ (either side)        v
//!              half-closed (remote) ──┴──────────────────> closed
//! ```
//!
//! Windows are counted with a sign: a client may shrink one below what is on its way already.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};

use super::frame::{self, DEFAULT_WINDOW, Farewell, HEAD, MAX_NUMBER, Reset, Violation, data_head};
use super::headers::{Deflater, Headers};
use super::writer::Writer;
use crate::flow::{Backlog, Incoming, Tally, incoming};
use crate::outgoing::{Slot, slots};

/// How many streams may be open at once.
pub(super) const MAX_STREAMS: usize = 4096;
/// How many control frames may wait to be written: more means that the client asks and does not listen.
const MAX_CONTROLS: usize = 4 * MAX_STREAMS;
/// What a client may send on one stream before we have taken it off.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// The same for the whole session; what its backlog may hold.
pub(super) const SESSION_WINDOW: u32 = crate::flow::MAX_WAITING as u32;

/// What stands in the queue to be written.
pub(super) enum Out {
    /// A data frame; its slot is free when it has been written.
    Data { head: [u8; HEAD], payload: Vec<u8>, _slot: Slot },
    /// A whole frame.
    Control(Bytes),
    /// GOAWAY, and then nothing more.
    End(Farewell),
}

/// What there is to send with.
pub(super) enum Taken {
    Bytes(usize),
    Nothing,
    Gone,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    deflater: Mutex<Deflater>,
    queue: UnboundedSender<Out>,
    controls: AtomicUsize,
    pub(super) slots: Arc<Semaphore>,
    pub(super) backlog: Backlog,
}

struct State {
    streams: HashMap<u32, Stream>,
    /// The newest stream the client opened.
    last: u32,
    /// One side has said GOAWAY, or the connection is no more.
    leaving: bool,
    /// The client has named a window, so it counts.
    counts: bool,
    /// What the session's window leaves us to send.
    window: i64,
    /// What a new stream's window leaves us to send.
    initial: i64,
    /// Bytes taken off since the session's window was last enlarged for the client.
    taken: u32,
}

struct Stream {
    window: i64,
    taken: u32,
    /// Where its data go, until the client's FIN.
    incoming: Option<UnboundedSender<Bytes>>,
    /// We have not said FIN.
    writing: bool,
    /// The window has changed, or the stream is no more.
    changed: Arc<Notify>,
}

impl Shared {
    pub(super) fn new() -> (Arc<Self>, UnboundedReceiver<Out>) {
        let (queue, frames) = unbounded_channel();
        let state = State {
            streams: HashMap::new(),
            last: 0,
            leaving: false,
            counts: false,
            window: DEFAULT_WINDOW.into(),
            initial: DEFAULT_WINDOW.into(),
            taken: 0,
        };
        let deflater = Mutex::new(Deflater::default());
        let shared =
            Self { state: Mutex::new(state), deflater, queue, controls: AtomicUsize::new(0), slots: slots(), backlog: Backlog::default() };
        shared.say(frame::settings(&[(frame::MAX_CONCURRENT_STREAMS, MAX_STREAMS as u32), (frame::INITIAL_WINDOW_SIZE, STREAM_WINDOW)]));
        shared.say(frame::window_update(0, SESSION_WINDOW - DEFAULT_WINDOW));
        (Arc::new(shared), frames)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame. If the connection is no more, nobody misses it.
    fn put(&self, out: Out) {
        let _ = self.queue.send(out);
    }

    pub(super) fn say(&self, frame: Bytes) {
        self.controls.fetch_add(1, Ordering::Relaxed);
        self.put(Out::Control(frame));
    }

    /// So many control frames have been written.
    pub(super) fn said(&self, frames: usize) {
        self.controls.fetch_sub(frames, Ordering::Relaxed);
    }

    /// More waits to be written than any client that listens would leave.
    pub(super) fn flooded(&self) -> bool {
        self.controls.load(Ordering::Relaxed) > MAX_CONTROLS
    }

    /// A client's new stream; none if it was refused.
    pub(super) fn open(self: &Arc<Self>, number: u32, fin: bool, unidirectional: bool) -> Result<Option<(Incoming, Writer)>, Violation> {
        let mut state = self.state();
        if number.is_multiple_of(2) || number <= state.last {
            return Err(Violation("a stream has the wrong number"));
        }
        state.last = number;
        if state.leaving || state.streams.len() >= MAX_STREAMS {
            drop(state);
            self.say(frame::rst_stream(number, Reset::Refused));
            return Ok(None);
        }
        let changed = Arc::new(Notify::new());
        let (sender, incoming) = incoming(number, self.clone());
        let stream = Stream {
            window: state.initial,
            taken: 0,
            incoming: (!fin).then_some(sender),
            writing: !unidirectional,
            changed: changed.clone(),
        };
        state.streams.insert(number, stream);
        Ok(Some((incoming, Writer::new(number, self.clone(), changed))))
    }

    /// Says yes to a stream, unless it was reset meanwhile.
    pub(super) fn accept(&self, number: u32) {
        let mut deflater = self.deflater.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        if !state.streams.get(&number).is_some_and(|stream| stream.writing) {
            return;
        }
        // Under the locks: blocks must be sent in the order in which they were made, and before the stream's end.
        self.say(frame::syn_reply(number, &deflater.write(&Headers::default())));
    }

    /// Something may be sent on a stream, sooner or later.
    pub(super) fn writable(&self, number: u32) -> bool {
        self.state().streams.get(&number).is_some_and(|stream| stream.writing)
    }

    /// Takes what may be sent on a stream, at most `want`.
    pub(super) fn take(&self, number: u32, want: usize) -> Taken {
        let mut state = self.state();
        let State { streams, window, counts, .. } = &mut *state;
        let Some(stream) = streams.get_mut(&number).filter(|stream| stream.writing) else { return Taken::Gone };
        let free = if *counts { stream.window.min(*window) } else { i64::MAX };
        if free <= 0 {
            return Taken::Nothing;
        }
        let bytes = free.min(want as i64);
        stream.window -= bytes;
        *window -= bytes;
        Taken::Bytes(bytes as usize)
    }

    /// Gives back what was taken and not sent.
    pub(super) fn give_back(&self, number: u32, bytes: usize) {
        let mut state = self.state();
        let others_waited = state.counts && state.window <= 0;
        state.window += bytes as i64;
        if let Some(stream) = state.streams.get_mut(&number) {
            stream.window += bytes as i64;
        }
        if others_waited {
            state.wake();
        }
    }

    /// Queues data; says whether their stream is still open. If it is not, its reset was the last that was said on it.
    pub(super) fn send(&self, number: u32, payload: Vec<u8>, slot: Slot) -> bool {
        let state = self.state();
        let open = state.streams.get(&number).is_some_and(|stream| stream.writing);
        if open {
            self.put(Out::Data { head: data_head(number, 0, payload.len()), payload, _slot: slot });
        }
        open
    }

    /// Our FIN.
    pub(super) fn finish(&self, number: u32) {
        let mut state = self.state();
        let Some(stream) = state.streams.get_mut(&number).filter(|stream| stream.writing) else { return };
        stream.writing = false;
        let over = stream.incoming.is_none();
        self.say(Bytes::copy_from_slice(&data_head(number, frame::FLAG_FIN, 0)));
        if over {
            self.forget(&mut state, number);
        }
    }

    /// Ends a stream in both directions; nothing if it has ended.
    pub(super) fn reset(&self, number: u32, why: Reset) {
        let mut state = self.state();
        if state.streams.contains_key(&number) {
            self.say(frame::rst_stream(number, why));
            self.forget(&mut state, number);
        }
    }

    /// Nobody will send on a stream any more: it is cut off, unless its end was said.
    pub(super) fn abandon(&self, number: u32) {
        if self.writable(number) {
            self.reset(number, Reset::Cancel);
        }
    }

    /// The client's data, and perhaps its FIN.
    pub(super) fn arrived(&self, number: u32, bytes: Bytes, fin: bool) {
        let mut state = self.state();
        let never_opened = number > state.last;
        let length = bytes.len();
        let stream = state.streams.get_mut(&number);
        let known = stream.is_some();
        let kept = stream.and_then(|stream| stream.incoming.as_ref()).is_some_and(|incoming| {
            if length == 0 {
                return true;
            }
            self.backlog.grew(length);
            let sent = incoming.send(bytes).is_ok();
            if !sent {
                self.backlog.shrank(length);
            }
            sent
        });
        if !kept {
            self.count(&mut state, number, length);
        }
        if never_opened {
            self.say(frame::rst_stream(number, Reset::InvalidStream));
        }
        if known && fin {
            self.client_finished(&mut state, number);
        }
    }

    /// The client's FIN on whatever frame.
    pub(super) fn finished(&self, number: u32) {
        self.client_finished(&mut self.state(), number);
    }

    fn client_finished(&self, state: &mut State, number: u32) {
        if let Some(stream) = state.streams.get_mut(&number) {
            stream.incoming = None;
            if !stream.writing {
                self.forget(state, number);
            }
        }
    }

    /// The client has ended a stream.
    pub(super) fn was_reset(&self, number: u32) {
        self.forget(&mut self.state(), number);
    }

    fn forget(&self, state: &mut State, number: u32) {
        if let Some(stream) = state.streams.remove(&number) {
            stream.changed.notify_one();
        }
        if state.leaving && state.streams.is_empty() {
            self.put(Out::End(Farewell::Done));
        }
    }

    /// The client takes so many bytes more.
    pub(super) fn granted(&self, number: u32, bytes: u32) -> Result<(), Violation> {
        let mut state = self.state();
        state.counts = true;
        if number == 0 {
            state.window += i64::from(bytes);
            if state.window > MAX_NUMBER.into() {
                return Err(Violation("the session's window is too large"));
            }
            state.wake();
        } else if let Some(stream) = state.streams.get_mut(&number) {
            stream.window += i64::from(bytes);
            stream.changed.notify_one();
            if stream.window > MAX_NUMBER.into() {
                self.say(frame::rst_stream(number, Reset::FlowControl));
                self.forget(&mut state, number);
            }
        }
        Ok(())
    }

    /// The client's new streams, and the open ones, have this window.
    pub(super) fn initial_window(&self, bytes: u32) -> Result<(), Violation> {
        if bytes > MAX_NUMBER {
            return Err(Violation("the initial window is too large"));
        }
        let mut state = self.state();
        state.counts = true;
        let change = i64::from(bytes) - state.initial;
        state.initial = bytes.into();
        for stream in state.streams.values_mut() {
            stream.window += change;
        }
        state.wake();
        Ok(())
    }

    /// The client says GOAWAY: what is open goes on, and then it is over.
    pub(super) fn client_leaves(&self) {
        let mut state = self.state();
        state.leaving = true;
        if state.streams.is_empty() {
            self.put(Out::End(Farewell::Done));
        }
    }

    /// We say GOAWAY. What stands in the queue is still written.
    pub(super) fn end(&self, why: Farewell) {
        self.state().leaving = true;
        self.put(Out::End(why));
    }

    /// The newest stream that was served.
    pub(super) fn last(&self) -> u32 {
        self.state().last
    }

    /// The connection is no more: every stream ends.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.leaving = true;
        for (_, stream) in state.streams.drain() {
            stream.changed.notify_one();
        }
    }

    /// Counts what was taken off, and enlarges the client's windows by halves.
    fn count(&self, state: &mut State, number: u32, bytes: usize) {
        state.taken = state.taken.saturating_add(bytes as u32);
        if state.taken >= SESSION_WINDOW / 2 {
            self.say(frame::window_update(0, std::mem::take(&mut state.taken)));
        }
        let Some(stream) = state.streams.get_mut(&number).filter(|stream| stream.incoming.is_some()) else { return };
        stream.taken = stream.taken.saturating_add(bytes as u32);
        if stream.taken >= STREAM_WINDOW / 2 {
            self.say(frame::window_update(number, std::mem::take(&mut stream.taken)));
        }
    }
}

impl State {
    /// Lets those look again who had nothing to send with.
    fn wake(&self) {
        for stream in self.streams.values() {
            stream.changed.notify_one();
        }
    }
}

impl Tally for Shared {
    fn consumed(&self, stream: u32, bytes: usize) {
        self.backlog.shrank(bytes);
        self.count(&mut self.state(), stream, bytes);
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
