//! Connects a pod's network namespace to the bridge: loopback, a pair of links, an address, a route.
//!
//! It runs on a thread that afterwards belongs to the pod's namespace and must end. The order matters: the
//! pair is made inside the pod's namespace with the host's end down, all of the pod's side is set up in one
//! round trip, then the host's end joins the bridge and comes up.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_domain::{During, Result};
use netlink_packet_route::link::LinkFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::{self, HostLink};
use crate::netlink::{Request, Socket};
use crate::rtnetlink::{self as request, Link, VethPair};
use crate::{Lease, POD_INTERFACE, Subnet};

/// The index of the pod's interface. Chosen, not asked for, so that one datagram can create the link and
/// refer to it; high enough to miss the tunnel devices some kernels put into every namespace.
const POD_INTERFACE_INDEX: u32 = 100;

/// A pod's place on the network.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// The host's end of its pair of links.
    pub(crate) host_link: HostLink,
    /// Its namespace.
    pub(crate) namespace: OwnedFd,
    /// Its address.
    pub(crate) lease: Lease,
    pub(crate) subnet: Subnet,
}

impl Attachment {
    /// Makes the pod a port of the bridge, in place of what an earlier attempt left.
    pub(crate) fn make(&self, mut host: Socket, bridge: &Link) -> Result<()> {
        let host_namespace = own_namespace()?;
        enter(self.namespace.as_fd(), &self.host_link.name)?;
        let mut pod = host::route_socket()?;
        let set_up = self.pod_side(host_namespace.as_fd(), bridge.mtu);
        match pod.execute(&set_up) {
            Err(rejection) if rejection.errno() == Errno::EXIST => {
                host::delete(&mut pod, POD_INTERFACE)?;
                host::delete(&mut host, &self.host_link.name)?;
                pod.execute(&set_up)?;
            }
            outcome => outcome?,
        }
        host.execute(&self.host_link.connect(bridge))?;
        finish_carrier(&mut pod, POD_INTERFACE_INDEX)?;
        if !bridge.flags.contains(LinkFlags::LowerUp) {
            finish_carrier(&mut host, bridge.index)?;
        }
        Ok(())
    }

    fn pod_side(&self, host: BorrowedFd<'_>, mtu: Option<u32>) -> [Request; 4] {
        let address: Ipv4Addr = self.lease.address;
        let pair = VethPair {
            inner: (POD_INTERFACE, POD_INTERFACE_INDEX),
            address: request::link_address(address),
            outer: &self.host_link.name,
            host,
            mtu,
        };
        [
            request::bring_loopback_up(),
            request::create_veth(&pair),
            request::add_address(POD_INTERFACE_INDEX, address, self.subnet),
            request::add_default_route(self.lease.gateway, POD_INTERFACE_INDEX),
        ]
    }
}

/// Has the kernel finish what a carrier's coming up began, by asking for the link (Linux 6.8): until then
/// the link drops what is sent, and a first connection would take a second.
fn finish_carrier(socket: &mut Socket, link: u32) -> Result<()> {
    socket.get(&request::get_link_at(link))?;
    Ok(())
}

fn own_namespace() -> Result<OwnedFd> {
    const PATH: &str = "/proc/thread-self/ns/net";
    rustix::fs::open(PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).during("opening", PATH)
}

/// Moves the calling thread, which must end afterwards, into a network namespace.
fn enter(namespace: BorrowedFd<'_>, subject: &str) -> Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).during("entering the network namespace of", subject)
}
