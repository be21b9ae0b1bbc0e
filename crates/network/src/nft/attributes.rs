//! Writes the attributes of nf_tables and conntrack messages: numbers are big-endian there, unlike in rtnetlink. See
//! linux/netfilter/nf_tables.h.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE};

/// The bytes of a message's attributes, in the order they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute of plain bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (NLA_HEADER_SIZE + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a 32-bit number.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a string, ended by a zero byte.
    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds attributes within an attribute.
    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.nested_bytes(kind, &inner.0)
    }

    /// Adds attributes within an attribute, as somebody else wrote them.
    pub(crate) fn nested_bytes(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NLA_F_NESTED, inner)
    }

    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_count_themselves_without_the_padding() {
        let written = Attributes::default().string(1, "nat").bytes(2, &[9]).number(3, 5);
        let expected = [8, 0, 1, 0, b'n', b'a', b't', 0, 5, 0, 2, 0, 9, 0, 0, 0, 8, 0, 3, 0, 0, 0, 0, 5];
        assert_eq!(written.as_bytes(), expected);
    }

    #[test]
    fn a_nested_attribute_says_that_it_is_nested() {
        let written = Attributes::default().nested(4, &Attributes::default().number(1, 2));
        assert_eq!(written.as_bytes(), [12, 0, 4, 0x80, 8, 0, 1, 0, 0, 0, 0, 2]);
    }
}
