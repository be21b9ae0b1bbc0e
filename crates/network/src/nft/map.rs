//! Maps of nf_tables: what rules look things up in, and their elements. See linux/netfilter/nf_tables.h; the
//! numbers of types are `nft`'s own (include/datatype.h), the kernel keeps them for it.

use super::NFTA_LIST_ELEM;
use super::attributes::Attributes;
use super::expression::value;

/// How many elements one message holds at most: an attribute's length has 16 bits, an element under 60 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1000;
/// The length of each part of a key or value, bytes: a register's.
const PART_LENGTH: u32 = 4;

/// What a map is like.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Its name.
    pub(crate) name: &'static str,
    /// The parts of its keys.
    pub(crate) key: &'static [Part],
    /// The parts of its values.
    pub(crate) value: &'static [Part],
}

/// A part of a key or value, with the number of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `ipv4_addr`
    Address = 7,
    /// `inet_proto`
    Protocol = 12,
    /// `inet_service`
    Port = 13,
}

/// A map with its elements, or with those that a change is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// What it is like.
    pub(crate) shape: &'static Shape,
    /// Keys and their values.
    pub(crate) elements: Vec<Element>,
}

/// A key and its value; each part fills a register, from its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// What is looked up.
    pub(crate) key: Vec<u8>,
    /// What is found.
    pub(crate) value: Vec<u8>,
}

impl Shape {
    /// Describes the map to the kernel. `id` tells it from the other new ones of its batch.
    pub(super) fn encode(&self, table: &str, id: u32) -> Attributes {
        const NFTA_SET_TABLE: u16 = 1;
        const NFTA_SET_NAME: u16 = 2;
        const NFTA_SET_FLAGS: u16 = 3;
        const NFTA_SET_KEY_TYPE: u16 = 4;
        const NFTA_SET_KEY_LEN: u16 = 5;
        const NFTA_SET_DATA_TYPE: u16 = 6;
        const NFTA_SET_DATA_LEN: u16 = 7;
        const NFTA_SET_ID: u16 = 10;
        const NFT_SET_MAP: u32 = 8;
        Attributes::default()
            .string(NFTA_SET_TABLE, table)
            .string(NFTA_SET_NAME, self.name)
            .number(NFTA_SET_FLAGS, NFT_SET_MAP)
            .number(NFTA_SET_KEY_TYPE, type_number(self.key))
            .number(NFTA_SET_KEY_LEN, PART_LENGTH * self.key.len() as u32)
            .number(NFTA_SET_DATA_TYPE, type_number(self.value))
            .number(NFTA_SET_DATA_LEN, PART_LENGTH * self.value.len() as u32)
            .number(NFTA_SET_ID, id)
    }
}

/// The number of a type of several parts: six bits for each.
fn type_number(parts: &[Part]) -> u32 {
    parts.iter().fold(0, |number, part| number << 6 | *part as u32)
}

impl Map {
    /// The elements as the kernel takes them, message by message.
    pub(super) fn encode_elements(&self, table: &str) -> impl Iterator<Item = Attributes> {
        const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
        const NFTA_SET_ELEM_LIST_SET: u16 = 2;
        const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
        self.elements.chunks(ELEMENTS_PER_MESSAGE).map(move |elements| {
            let list = elements.iter().fold(Attributes::default(), |list, element| list.nested(NFTA_LIST_ELEM, &element.encode()));
            Attributes::default()
                .string(NFTA_SET_ELEM_LIST_TABLE, table)
                .string(NFTA_SET_ELEM_LIST_SET, self.shape.name)
                .nested(NFTA_SET_ELEM_LIST_ELEMENTS, &list)
        })
    }
}

impl Element {
    fn encode(&self) -> Attributes {
        const NFTA_SET_ELEM_KEY: u16 = 1;
        const NFTA_SET_ELEM_DATA: u16 = 2;
        Attributes::default().nested(NFTA_SET_ELEM_KEY, &value(&self.key)).nested(NFTA_SET_ELEM_DATA, &value(&self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { name: "ports", key: &[Part::Protocol, Part::Port], value: &[Part::Address, Part::Port] };

    #[test]
    fn a_map_says_how_long_its_keys_and_values_are_and_of_what_type() {
        #[rustfmt::skip]
        let expected = [
            6, 0, 1, 0, b't', 0, 0, 0,
            10, 0, 2, 0, b'p', b'o', b'r', b't', b's', 0, 0, 0,
            8, 0, 3, 0, 0, 0, 0, 8,
            8, 0, 4, 0, 0, 0, 3, 13,
            8, 0, 5, 0, 0, 0, 0, 8,
            8, 0, 6, 0, 0, 0, 1, 205,
            8, 0, 7, 0, 0, 0, 0, 8,
            8, 0, 10, 0, 0, 0, 0, 3,
        ];
        assert_eq!(SHAPE.encode("t", 3).as_bytes(), expected);
    }

    #[test]
    fn an_element_is_a_key_and_a_value() {
        let map = Map { shape: &SHAPE, elements: vec![Element { key: vec![6, 0, 0, 0], value: vec![10, 87, 0, 2] }] };
        let messages: Vec<_> = map.encode_elements("t").collect();
        #[rustfmt::skip]
        let expected = [
            6, 0, 1, 0, b't', 0, 0, 0,
            10, 0, 2, 0, b'p', b'o', b'r', b't', b's', 0, 0, 0,
            32, 0, 3, 0x80,
                28, 0, 1, 0x80,
                    12, 0, 1, 0x80, 8, 0, 1, 0, 6, 0, 0, 0,
                    12, 0, 2, 0x80, 8, 0, 1, 0, 10, 87, 0, 2,
        ];
        assert_eq!(messages.iter().map(Attributes::as_bytes).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_message_never_holds_more_than_an_attribute_can() {
        let element = Element { key: vec![1; 12], value: vec![2; 8] };
        let map = Map { shape: &SHAPE, elements: vec![element; 2 * ELEMENTS_PER_MESSAGE + 1] };
        let lengths: Vec<_> = map.encode_elements("t").map(|message| message.as_bytes().len()).collect();
        assert_eq!(lengths.len(), 3);
        assert!(lengths.iter().all(|length| *length < usize::from(u16::MAX)), "{lengths:?}");
    }
}
