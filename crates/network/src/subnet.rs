//! An IPv4 subnet that pods get their addresses from. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use coracle_domain::Refusal;
use serde::{Deserialize, Serialize};

/// The prefix lengths that leave room for a gateway and a pod, and fit a node.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;

/// An IPv4 subnet in CIDR notation (RFC 4632), `10.87.0.0/16`: its first address is the gateway's, its last
/// the broadcast address, those between are for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    /// `10.87.0.0/16`: where pods get their addresses when nobody says otherwise.
    pub const DEFAULT: Self = Self { network: u32::from_be_bytes([10, 87, 0, 0]), prefix: 16 };

    /// `127.0.0.0/8`: the addresses that never leave a host (RFC 1122).
    pub(crate) const LOOPBACK: Self = Self { network: u32::from_be_bytes([127, 0, 0, 0]), prefix: 8 };

    /// The subnet of a network address.
    ///
    /// # Errors
    /// The prefix is not between 8 and 30, or the address has bits set that the prefix leaves to hosts.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, InvalidSubnet> {
        if !PREFIXES.contains(&prefix) {
            return Err(InvalidSubnet::Prefix);
        }
        let around = Self::masked(network, prefix);
        if around.network() == network { Ok(around) } else { Err(InvalidSubnet::HostBits(around)) }
    }

    /// The subnet that an address is in; none when the prefix is not one that a subnet can have.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        PREFIXES.contains(&prefix).then(|| Self::masked(address, prefix))
    }

    fn masked(address: Ipv4Addr, prefix: u8) -> Self {
        Self { network: u32::from(address) & !(u32::MAX >> prefix), prefix }
    }

    /// The subnet's own address.
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// Its prefix length, bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The mask of its prefix.
    pub fn mask(self) -> Ipv4Addr {
        (!(u32::MAX >> self.prefix)).into()
    }

    /// Its first address: the bridge's.
    pub fn gateway(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// Its last address.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | (u32::MAX >> self.prefix)).into()
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        Self::masked(address, self.prefix) == self
    }

    /// How many pods it has addresses for.
    pub fn capacity(self) -> u32 {
        (u32::MAX >> self.prefix) - 2
    }

    /// The pod address of a number below [`Self::capacity`].
    pub(crate) fn pod_address(self, number: u32) -> Ipv4Addr {
        (self.network + 2 + number % self.capacity()).into()
    }

    /// The number of a pod address.
    pub(crate) fn pod_number(self, address: Ipv4Addr) -> Option<u32> {
        let number = u32::from(address).checked_sub(self.network + 2)?;
        (number < self.capacity()).then_some(number)
    }
}

/// The text is no subnet that pods can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidSubnet {
    /// It is not `address/prefix`.
    Syntax,
    /// The prefix length leaves no room for pods, or more than a node can have.
    Prefix,
    /// The address is not the first of the subnet.
    HostBits(Subnet),
}

impl fmt::Display for InvalidSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("not an IPv4 subnet like 10.87.0.0/16"),
            Self::Prefix => write!(f, "the prefix length is not between {} and {}", PREFIXES.start(), PREFIXES.end()),
            Self::HostBits(subnet) => write!(f, "not the first address of its subnet, which is {subnet}"),
        }
    }
}

impl std::error::Error for InvalidSubnet {}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let (address, prefix) = text.split_once('/').ok_or(InvalidSubnet::Syntax)?;
        if prefix.is_empty() || prefix.len() > 2 || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidSubnet::Syntax);
        }
        let address = address.parse().map_err(|_| InvalidSubnet::Syntax)?;
        Self::new(address, prefix.parse().map_err(|_| InvalidSubnet::Syntax)?)
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// The one IPv4 subnet in a comma-separated list of pod CIDRs, as the kubelet gives it; none in empty text.
///
/// # Errors
/// The text holds no IPv4 subnet.
pub fn parse_pod_cidrs(cidrs: &str) -> Result<Option<Subnet>, Refusal> {
    const FIELD: &str = "runtime_config.network_config.pod_cidr";
    let mut parts = cidrs.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        return Ok(None);
    }
    let ipv4 = parts.find(|part| !part.contains(':'));
    let subnet = ipv4.ok_or_else(|| Refusal::invalid(FIELD, format!("{cidrs:?} holds no IPv4 subnet")))?;
    Ok(Some(subnet.parse().map_err(|problem| Refusal::invalid(FIELD, format!("{subnet:?}: {problem}")))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_a_nodes_ranges_the_one_of_ipv4_is_the_pods() {
        assert_eq!(parse_pod_cidrs("fd00:10::/64, 10.99.3.0/24"), Ok(Some("10.99.3.0/24".parse().unwrap())));
        assert_eq!(parse_pod_cidrs(" ,"), Ok(None));
        for bad in ["fd00::/64", "10.0.0.1/8", "rubbish"] {
            let refused = parse_pod_cidrs(bad);
            assert!(matches!(refused, Err(Refusal::Invalid { .. })), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn a_subnet_knows_its_parts() {
        let subnet: Subnet = "10.88.4.0/22".parse().unwrap();
        assert_eq!(subnet.network(), Ipv4Addr::new(10, 88, 4, 0));
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 88, 4, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 88, 7, 255));
        assert_eq!(subnet.mask(), Ipv4Addr::new(255, 255, 252, 0));
        assert_eq!(subnet.capacity(), 1021);
        assert!(subnet.contains(Ipv4Addr::new(10, 88, 7, 3)) && !subnet.contains(Ipv4Addr::new(10, 88, 8, 3)));
    }

    #[test]
    fn what_is_no_subnet_is_refused_with_a_reason() {
        for text in ["", "10.88.0.0", "10.88.0.0/", "10.88.0.0/+8", "10.88.0.0/016", "10.88.0/16", "fd00::/64", "10.88.0.0/16 "] {
            assert_eq!(text.parse::<Subnet>(), Err(InvalidSubnet::Syntax), "{text}");
        }
        for text in ["0.0.0.0/0", "10.0.0.0/7", "10.88.0.0/31", "10.88.0.0/32", "10.88.0.0/99"] {
            assert_eq!(text.parse::<Subnet>(), Err(InvalidSubnet::Prefix), "{text}");
        }
        let error = "10.88.0.5/16".parse::<Subnet>().unwrap_err();
        assert_eq!(error.to_string(), "not the first address of its subnet, which is 10.88.0.0/16");
    }

    proptest! {
        #[test]
        fn any_subnet_survives_its_text(address: u32, prefix in PREFIXES) {
            let subnet = Subnet::masked(address.into(), prefix);
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
            prop_assert!(subnet.contains(address.into()));
            prop_assert!(subnet.contains(subnet.gateway()) && subnet.contains(subnet.broadcast()));
        }

        #[test]
        fn pod_addresses_are_numbered_without_gaps(address: u32, prefix in PREFIXES, number: u32) {
            let subnet = Subnet::masked(address.into(), prefix);
            let number = number % subnet.capacity();
            let address = subnet.pod_address(number);
            prop_assert!(subnet.contains(address));
            prop_assert!(![subnet.network(), subnet.gateway(), subnet.broadcast()].contains(&address));
            prop_assert_eq!(subnet.pod_number(address), Some(number));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,24}") {
            let _ = text.parse::<Subnet>();
        }
    }
}
