//! The expressions a rule is made of, as the kernel's nf_tables machine runs them: each reads or writes
//! registers, or gives a verdict. See linux/netfilter/nf_tables.h.

use super::attributes::Attributes;
use crate::Subnet;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;

/// One expression of a rule. Where no register is named it is the first, which longer values go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a value.
    Load(Value, Register),
    /// Keeps the bits of the loaded word that `keep` has, then turns over those that `flip` has.
    Bits {
        /// In the order of the word's bytes.
        keep: [u8; 4],
        /// The same.
        flip: [u8; 4],
    },
    /// Goes on if the loaded value compares so.
    Compare(Comparison, Vec<u8>),
    /// Puts what a map holds for the loaded key in the key's place; goes on if it holds something.
    LookUp(&'static str),
    /// Makes the loaded word the packet's mark.
    SetMark,
    /// Sends the connection to the loaded address, and to the port in the second register.
    DestinationNat,
    /// Gives the packet the address of the link it leaves by.
    Masquerade,
    /// Ends the rule.
    Conclude(Verdict),
}

/// One of the machine's 32-bit registers, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    /// The one that most expressions use.
    pub(crate) const FIRST: Self = Self(0);
    const SECOND: Self = Self(1);

    fn number(self) -> u32 {
        const NFT_REG32_00: u32 = 8;
        NFT_REG32_00 + self.0
    }
}

/// What can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// A field of the packet.
    Field(Field),
    /// The number of the transport protocol, in the first byte.
    Protocol,
    /// The packet's mark, in the processor's byte order.
    Mark,
    /// The name of the link it came by, 16 bytes.
    InputLink,
    /// The name of the link it leaves by, 16 bytes.
    OutputLink,
    /// What the routing table says that the destination is (`RTN_*`), in the processor's byte order.
    DestinationType,
}

/// A field of the IPv4 header (RFC 791) or of the transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Who sends.
    SourceAddress,
    /// Who is to receive.
    DestinationAddress,
    /// At which port; TCP, UDP and SCTP have it in the same place.
    DestinationPort,
}

impl Field {
    /// Where it is: `NFT_PAYLOAD_*_HEADER`, offset and length in bytes.
    fn place(self) -> (u32, u32, u32) {
        const NETWORK_HEADER: u32 = 1;
        const TRANSPORT_HEADER: u32 = 2;
        match self {
            Self::SourceAddress => (NETWORK_HEADER, 12, 4),
            Self::DestinationAddress => (NETWORK_HEADER, 16, 4),
            Self::DestinationPort => (TRANSPORT_HEADER, 2, 2),
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

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is gone.
    Drop,
    /// The chain is left.
    Return,
    /// Another chain has it, and then the next rule of this one.
    Jump(&'static str),
}

/// The expressions that go on if an address field is in a subnet, or is not.
pub(crate) fn subnet_match(field: Field, comparison: Comparison, subnet: Subnet) -> [Expression; 3] {
    [
        Expression::Load(Value::Field(field), Register::FIRST),
        Expression::Bits { keep: subnet.mask().octets(), flip: [0; 4] },
        Expression::Compare(comparison, subnet.network().octets().to_vec()),
    ]
}

/// The expressions that go on if a link has this name. Names are short enough for their closing zeros.
pub(crate) fn link_match(value: Value, name: &str) -> [Expression; 2] {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    [Expression::Load(value, Register::FIRST), Expression::Compare(Comparison::Equal, bytes)]
}

/// The expressions that go on if the destination is an address of the host, or is not.
pub(crate) fn host_match(comparison: Comparison) -> [Expression; 2] {
    const RTN_LOCAL: u32 = 2;
    [Expression::Load(Value::DestinationType, Register::FIRST), Expression::Compare(comparison, RTN_LOCAL.to_ne_bytes().to_vec())]
}

/// The expressions that go on if the packet's mark has all of these bits.
pub(crate) fn mark_match(bits: u32) -> [Expression; 3] {
    let bits = bits.to_ne_bytes();
    [
        Expression::Load(Value::Mark, Register::FIRST),
        Expression::Bits { keep: bits, flip: [0; 4] },
        Expression::Compare(Comparison::Equal, bits.to_vec()),
    ]
}

/// The expressions that set bits of the packet's mark, or clear them.
pub(crate) fn mark(bits: u32, set: bool) -> [Expression; 3] {
    let flip = if set { bits } else { 0 };
    [
        Expression::Load(Value::Mark, Register::FIRST),
        Expression::Bits { keep: (!bits).to_ne_bytes(), flip: flip.to_ne_bytes() },
        Expression::SetMark,
    ]
}

impl Expression {
    /// The attributes of the rule's list element.
    pub(super) fn encode(&self) -> Attributes {
        let (name, data) = match self {
            Self::Load(value, register) => load(*value, *register),
            Self::Bits { keep, flip } => ("bitwise", bitwise(*keep, *flip)),
            Self::Compare(comparison, with) => ("cmp", compare(*comparison, with)),
            Self::LookUp(map) => ("lookup", look_up(map)),
            Self::SetMark => ("meta", set_mark()),
            Self::DestinationNat => ("nat", destination_nat()),
            Self::Masquerade => ("masq", Attributes::default()),
            Self::Conclude(verdict) => ("immediate", conclude(*verdict)),
        };
        Attributes::default().string(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, &data)
    }
}

fn load(value: Value, register: Register) -> (&'static str, Attributes) {
    match value {
        Value::Field(field) => ("payload", load_field(field, register)),
        Value::DestinationType => ("fib", load_destination_type(register)),
        Value::Mark => ("meta", load_meta(META_MARK, register)),
        Value::InputLink => ("meta", load_meta(6, register)),
        Value::OutputLink => ("meta", load_meta(7, register)),
        Value::Protocol => ("meta", load_meta(16, register)),
    }
}

fn load_field(field: Field, register: Register) -> Attributes {
    const NFTA_PAYLOAD_DREG: u16 = 1;
    const NFTA_PAYLOAD_BASE: u16 = 2;
    const NFTA_PAYLOAD_OFFSET: u16 = 3;
    const NFTA_PAYLOAD_LEN: u16 = 4;
    let (header, offset, length) = field.place();
    Attributes::default()
        .number(NFTA_PAYLOAD_DREG, register.number())
        .number(NFTA_PAYLOAD_BASE, header)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, length)
}

fn load_destination_type(register: Register) -> Attributes {
    const NFTA_FIB_DREG: u16 = 1;
    const NFTA_FIB_RESULT: u16 = 2;
    const NFTA_FIB_FLAGS: u16 = 3;
    const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
    const NFTA_FIB_F_DADDR: u32 = 2;
    Attributes::default()
        .number(NFTA_FIB_DREG, register.number())
        .number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
        .number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR)
}

fn load_meta(key: u32, register: Register) -> Attributes {
    const NFTA_META_DREG: u16 = 1;
    const NFTA_META_KEY: u16 = 2;
    Attributes::default().number(NFTA_META_DREG, register.number()).number(NFTA_META_KEY, key)
}

fn set_mark() -> Attributes {
    const NFTA_META_KEY: u16 = 2;
    const NFTA_META_SREG: u16 = 3;
    Attributes::default().number(NFTA_META_KEY, META_MARK).number(NFTA_META_SREG, Register::FIRST.number())
}

fn bitwise(keep: [u8; 4], flip: [u8; 4]) -> Attributes {
    const NFTA_BITWISE_SREG: u16 = 1;
    const NFTA_BITWISE_DREG: u16 = 2;
    const NFTA_BITWISE_LEN: u16 = 3;
    const NFTA_BITWISE_MASK: u16 = 4;
    const NFTA_BITWISE_XOR: u16 = 5;
    Attributes::default()
        .number(NFTA_BITWISE_SREG, Register::FIRST.number())
        .number(NFTA_BITWISE_DREG, Register::FIRST.number())
        .number(NFTA_BITWISE_LEN, 4)
        .nested(NFTA_BITWISE_MASK, &value(&keep))
        .nested(NFTA_BITWISE_XOR, &value(&flip))
}

fn compare(comparison: Comparison, with: &[u8]) -> Attributes {
    const NFTA_CMP_SREG: u16 = 1;
    const NFTA_CMP_OP: u16 = 2;
    const NFTA_CMP_DATA: u16 = 3;
    Attributes::default()
        .number(NFTA_CMP_SREG, Register::FIRST.number())
        .number(NFTA_CMP_OP, comparison as u32)
        .nested(NFTA_CMP_DATA, &value(with))
}

fn look_up(map: &str) -> Attributes {
    const NFTA_LOOKUP_SET: u16 = 1;
    const NFTA_LOOKUP_SREG: u16 = 2;
    const NFTA_LOOKUP_DREG: u16 = 3;
    Attributes::default()
        .string(NFTA_LOOKUP_SET, map)
        .number(NFTA_LOOKUP_SREG, Register::FIRST.number())
        .number(NFTA_LOOKUP_DREG, Register::FIRST.number())
}

fn destination_nat() -> Attributes {
    const NFTA_NAT_TYPE: u16 = 1;
    const NFTA_NAT_FAMILY: u16 = 2;
    const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
    const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
    const NFT_NAT_DNAT: u32 = 1;
    Attributes::default()
        .number(NFTA_NAT_TYPE, NFT_NAT_DNAT)
        .number(NFTA_NAT_FAMILY, u32::from(super::IPV4))
        .number(NFTA_NAT_REG_ADDR_MIN, Register::FIRST.number())
        .number(NFTA_NAT_REG_PROTO_MIN, Register::SECOND.number())
}

fn conclude(verdict: Verdict) -> Attributes {
    const NFTA_IMMEDIATE_DREG: u16 = 1;
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFT_REG_VERDICT: u32 = 0;
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let code = |number: i32| Attributes::default().number(NFTA_VERDICT_CODE, number.cast_unsigned());
    let verdict = match verdict {
        Verdict::Drop => code(0),
        Verdict::Return => code(-5),
        Verdict::Jump(chain) => code(-3).string(NFTA_VERDICT_CHAIN, chain),
    };
    let data = Attributes::default().nested(NFTA_DATA_VERDICT, &verdict);
    Attributes::default().number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT).nested(NFTA_IMMEDIATE_DATA, &data)
}

/// Bytes as they stand in a register.
pub(super) fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(NFTA_DATA_VALUE, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_reads_as_the_kernel_wants_it() {
        let encoded = Expression::Compare(Comparison::NotEqual, vec![10, 87, 0, 0]).encode();
        #[rustfmt::skip]
        let expected = [
            8, 0, 1, 0, b'c', b'm', b'p', 0,
            32, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 8,
                8, 0, 2, 0, 0, 0, 0, 1,
                12, 0, 3, 0x80,
                    8, 0, 1, 0, 10, 87, 0, 0,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }

    #[test]
    fn a_load_says_where_the_field_is_and_where_it_goes() {
        let encoded = Expression::Load(Value::Field(Field::DestinationPort), Register(2)).encode();
        #[rustfmt::skip]
        let expected = [
            12, 0, 1, 0, b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0,
            36, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 10,
                8, 0, 2, 0, 0, 0, 0, 2,
                8, 0, 3, 0, 0, 0, 0, 2,
                8, 0, 4, 0, 0, 0, 0, 2,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }

    #[test]
    fn a_masquerade_has_no_data() {
        let encoded = Expression::Masquerade.encode();
        assert_eq!(encoded.as_bytes(), [9, 0, 1, 0, b'm', b'a', b's', b'q', 0, 0, 0, 0, 4, 0, 2, 0x80]);
    }

    #[test]
    fn a_jump_names_its_chain_in_a_verdict() {
        let encoded = Expression::Conclude(Verdict::Jump("pods")).encode();
        #[rustfmt::skip]
        let expected = [
            14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
            40, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 0,
                28, 0, 2, 0x80,
                    24, 0, 2, 0x80,
                        8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfd,
                        9, 0, 2, 0, b'p', b'o', b'd', b's', 0, 0, 0, 0,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }

    #[test]
    fn a_translation_takes_address_and_port_from_neighbouring_registers() {
        let encoded = Expression::DestinationNat.encode();
        #[rustfmt::skip]
        let expected = [
            8, 0, 1, 0, b'n', b'a', b't', 0,
            36, 0, 2, 0x80,
                8, 0, 1, 0, 0, 0, 0, 1,
                8, 0, 2, 0, 0, 0, 0, 2,
                8, 0, 3, 0, 0, 0, 0, 8,
                8, 0, 5, 0, 0, 0, 0, 9,
        ];
        assert_eq!(encoded.as_bytes(), expected);
    }
}
