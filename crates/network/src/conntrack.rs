//! The kernel's table of connections, as far as host ports need it: flows that were let to a port before it
//! changed hands. See linux/netfilter/nfnetlink_conntrack.h.
//!
//! A UDP flow has no end that the kernel could see: while a client goes on sending, what was decided for its
//! first packet holds, be it that the packet went to a pod that is gone or that nobody had the port.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use coracle_domain::Protocol;
use rustix::io::Errno;

use crate::Subnet;
use crate::netlink::{Family, NLM_F_ACK, Rejection, Request, Socket, attribute};
use crate::nft::Attributes;
use crate::ports::HostPort;
use crate::rules::protocol_number;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const NFGENMSG_LENGTH: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// How many deletions are sent at once: their answers must fit a socket's buffer.
const DELETIONS_AT_ONCE: usize = 64;

/// A flow, with what it takes to delete it and nothing that came after it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    protocol: u8,
    /// Where its first packet was sent.
    destination: (Ipv4Addr, u16),
    /// `CTA_TUPLE_ORIG`, `CTA_ZONE` and `CTA_ID` as the kernel wrote them.
    identity: Attributes,
}

impl Flow {
    /// Reads the body of a message that describes a flow; `None` for flows of other families and protocols
    /// without ports.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let attributes = body.get(NFGENMSG_LENGTH..)?;
        let tuple = attribute(attributes, CTA_TUPLE_ORIG)?;
        let (addresses, transport) = (attribute(tuple, CTA_TUPLE_IP)?, attribute(tuple, CTA_TUPLE_PROTO)?);
        let address: [u8; 4] = attribute(addresses, CTA_IP_V4_DST)?.try_into().ok()?;
        let port = u16::from_be_bytes(attribute(transport, CTA_PROTO_DST_PORT)?.try_into().ok()?);
        let identity = Attributes::default().nested_bytes(CTA_TUPLE_ORIG, tuple);
        let identity = [CTA_ZONE, CTA_ID].into_iter().fold(identity, |identity, kind| match attribute(attributes, kind) {
            Some(value) => identity.bytes(kind, value),
            None => identity,
        });
        Some(Self { protocol: *attribute(transport, CTA_PROTO_NUM)?.first()?, destination: (address.into(), port), identity })
    }

    /// Whether it is of UDP and was sent to one of these ports of the host, of which `addresses` are the addresses.
    fn is_to(&self, ports: &BTreeSet<HostPort>, addresses: &BTreeSet<Ipv4Addr>) -> bool {
        let (address, number) = self.destination;
        let is_among = |bound| ports.contains(&HostPort { protocol: Protocol::Udp, address: bound, number });
        let is_local = || Subnet::LOOPBACK.contains(address) || addresses.contains(&address);
        self.protocol == protocol_number(Protocol::Udp) && (is_among(Some(address)) || is_among(None) && is_local())
    }
}

/// Has the kernel decide anew where flows to these UDP ports of the host go, which has these addresses. A kernel that
/// shows no flows is left alone: it forgets them by itself when they pause for a minute or three.
pub(crate) fn forget_udp(ports: &BTreeSet<HostPort>, addresses: &BTreeSet<Ipv4Addr>) -> Result<(), Rejection> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let found = socket.dump(&list(ports), |body| Flow::read(body).filter(|flow| flow.is_to(ports, addresses)));
    let flows = match found {
        Err(rejection) if [Errno::INVAL, Errno::OPNOTSUPP].contains(&rejection.errno()) => return Ok(()),
        found => found?,
    };
    for flows in flows.chunks(DELETIONS_AT_ONCE) {
        let deletions: Vec<_> = flows.iter().map(deletion).collect();
        // A flow that ended meanwhile is gone as well; the kernel carries out the others.
        match socket.execute(&deletions) {
            Err(rejection) if rejection.errno() == Errno::NOENT => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Asks for the flows to a port at any address, or for all of UDP if there are several: the kernel looks through its whole table
/// each time. Kernels before 5.8 do not know the filter and show all flows.
fn list(ports: &BTreeSet<HostPort>) -> Request {
    const CTA_FILTER_ORIG_FLAGS: u16 = 1;
    /// `CTA_FILTER_F_CTA_PROTO_NUM` and `_DST_PORT` in net/netfilter/nf_internals.h.
    const BY_PROTOCOL: u32 = 1 << 3;
    const BY_PORT: u32 = 1 << 5;
    let transport = Attributes::default().bytes(CTA_PROTO_NUM, &[protocol_number(Protocol::Udp)]);
    let numbers: BTreeSet<u16> = ports.iter().map(|port| port.number).collect();
    let (transport, flags, subject) = match numbers.first() {
        Some(only) if numbers.len() == 1 => {
            (transport.bytes(CTA_PROTO_DST_PORT, &only.to_be_bytes()), BY_PROTOCOL | BY_PORT, format!("{only}/udp"))
        }
        first => (transport, BY_PROTOCOL, format!("{}/udp and others", first.copied().unwrap_or_default())),
    };
    let tuple = Attributes::default().nested(CTA_TUPLE_PROTO, &transport);
    let filter = Attributes::default().bytes(CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    let attributes = Attributes::default().nested(CTA_TUPLE_ORIG, &tuple).nested(CTA_FILTER, &filter);
    request(IPCTNL_MSG_CT_GET, 0, &attributes, "listing the flows to the host's port", subject)
}

fn deletion(flow: &Flow) -> Request {
    let (address, port) = flow.destination;
    request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, &flow.identity, "deleting a flow to the host's port", format!("{address}:{port}/udp"))
}

fn request(message: u16, flags: u16, attributes: &Attributes, stage: &'static str, subject: String) -> Request {
    let body = crate::nft::message(attributes);
    Request { kind: SUBSYSTEM << 8 | message, flags, body, stage, subject }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    /// A UDP flow as the kernel shows it.
    fn shown(destination: Ipv4Addr, port: u16) -> Vec<u8> {
        let addresses = Attributes::default().bytes(1, &[10, 0, 0, 9]).bytes(CTA_IP_V4_DST, &destination.octets());
        let transport = Attributes::default().bytes(CTA_PROTO_NUM, &[17]).bytes(2, &[0, 99]).bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        let tuple = Attributes::default().nested(CTA_TUPLE_IP, &addresses).nested(CTA_TUPLE_PROTO, &transport);
        let attributes = Attributes::default().nested(CTA_TUPLE_ORIG, &tuple).nested(2, &tuple).number(7, 30).number(CTA_ID, 5);
        crate::nft::message(&attributes)
    }

    #[test]
    fn a_flow_is_deleted_by_what_the_kernel_called_it() {
        let flow = Flow::read(&shown(HOST, 53)).unwrap();
        assert_eq!((flow.protocol, flow.destination), (17, (HOST, 53)));
        let again = Flow::read(&crate::nft::message(&flow.identity)).unwrap();
        assert_eq!(again, flow);
        assert_eq!(attribute(flow.identity.as_bytes(), CTA_ID), Some(&[0, 0, 0, 5][..]));
    }

    #[test]
    fn only_flows_to_the_host_itself_are_meant() {
        let addresses = BTreeSet::from([HOST]);
        let port = |address, number| HostPort { protocol: Protocol::Udp, address, number };
        let to = |destination, of| Flow::read(&shown(destination, 53)).unwrap().is_to(&BTreeSet::from([port(None, 99), of]), &addresses);
        assert!(to(HOST, port(None, 53)) && to(Ipv4Addr::LOCALHOST, port(None, 53)) && to(HOST, port(Some(HOST), 53)));
        assert!(!to(Ipv4Addr::new(9, 9, 9, 9), port(None, 53)), "a query to a server elsewhere");
        assert!(!to(HOST, port(Some(Ipv4Addr::LOCALHOST), 53)));
        assert!(!to(HOST, port(None, 54)));
        assert!(!to(HOST, HostPort { protocol: Protocol::Tcp, ..port(None, 53) }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Flow::read(&bytes);
        }

        #[test]
        fn no_flow_cut_short_makes_the_reader_panic(length in 0usize..90) {
            let whole = shown(HOST, 53);
            let _ = Flow::read(&whole[..length.min(whole.len())]);
        }
    }
}
