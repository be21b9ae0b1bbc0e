//! Protobuf by hand, as far as tests need it: fields that the generated types of the harness do not know yet, or whose
//! values they cannot hold. Encoding: protobuf.dev, "Encoding".

use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A field's value on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Numbers and enums.
    Number(u64),
    /// Text, bytes and messages.
    Bytes(Vec<u8>),
}

/// A message of one field with a number.
pub fn number(field: u32, value: u64) -> Vec<u8> {
    let mut message = Vec::new();
    varint(u64::from(field) << 3, &mut message);
    varint(value, &mut message);
    message
}

/// A message of one field with text, bytes or a message. Messages one after the other are one message.
pub fn bytes(field: u32, value: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    varint(u64::from(field) << 3 | 2, &mut message);
    varint(value.len() as u64, &mut message);
    message.extend(value);
    message
}

/// The values of one field of a message, in their order. Panics where it is no message of numbers and bytes.
pub fn find(mut message: &[u8], field: u32) -> Vec<Value> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = take_varint(&mut message);
        let value = match key & 7 {
            0 => Value::Number(take_varint(&mut message)),
            2 => {
                let length = usize::try_from(take_varint(&mut message)).expect("a length");
                let (value, rest) = message.split_at(length);
                message = rest;
                Value::Bytes(value.to_vec())
            }
            other => panic!("a field of wire type {other}"),
        };
        if key >> 3 == u64::from(field) {
            found.push(value);
        }
    }
    found
}

/// The values of one field of a message that are text, bytes or messages.
pub fn messages(message: &[u8], field: u32) -> Vec<Vec<u8>> {
    let values = find(message, field).into_iter();
    values.filter_map(|value| if let Value::Bytes(bytes) = value { Some(bytes) } else { None }).collect()
}

fn varint(mut value: u64, message: &mut Vec<u8>) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

fn take_varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().expect("a whole number");
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// Messages that are bytes already.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut message);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found() {
        let message = [number(1, 300), bytes(18, b"abc"), number(18, 7)].concat();
        assert_eq!(find(&message, 18), [Value::Bytes(b"abc".to_vec()), Value::Number(7)]);
        assert_eq!(find(&message, 1), [Value::Number(300)]);
        assert_eq!(find(&message, 2), []);
    }
}
