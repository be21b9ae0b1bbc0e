//! The one byte that makes a message belong to a channel.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// The number that says, in the fifth version, that the next byte is a channel to be closed.
const CLOSE: u8 = 255;

/// How a message carries its channel and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The number, then the bytes.
    Raw {
        /// The fifth version: channels can be closed one by one.
        closing: bool,
    },
    /// The number as a digit, then the bytes in base64.
    Base64,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Bytes for a channel; there may be none.
    Data(u8, Bytes),
    /// The client will send no more on a channel.
    Close(u8),
    /// Nothing that could be understood.
    Nonsense,
}

/// Reads one message.
pub fn read_message(codec: Codec, mut message: Bytes) -> Said {
    let Some(&channel) = message.first() else { return Said::Nonsense };
    let payload = message.split_off(1);
    match codec {
        Codec::Raw { closing: true } if channel == CLOSE => match payload[..] {
            [channel] => Said::Close(channel),
            _ => Said::Nonsense,
        },
        Codec::Raw { .. } => Said::Data(channel, payload),
        Codec::Base64 => match (channel.checked_sub(b'0'), STANDARD.decode(&payload)) {
            (Some(channel), Ok(bytes)) => Said::Data(channel, bytes.into()),
            _ => Said::Nonsense,
        },
    }
}

/// A message in base64.
pub(super) fn base64_message(channel: u8, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
    text.push(char::from(b'0' + channel));
    STANDARD.encode_string(bytes, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn said(codec: Codec, message: &'static [u8]) -> Said {
        read_message(codec, Bytes::from_static(message))
    }

    #[test]
    fn a_channel_is_closed_in_the_fifth_version_only() {
        assert_eq!(said(Codec::Raw { closing: true }, b"\xff\0"), Said::Close(0));
        assert_eq!(said(Codec::Raw { closing: true }, b"\xff"), Said::Nonsense);
        assert_eq!(said(Codec::Raw { closing: true }, b"\xff\0\0"), Said::Nonsense);
        assert_eq!(said(Codec::Raw { closing: false }, b"\xff\0"), Said::Data(255, Bytes::from_static(b"\0")));
    }

    #[test]
    fn base64_has_digits_for_channels() {
        assert_eq!(said(Codec::Base64, b"0aGVsbG8="), Said::Data(0, Bytes::from_static(b"hello")));
        assert_eq!(base64_message(1, b"hello"), "1aGVsbG8=");
        assert_eq!(said(Codec::Base64, b"0a"), Said::Nonsense);
        assert_eq!(said(Codec::Base64, b"\x01aGVsbG8="), Said::Nonsense);
        assert_eq!(said(Codec::Base64, b""), Said::Nonsense);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(message in vec(any::<u8>(), 0..50), closing: bool) {
            let message = Bytes::from(message);
            let _ = read_message(Codec::Raw { closing }, message.clone());
            let _ = read_message(Codec::Base64, message);
        }

        #[test]
        fn what_was_written_in_base64_is_read(channel in 0_u8..10, bytes in vec(any::<u8>(), 0..50)) {
            let message = Bytes::from(base64_message(channel, &bytes));
            prop_assert_eq!(read_message(Codec::Base64, message), Said::Data(channel, bytes.into()));
        }
    }
}
