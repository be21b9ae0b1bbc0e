//! The host's side of the bridge network: the bridge, its addresses, forwarding, the rules. It compares what
//! stands in the kernel with what should, and puts it right.
//!
//! Everything here happens in the network namespace of the calling thread, which must be the host's.

use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use coracle_domain::{During, Failure, Result};
use coracle_failpoint::{Point, reach};
use netlink_packet_route::link::LinkFlags;
use rustix::io::Errno;

use crate::netlink::{Family, Rejection, Request, Socket};
use crate::ports::Openings;
use crate::rtnetlink::{self as request, HeldAddress, Link};
use crate::rules::{self, table_name};
use crate::{BridgeConfig, Subnet, nft};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// An address that only a default route leads to (RFC 5737).
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What the names of pods' links on the host begin with; twelve digits of the pod's id follow.
pub(crate) const LINK_PREFIX: &str = "cor";

/// What should stand on the host.
#[derive(Debug)]
pub(crate) struct HostSide<'a> {
    pub(crate) config: &'a BridgeConfig,
    /// The subnets of the pods.
    pub(crate) subnets: BTreeSet<Subnet>,
}

/// The host's end of a pod's pair of links.
#[derive(Debug)]
pub(crate) struct HostLink {
    pub(crate) name: String,
    /// Whether the pod may reach itself through a port of the node.
    pub(crate) hairpin: bool,
}

impl HostLink {
    /// What makes it a port of the bridge.
    pub(crate) fn connect(&self, bridge: &Link) -> Vec<Request> {
        let mut requests = vec![request::enslave(&self.name, bridge.index)];
        requests.extend(self.hairpin.then(|| request::allow_hairpin(&self.name)));
        requests
    }
}

impl HostSide<'_> {
    /// The bridge, if all that pods need stands; none if something is missing. That the rules in the table
    /// are the right ones is taken on trust: nobody but this crate writes them, and [`Self::establish`] does so
    /// first. `ports` says whether any host port is open.
    pub(crate) fn standing(&self, socket: &mut Socket, ports: bool) -> Result<Option<Link>> {
        let Some(bridge) = self.bridge(socket)? else { return Ok(None) };
        let held = held_addresses(socket, &bridge)?;
        let addressed = self.subnets.iter().all(|subnet| held.iter().any(|held| is_gateway(held, *subnet)));
        let complete = bridge.flags.contains(LinkFlags::Up)
            && addressed
            && forwards()?
            && (!ports || self.routes_loopback()?)
            && (!(ports || self.config.masquerade) || nft::exists(&table_name(self.config))?);
        Ok(complete.then_some(bridge))
    }

    /// Makes all of it stand, the rules be those for these host ports, and these links ports of the bridge.
    pub(crate) fn establish(&self, socket: &mut Socket, openings: &Openings, links: &[HostLink]) -> Result<Link> {
        let name = self.config.name.as_str();
        if self.bridge(socket)?.is_none() {
            self.create(socket)?;
        }
        let bridge = self.bridge(socket)?.ok_or("somebody deleted it").during("creating the bridge", name)?;
        let mtu = self.mtu(socket)?;
        socket.execute(&[request::bring_up(bridge.index, name, mtu)])?;
        if !forwards()? {
            std::fs::write(IP_FORWARD, "1").during("turning on forwarding in", IP_FORWARD)?;
            reach(Point::NetworkSysctl);
        }
        self.write_rules(openings)?;
        reconnect(socket, &bridge, links)?;
        // Last: a subnet whose gateway stands has its rule.
        self.address(socket, &bridge)?;
        Ok(self.bridge(socket)?.unwrap_or(bridge))
    }

    /// Makes sure that nothing of it is left.
    pub(crate) fn remove(&self, socket: &mut Socket) -> Result<()> {
        self.route_loopback(false)?;
        nft::remove(&table_name(self.config))?;
        let Some(bridge) = self.bridge(socket)? else { return Ok(()) };
        for port in pod_ports(socket, &bridge)? {
            delete(socket, &port.name)?;
        }
        delete(socket, &bridge.name)?;
        Ok(())
    }

    /// The bridge as it is.
    pub(crate) fn bridge(&self, socket: &mut Socket) -> Result<Option<Link>> {
        let name = self.config.name.as_str();
        let Some(link) = find(socket, &request::get_link(name))? else { return Ok(None) };
        if link.kind.as_deref() == Some("bridge") {
            return Ok(Some(link));
        }
        let kind = link.kind.as_deref().unwrap_or("device");
        let failure = Failure::new("using as the pods' bridge the link", name, format!("it is a {kind}"));
        Err(failure.hint("give the bridge another name, or delete that link").into())
    }

    fn create(&self, socket: &mut Socket) -> Result<(), Rejection> {
        let address = request::link_address(self.config.subnet.gateway());
        tolerating(Errno::EXIST, socket.execute(&[request::create_bridge(self.config.name.as_str(), address)]))
    }

    /// The largest packet that pods may send.
    fn mtu(&self, socket: &mut Socket) -> Result<Option<u32>> {
        match self.config.mtu {
            Some(mtu) => Ok(Some(mtu)),
            None => uplink_mtu(socket),
        }
    }

    /// Gives the bridge the gateways' addresses and no others.
    fn address(&self, socket: &mut Socket, bridge: &Link) -> Result<()> {
        let missing: Vec<_> = self.subnets.iter().map(|subnet| request::add_address(bridge.index, subnet.gateway(), *subnet)).collect();
        socket.execute(&missing)?;
        for held in held_addresses(socket, bridge)? {
            if !self.subnets.iter().any(|subnet| is_gateway(&held, *subnet)) {
                tolerating(Errno::ADDRNOTAVAIL, socket.execute(&[request::delete_address(bridge.index, &held)]))?;
            }
        }
        Ok(())
    }

    /// Makes the rules be exactly those that should stand. Loopback addresses are routed only while the rules
    /// are there that keep pods from using it.
    pub(crate) fn write_rules(&self, openings: &Openings) -> Result<()> {
        if openings.is_empty() {
            self.route_loopback(false)?;
        }
        match rules::table(self.config, &self.subnets, openings) {
            Some(table) => nft::replace(&table)?,
            None => nft::remove(&table_name(self.config))?,
        }
        if openings.is_empty() { Ok(()) } else { self.route_loopback(true) }
    }

    fn loopback_routing(&self) -> String {
        format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.config.name)
    }

    fn routes_loopback(&self) -> Result<bool> {
        let path = self.loopback_routing();
        Ok(std::fs::read(&path).during("reading", &path)?.starts_with(b"1"))
    }

    /// Whether the host's own connections to loopback addresses may leave by the bridge. A bridge that is not
    /// there begins without.
    fn route_loopback(&self, on: bool) -> Result<()> {
        let path = self.loopback_routing();
        let found = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found.during("reading", &path)?,
        };
        if found.starts_with(b"1") == on {
            return Ok(());
        }
        std::fs::write(&path, if on { "1" } else { "0" }).during("changing", &path)?;
        reach(Point::NetworkSysctl);
        Ok(())
    }
}

/// Makes ports of the bridge those links that are of none: a bridge that somebody deleted leaves its ports behind.
fn reconnect(socket: &mut Socket, bridge: &Link, links: &[HostLink]) -> Result<()> {
    let ports: HashSet<String> = pod_ports(socket, bridge)?.into_iter().map(|port| port.name).collect();
    for link in links.iter().filter(|link| !ports.contains(&link.name)) {
        let found = find(socket, &request::get_link(&link.name))?;
        if found.is_some_and(|found| found.controller.is_none()) {
            tolerating(Errno::NODEV, socket.execute(&link.connect(bridge)))?;
        }
    }
    Ok(())
}

/// The pods' links that are ports of a bridge.
pub(crate) fn pod_ports(socket: &mut Socket, bridge: &Link) -> Result<Vec<Link>> {
    let ports = socket.dump(&request::list_ports(bridge.index, &bridge.name), Link::read)?;
    let is_pods = |port: &Link| {
        let digits = port.name.strip_prefix(LINK_PREFIX);
        digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    Ok(ports.into_iter().filter(is_pods).collect())
}

/// Makes sure that a link is gone.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> Result<(), Rejection> {
    tolerating(Errno::NODEV, socket.execute(&[request::delete_link(name)]))
}

/// A socket for the calling thread's namespace.
pub(crate) fn route_socket() -> Result<Socket> {
    Ok(Socket::open(Family::Route)?)
}

fn find(socket: &mut Socket, request: &Request) -> Result<Option<Link>, Rejection> {
    match socket.get(request) {
        Ok(body) => Ok(Link::read(&body)),
        Err(rejection) if rejection.errno() == Errno::NODEV => Ok(None),
        Err(rejection) => Err(rejection),
    }
}

fn held_addresses(socket: &mut Socket, link: &Link) -> Result<Vec<HeldAddress>, Rejection> {
    let of_link = |body: &[u8]| HeldAddress::read(body).filter(|held| held.link == link.index);
    socket.dump(&request::list_addresses(), of_link)
}

fn is_gateway(held: &HeldAddress, subnet: Subnet) -> bool {
    (held.address, held.prefix) == (subnet.gateway(), subnet.prefix())
}

/// The host's addresses.
pub(crate) fn addresses() -> Result<BTreeSet<Ipv4Addr>> {
    let held = route_socket()?.dump(&request::list_addresses(), HeldAddress::read)?;
    Ok(held.into_iter().map(|held| held.address).collect())
}

/// The largest packet of the link with the default route; none where the kernel knows no such link.
fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>> {
    let Ok(route) = socket.get(&request::get_route(ELSEWHERE)) else { return Ok(None) };
    let Some(index) = request::route_link(&route) else { return Ok(None) };
    let uplink = find(socket, &request::get_link_at(index))?;
    Ok(uplink.filter(|link| !link.flags.contains(LinkFlags::Loopback)).and_then(|link| link.mtu))
}

fn forwards() -> Result<bool> {
    Ok(std::fs::read(IP_FORWARD).during("reading", IP_FORWARD)?.starts_with(b"1"))
}

fn tolerating(errno: Errno, result: Result<(), Rejection>) -> Result<(), Rejection> {
    result.or_else(|rejection| if rejection.errno() == errno { Ok(()) } else { Err(rejection) })
}
