//! The rules of the bridge network, as one table whose content follows from what is configured and lent. Pure.
//!
//! Host ports are maps from a port of the node to a pod's address and port, so that a pod that comes or goes
//! changes elements and no rule. Where no host port is open, their maps and chains are not there either.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use coracle_domain::Protocol;

use crate::nft::{
    Chain, Comparison, Element, Expression, Field, Hook, Map, Part, Register, Shape, Table, Value, Verdict, host_match, link_match, mark,
    mark_match, subnet_match,
};
use crate::ports::{HostPort, Openings};
use crate::{BridgeConfig, Subnet};

/// Ports of the node at all of its addresses.
static PORTS: Shape = Shape { name: "ports", key: &[Part::Protocol, Part::Port], value: &[Part::Address, Part::Port] };
/// Ports of the node at one of its addresses.
static PORTS_AT: Shape = Shape { name: "ports_at", key: &[Part::Protocol, Part::Address, Part::Port], value: &[Part::Address, Part::Port] };
/// The chain that looks host ports up.
const TO_PODS: &str = "to_pods";
/// The mark's bit for "wears the bridge's address on its way to a pod". CNI's portmap plugin gives the same bit
/// the same meaning, so that whoever knows of marks on a node knows of this one.
const HAIRPIN: u32 = 0x2000;

/// The name of the table that belongs to a bridge.
pub(crate) fn table_name(config: &BridgeConfig) -> String {
    format!("coracle_{}", config.name)
}

/// The table; none where it would hold nothing.
pub(crate) fn table(config: &BridgeConfig, subnets: &BTreeSet<Subnet>, openings: &Openings) -> Option<Table> {
    let bridge = config.name.as_str();
    let mut leaving: Vec<Vec<Expression>> = Vec::new();
    if config.masquerade {
        leaving.extend(subnets.iter().map(|subnet| masquerade_leaving(*subnet)));
    }
    let mut chains = Vec::new();
    if !openings.is_empty() {
        leaving.extend(masquerade_hairpins(bridge));
        chains.extend([guard(bridge), to_pods(), arriving(subnets), sent()]);
    }
    if !leaving.is_empty() {
        chains.push(Chain { name: "postrouting", hook: Some(Hook::SourceNat), rules: leaving });
    }
    let maps = if openings.is_empty() { Vec::new() } else { maps(openings).into() };
    (!chains.is_empty()).then(|| Table { name: table_name(config), maps, chains })
}

/// The elements that stand for host ports.
pub(crate) fn maps(openings: &Openings) -> [Map; 2] {
    let elements = |at: bool| openings.iter().filter(|(port, _)| port.address.is_some() == at).map(element).collect();
    [Map { shape: &PORTS, elements: elements(false) }, Map { shape: &PORTS_AT, elements: elements(true) }]
}

fn element((port, target): (&HostPort, &SocketAddrV4)) -> Element {
    let number = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [high, low, 0, 0]
    };
    let address = port.address.as_ref().map(Ipv4Addr::octets);
    let key = [Some([protocol_number(port.protocol), 0, 0, 0]), address, Some(number(port.number))];
    Element { key: key.into_iter().flatten().flatten().collect(), value: [target.ip().octets(), number(target.port())].concat() }
}

/// The protocol's number in the IPv4 header (IANA).
pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// What a pod sends out of its subnet leaves the node with the node's address.
fn masquerade_leaving(subnet: Subnet) -> Vec<Expression> {
    let mut rule = subnet_match(Field::SourceAddress, Comparison::Equal, subnet).to_vec();
    rule.extend(subnet_match(Field::DestinationAddress, Comparison::NotEqual, subnet));
    rule.push(Expression::Masquerade);
    rule
}

/// A pod answers whom it sees: it must not see its neighbour, whom it would answer directly and from the wrong
/// address, nor itself, nor an address of the host's loopback.
fn masquerade_hairpins(bridge: &str) -> [Vec<Expression>; 2] {
    let masquerade = |condition: [Expression; 3]| {
        let conditions = link_match(Value::OutputLink, bridge).into_iter().chain(condition);
        conditions.chain([Expression::Masquerade]).collect()
    };
    let from_loopback = subnet_match(Field::SourceAddress, Comparison::Equal, Subnet::LOOPBACK);
    [masquerade(from_loopback), masquerade(mark_match(HAIRPIN))]
}

/// The bridge routes loopback addresses for the host's own connections to host ports; no pod may use that to
/// reach what listens on the host's loopback only, nor pretend to be there.
fn guard(bridge: &str) -> Chain {
    let drop = |field| {
        let loopback = subnet_match(field, Comparison::Equal, Subnet::LOOPBACK);
        link_match(Value::InputLink, bridge).into_iter().chain(loopback).chain([Expression::Conclude(Verdict::Drop)]).collect()
    };
    let rules = vec![drop(Field::SourceAddress), drop(Field::DestinationAddress)];
    Chain { name: "guard", hook: Some(Hook::Raw), rules }
}

/// Sends a connection to the pod that has its port; an address of its own comes before all addresses.
fn to_pods() -> Chain {
    let load = |value, place| Expression::Load(value, Register(place));
    let (address, port) = (Value::Field(Field::DestinationAddress), Value::Field(Field::DestinationPort));
    let rules = vec![
        vec![load(Value::Protocol, 0), load(address, 1), load(port, 2), Expression::LookUp(PORTS_AT.name), Expression::DestinationNat],
        vec![load(Value::Protocol, 0), load(port, 1), Expression::LookUp(PORTS.name), Expression::DestinationNat],
    ];
    Chain { name: TO_PODS, hook: None, rules }
}

/// What comes from pods and from outside. What comes from outside for a loopback address is a lie: the kernel
/// would drop it, but only after its destination had been changed.
fn arriving(subnets: &BTreeSet<Subnet>) -> Chain {
    let leave = [Expression::Conclude(Verdict::Return)];
    let of_pods = |set: bool| {
        subnets.iter().map(move |subnet| {
            let condition = subnet_match(Field::SourceAddress, Comparison::Equal, *subnet);
            condition.into_iter().chain(mark(HAIRPIN, set)).collect::<Vec<_>>()
        })
    };
    let mut rules = vec![
        subnet_match(Field::DestinationAddress, Comparison::Equal, Subnet::LOOPBACK).into_iter().chain(leave.clone()).collect(),
        host_match(Comparison::NotEqual).into_iter().chain(leave).collect(),
    ];
    rules.extend(of_pods(true));
    rules.push(vec![Expression::Conclude(Verdict::Jump(TO_PODS))]);
    // Only what is for no pod comes here.
    rules.extend(of_pods(false));
    Chain { name: "prerouting", hook: Some(Hook::DestinationNat), rules }
}

/// What the host itself sends.
fn sent() -> Chain {
    let rule = host_match(Comparison::Equal).into_iter().chain([Expression::Conclude(Verdict::Jump(TO_PODS))]).collect();
    Chain { name: "output", hook: Some(Hook::OutputNat), rules: vec![rule] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets() -> BTreeSet<Subnet> {
        BTreeSet::from([Subnet::DEFAULT])
    }

    fn openings() -> Openings {
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 87, 0, 2), 80);
        let port = |protocol, address| HostPort { protocol, address, number: 8080 };
        [(port(Protocol::Tcp, None), target), (port(Protocol::Sctp, Some(Ipv4Addr::LOCALHOST)), target)].into()
    }

    #[test]
    fn without_host_ports_the_table_is_what_masquerading_needs() {
        let table = table(&BridgeConfig::default(), &subnets(), &Openings::new()).unwrap();
        assert_eq!((table.maps.len(), table.chains.len(), table.chains[0].rules.len()), (0, 1, 1));
    }

    #[test]
    fn host_ports_need_no_masquerading_of_what_leaves_the_node() {
        let config = BridgeConfig { masquerade: false, ..BridgeConfig::default() };
        assert_eq!(table(&config, &subnets(), &Openings::new()), None);
        let table = table(&config, &subnets(), &openings()).unwrap();
        let names: Vec<_> = table.chains.iter().map(|chain| (chain.name, chain.rules.len())).collect();
        assert_eq!(names, [("guard", 2), ("to_pods", 2), ("prerouting", 5), ("output", 1), ("postrouting", 2)]);
    }

    #[test]
    fn a_port_at_one_address_is_in_a_map_of_its_own() {
        let [ports, ports_at] = maps(&openings());
        let value = vec![10, 87, 0, 2, 0, 80, 0, 0];
        assert_eq!(ports.elements, [Element { key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], value: value.clone() }]);
        assert_eq!(ports_at.elements, [Element { key: vec![132, 0, 0, 0, 127, 0, 0, 1, 0x1f, 0x90, 0, 0], value }]);
        for map in [ports, ports_at] {
            assert_eq!(map.elements[0].key.len(), 4 * map.shape.key.len());
            assert_eq!(map.elements[0].value.len(), 4 * map.shape.value.len());
        }
    }
}
