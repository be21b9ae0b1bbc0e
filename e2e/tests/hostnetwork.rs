//! Pods that share the node's network.

use coracle_e2e::{ContainerSpec, Node, PodSpec, eventually, host};

#[tokio::test]
async fn a_pod_with_the_nodes_network_sees_the_nodes_links_and_name() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("shared").host_network()).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let ours = std::fs::read_link("/proc/self/ns/net").expect("our own namespace");
    assert_eq!(container.shell("readlink /proc/self/ns/net").await, ours.to_string_lossy());
    let name = host::run("hostname", &[]).expect("hostname");
    assert_eq!(container.shell("hostname").await, name.trim());
    assert_ne!(container.exec(&["/bin/hostname", "changed"]).await.code, 0, "and cannot change it");
    let status = pod.status().await;
    let network = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options).map(|options| options.network);
    assert_eq!(network, Some(coracle_e2e::api::NamespaceMode::Node.into()));
    assert!(status.network.is_none_or(|network| network.ip.is_empty()), "it has no address of its own");
    node.finish().await;
}

#[tokio::test]
async fn what_it_serves_is_served_on_the_nodes_loopback() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let port = host::free_port(std::net::Ipv4Addr::LOCALHOST);
    let pod = node.run(&PodSpec::new("server").host_network()).await;
    let script = format!("echo ahoy >/var/www/index.html; exec httpd -f -p 127.0.0.1:{port} -h /var/www");
    pod.start(&ContainerSpec::new("c", &image).script(&script)).await;
    let url = format!("http://127.0.0.1:{port}/");
    assert_eq!(eventually("an answer on loopback", || async { host::http_get(&url) }).await, "ahoy\n");
    pod.stop().await;
    assert_eq!(host::http_get(&url), None, "and not after the pod was stopped");
    node.finish().await;
}

#[tokio::test]
async fn it_needs_neither_bridge_nor_address() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("plain").host_network()).await;
    pod.start(&ContainerSpec::new("c", &image)).await;
    let ports = std::fs::read_dir(format!("/sys/class/net/{}/brif", node.footprint.bridge)).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(ports, 0, "nothing is attached to the bridge");
    node.finish().await;
}
