//! The rtnetlink requests the bridge network makes, and the answers it reads. See rtnetlink(7) and
//! linux/if_link.h. Nothing here decides anything.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Subnet;
use crate::netlink::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request, attribute, attribute_string, attribute_u32, attributes};

const LINK_HEADER_LENGTH: usize = 16;
const ADDRESS_HEADER_LENGTH: usize = 8;
const ROUTE_HEADER_LENGTH: usize = 12;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;

/// The index of `lo` in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A link's Ethernet address, derived from the IPv4 address it carries: locally administered, and the same
/// whenever the address is, so that no neighbour cache ever holds a wrong one.
pub(crate) fn link_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x63, a, b, c, d]
}

fn link(index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    message
}

/// Creates a bridge.
pub(crate) fn create_bridge(name: &str, address: [u8; 6]) -> Request {
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(address.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let message = RouteNetlinkMessage::NewLink(link(0, LinkFlags::empty(), attributes));
    Request::change(&message, NLM_F_CREATE | NLM_F_EXCL, "creating the bridge", name)
}

/// Brings a link up, with a largest packet where one is given.
pub(crate) fn bring_up(index: u32, name: &str, mtu: Option<u32>) -> Request {
    let attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
    Request::change(&RouteNetlinkMessage::SetLink(link(index, LinkFlags::Up, attributes)), 0, "bringing up the link", name)
}

/// Brings the loopback link up; the kernel then gives it its address.
pub(crate) fn bring_loopback_up() -> Request {
    bring_up(LOOPBACK_INDEX, "lo", None)
}

/// A pod's pair of links: one end in the namespace where the request is made, up; the other in the host's,
/// down.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    /// The name and index of the pod's end.
    pub(crate) inner: (&'a str, u32),
    /// The Ethernet address of the pod's end.
    pub(crate) address: [u8; 6],
    /// The name of the host's end.
    pub(crate) outer: &'a str,
    /// The host's namespace.
    pub(crate) host: BorrowedFd<'a>,
    /// The largest packet, bytes; `None`: the kernel's choice.
    pub(crate) mtu: Option<u32>,
}

impl VethPair<'_> {
    /// What both ends have. A veth's queues matter to XDP only, but the kernel makes some for every processor,
    /// and each costs time and memory.
    fn both_ends(&self) -> impl Iterator<Item = LinkAttribute> {
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        queues.into_iter().chain(self.mtu.map(LinkAttribute::Mtu))
    }
}

/// Creates a pod's pair of links, both ends in place: a link that is moved to another namespace costs the
/// kernel several grace periods.
pub(crate) fn create_veth(pair: &VethPair<'_>) -> Request {
    let mut outer = vec![LinkAttribute::IfName(pair.outer.to_owned()), LinkAttribute::NetNsFd(pair.host.as_raw_fd())];
    outer.extend(pair.both_ends());
    let peer = InfoData::Veth(InfoVeth::Peer(link(0, LinkFlags::empty(), outer)));
    let (name, index) = pair.inner;
    let mut inner = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(pair.address.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]),
    ];
    inner.extend(pair.both_ends());
    let message = RouteNetlinkMessage::NewLink(link(index, LinkFlags::Up, inner));
    Request::change(&message, NLM_F_CREATE | NLM_F_EXCL, "creating the pod's link", pair.outer)
}

/// Makes a link a port of a bridge and brings it up.
pub(crate) fn enslave(name: &str, bridge: u32) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Controller(bridge)];
    let message = RouteNetlinkMessage::SetLink(link(0, LinkFlags::Up, attributes));
    Request::change(&message, 0, "connecting to the bridge the link", name)
}

/// Lets a bridge send back to one of its ports what came from there. The kernel takes this only after the link
/// has become a port, and not in the same message.
pub(crate) fn allow_hairpin(name: &str) -> Request {
    let port = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(port)];
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
    let message = RouteNetlinkMessage::NewLink(link(0, LinkFlags::empty(), attributes));
    Request::change(&message, 0, "allowing hairpins on the link", name)
}

/// Deletes a link.
pub(crate) fn delete_link(name: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Request::change(&RouteNetlinkMessage::DelLink(link(0, LinkFlags::empty(), attributes)), 0, "deleting the link", name)
}

fn address_message(index: u32, address: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    message
}

/// Gives a link an address, unless it has it.
pub(crate) fn add_address(index: u32, address: Ipv4Addr, subnet: Subnet) -> Request {
    let mut message = address_message(index, address, subnet.prefix());
    message.attributes.push(AddressAttribute::Broadcast(subnet.broadcast()));
    let subject = format_args!("{address}/{}", subnet.prefix());
    Request::change(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, "adding the address", subject)
}

/// Takes an address from a link.
pub(crate) fn delete_address(index: u32, held: &HeldAddress) -> Request {
    let message = address_message(index, held.address, held.prefix);
    Request::change(&RouteNetlinkMessage::DelAddress(message), 0, "removing the address", held)
}

/// Makes a gateway the namespace's default route.
pub(crate) fn add_default_route(gateway: Ipv4Addr, link: u32) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(IpAddr::V4(gateway).into()), RouteAttribute::Oif(link)];
    Request::change(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, "adding the default route via", gateway)
}

/// Asks which way the kernel would send to an address.
pub(crate) fn get_route(destination: Ipv4Addr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.attributes = vec![RouteAttribute::Destination(IpAddr::V4(destination).into())];
    Request::query(&RouteNetlinkMessage::GetRoute(message), "looking up the route to", destination)
}

/// The link a route leads out of.
pub(crate) fn route_link(body: &[u8]) -> Option<u32> {
    attribute_u32(body.get(ROUTE_HEADER_LENGTH..)?, RTA_OIF)
}

/// Asks for a link by its name.
pub(crate) fn get_link(name: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Request::query(&RouteNetlinkMessage::GetLink(link(0, LinkFlags::empty(), attributes)), "looking up the link", name)
}

/// Asks for a link by its index.
pub(crate) fn get_link_at(index: u32) -> Request {
    Request::query(&RouteNetlinkMessage::GetLink(link(index, LinkFlags::empty(), Vec::new())), "looking up the link", index)
}

/// Asks for the ports of a bridge.
pub(crate) fn list_ports(bridge: u32, name: &str) -> Request {
    let attributes = vec![LinkAttribute::Controller(bridge)];
    Request::query(&RouteNetlinkMessage::GetLink(link(0, LinkFlags::empty(), attributes)), "listing the ports of the bridge", name)
}

/// Asks for all IPv4 addresses.
pub(crate) fn list_addresses() -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    Request::query(&RouteNetlinkMessage::GetAddress(message), "listing the addresses of", "the host")
}

/// A link, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) flags: LinkFlags,
    pub(crate) name: String,
    pub(crate) mtu: Option<u32>,
    /// The bridge that it is a port of.
    pub(crate) controller: Option<u32>,
    /// What creates links of its kind; absent for hardware.
    pub(crate) kind: Option<String>,
}

impl Link {
    /// Reads the body of a message that describes a link; `None` when it lacks index or name.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let (header, bytes) = body.split_at_checked(LINK_HEADER_LENGTH)?;
        let word = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes));
        let kind = attribute(bytes, IFLA_LINKINFO).and_then(|info| attribute_string(info, IFLA_INFO_KIND));
        Some(Self {
            index: word(4)?,
            flags: LinkFlags::from_bits_retain(word(8)?),
            name: attribute_string(bytes, IFLA_IFNAME)?.to_owned(),
            mtu: attribute_u32(bytes, IFLA_MTU),
            controller: attribute_u32(bytes, IFLA_MASTER),
            kind: kind.map(str::to_owned),
        })
    }
}

/// An address that a link has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldAddress {
    pub(crate) link: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl HeldAddress {
    /// Reads the body of a message that describes an address.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let (header, bytes) = body.split_first_chunk::<ADDRESS_HEADER_LENGTH>()?;
        let [_family, prefix, _flags, _scope, i0, i1, i2, i3] = *header;
        let octets: [u8; 4] = attributes(bytes).find(|(kind, _)| *kind == IFA_LOCAL)?.1.try_into().ok()?;
        Some(Self { link: u32::from_ne_bytes([i0, i1, i2, i3]), address: octets.into(), prefix })
    }
}

impl fmt::Display for HeldAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_always_has_the_same_link_address() {
        assert_eq!(link_address(Ipv4Addr::new(10, 87, 1, 2)), [0x02, 0x63, 10, 87, 1, 2]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = (Link::read(&bytes), HeldAddress::read(&bytes), route_link(&bytes));
        }
    }
}
