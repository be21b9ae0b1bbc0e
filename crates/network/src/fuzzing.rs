//! Doors for the fuzz targets into what is private here. Built for them only.

use crate::Subnet;
use crate::conntrack::Flow;
use crate::netlink::{Answer, messages};
use crate::rtnetlink::{HeldAddress, Link, route_link};

/// A datagram from the kernel.
pub fn netlink(datagram: &[u8]) {
    for message in messages(datagram) {
        let _ = (Answer::read(&message), Flow::read(message.body));
        let _ = (Link::read(message.body), HeldAddress::read(message.body), route_link(message.body));
    }
}

/// Subnets.
pub fn text(text: &str) {
    if let Ok(subnet) = text.parse::<Subnet>() {
        assert_eq!(subnet.to_string().parse(), Ok(subnet));
        assert!(subnet.contains(subnet.gateway()));
    }
}
