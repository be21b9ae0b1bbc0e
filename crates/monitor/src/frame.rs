//! Frames on a stream socket, as [`crate::protocol`] defines them. Knows nothing of what is in them, and takes
//! no more memory than was received.

use std::fmt;

use serde::Serialize;

use crate::protocol::MAX_FRAME;

const HEADER: usize = size_of::<u32>();

/// A frame that holds `message`.
///
/// # Errors
/// The message is longer than [`MAX_FRAME`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, TooLong> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(|_| TooLong)?;
    let length = frame.len() - HEADER;
    if length > MAX_FRAME {
        return Err(TooLong);
    }
    let length = u32::try_from(length).map_err(|_| TooLong)?;
    frame.splice(..HEADER, length.to_le_bytes());
    Ok(frame)
}

/// Cuts what was received into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    received: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next whole frame's content, if it has come.
    ///
    /// # Errors
    /// The stream is not, or no longer, one of frames.
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some((header, rest)) = self.received.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*header)).map_err(|_| TooLong)?;
        if length > MAX_FRAME {
            return Err(TooLong);
        }
        let Some(content) = rest.get(..length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        if rest.len() == length {
            self.received = Vec::new();
        } else {
            self.received.drain(..HEADER + length);
        }
        Ok(Some(content))
    }
}

/// A frame longer than [`MAX_FRAME`], or bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a frame has at most {MAX_FRAME} bytes")
    }
}

impl std::error::Error for TooLong {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(messages: Vec<String>, cuts in proptest::collection::vec(1usize..40, 1..20)) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
            let (mut decoder, mut rest, mut cuts, mut seen) = (Decoder::default(), &stream[..], cuts.iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                decoder.push(now);
                rest = later;
                while let Some(content) = decoder.pop().unwrap() {
                    seen.push(serde_json::from_slice::<String>(&content).unwrap());
                }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn garbage_is_an_error_or_a_wait_but_never_a_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.pop() {}
        }
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert_eq!(decoder.pop(), Err(TooLong));
    }
}
