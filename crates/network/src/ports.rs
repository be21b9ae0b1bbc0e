//! Which pod has which ports of the node. Pure: what is claimed is held in memory and rebuilt from the pods'
//! records, like the leases.
//!
//! A claim is made with a pod's lease and lasts until its rules are gone; in between it is open: the rules
//! send what comes to its ports to the pod.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use coracle_domain::{PodId, PodMetadata, PortMapping, Protocol, Refusal};

const FIELD: &str = "config.port_mappings";

/// The ports that a pod asks for.
#[derive(Debug, Clone, Copy)]
pub struct PortRequest<'a> {
    /// The pod.
    pub pod: &'a PodId,
    /// Who it is, for people.
    pub metadata: &'a PodMetadata,
    /// Its address.
    pub address: Ipv4Addr,
    /// What it asks for.
    pub ports: &'a [PortMapping],
}

/// A port of the node, at one of its IPv4 addresses or at all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    /// The transport.
    pub(crate) protocol: Protocol,
    /// At which address; `None`: at all.
    pub(crate) address: Option<Ipv4Addr>,
    /// Its number.
    pub(crate) number: u16,
}

/// Ports of the node, and where in pods they lead.
pub(crate) type Openings = BTreeMap<HostPort, SocketAddrV4>;

impl HostPort {
    fn of(mapping: &PortMapping) -> Result<Self, Refusal> {
        let address = match mapping.host_ip.map(|address| address.to_canonical()) {
            None => None,
            Some(address) if address.is_unspecified() => None,
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(address)) => return Err(Refusal::unsupported(format!("{FIELD}: the IPv6 host address {address}"))),
        };
        Ok(Self { protocol: mapping.protocol, address, number: mapping.host_port })
    }

    /// Whether a packet can be meant for both.
    fn overlaps(&self, other: &Self) -> bool {
        let at_one_address = self.address.is_none() || other.address.is_none() || self.address == other.address;
        (self.protocol, self.number) == (other.protocol, other.number) && at_one_address
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

/// What one pod has.
#[derive(Debug)]
struct Claim {
    /// The pod, for people.
    holder: String,
    open: bool,
    openings: Openings,
}

/// Who has which ports of the node.
#[derive(Debug, Default)]
pub(crate) struct PortClaims {
    claims: HashMap<PodId, Claim>,
    /// Ports that were given up before this process had made the rules: flows to them may go where they lead no more.
    given_up: Openings,
}

impl PortClaims {
    /// Claims the ports that a pod asks for, all or none.
    ///
    /// # Errors
    /// Another pod has one of them, or the pod contradicts itself.
    pub(crate) fn claim(&mut self, request: &PortRequest<'_>) -> Result<(), Refusal> {
        let openings = openings(request)?;
        for port in openings.keys() {
            if let Some((taken, claim)) = self.overlapping(request.pod, port) {
                return Err(Refusal::wrong_state(format!("host port {port} is taken: pod {} has {taken}", claim.holder)));
            }
        }
        self.insert(request, openings, false);
        Ok(())
    }

    /// Takes over what a pod has whose rules stand.
    ///
    /// # Errors
    /// What is on record would not be granted today.
    pub(crate) fn adopt(&mut self, request: &PortRequest<'_>) -> Result<(), Refusal> {
        self.insert(request, openings(request)?, true);
        Ok(())
    }

    /// Takes note of what a pod had that is not to have it any more, and whose rules may stand.
    ///
    /// # Errors
    /// What is on record would not be granted today.
    pub(crate) fn give_up(&mut self, request: &PortRequest<'_>) -> Result<(), Refusal> {
        self.given_up.extend(openings(request)?);
        Ok(())
    }

    fn insert(&mut self, request: &PortRequest<'_>, openings: Openings, open: bool) {
        if !openings.is_empty() {
            let PodMetadata { namespace, name, .. } = request.metadata;
            let holder = format!("{namespace}/{name} ({})", request.pod.short());
            self.claims.insert(request.pod.clone(), Claim { holder, open, openings });
        }
    }

    fn overlapping(&self, pod: &PodId, port: &HostPort) -> Option<(&HostPort, &Claim)> {
        let others = self.claims.iter().filter(|(id, _)| *id != pod).map(|(_, claim)| claim);
        others.flat_map(|claim| claim.openings.keys().map(move |taken| (taken, claim))).find(|(taken, _)| taken.overlaps(port))
    }

    /// Whether a pod has claimed any.
    pub(crate) fn has(&self, pod: &PodId) -> bool {
        self.claims.contains_key(pod)
    }

    /// A pod's ports, which from now on are among the open ones; `None` if it has no claim.
    pub(crate) fn open_of(&mut self, pod: &PodId) -> Option<Openings> {
        self.turn(pod, true).map(|(_, openings)| openings)
    }

    /// A pod's ports, which were open and are no longer; `None` if they were not.
    pub(crate) fn close_of(&mut self, pod: &PodId) -> Option<Openings> {
        self.turn(pod, false).and_then(|(were_open, openings)| were_open.then_some(openings))
    }

    fn turn(&mut self, pod: &PodId, open: bool) -> Option<(bool, Openings)> {
        let claim = self.claims.get_mut(pod)?;
        Some((std::mem::replace(&mut claim.open, open), claim.openings.clone()))
    }

    /// All ports that rules are to stand for.
    pub(crate) fn open(&self) -> Openings {
        self.claims.values().filter(|claim| claim.open).flat_map(|claim| claim.openings.clone()).collect()
    }

    /// Whether rules are to stand for any port.
    pub(crate) fn any_open(&self) -> bool {
        self.claims.values().any(|claim| claim.open)
    }

    /// Others can claim what a pod had.
    pub(crate) fn release(&mut self, pod: &PodId) {
        self.claims.remove(pod);
    }

    /// The same while its rules may stand.
    pub(crate) fn abandon(&mut self, pod: &PodId) {
        self.given_up.extend(self.claims.remove(pod).map(|claim| claim.openings).unwrap_or_default());
    }

    /// What was given up while the rules may have stood, less what was settled.
    pub(crate) fn given_up(&self) -> Openings {
        self.given_up.clone()
    }

    /// Neither rule nor flow leads any more where it did from a port that was given up.
    pub(crate) fn settle(&mut self) {
        self.given_up.clear();
    }
}

/// Where a pod's mappings lead. The same twice is the same once.
fn openings(request: &PortRequest<'_>) -> Result<Openings, Refusal> {
    let mut openings = Openings::new();
    for mapping in request.ports {
        let (port, target) = (HostPort::of(mapping)?, SocketAddrV4::new(request.address, mapping.container_port));
        let contradiction = openings.iter().find(|(other, to)| other.overlaps(&port) && **to != target);
        if let Some((other, _)) = contradiction {
            return Err(Refusal::invalid(FIELD, format!("{other} and {port} overlap, but lead to different ports of the pod")));
        }
        openings.insert(port, target);
    }
    Ok(openings)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static WEB: LazyLock<PodId> = LazyLock::new(|| PodId::from_entropy([1; 32]));
    static OTHER: LazyLock<PodId> = LazyLock::new(|| PodId::from_entropy([2; 32]));

    fn mapping(text: &str) -> PortMapping {
        let (host, container_port) = text.split_once("->").unwrap();
        let (host, protocol) = host.split_once('/').unwrap();
        let protocol = match protocol {
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let (host_ip, host_port) = host.rsplit_once(':').map_or((None, host), |(address, port)| (Some(address), port));
        let host_ip = host_ip.map(|address| address.parse().unwrap());
        PortMapping { protocol, container_port: container_port.parse().unwrap(), host_port: host_port.parse().unwrap(), host_ip }
    }

    /// Has a pod claim ports, or take them over.
    fn claim(claims: &mut PortClaims, pod: &PodId, ports: &[&str]) -> Result<(), Refusal> {
        with_request(pod, ports, |request| claims.claim(request))
    }

    fn with_request<T>(pod: &PodId, ports: &[&str], work: impl FnOnce(&PortRequest<'_>) -> T) -> T {
        let metadata = PodMetadata { name: "web".into(), uid: "1".into(), namespace: "default".into(), attempt: 0 };
        let ports: Vec<_> = ports.iter().map(|text| mapping(text)).collect();
        work(&PortRequest { pod, metadata: &metadata, address: Ipv4Addr::new(10, 87, 0, 2), ports: &ports })
    }

    fn claims(ports: &[&str]) -> PortClaims {
        let mut claims = PortClaims::default();
        claim(&mut claims, &WEB, ports).unwrap();
        claims
    }

    #[test]
    fn a_taken_port_is_refused_with_its_name_and_its_holders() {
        let mut claims = claims(&["8080/tcp->80"]);
        let error = claim(&mut claims, &OTHER, &["53/udp->53", "127.0.0.1:8080/tcp->80"]).unwrap_err().to_string();
        assert!(error.contains("host port 127.0.0.1:8080/tcp is taken: pod default/web ("), "{error}");
        assert!(error.contains(WEB.short()) && error.contains("has 8080/tcp"), "{error}");
        assert!(!claims.has(&OTHER), "all or none");
        claims.release(&WEB);
        claim(&mut claims, &OTHER, &["8080/tcp->80"]).unwrap();
    }

    #[test]
    fn ports_overlap_at_a_common_address_only() {
        let cases = [
            ("8080/tcp->80", "8080/udp->80", false),
            ("8080/tcp->80", "8081/tcp->80", false),
            ("8080/tcp->80", "0.0.0.0:8080/tcp->80", true),
            ("8080/tcp->80", ":::8080/tcp->80", true),
            ("127.0.0.1:8080/tcp->80", "10.0.0.1:8080/tcp->80", false),
            ("127.0.0.1:8080/tcp->80", "8080/tcp->80", true),
            ("127.0.0.1:8080/sctp->80", "::ffff:127.0.0.1:8080/sctp->80", true),
        ];
        for (first, second, overlap) in cases {
            assert_eq!(claim(&mut claims(&[first]), &OTHER, &[second]).is_err(), overlap, "{first} {second}");
        }
    }

    #[test]
    fn a_pod_may_repeat_itself_but_not_contradict_itself() {
        let repeated = claims(&["80/tcp->80", "0.0.0.0:80/tcp->80"]).open_of(&WEB);
        assert_eq!(repeated.map(|openings| openings.len()), Some(1));
        let contradiction = claim(&mut PortClaims::default(), &WEB, &["80/tcp->80", "127.0.0.1:80/tcp->81"]);
        assert!(matches!(contradiction, Err(Refusal::Invalid { .. })), "{contradiction:?}");
    }

    #[test]
    fn an_ipv6_address_of_the_host_is_not_supported_yet() {
        let refused = claim(&mut PortClaims::default(), &WEB, &["::1:80/tcp->80"]);
        assert!(matches!(refused, Err(Refusal::Unsupported { .. })), "{refused:?}");
    }

    #[test]
    fn only_what_is_open_has_rules() {
        let mut claims = claims(&["80/tcp->8080"]);
        assert!(!claims.any_open() && claims.open().is_empty());
        assert_eq!(claims.close_of(&WEB), None);
        assert_eq!(claims.open_of(&WEB).map(|openings| openings.len()), Some(1));
        with_request(&OTHER, &["127.0.0.1:53/udp->5353"], |request| claims.adopt(request)).unwrap();
        let open: Vec<_> = claims.open().into_iter().map(|(port, target)| format!("{port} {target}")).collect();
        assert_eq!(open, ["80/tcp 10.87.0.2:8080", "127.0.0.1:53/udp 10.87.0.2:5353"]);
        assert!(claims.close_of(&WEB).is_some());
        claims.release(&OTHER);
        assert!(!claims.any_open() && claims.open_of(&OTHER).is_none());
    }

    #[test]
    fn a_pod_without_host_ports_is_not_held() {
        assert!(!claims(&[]).has(&WEB));
    }
}
