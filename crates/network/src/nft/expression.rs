//! The expressions a rule is made of, as the kernel's nf_tables machine runs them: each reads or writes a
//! register, or gives a verdict. See linux/netfilter/nf_tables.h.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use crate::Subnet;

/// `NFT_REG_1`, the one register these rules need.
const REGISTER: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a field of the IPv4 header.
    Load(Field),
    /// Keeps the bits of the loaded value that the mask has.
    Mask(Ipv4Addr),
    /// Goes on if the loaded value compares so.
    Compare(Comparison, Ipv4Addr),
    /// Gives the packet the address of the link it leaves by.
    Masquerade,
}

/// A field of the IPv4 header (RFC 791).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Who sends.
    SourceAddress,
    /// Who is to receive.
    DestinationAddress,
}

impl Field {
    /// Where it is, bytes: offset and length.
    fn place(self) -> (u32, u32) {
        match self {
            Self::SourceAddress => (12, 4),
            Self::DestinationAddress => (16, 4),
        }
    }
}

/// How values compare, `NFT_CMP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// Goes on when they are equal.
    Equal = 0,
    /// Goes on when they differ.
    NotEqual = 1,
}

/// The expressions that go on if an address field is in a subnet, or is not.
pub(crate) fn subnet_match(field: Field, comparison: Comparison, subnet: Subnet) -> [Expression; 3] {
    [Expression::Load(field), Expression::Mask(subnet.mask()), Expression::Compare(comparison, subnet.network())]
}

impl Expression {
    /// The attributes of the rule's list element.
    pub(super) fn encode(&self) -> Attributes {
        let (name, data) = match self {
            Self::Load(field) => ("payload", load(*field)),
            Self::Mask(mask) => ("bitwise", bitwise_and(*mask)),
            Self::Compare(comparison, value) => ("cmp", compare(*comparison, *value)),
            Self::Masquerade => ("masq", Attributes::default()),
        };
        Attributes::default().string(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, &data)
    }
}

fn load(field: Field) -> Attributes {
    const NFTA_PAYLOAD_DREG: u16 = 1;
    const NFTA_PAYLOAD_BASE: u16 = 2;
    const NFTA_PAYLOAD_OFFSET: u16 = 3;
    const NFTA_PAYLOAD_LEN: u16 = 4;
    let (offset, length) = field.place();
    Attributes::default()
        .number(NFTA_PAYLOAD_DREG, REGISTER)
        .number(NFTA_PAYLOAD_BASE, NETWORK_HEADER)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, length)
}

fn bitwise_and(mask: Ipv4Addr) -> Attributes {
    const NFTA_BITWISE_SREG: u16 = 1;
    const NFTA_BITWISE_DREG: u16 = 2;
    const NFTA_BITWISE_LEN: u16 = 3;
    const NFTA_BITWISE_MASK: u16 = 4;
    const NFTA_BITWISE_XOR: u16 = 5;
    Attributes::default()
        .number(NFTA_BITWISE_SREG, REGISTER)
        .number(NFTA_BITWISE_DREG, REGISTER)
        .number(NFTA_BITWISE_LEN, 4)
        .nested(NFTA_BITWISE_MASK, &value(&mask.octets()))
        .nested(NFTA_BITWISE_XOR, &value(&[0; 4]))
}

fn compare(comparison: Comparison, address: Ipv4Addr) -> Attributes {
    const NFTA_CMP_SREG: u16 = 1;
    const NFTA_CMP_OP: u16 = 2;
    const NFTA_CMP_DATA: u16 = 3;
    Attributes::default()
        .number(NFTA_CMP_SREG, REGISTER)
        .number(NFTA_CMP_OP, comparison as u32)
        .nested(NFTA_CMP_DATA, &value(&address.octets()))
}

/// Bytes as they stand in the packet.
fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(NFTA_DATA_VALUE, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_reads_as_the_kernel_wants_it() {
        let encoded = Expression::Compare(Comparison::NotEqual, Ipv4Addr::new(10, 87, 0, 0)).encode();
        #[rustfmt::skip]
        let expected = [
            8, 0, 1, 0, b'c', b'm', b'p', 0,
            32, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 1,
                8, 0, 2, 0, 0, 0, 0, 1,
                12, 0, 3, 0x80,
                    8, 0, 1, 0, 10, 87, 0, 0,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }

    #[test]
    fn a_load_says_where_the_field_is() {
        let encoded = Expression::Load(Field::DestinationAddress).encode();
        #[rustfmt::skip]
        let expected = [
            12, 0, 1, 0, b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0,
            36, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 1,
                8, 0, 2, 0, 0, 0, 0, 1,
                8, 0, 3, 0, 0, 0, 0, 16,
                8, 0, 4, 0, 0, 0, 0, 4,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }

    #[test]
    fn a_masquerade_has_no_data() {
        let encoded = Expression::Masquerade.encode();
        assert_eq!(encoded.as_bytes(), [9, 0, 1, 0, b'm', b'a', b's', b'q', 0, 0, 0, 0, 4, 0, 2, 0x80]);
    }
}
