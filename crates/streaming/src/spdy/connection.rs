//! The task that owns a connection: reads frames and acts on them, writes what stands in the queue.
//!
//! ```text
//!            garbage: GOAWAY(1)        ┌─────────┐  the other end closes, or no more patience
//!   serving ──────────────────────────>│         │─────────────────────────────────────────> over
//!      │     done: GOAWAY(0)           │ leaving │
//!      └──────────────────────────────>│         │
//!                                      └─────────┘
//! ```
//!
//! Leaving, our direction is shut down and the other is read to its end: to close a socket with unread bytes in
//! it would take back what was sent.

use std::future::Future;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::decode::{Decoder, Event};
use super::frame::{self, Farewell, Reset, Violation};
use super::headers::Headers;
use super::state::{Out, Shared};
use super::writer::Writer;
use crate::clock::{Activity, LINGER, Limits};
use crate::flow::Incoming;
use crate::outgoing::Outgoing;

/// How much is read at a time.
const READ: usize = 64 << 10;
/// How many frames are written at a time.
const BATCH: usize = 32;
/// A session, for whoever serves it.
pub(crate) struct Session {
    shared: Arc<Shared>,
    streams: UnboundedReceiver<NewStream>,
}

/// A stream that the client opened and nobody has accepted yet.
pub(crate) struct NewStream {
    pub(crate) number: u32,
    pub(crate) headers: Headers,
    incoming: Incoming,
    writer: Writer,
    shared: Arc<Shared>,
}

impl Session {
    /// The next stream that the client opens; none when the connection is no more.
    pub(crate) async fn next_stream(&mut self) -> Option<NewStream> {
        self.streams.recv().await
    }
}

impl Drop for Session {
    /// Says goodbye after all that was sent.
    fn drop(&mut self) {
        self.shared.end(Farewell::Done);
    }
}

impl NewStream {
    /// Says yes.
    pub(crate) fn accept(self) -> (Incoming, Outgoing) {
        self.shared.accept(self.number);
        (self.incoming, Outgoing::Spdy(self.writer))
    }

    /// Says no.
    pub(crate) fn refuse(self) {
        self.writer.reset(Reset::Refused);
    }
}

/// A session on `io`: its handle, and what must be run for it to live. That ends when the connection does.
pub(crate) fn session<S>(io: S, limits: Limits) -> (Session, impl Future<Output = ()> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (shared, queue) = Shared::new();
    let (sender, streams) = unbounded_channel();
    let (reading, writing) = tokio::io::split(io);
    let reader = Reader { io: reading, shared: shared.clone(), streams: sender };
    let writer = FrameWriter { io: writing, shared: shared.clone(), queue };
    (Session { shared: shared.clone(), streams }, run(reader, writer, shared, limits))
}

/// How reading ended.
enum Ended {
    Closed,
    Violated(Violation),
}

async fn run<S: AsyncRead + AsyncWrite>(mut reader: Reader<S>, mut writer: FrameWriter<S>, shared: Arc<Shared>, limits: Limits) {
    let activity = Activity::new();
    // One future until the end: dropped in the middle of a frame, it would leave what comes after to be read as that frame's rest.
    let writing = writer.run(&activity);
    tokio::pin!(writing);
    let farewell = {
        let reading = reader.run(&activity);
        tokio::pin!(reading);
        tokio::select! {
            ended = &mut reading => Some(ended),
            // An error of writing is the same as an end of reading: the client is no more.
            written = &mut writing => {
                if written.is_ok() {
                    let _ = timeout(LINGER, reading).await;
                }
                None
            }
            () = activity.silent_for(limits.idle) => {
                tracing::debug!("a streaming session was silent for too long");
                None
            }
        }
    };
    shared.close();
    // Whoever serves the session learns that it is over.
    let Reader { io, .. } = reader;
    if let Some(Ended::Violated(violation)) = farewell {
        tracing::debug!(%violation, "a streaming client does not speak SPDY");
        shared.end(Farewell::ProtocolError);
        let parting = async {
            let _ = writing.await;
            discard(io).await;
        };
        let _ = timeout(LINGER, parting).await;
    }
}

struct Reader<S> {
    io: ReadHalf<S>,
    shared: Arc<Shared>,
    streams: UnboundedSender<NewStream>,
}

impl<S: AsyncRead> Reader<S> {
    async fn run(&mut self, activity: &Activity) -> Ended {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            self.shared.backlog.room().await;
            buffer.reserve(READ);
            match self.io.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ended::Closed,
                Ok(_) => activity.seen(),
            }
            if let Err(violation) = self.act_on(&mut decoder, &mut buffer) {
                return Ended::Violated(violation);
            }
        }
    }

    fn act_on(&self, decoder: &mut Decoder, buffer: &mut BytesMut) -> Result<(), Violation> {
        while let Some(event) = decoder.next(buffer)? {
            self.act(event)?;
            if self.shared.flooded() {
                return Err(Violation("more is asked than is listened to"));
            }
        }
        Ok(())
    }

    fn act(&self, event: Event) -> Result<(), Violation> {
        match event {
            Event::SynStream { stream, fin, unidirectional, headers } => self.open(stream, fin, unidirectional, headers)?,
            Event::Data { stream, bytes, fin } => self.shared.arrived(stream, bytes, fin),
            Event::Headers { stream, fin: true } => self.shared.finished(stream),
            Event::Reset { stream, .. } => self.shared.was_reset(stream),
            Event::WindowUpdate { stream, bytes } => self.shared.granted(stream, bytes)?,
            Event::Settings(settings) => {
                for (setting, value) in settings {
                    if setting == frame::INITIAL_WINDOW_SIZE {
                        self.shared.initial_window(value)?;
                    }
                }
            }
            // Odd ones are the client's questions; we ask none.
            Event::Ping(id) if id % 2 == 1 => self.shared.say(frame::ping(id)),
            Event::GoAway { .. } => self.shared.client_leaves(),
            Event::Ping(_) | Event::Headers { .. } | Event::SynReply { .. } => {}
        }
        Ok(())
    }

    fn open(&self, number: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<(), Violation> {
        if let Some((incoming, writer)) = self.shared.open(number, fin, unidirectional)? {
            // If nobody takes streams any more, this one is refused by being dropped.
            let _ = self.streams.send(NewStream { number, headers, incoming, writer, shared: self.shared.clone() });
        }
        Ok(())
    }
}

async fn discard<S: AsyncRead>(mut io: ReadHalf<S>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        buffer.reserve(READ);
        if !matches!(io.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

struct FrameWriter<S> {
    io: WriteHalf<S>,
    shared: Arc<Shared>,
    queue: UnboundedReceiver<Out>,
}

impl<S: AsyncWrite> FrameWriter<S> {
    /// Writes until the end was said and sent.
    async fn run(&mut self, activity: &Activity) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut ending = false;
        while !ending && self.queue.recv_many(&mut batch, BATCH).await > 0 {
            ending = self.write(&batch).await?;
            self.shared.said(batch.iter().filter(|out| matches!(out, Out::Control(_))).count());
            batch.clear();
            activity.seen();
        }
        self.io.shutdown().await
    }

    /// Writes what is in a batch up to its end; whether that was in it.
    async fn write(&mut self, batch: &[Out]) -> io::Result<bool> {
        let mut slices = Vec::with_capacity(2 * BATCH);
        let mut goaway = None;
        for out in batch {
            match out {
                Out::Data { head, payload, .. } => slices.extend([IoSlice::new(head), IoSlice::new(payload)]),
                Out::Control(frame) => slices.push(IoSlice::new(frame)),
                Out::End(why) => {
                    goaway = Some(frame::goaway(self.shared.last(), *why));
                    break;
                }
            }
        }
        if let Some(frame) = &goaway {
            slices.push(IoSlice::new(frame));
        }
        write_all(&mut self.io, &mut slices).await?;
        self.io.flush().await?;
        Ok(goaway.is_some())
    }
}

async fn write_all<S: AsyncWrite>(io: &mut WriteHalf<S>, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match io.write_vectored(slices).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    Ok(())
}
