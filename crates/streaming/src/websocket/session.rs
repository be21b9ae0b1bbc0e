//! The task that owns a WebSocket: hands messages to their channels, writes whatever stands in the queue.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{self, Message};

use super::channel::{Codec, Said, base64_message, read_message};
use super::config;
use crate::clock::{Activity, LINGER, Limits};
use crate::flow::{Backlog, Incoming, Tally, WORTH_SHARING, incoming};
use crate::outgoing::{CHUNK, Gone, Outgoing, Slot, slots};

/// How many messages are written at a time.
const BATCH: usize = 16;

enum Out {
    Message(Message, Slot),
    End,
}

struct Shared {
    codec: Codec,
    queue: UnboundedSender<Out>,
    slots: Arc<Semaphore>,
    backlog: Backlog,
}

impl Tally for Shared {
    fn consumed(&self, _: u32, bytes: usize) {
        self.backlog.shrank(bytes);
    }
}

/// A session, for whoever serves it.
pub(crate) struct Session {
    shared: Arc<Shared>,
    incoming: Vec<Option<Incoming>>,
}

impl Session {
    /// What comes on channel `number`; once, and only if it was to be read.
    pub(crate) fn incoming(&mut self, number: u8) -> Option<Incoming> {
        self.incoming.get_mut(usize::from(number)).and_then(Option::take)
    }

    /// What is sent on channel `number`.
    pub(crate) fn outgoing(&self, number: u8) -> Outgoing {
        Outgoing::WebSocket(Writer { channel: number, shared: self.shared.clone() })
    }

    /// Resolves when the connection is no more.
    pub(crate) async fn gone(&self) {
        self.shared.queue.closed().await;
    }
}

impl Drop for Session {
    /// Says goodbye after all that was sent.
    fn drop(&mut self) {
        let _ = self.shared.queue.send(Out::End);
    }
}

/// Sends on one channel.
pub(crate) struct Writer {
    channel: u8,
    shared: Arc<Shared>,
}

/// Leave to send one message.
pub(crate) struct Room {
    head: Option<u8>,
    slot: Slot,
}

impl Room {
    /// A buffer with the channel's number in it already, where that is how it is sent.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(CHUNK);
        buffer.extend(self.head);
        buffer
    }
}

impl Writer {
    pub(crate) async fn room(&self) -> Result<Room, Gone> {
        let slot = self.shared.slots.clone().acquire_owned().await.map_err(|_| Gone)?;
        if self.shared.queue.is_closed() {
            return Err(Gone);
        }
        let head = matches!(self.shared.codec, Codec::Raw { .. }).then_some(self.channel);
        Ok(Room { head, slot })
    }

    /// Resolves when the connection is no more.
    pub(crate) async fn gone(&self) {
        self.shared.queue.closed().await;
    }

    pub(crate) fn send(&self, room: Room, filled: Vec<u8>) {
        let message = match self.shared.codec {
            Codec::Raw { .. } => Message::Binary(filled.into()),
            Codec::Base64 => Message::Text(base64_message(self.channel, &filled).into()),
        };
        let _ = self.shared.queue.send(Out::Message(message, room.slot));
    }

    /// Sends a message without bytes: it says that the session is there.
    pub(crate) async fn greet(&self) -> Result<(), Gone> {
        let room = self.room().await?;
        let buffer = room.buffer();
        self.send(room, buffer);
        Ok(())
    }
}

/// A session on `io` whose first channels are read where `readable` says so: its handle, and what must be run for it to
/// live. That ends when the connection does.
pub(crate) fn session<S>(io: S, codec: Codec, readable: &[bool], limits: Limits) -> (Session, impl Future<Output = ()> + Send + use<S>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (queue, frames) = unbounded_channel();
    let shared = Arc::new(Shared { codec, queue, slots: slots(), backlog: Backlog::default() });
    let ends = (0_u32..).zip(readable).map(|(number, readable)| readable.then(|| incoming(number, shared.clone())));
    let (channels, incoming) = ends.map(Option::unzip).unzip();
    let running = run(io, shared.clone(), channels, frames, limits);
    (Session { shared, incoming }, running)
}

type Channels = Vec<Option<UnboundedSender<Bytes>>>;

async fn run<S>(io: S, shared: Arc<Shared>, mut channels: Channels, mut queue: UnboundedReceiver<Out>, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut stream) = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await.split();
    let activity = Activity::new();
    let reading = read(&mut stream, &shared, &mut channels, &activity);
    let writing = write(&mut sink, &mut queue, &activity);
    tokio::pin!(reading, writing);
    tokio::select! {
        () = &mut reading => {}
        written = &mut writing => {
            if written.is_ok() {
                let _ = timeout(LINGER, reading).await;
            }
        }
        () = activity.silent_for(limits.idle) => tracing::debug!("a streaming session was silent for too long"),
    }
}

async fn read<S>(stream: &mut SplitStream<WebSocketStream<S>>, shared: &Shared, channels: &mut Channels, activity: &Activity)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        shared.backlog.room().await;
        // An error, of the connection or of the protocol, ends the session; the library has told the client.
        let Some(Ok(message)) = stream.next().await else { return };
        activity.seen();
        let message = match message {
            Message::Binary(message) => message,
            Message::Text(message) => message.into(),
            _ => continue,
        };
        match read_message(shared.codec, message) {
            Said::Data(number, bytes) if !bytes.is_empty() => hand_over(shared, channels, number, bytes),
            Said::Close(number) => {
                if let Some(channel) = channels.get_mut(usize::from(number)) {
                    *channel = None;
                }
            }
            Said::Data(..) | Said::Nonsense => {}
        }
    }
}

fn hand_over(shared: &Shared, channels: &Channels, number: u8, bytes: Bytes) {
    if let Some(Some(channel)) = channels.get(usize::from(number)) {
        let length = bytes.len();
        let bytes = if length < WORTH_SHARING { Bytes::copy_from_slice(&bytes) } else { bytes };
        shared.backlog.grew(length);
        if channel.send(bytes).is_err() {
            shared.backlog.shrank(length);
        }
    }
}

async fn write<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    queue: &mut UnboundedReceiver<Out>,
    activity: &Activity,
) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        for out in batch.drain(..) {
            match out {
                Out::Message(message, _slot) => sink.feed(message).await?,
                Out::End => {
                    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    return sink.send(Message::Close(Some(normal))).await;
                }
            }
        }
        sink.flush().await?;
        activity.seen();
    }
    Ok(())
}
