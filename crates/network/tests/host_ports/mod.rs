//! Host ports on a real kernel: who reaches them, who does not, and what stands in the kernel for them.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_domain::{PodMetadata, PortMapping, Protocol};
use coracle_network::{Bridge, BridgeConfig, PortRequest, host_link_name};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, socket};

use crate::common::{Namespace, PATIENCE, Pod, dial, neighbour, on_a_host, run};

const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 1);
/// Where the bridge routes loopback addresses.
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/coracle0/route_localnet";
/// The rules while no host port is open.
const PLAIN_RULES: &str = "table ip coracle_coracle0 {\n\tchain postrouting {\n\
    \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
    \t\tip saddr 10.87.0.0/16 ip daddr != 10.87.0.0/16 masquerade\n\t}\n}\n";

fn bridge() -> Bridge {
    Bridge::new(BridgeConfig::default())
}

fn mapping(protocol: Protocol, host_ip: Option<Ipv4Addr>, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.map(IpAddr::V4) }
}

fn metadata() -> PodMetadata {
    PodMetadata { name: "web".into(), uid: "1".into(), namespace: "default".into(), attempt: 0 }
}

fn request<'a>(pod: &'a Pod, metadata: &'a PodMetadata, ports: &'a [PortMapping]) -> PortRequest<'a> {
    PortRequest { pod: &pod.id, metadata, address: pod.lease.address, ports }
}

/// A pod that has claimed ports and is not attached yet.
fn claimant(bridge: &Bridge, seed: u8, ports: &[PortMapping]) -> Pod {
    let pod = Pod::unattached(bridge, seed);
    bridge.claim_ports(&request(&pod, &metadata(), ports)).unwrap();
    pod
}

async fn attached(bridge: &Bridge, seed: u8, ports: &[PortMapping]) -> Pod {
    let pod = claimant(bridge, seed, ports);
    pod.attach(bridge).await;
    pod
}

fn rules() -> String {
    run("nft", &["list", "ruleset"])
}

/// The elements of a map, as `nft` prints them.
fn elements(map: &str) -> HashSet<String> {
    let listing = run("nft", &["list", "map", "ip", "coracle_coracle0", map]);
    let list = listing.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}')).map_or("", |(list, _)| list);
    list.split(',').map(|element| element.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|element| !element.is_empty()).collect()
}

fn set<const N: usize>(elements: [&str; N]) -> HashSet<String> {
    elements.map(str::to_owned).into()
}

/// A listener in a pod that hears every address.
fn listen(pod: &Pod, port: u16) -> TcpListener {
    pod.namespace.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
}

fn receive_at(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = namespace.inside(|| UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A socket whose answers must come from where its questions go.
fn ask_from(namespace: Option<&Namespace>, target: (Ipv4Addr, u16)) -> UdpSocket {
    let make = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(target).unwrap();
        socket
    };
    let socket = namespace.map_or_else(make, |namespace| namespace.inside(make));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a question and has it answered; whom the server saw.
fn ask(client: &UdpSocket, server: &UdpSocket) -> IpAddr {
    client.send(b"ahoy").unwrap();
    let (length, peer) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(length, 4);
    server.send_to(b"aye", peer).unwrap();
    let mut answer = [0; 16];
    let length = client.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"aye");
    peer.ip()
}

/// Connects from a namespace (`None`: the host's) to a port; whom the server saw.
fn connect(client: Option<&Namespace>, server: &TcpListener, target: (Ipv4Addr, u16)) -> IpAddr {
    let target = SocketAddr::from(target);
    client.map_or_else(|| dial(target), |client| client.inside(|| dial(target)));
    server.accept().unwrap().1.ip()
}

/// Has bridged packets go through the IPv4 rules, as kube-proxy wants it; whether this kernel can.
fn filter_bridged(on: bool) -> bool {
    let path = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    path.exists() && fs::write(path, if on { "1" } else { "0" }).is_ok()
}

#[test]
fn a_tcp_port_is_reached_from_everywhere() {
    on_a_host(|| async {
        let (bridge, outside) = (bridge(), neighbour());
        let pod = attached(&bridge, 1, &[mapping(Protocol::Tcp, None, 8080, 80)]).await;
        let other = Pod::attached(&bridge, 2).await;
        let server = listen(&pod, 80);
        assert_eq!(connect(None, &server, (Ipv4Addr::LOCALHOST, 8080)), GATEWAY);
        assert_eq!(connect(None, &server, (Ipv4Addr::new(127, 9, 9, 9), 8080)), GATEWAY);
        assert_eq!(connect(None, &server, (HOST, 8080)), HOST);
        assert_eq!(connect(Some(&outside), &server, (HOST, 8080)), NEIGHBOUR, "who comes from outside is seen as he is");
        for bridged in [false, true] {
            if !filter_bridged(bridged) {
                eprintln!("skipped: this kernel has no br_netfilter");
                continue;
            }
            for target in [HOST, GATEWAY] {
                connect(Some(&other.namespace), &server, (target, 8080));
                connect(Some(&pod.namespace), &server, (target, 8080));
            }
        }
    });
}

#[test]
fn a_udp_port_is_reached_from_everywhere() {
    on_a_host(|| async {
        let (bridge, outside) = (bridge(), neighbour());
        let pod = attached(&bridge, 1, &[mapping(Protocol::Udp, None, 5353, 53)]).await;
        let other = Pod::attached(&bridge, 2).await;
        let server = receive_at(&pod.namespace, Ipv4Addr::UNSPECIFIED, 53);
        assert_eq!(ask(&ask_from(None, (Ipv4Addr::LOCALHOST, 5353)), &server), GATEWAY);
        assert_eq!(ask(&ask_from(None, (HOST, 5353)), &server), HOST);
        assert_eq!(ask(&ask_from(Some(&outside), (HOST, 5353)), &server), NEIGHBOUR);
        for client in [&other, &pod] {
            ask(&ask_from(Some(&client.namespace), (HOST, 5353)), &server);
            ask(&ask_from(Some(&client.namespace), (GATEWAY, 5353)), &server);
        }
    });
}

/// An SCTP INIT chunk (RFC 9260) to a port, with a checksum that nobody on the way looks at.
fn sctp_init(port: u16) -> Vec<u8> {
    let mut packet = 4000u16.to_be_bytes().to_vec();
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    packet
}

fn raw_sctp(namespace: &Namespace) -> OwnedFd {
    namespace.inside(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap())
}

#[test]
fn an_sctp_port_leads_to_the_pods() {
    on_a_host(|| async {
        let bridge = bridge();
        let pod = attached(&bridge, 1, &[mapping(Protocol::Sctp, None, 3868, 38)]).await;
        let (receiver, sender) = (raw_sctp(&pod.namespace), socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap());
        rustix::net::sockopt::set_socket_timeout(receiver.as_fd(), rustix::net::sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
        let target = SocketAddr::from((GATEWAY, 0));
        rustix::net::sendto(&sender, &sctp_init(3868), SendFlags::empty(), &target).unwrap();
        let mut packet = [0; 128];
        rustix::net::recv(&receiver, &mut packet[..], RecvFlags::empty()).unwrap();
        assert_eq!(packet[22..24], 38u16.to_be_bytes(), "the port of the pod: {packet:?}");
    });
}

#[test]
fn a_port_at_one_address_is_not_at_the_others() {
    on_a_host(|| async {
        let (bridge, outside) = (bridge(), neighbour());
        let ports = [
            mapping(Protocol::Tcp, Some(Ipv4Addr::LOCALHOST), 8080, 80),
            mapping(Protocol::Tcp, Some(HOST), 9090, 80),
            mapping(Protocol::Tcp, Some(NEIGHBOUR), 7070, 80),
        ];
        let pod = attached(&bridge, 1, &ports).await;
        let server = listen(&pod, 80);
        connect(None, &server, (Ipv4Addr::LOCALHOST, 8080));
        connect(Some(&outside), &server, (HOST, 9090));
        connect(Some(&pod.namespace), &server, (HOST, 9090));
        let refused = |address: Ipv4Addr, port: u16| TcpStream::connect_timeout(&(address, port).into(), PATIENCE).is_err();
        assert!(refused(HOST, 8080) && refused(Ipv4Addr::new(127, 0, 0, 2), 8080) && refused(Ipv4Addr::LOCALHOST, 9090));
        assert!(outside.inside(|| refused(HOST, 8080)));
        assert!(refused(NEIGHBOUR, 7070), "an address that is not the host's is not taken from whose it is");
    });
}

/// Has a namespace send to loopback addresses by way of a gateway.
fn forge_loopback(namespace: &Namespace, link: &str, gateway: Ipv4Addr) {
    namespace.inside(|| {
        fs::write(format!("/proc/sys/net/ipv4/conf/{link}/route_localnet"), "1").unwrap();
        // There is one where its loopback is up.
        let _ = std::process::Command::new("ip").args(["route", "flush", "table", "local", "dev", "lo"]).output().unwrap();
        run("ip", &["route", "add", "127.0.0.0/8", "via", &gateway.to_string(), "dev", link]);
    });
}

#[test]
fn loopback_is_out_of_reach_for_pods_and_neighbours() {
    on_a_host(|| async {
        let (bridge, outside) = (bridge(), neighbour());
        let ports = [mapping(Protocol::Udp, Some(Ipv4Addr::LOCALHOST), 5353, 53), mapping(Protocol::Udp, None, 5454, 53)];
        let pod = attached(&bridge, 1, &ports).await;
        let server = receive_at(&pod.namespace, Ipv4Addr::UNSPECIFIED, 53);
        forge_loopback(&outside, "far", HOST);
        for port in [5353, 5454] {
            let forged = outside.inside(|| UdpSocket::bind((NEIGHBOUR, 0)).unwrap());
            forged.send_to(b"forged", (Ipv4Addr::LOCALHOST, port)).unwrap();
            ask(&ask_from(Some(&outside), (HOST, 5454)), &server);
        }
        let service = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6000)).unwrap();
        service.set_read_timeout(Some(PATIENCE)).unwrap();
        let thief = Pod::attached(&bridge, 2).await;
        forge_loopback(&thief.namespace, "eth0", GATEWAY);
        let forged = thief.namespace.inside(|| UdpSocket::bind((thief.lease.address, 0)).unwrap());
        forged.send_to(b"forged", (Ipv4Addr::LOCALHOST, 6000)).unwrap();
        ask(&ask_from(Some(&thief.namespace), (GATEWAY, 6000)), &service);
    });
}

#[test]
fn the_rules_for_host_ports_read_as_they_were_meant() {
    on_a_host(|| async {
        let bridge = bridge();
        let ports = [mapping(Protocol::Tcp, None, 8080, 80), mapping(Protocol::Udp, Some(Ipv4Addr::LOCALHOST), 53, 5353)];
        let pod = attached(&bridge, 1, &ports).await;
        let expected = "table ip coracle_coracle0 {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.87.0.2 . 80 }
	}

	map ports_at {
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { udp . 127.0.0.1 . 53 : 10.87.0.2 . 5353 }
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname \"coracle0\" ip saddr 127.0.0.0/8 drop
		iifname \"coracle0\" ip daddr 127.0.0.0/8 drop
	}

	chain to_pods {
		dnat ip to meta l4proto . ip daddr . th dport map @ports_at
		dnat ip to meta l4proto . th dport map @ports
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type != local return
		ip saddr 10.87.0.0/16 meta mark set meta mark | 0x00002000
		jump to_pods
		ip saddr 10.87.0.0/16 meta mark set meta mark & 0xffffdfff
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump to_pods
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.87.0.0/16 ip daddr != 10.87.0.0/16 masquerade
		oifname \"coracle0\" ip saddr 127.0.0.0/8 masquerade
		oifname \"coracle0\" meta mark & 0x00002000 == 0x00002000 masquerade
	}
}
";
        assert_eq!(rules(), expected);
        assert_eq!(fs::read_to_string(ROUTE_LOCALNET).unwrap(), "1\n");
        let link = run("ip", &["-d", "link", "show", &host_link_name(&pod.id)]);
        assert!(link.contains("hairpin on"), "{link}");
        bridge.detach(&pod.id).await.unwrap();
        bridge.detach(&pod.id).await.unwrap();
        assert_eq!(rules(), PLAIN_RULES);
        assert_eq!(fs::read_to_string(ROUTE_LOCALNET).unwrap(), "0\n");
    });
}

#[test]
fn a_pod_without_host_ports_changes_no_rule() {
    on_a_host(|| async {
        let bridge = bridge();
        let plain = Pod::attached(&bridge, 1).await;
        assert_eq!(rules(), PLAIN_RULES);
        assert_eq!(fs::read_to_string(ROUTE_LOCALNET).unwrap(), "0\n");
        let link = run("ip", &["-d", "link", "show", &host_link_name(&plain.id)]);
        assert!(link.contains("hairpin off"), "{link}");
    });
}

#[test]
fn pods_come_and_go_as_elements() {
    on_a_host(|| async {
        let bridge = bridge();
        let first = attached(&bridge, 1, &[mapping(Protocol::Tcp, None, 8080, 80)]).await;
        let handles = || run("nft", &["-a", "list", "ruleset"]).matches("# handle").count();
        let rules_before = run("nft", &["-a", "-s", "list", "chain", "ip", "coracle_coracle0", "to_pods"]);
        let before = handles();
        let ports = [mapping(Protocol::Tcp, Some(HOST), 9090, 90), mapping(Protocol::Sctp, None, 8080, 80)];
        let second = attached(&bridge, 2, &ports).await;
        let own = format!("sctp . 8080 : {} . 80", second.lease.address);
        assert_eq!(elements("ports"), set([&format!("tcp . 8080 : {} . 80", first.lease.address), &own]));
        assert_eq!(elements("ports_at"), set([&format!("tcp . {HOST} . 9090 : {} . 90", second.lease.address)]));
        bridge.detach(&first.id).await.unwrap();
        assert_eq!(elements("ports"), set([&own]));
        assert_eq!(handles(), before);
        assert_eq!(run("nft", &["-a", "-s", "list", "chain", "ip", "coracle_coracle0", "to_pods"]), rules_before, "the same rules");
        bridge.detach(&second.id).await.unwrap();
        assert_eq!(rules(), PLAIN_RULES);
    });
}

#[test]
fn a_port_is_another_pods_only_when_the_first_is_gone() {
    on_a_host(|| async {
        let bridge = bridge();
        let ports = [mapping(Protocol::Tcp, None, 8080, 80)];
        let first = attached(&bridge, 1, &ports).await;
        let second = Pod::unattached(&bridge, 2);
        let (metadata, before) = (metadata(), rules());
        let error = bridge.claim_ports(&request(&second, &metadata, &ports)).unwrap_err().to_string();
        assert!(error.contains("8080/tcp") && error.contains(first.id.short()), "{error}");
        bridge.detach(&second.id).await.unwrap();
        assert_eq!(rules(), before);
        bridge.detach(&first.id).await.unwrap();
        bridge.claim_ports(&request(&second, &metadata, &ports)).unwrap();
        second.attach(&bridge).await;
        connect(None, &listen(&second, 80), (GATEWAY, 8080));
    });
}

#[test]
fn rules_that_somebody_changed_are_put_right_by_the_next_pod() {
    on_a_host(|| async {
        let bridge = bridge();
        let first = attached(&bridge, 1, &[mapping(Protocol::Tcp, None, 8080, 80)]).await;
        let server = listen(&first, 80);
        let breakages: [&[&str]; 4] = [
            &["nft", "flush", "ruleset"],
            &["nft", "add", "element", "ip", "coracle_coracle0", "ports", "{ tcp . 9002 : 10.87.9.9 . 1 }"],
            &["ip", "link", "delete", "coracle0"],
            &["sysctl", "-qw", "net.ipv4.conf.coracle0.route_localnet=0"],
        ];
        for (number, breakage) in (1u8..).zip(breakages) {
            run(breakage[0], &breakage[1..]);
            let port = 9000 + u16::from(number);
            let pod = attached(&bridge, 10 + number, &[mapping(Protocol::Tcp, None, port, 80)]).await;
            connect(None, &listen(&pod, 80), (Ipv4Addr::LOCALHOST, port));
            connect(None, &server, (GATEWAY, 8080));
            let link = run("ip", &["-d", "link", "show", &host_link_name(&first.id)]);
            assert!(link.contains("hairpin on"), "{breakage:?}: {link}");
            assert!(elements("ports").contains(&format!("tcp . {port} : {} . 80", pod.lease.address)), "{breakage:?}");
        }
        run("nft", &["flush", "map", "ip", "coracle_coracle0", "ports"]);
        bridge.detach(&first.id).await.unwrap();
        assert!(!rules().contains("8080"));
        assert_eq!(elements("ports").len(), 4, "those of the others are there again");
    });
}

#[test]
fn the_next_daemon_makes_the_rules_those_of_the_living() {
    on_a_host(|| async {
        let before = bridge();
        let (metadata, ports) = (metadata(), [8080, 8081].map(|port| [mapping(Protocol::Tcp, None, port, 80)]));
        let living = attached(&before, 1, &ports[0]).await;
        let gone = attached(&before, 2, &ports[1]).await;
        let never_attached = claimant(&before, 3, &[mapping(Protocol::Tcp, None, 8082, 80)]);
        run("nft", &["delete", "element", "ip", "coracle_coracle0", "ports", "{ tcp . 8080 }"]);

        let after = bridge();
        after.adopt(&living.id, &living.lease);
        after.adopt_ports(&request(&living, &metadata, &ports[0])).unwrap();
        let doomed = request(&gone, &metadata, &ports[1]);
        after.adopt_ports(&doomed).unwrap();
        after.detach(&gone.id).await.unwrap();
        assert!(rules().contains("8081"), "while pods are taken over, no rules are written that lack some of them");
        after.detach(&never_attached.id).await.unwrap();
        let known = HashSet::from([&living, &gone].map(|pod| host_link_name(&pod.id)));
        after.sweep(&known).await.unwrap();
        assert_eq!(elements("ports"), set([&format!("tcp . 8080 : {} . 80", living.lease.address)]));
        connect(None, &listen(&living, 80), (Ipv4Addr::LOCALHOST, 8080));

        let last = bridge();
        last.sweep(&HashSet::new()).await.unwrap();
        assert_eq!(rules(), PLAIN_RULES);
        assert_eq!(fs::read_to_string(ROUTE_LOCALNET).unwrap(), "0\n");
    });
}

#[test]
fn the_next_daemon_writes_the_rules_of_thousands_of_ports() {
    on_a_host(|| async {
        let (bridge, metadata) = (bridge(), metadata());
        for seed in 1..9 {
            let pod = Pod::unattached(&bridge, seed);
            let ports: Vec<_> = (0..1000).map(|port| mapping(Protocol::Tcp, None, u16::from(seed) * 1000 + port, 80)).collect();
            bridge.adopt_ports(&request(&pod, &metadata, &ports)).unwrap();
        }
        assert_eq!(bridge.ready().await, Ok(()));
        assert_eq!(elements("ports").len(), 8000);
    });
}

#[test]
fn a_failed_attachment_leaves_no_port_open() {
    on_a_host(|| async {
        let bridge = bridge();
        let (first, late) = (attached(&bridge, 1, &[mapping(Protocol::Tcp, None, 8080, 80)]).await, mapping(Protocol::Tcp, None, 8081, 80));
        let late = claimant(&bridge, 2, &[late]);
        let file = fs::File::open("/proc/version").unwrap();
        let error = bridge.attach(&late.id, file.as_fd(), &late.lease).await.unwrap_err();
        assert!(error.to_string().contains("entering the network namespace"), "{error}");
        bridge.detach(&late.id).await.unwrap();
        assert_eq!(elements("ports"), set([&format!("tcp . 8080 : {} . 80", first.lease.address)]));
    });
}

#[test]
fn a_udp_flow_follows_its_port_from_pod_to_pod() {
    on_a_host(|| async {
        let (bridge, outside) = (bridge(), neighbour());
        let ports = [mapping(Protocol::Udp, None, 5353, 53)];
        // The kernel follows connections only where there are rules that care.
        bridge.ensure().await.unwrap();
        let clients = [ask_from(Some(&outside), (HOST, 5353)), ask_from(None, (HOST, 5353))];
        for client in &clients {
            // Nobody has the port yet, and the kernel says so.
            client.send(b"early").unwrap();
            assert!(client.recv(&mut [0; 8]).is_err());
        }
        let several = [mapping(Protocol::Udp, None, 5353, 53), mapping(Protocol::Udp, None, 5354, 54)];
        for (seed, ports) in [(1, &ports[..]), (2, &several), (3, &ports)] {
            let pod = attached(&bridge, seed, ports).await;
            let server = receive_at(&pod.namespace, Ipv4Addr::UNSPECIFIED, 53);
            for client in &clients {
                ask(client, &server);
            }
            bridge.detach(&pod.id).await.unwrap();
        }
        let successor = receive_at_host(5353);
        for client in &clients {
            ask(client, &successor);
        }
    });
}

#[test]
fn a_udp_flow_to_a_pod_whose_end_the_next_daemon_finishes_is_forgotten() {
    on_a_host(|| async {
        let outside = neighbour();
        let (metadata, ports) = (metadata(), [5353, 5454].map(|port| [mapping(Protocol::Udp, None, port, 53)]));
        let before = bridge();
        let stopped = attached(&before, 1, &ports[0]).await;
        let ended_meanwhile = attached(&before, 2, &ports[1]).await;
        let clients = [5353, 5454].map(|port| ask_from(Some(&outside), (HOST, port)));
        for (client, pod) in clients.iter().zip([&stopped, &ended_meanwhile]) {
            ask(client, &receive_at(&pod.namespace, Ipv4Addr::UNSPECIFIED, 53));
        }

        let after = bridge();
        after.give_up_ports(&request(&stopped, &metadata, &ports[0])).unwrap();
        after.adopt_ports(&request(&ended_meanwhile, &metadata, &ports[1])).unwrap();
        for pod in [&stopped, &ended_meanwhile] {
            after.detach(&pod.id).await.unwrap();
        }
        after.sweep(&HashSet::new()).await.unwrap();
        for (client, port) in clients.iter().zip([5353, 5454]) {
            ask(client, &receive_at_host(port));
        }
    });
}

/// A process of the host that has the port now.
fn receive_at_host(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((HOST, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn many_pods_open_and_close_ports_at_the_same_time() {
    on_a_host(|| async {
        let bridge = bridge();
        let pods: Vec<_> =
            (0..16u8).map(|seed| claimant(&bridge, seed, &[mapping(Protocol::Tcp, None, 8000 + u16::from(seed), 80)])).collect();
        futures_util::future::join_all(pods.iter().map(|pod| pod.attach(&bridge))).await;
        assert_eq!(elements("ports").len(), 16);
        let (going, staying) = pods.split_at(8);
        futures_util::future::join_all(going.iter().map(|pod| async { bridge.detach(&pod.id).await.unwrap() })).await;
        let expected: HashSet<_> =
            (8u16..).zip(staying).map(|(number, pod)| format!("tcp . {} : {} . 80", 8000 + number, pod.lease.address)).collect();
        assert_eq!(elements("ports"), expected);
    });
}
