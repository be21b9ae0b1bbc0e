//! A SPDY client for tests: as plain as can be.

#![allow(clippy::unwrap_used, reason = "it serves tests and fuzz targets only")]

use std::collections::HashMap;
use std::io;

use bytes::BytesMut;
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::decode::{Decoder, Event};
use super::dictionary::DICTIONARY;
use super::frame::{self, FLAG_FIN, SYN_STREAM, control_head, data_head};
use super::headers::Headers;

/// Compresses header blocks, each leaning on those before.
pub(crate) struct Compressor(Compress);

impl Compressor {
    pub(crate) fn new() -> Self {
        let mut stream = Compress::new(Compression::best(), true);
        stream.set_dictionary(&DICTIONARY).unwrap();
        Self(stream)
    }

    pub(crate) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.write();
        let mut out = Vec::with_capacity(block.len() + 100);
        self.0.compress_vec(&block, &mut out, FlushCompress::Sync).unwrap();
        out
    }
}

/// Writes frames.
pub(crate) struct Speaker<S> {
    io: WriteHalf<S>,
    deflater: Compressor,
    next: u32,
}

/// Reads frames.
pub(crate) struct Listener<S> {
    io: ReadHalf<S>,
    decoder: Decoder,
    buffer: BytesMut,
}

pub(crate) fn client<S: AsyncRead + AsyncWrite>(io: S) -> (Speaker<S>, Listener<S>) {
    let (read, write) = tokio::io::split(io);
    let speaker = Speaker { io: write, deflater: Compressor::new(), next: 1 };
    (speaker, Listener::new(read))
}

impl<S: AsyncWrite> Speaker<S> {
    pub(crate) async fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_raw(bytes).await.unwrap();
    }

    pub(crate) async fn try_raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Opens a stream.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let block = self.deflater.write(&headers.iter().copied().collect::<Headers>());
        let mut frame = control_head(SYN_STREAM, 0, 10 + block.len()).to_vec();
        frame.extend(stream.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.raw(frame).await;
        stream
    }

    /// Opens streams of these types.
    pub(crate) async fn open_all<const N: usize>(&mut self, kinds: [&str; N]) -> [u32; N] {
        let mut streams = [0; N];
        for (stream, kind) in streams.iter_mut().zip(kinds) {
            *stream = self.open(&[("streamType", kind)]).await;
        }
        streams
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8]) {
        let mut frame = data_head(stream, 0, bytes.len()).to_vec();
        frame.extend_from_slice(bytes);
        self.raw(frame).await;
    }

    pub(crate) async fn fin(&mut self, stream: u32) {
        self.raw(data_head(stream, FLAG_FIN, 0)).await;
    }

    pub(crate) async fn reset(&mut self, stream: u32) {
        self.raw(frame::rst_stream(stream, frame::Reset::Cancel)).await;
    }
}

/// What was heard of one stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) bytes: Vec<u8>,
    pub(crate) replied: bool,
    pub(crate) fin: bool,
    pub(crate) reset: Option<u32>,
}

impl<S: AsyncRead> Listener<S> {
    pub(crate) fn new(io: ReadHalf<S>) -> Self {
        Self { io, decoder: Decoder::default(), buffer: BytesMut::new() }
    }

    /// The next event; none at the connection's end.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.decoder.next(&mut self.buffer).unwrap() {
                return Some(event);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Hears events until one is as wanted, and returns it.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.event().await.expect("the connection ended");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Hears so many bytes of a stream, and no more than it gets.
    pub(crate) async fn bytes(&mut self, of: u32, count: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < count {
            if let Event::Data { bytes, .. } = self.until(|event| matches!(event, Event::Data { stream, .. } if *stream == of)).await {
                heard.extend(bytes);
            }
        }
        heard
    }

    /// Hears everything to the end: what of each stream, and the goodbye.
    pub(crate) async fn rest(&mut self) -> (HashMap<u32, Heard>, Option<u32>) {
        let mut streams: HashMap<u32, Heard> = HashMap::new();
        let mut goodbye = None;
        while let Some(event) = self.event().await {
            assert_eq!(goodbye, None, "after GOAWAY: {event:?}");
            match event {
                Event::Data { stream, bytes, fin } => {
                    let heard = streams.entry(stream).or_default();
                    assert!(!heard.fin && heard.reset.is_none(), "data after the end of stream {stream}");
                    heard.bytes.extend(bytes);
                    heard.fin |= fin;
                }
                Event::SynReply { stream, .. } => streams.entry(stream).or_default().replied = true,
                Event::Reset { stream, status } => streams.entry(stream).or_default().reset = Some(status),
                Event::GoAway { status, .. } => goodbye = Some(status),
                _ => {}
            }
        }
        (streams, goodbye)
    }
}
