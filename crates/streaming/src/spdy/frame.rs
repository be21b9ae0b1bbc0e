//! Frames as bytes: numbers, encoders, and what can be wrong with a frame.
//!
//! SPDY/3 draft, section 2.2, and SPDY/3.1's session window. A control frame begins with a set bit, version 3 and its
//! type; a data frame with its stream. Both go on with a byte of flags and a length in three bytes.

use std::fmt;

use bytes::Bytes;

/// The length of every frame's head.
pub(crate) const HEAD: usize = 8;
/// The largest number that streams, windows and window updates can have.
pub(crate) const MAX_NUMBER: u32 = 0x7fff_ffff;
/// The window of a stream, and of the session, before anybody says otherwise.
pub(crate) const DEFAULT_WINDOW: u32 = 64 << 10;

/// The sender will send no more on this stream.
pub(crate) const FLAG_FIN: u8 = 0x01;
/// The receiver of this SYN_STREAM may not send on the stream.
pub(crate) const FLAG_UNIDIRECTIONAL: u8 = 0x02;

pub(crate) const SYN_STREAM: u16 = 1;
pub(crate) const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const HEADERS: u16 = 8;
pub(crate) const WINDOW_UPDATE: u16 = 9;

/// The setting that says how many streams may be open at once.
pub(crate) const MAX_CONCURRENT_STREAMS: u32 = 4;
/// The setting that says how large a new stream's window is.
pub(crate) const INITIAL_WINDOW_SIZE: u32 = 7;

/// What the other side did that no session can go on after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation(pub(crate) &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Violation {}

/// Why a stream ends at once, in both directions: the status of RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reset {
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
    FlowControl = 7,
}

/// Why a session ends: the status of GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Farewell {
    Done = 0,
    ProtocolError = 1,
}

/// The head of a control frame of `kind` whose payload has `length` bytes.
pub(crate) fn control_head(kind: u16, flags: u8, length: usize) -> [u8; HEAD] {
    let [k1, k0] = kind.to_be_bytes();
    let [_, l2, l1, l0] = (length as u32).to_be_bytes();
    [0x80, 3, k1, k0, flags, l2, l1, l0]
}

/// The head of a data frame.
pub(crate) fn data_head(stream: u32, flags: u8, length: usize) -> [u8; HEAD] {
    let [s3, s2, s1, s0] = stream.to_be_bytes();
    let [_, l2, l1, l0] = (length as u32).to_be_bytes();
    [s3, s2, s1, s0, flags, l2, l1, l0]
}

fn numbers(kind: u16, payload: &[u32]) -> Bytes {
    let mut frame = control_head(kind, 0, payload.len() * 4).to_vec();
    frame.extend(payload.iter().flat_map(|number| number.to_be_bytes()));
    frame.into()
}

/// Says yes to a stream; `block` is its header block.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    let mut frame = control_head(SYN_REPLY, 0, 4 + block.len()).to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame.into()
}

/// Ends a stream at once.
pub(crate) fn rst_stream(stream: u32, why: Reset) -> Bytes {
    numbers(RST_STREAM, &[stream, why as u32])
}

/// Says what this side wants: pairs of a setting and its value.
pub(crate) fn settings(pairs: &[(u32, u32)]) -> Bytes {
    let mut payload = vec![pairs.len() as u32];
    payload.extend(pairs.iter().flat_map(|&(setting, value)| [setting, value]));
    numbers(SETTINGS, &payload)
}

/// Asks for, or is, an answer.
pub(crate) fn ping(id: u32) -> Bytes {
    numbers(PING, &[id])
}

/// Says that no stream after `last` will be served.
pub(crate) fn goaway(last: u32, why: Farewell) -> Bytes {
    numbers(GOAWAY, &[last, why as u32])
}

/// Lets the other side send `bytes` more on a stream; stream 0 is the session.
pub(crate) fn window_update(stream: u32, bytes: u32) -> Bytes {
    numbers(WINDOW_UPDATE, &[stream, bytes])
}

#[cfg(test)]
mod tests {
    use super::*;

    // The bytes were made with another implementation (moby/spdystream's framer).
    #[test]
    fn frames_are_as_others_write_them() {
        assert_eq!(&rst_stream(5, Reset::Cancel)[..], b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x05\0\0\0\x05");
        assert_eq!(&settings(&[(7, 65536)])[..], b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\0\0\0\x07\0\x01\0\0");
        assert_eq!(&ping(2)[..], b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x02");
        assert_eq!(&goaway(9, Farewell::ProtocolError)[..], b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x09\0\0\0\x01");
        assert_eq!(&window_update(0, 258)[..], b"\x80\x03\0\x09\0\0\0\x08\0\0\0\0\0\0\x01\x02");
        assert_eq!(data_head(7, FLAG_FIN, 0x01_02_03), *b"\0\0\0\x07\x01\x01\x02\x03");
    }
}
