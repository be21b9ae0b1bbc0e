//! Ports of the node that lead to pods: who reaches them, whose they are, and that they go with their pods.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use coracle_e2e::api::{PodSandboxState, Protocol};
use coracle_e2e::{Code, Container, ContainerSpec, DEADLINE, Node, Pod, PodSpec, eventually, host, skip};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PATIENCE: Option<Duration> = Some(DEADLINE);

/// A port that nobody on the machine has.
fn free_port() -> u16 {
    host::free_port(Ipv4Addr::UNSPECIFIED)
}

/// The addresses of the node by which its pods and others know it: the bridge's, and that of its uplink if it has one.
fn node_addresses(pod_address: &str) -> Vec<Ipv4Addr> {
    let [a, b, c, _] = pod_address.parse::<Ipv4Addr>().expect("the pod's address").octets();
    let uplink = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    });
    let uplink = match uplink.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_loopback() => Some(address),
        _ => None,
    };
    [Some(Ipv4Addr::new(a, b, c, 1)), uplink].into_iter().flatten().collect()
}

/// Runs `work` in the network of a container, on a thread that ends with it.
fn inside<T: Send>(container: &Container, work: impl FnOnce() -> T + Send) -> T {
    let pid = container.host_pids()[0];
    let enter = || {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("the container's network");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("entering the container's network");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join()).expect("the work inside")
}

/// A container that serves a page with the pod's name on port 80.
async fn web_server(pod: &Pod, image: &str) -> Container {
    let script = "hostname >/var/www/index.html; exec httpd -f -p 80 -h /var/www";
    let container = pod.start(&ContainerSpec::new("web", image).script(script)).await;
    eventually("the server", || async {
        (container.exec(&["/bin/wget", "-q", "-O", "-", "http://127.0.0.1/"]).await.code == 0).then_some(())
    })
    .await;
    container
}

fn page(address: impl std::fmt::Display, port: u16) -> Option<String> {
    host::http_get(&format!("http://{address}:{port}/")).map(|page| page.trim().to_owned())
}

fn is_refused(address: Ipv4Addr, port: u16) -> bool {
    TcpStream::connect((address, port)).is_err()
}

/// Waits until these are the node's host ports: a daemon closes what is nobody's while it serves already.
async fn only_these(node: &Node, expected: &BTreeSet<String>) {
    eventually(&format!("the host ports {expected:?}"), || async { (node.footprint.host_ports() == *expected).then_some(()) }).await;
}

fn element(words: &[&dyn std::fmt::Display]) -> String {
    words.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_tcp_port_is_reached_from_the_node_from_pods_and_from_the_pod_itself() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let port = free_port();
    let pod = node.run(&PodSpec::new("web").host_port(Protocol::Tcp, "", port, 80)).await;
    let server = web_server(&pod, &image).await;
    let client = node.pod("client").await.start(&ContainerSpec::new("c", &image)).await;
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("web"));
    for address in node_addresses(&pod.address().await) {
        assert_eq!(page(address, port).as_deref(), Some("web"), "from the node, at {address}");
        for container in [&client, &server] {
            assert_eq!(container.shell(&format!("wget -q -O - http://{address}:{port}/")).await, "web", "from a pod, at {address}");
        }
    }
    pod.stop().await;
    assert!(is_refused(Ipv4Addr::LOCALHOST, port), "and by nobody after the pod was stopped");
    node.finish().await;
}

/// Sends a question from `client` to a port and has `server` answer it.
fn ask(client: &UdpSocket, target: (Ipv4Addr, u16), server: &UdpSocket) {
    client.connect(target).expect("connecting a UDP socket");
    client.send(b"ahoy").expect("asking");
    let mut question = [0; 8];
    let (length, peer) = server.recv_from(&mut question).unwrap_or_else(|error| panic!("the question to {target:?}: {error}"));
    assert_eq!(&question[..length], b"ahoy");
    server.send_to(b"aye", peer).expect("answering");
    let length = client.recv(&mut question).unwrap_or_else(|error| panic!("the answer from {target:?}: {error}"));
    assert_eq!(&question[..length], b"aye");
}

fn datagrams(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a UDP socket");
    socket.set_read_timeout(PATIENCE).expect("a time limit");
    socket
}

#[tokio::test]
async fn a_udp_port_is_reached_from_the_node_from_pods_and_from_the_pod_itself() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let port = free_port();
    let client = node.pod("client").await.start(&ContainerSpec::new("c", &image)).await;
    // The same sockets ask one pod and then its successor.
    let (near, far) = (datagrams(0), inside(&client, || datagrams(0)));
    for name in ["first", "second"] {
        let pod = node.run(&PodSpec::new(name).host_port(Protocol::Udp, "", port, 53)).await;
        let container = pod.start(&ContainerSpec::new("c", &image)).await;
        let (server, own) = inside(&container, || (datagrams(53), datagrams(0)));
        ask(&near, (Ipv4Addr::LOCALHOST, port), &server);
        for address in node_addresses(&pod.address().await) {
            for socket in [&datagrams(0), &far, &own] {
                ask(socket, (address, port), &server);
            }
        }
        pod.stop().await;
    }
    // A socket keeps its pod's network alive.
    drop(far);
    node.finish().await;
}

fn sctp_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP))
}

#[tokio::test]
async fn an_sctp_port_leads_to_the_pod() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let port = free_port();
    let pod = node.run(&PodSpec::new("signalling").host_port(Protocol::Sctp, "", port, 38)).await;
    let address = pod.address().await;
    assert_eq!(node.footprint.host_ports(), BTreeSet::from([element(&[&"sctp", &port, &address, &38])]));
    if let Ok(client) = sctp_socket() {
        let container = pod.start(&ContainerSpec::new("c", &image)).await;
        let server = inside(&container, || {
            let socket = sctp_socket().expect("an SCTP socket");
            rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, 38))).expect("binding");
            rustix::net::listen(&socket, 1).expect("listening");
            socket
        });
        rustix::net::connect(&client, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).expect("connecting to the host port");
        rustix::net::accept(&server).expect("the association");
    } else {
        skip("in part: this kernel has no SCTP sockets; the rule stands");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_port_at_one_address_is_not_at_the_others() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let port = free_port();
    let pod = node.run(&PodSpec::new("local").host_port(Protocol::Tcp, "127.0.0.1", port, 80)).await;
    web_server(&pod, &image).await;
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("local"));
    let addresses = node_addresses(&pod.address().await);
    assert!(addresses.iter().all(|address| is_refused(*address, port)), "of {addresses:?}");
    let public = node.run(&PodSpec::new("public").host_port(Protocol::Tcp, &addresses[0].to_string(), port, 80)).await;
    web_server(&public, &image).await;
    assert_eq!(page(addresses[0], port).as_deref(), Some("public"), "another pod has the port at another address");
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("local"));
    node.finish().await;
}

#[tokio::test]
async fn a_mapping_without_a_host_port_opens_none() {
    let Some(node) = Node::own().await else { return };
    node.run(&PodSpec::new("inner").host_port(Protocol::Tcp, "", 0, 80)).await;
    node.run(&PodSpec::new("shared").host_network().host_port(Protocol::Tcp, "", free_port(), 80)).await;
    let table = host::run("nft", &["list", "table", "ip", &node.footprint.table()]).expect("the node's table");
    assert!(!table.contains("map") && !table.contains("dnat"), "{table}");
    node.finish().await;
}

#[tokio::test]
async fn a_taken_port_is_refused_and_nothing_is_left_of_the_attempt() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let (port, other) = (free_port(), free_port());
    let pod = node.run(&PodSpec::new("first").host_port(Protocol::Tcp, "", port, 80)).await;
    web_server(&pod, &image).await;
    let before = (node.footprint.host_ports(), node.pods().await);
    let rival = PodSpec::new("rival").host_port(Protocol::Tcp, "", other, 80).host_port(Protocol::Tcp, "127.0.0.1", port, 80);
    for round in 0..2 {
        let refused = node.try_run(&rival).await;
        let message = refused.as_ref().expect_err("the port is taken").message().to_owned();
        assert!(message.contains(&format!("{port}/tcp")) && message.contains("/first ("), "{message}");
        node.refused(refused, Code::FailedPrecondition, &pod.id[..12]);
        assert_eq!((node.footprint.host_ports(), node.pods().await), before);
        if round == 0 {
            // What is known of the ports comes from the records.
            node.restart().await;
        }
    }
    node.run(&PodSpec::new("beside").host_port(Protocol::Udp, "", port, 80).host_port(Protocol::Tcp, "", other, 80)).await;
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("first"));
    pod.stop().await;
    let heir = node.run(&PodSpec::new("heir").host_port(Protocol::Tcp, "127.0.0.1", port, 80)).await;
    web_server(&heir, &image).await;
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("heir"));
    node.finish().await;
}

#[tokio::test]
async fn contradictions_and_ipv6_are_refused() {
    let Some(node) = Node::own().await else { return };
    let port = free_port();
    let both = PodSpec::new("both").host_port(Protocol::Tcp, "", port, 80).host_port(Protocol::Tcp, "127.0.0.1", port, 81);
    node.refused(node.try_run(&both).await, Code::InvalidArgument, "config.port_mappings");
    node.refused(node.try_run(&PodSpec::new("six").host_port(Protocol::Tcp, "::1", port, 80)).await, Code::Unimplemented, "::1");
    node.finish().await;
}

#[tokio::test]
async fn a_pod_that_fails_gives_its_ports_back() {
    let Some(node) = Node::own().await else { return };
    let port = free_port();
    let spec = PodSpec::new("failing").host_port(Protocol::Tcp, "", port, 80);
    let broken = spec.clone().with(|config| {
        config.linux.get_or_insert_default().sysctls.insert("net.ipv4.no_such_parameter".to_owned(), "1".to_owned());
    });
    node.try_run(&broken).await.expect_err("there is no such parameter");
    assert_eq!(node.footprint.host_ports(), BTreeSet::new());
    node.run(&spec).await;
    assert_eq!(node.footprint.host_ports().len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn ports_outlive_the_daemon_and_end_with_their_pods() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let (port, gone) = (free_port(), free_port());
    let pod =
        node.run(&PodSpec::new("lasting").host_port(Protocol::Tcp, "", port, 80).host_port(Protocol::Udp, "127.0.0.1", port, 53)).await;
    web_server(&pod, &image).await;
    let doomed = node.run(&PodSpec::new("doomed").host_port(Protocol::Tcp, "", gone, 80)).await;
    doomed.start(&ContainerSpec::new("c", &image)).await;
    let address = pod.address().await;
    let own = BTreeSet::from([element(&[&"tcp", &port, &address, &80]), element(&[&"udp", &"127.0.0.1", &port, &address, &53])]);
    assert!(node.footprint.host_ports().is_superset(&own));

    node.kill_daemon();
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("lasting"), "it is served while the daemon is dead");
    // Meanwhile a pod's monitor dies, and somebody adds what belongs to nobody.
    for pid in node.footprint.monitors(&doomed.id) {
        host::kill(pid).await;
    }
    let stale = format!("{{ tcp . {} : 10.99.99.99 . 1 }}", free_port());
    host::run("nft", &["add", "element", "ip", &node.footprint.table(), "ports", &stale]).expect("adding a stale element");
    assert_eq!(node.footprint.host_ports().len(), 4);
    node.start_daemon().await;

    assert_eq!(doomed.status().await.state(), PodSandboxState::SandboxNotready);
    assert_eq!(page("127.0.0.1", port).as_deref(), Some("lasting"));
    only_these(&node, &own).await;
    pod.stop().await;
    assert_eq!(node.footprint.host_ports(), BTreeSet::new());
    assert!(is_refused(Ipv4Addr::LOCALHOST, port));
    node.restart().await;
    assert_eq!(node.footprint.host_ports(), BTreeSet::new(), "a stopped pod's do not come back");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_killed_while_it_creates_leaves_no_port_behind() {
    let Some(mut node) = Node::own().await else { return };
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    for round in 0..6_u64 {
        let spec = |(number, port): (usize, &u16)| PodSpec::new(&format!("r{round}n{number}")).host_port(Protocol::Tcp, "", *port, 80);
        let specs: Vec<PodSpec> = ports.iter().enumerate().map(|numbered| node.complete(&spec(numbered))).collect();
        let call = |spec: &PodSpec| {
            let (cri, config, handler) = (node.cri.clone(), spec.config.clone(), node.target.handler.clone());
            tokio::spawn(async move { cri.run_pod(&config, &handler).await })
        };
        let calls: Vec<_> = specs.iter().map(call).collect();
        tokio::time::sleep(Duration::from_millis(round * 4)).await;
        node.kill_daemon();
        for call in calls {
            let _ = call.await.expect("the call itself does not panic");
        }
        node.start_daemon().await;
        let mut expected = BTreeSet::new();
        for listed in node.pods().await {
            let status = node.cri.pod_status(&listed.id).await.expect("PodSandboxStatus").status.expect("a status");
            let name = status.metadata.map(|metadata| metadata.name).unwrap_or_default();
            let number: usize = name.rsplit('n').next().and_then(|digits| digits.parse().ok()).expect("the pod's number");
            expected.insert(element(&[&"tcp", &ports[number], &status.network.expect("a network").ip, &80]));
        }
        only_these(&node, &expected).await;
        // The retries that a kubelet makes; whoever is there already is joined.
        for spec in &specs {
            let pod = node.run(spec).await;
            pod.stop().await;
            pod.remove().await;
        }
        assert_eq!(node.footprint.host_ports(), BTreeSet::new(), "round {round}");
    }
    node.finish().await;
}
