//! From bytes to events, as they arrive and however they are cut.
//!
//! Everything here was written by somebody else, so nothing is believed: a control frame may have 64 KiB and is read
//! whole, a data frame may have any length because its bytes are passed on as they come, and types that nobody
//! defined are passed over. Nothing here knows which streams exist.

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{
    FLAG_FIN, FLAG_UNIDIRECTIONAL, GOAWAY, HEAD, HEADERS, MAX_NUMBER, PING, RST_STREAM, SETTINGS, SYN_REPLY, SYN_STREAM, Violation,
    WINDOW_UPDATE,
};
use super::headers::{Headers, Inflater};
use crate::flow::WORTH_SHARING;

/// What a control frame may have after its head.
const MAX_CONTROL: usize = 64 << 10;

/// What the other side said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new stream.
    SynStream {
        /// Its number.
        stream: u32,
        /// Nothing will come on it.
        fin: bool,
        /// Nothing may be sent on it.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// A stream was accepted.
    SynReply {
        /// Its number.
        stream: u32,
        /// Nothing will come on it.
        fin: bool,
        /// What was answered.
        headers: Headers,
    },
    /// More headers; nobody uses them.
    Headers {
        /// Of this stream.
        stream: u32,
        /// Nothing more will come on it.
        fin: bool,
    },
    /// A stream has ended in both directions.
    Reset {
        /// Its number.
        stream: u32,
        /// Why, in SPDY's numbers.
        status: u32,
    },
    /// The other side's wishes: setting and value.
    Settings(Vec<(u32, u32)>),
    /// A question, or the answer to one.
    Ping(u32),
    /// No new streams will be served, or asked for.
    GoAway {
        /// The last one that was.
        last: u32,
        /// Why, in SPDY's numbers.
        status: u32,
    },
    /// So many bytes more may be sent.
    WindowUpdate {
        /// On this stream; 0 is the session.
        stream: u32,
        /// So many.
        bytes: u32,
    },
    /// A part of a data frame, or all of it.
    Data {
        /// Its stream.
        stream: u32,
        /// Its bytes; none if it only says the end.
        bytes: Bytes,
        /// Nothing more will come.
        fin: bool,
    },
}

/// The frame that is being read.
#[derive(Debug)]
enum Reading {
    Head,
    Data { stream: u32, left: usize, fin: bool },
    Control { kind: u16, flags: u8, length: usize },
    Unknown { left: usize },
}

/// Reads one direction of a session.
#[derive(Debug)]
pub(super) struct Decoder {
    reading: Reading,
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { reading: Reading::Head, inflater: Inflater::new() }
    }
}

impl Decoder {
    /// Takes the next event out of `buffer`; none if it needs more bytes.
    ///
    /// # Errors
    /// What arrived is not SPDY/3.1. The session cannot go on.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            match self.reading {
                Reading::Head => match buffer.split_first_chunk::<HEAD>().map(|(head, _)| *head) {
                    Some(head) => {
                        buffer.advance(HEAD);
                        self.reading = read_head(head)?;
                    }
                    None => return Ok(None),
                },
                Reading::Data { stream, left, fin } => return Ok(self.data(stream, left, fin, buffer)),
                Reading::Control { kind, flags, length } => {
                    if buffer.len() < length {
                        return Ok(None);
                    }
                    let payload = buffer.split_to(length);
                    self.reading = Reading::Head;
                    return self.control(kind, flags, &payload).map(Some);
                }
                Reading::Unknown { left } => {
                    let passed = left.min(buffer.len());
                    buffer.advance(passed);
                    self.reading = if passed == left { Reading::Head } else { Reading::Unknown { left: left - passed } };
                    if passed < left {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn data(&mut self, stream: u32, left: usize, fin: bool, buffer: &mut BytesMut) -> Option<Event> {
        let here = left.min(buffer.len());
        if here == 0 && left > 0 {
            return None;
        }
        let bytes = if here < WORTH_SHARING {
            let copy = Bytes::copy_from_slice(buffer.get(..here).unwrap_or_default());
            buffer.advance(here);
            copy
        } else {
            buffer.split_to(here).freeze()
        };
        let last = here == left;
        self.reading = if last { Reading::Head } else { Reading::Data { stream, left: left - here, fin } };
        Some(Event::Data { stream, bytes, fin: last && fin })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Event, Violation> {
        let fin = flags & FLAG_FIN != 0;
        let mut rest = payload;
        Ok(match kind {
            SYN_STREAM => {
                let stream = stream_number(&mut rest)?;
                // The stream it belongs to, a priority and a credential slot: none of them means anything here.
                let block = rest.get(6..).ok_or(SHORT)?;
                Event::SynStream { stream, fin, unidirectional: flags & FLAG_UNIDIRECTIONAL != 0, headers: self.inflater.read(block)? }
            }
            SYN_REPLY => Event::SynReply { stream: stream_number(&mut rest)?, fin, headers: self.inflater.read(rest)? },
            HEADERS => {
                let stream = stream_number(&mut rest)?;
                self.inflater.read(rest)?;
                Event::Headers { stream, fin }
            }
            RST_STREAM => Event::Reset { stream: stream_number(&mut rest)?, status: number(&mut rest)? },
            SETTINGS => Event::Settings(read_settings(rest)?),
            PING => Event::Ping(number(&mut rest)?),
            GOAWAY => Event::GoAway { last: number(&mut rest)? & MAX_NUMBER, status: number(&mut rest)? },
            // Only `read_head` comes here, with one more kind.
            _ => Event::WindowUpdate { stream: number(&mut rest)? & MAX_NUMBER, bytes: number(&mut rest)? & MAX_NUMBER },
        })
    }
}

const SHORT: Violation = Violation("a frame is shorter than what it says");

fn read_head(head: [u8; HEAD]) -> Result<Reading, Violation> {
    let [b0, b1, b2, b3, flags, l2, l1, l0] = head;
    let length = u32::from_be_bytes([0, l2, l1, l0]) as usize;
    if b0 & 0x80 == 0 {
        let stream = u32::from_be_bytes([b0, b1, b2, b3]);
        return match stream {
            0 => Err(Violation("data for stream 0")),
            _ => Ok(Reading::Data { stream, left: length, fin: flags & FLAG_FIN != 0 }),
        };
    }
    if (b0, b1) != (0x80, 3) {
        return Err(Violation("a frame is not of SPDY version 3"));
    }
    let kind = u16::from_be_bytes([b2, b3]);
    match kind {
        SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM | SETTINGS | PING | GOAWAY | WINDOW_UPDATE if length > MAX_CONTROL => {
            Err(Violation("a control frame is too long"))
        }
        SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM | SETTINGS | PING | GOAWAY | WINDOW_UPDATE => {
            Ok(Reading::Control { kind, flags, length })
        }
        _ => Ok(Reading::Unknown { left: length }),
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, Violation> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn stream_number(rest: &mut &[u8]) -> Result<u32, Violation> {
    match number(rest)? & MAX_NUMBER {
        0 => Err(Violation("a frame is for stream 0")),
        stream => Ok(stream),
    }
}

fn read_settings(mut rest: &[u8]) -> Result<Vec<(u32, u32)>, Violation> {
    let count = number(&mut rest)? as usize;
    if count != rest.len() / 8 {
        return Err(Violation("settings are not as many as they say"));
    }
    // A byte of flags stands before each setting's number.
    (0..count).map(|_| Ok((number(&mut rest)? & 0x00ff_ffff, number(&mut rest)?))).collect()
}

/// Reads bytes that anybody may have written, cut in two at `cut`: for fuzzers. It must neither panic nor keep more
/// than it was given.
pub fn parse_arbitrary(bytes: &[u8], cut: usize) -> (Vec<Event>, Option<Violation>) {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    let mut events = Vec::new();
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    for part in [first, second] {
        buffer.extend_from_slice(part);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(violation) => return (events, Some(violation)),
            }
        }
    }
    (events, None)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
