//! The bridge network on a real kernel: each test is a host of its own, in namespaces that it made. Needs
//! root, `ip` and `nft`.

#![allow(clippy::unwrap_used)]

mod common;
mod host_ports;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Pod, connect, dial, eventually, link_exists, neighbour, on_a_host, run};
use coracle_network::{Bridge, BridgeConfig, POD_INTERFACE, host_link_name, interfaces_of};

fn bridge(subnet: &str) -> Bridge {
    Bridge::new(BridgeConfig { subnet: subnet.parse().unwrap(), ..BridgeConfig::default() })
}

#[test]
fn pods_reach_each_other_and_the_gateway_at_once() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let (left, right) = (Pod::attached(&bridge, 1).await, Pod::attached(&bridge, 2).await);
        assert_eq!(connect(&left.namespace, &right.namespace, right.lease.address), left.lease.address);
        assert_eq!(connect(&right.namespace, &left.namespace, left.lease.address), right.lease.address);
        let listener = TcpListener::bind((left.lease.gateway, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        left.namespace.inside(|| dial(target));
        assert_eq!(listener.accept().unwrap().1.ip(), left.lease.address);
        let own = left.namespace.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        left.namespace.inside(|| dial(own.local_addr().unwrap()));
    });
}

#[test]
fn what_leaves_the_node_wears_its_address() {
    on_a_host(|| async {
        let outside = neighbour();
        let bridge = bridge("10.87.0.0/16");
        let pod = Pod::attached(&bridge, 1).await;
        assert_eq!(connect(&pod.namespace, &outside, Ipv4Addr::new(198, 51, 100, 2)), Ipv4Addr::new(198, 51, 100, 1));
        let shown = pod.namespace.inside(|| run("ip", &["link", "show", POD_INTERFACE]));
        assert!(shown.contains("mtu 1400"), "the uplink's limit is the pod's: {shown}");
    });
}

#[test]
fn the_rules_read_as_they_were_meant() {
    on_a_host(|| async {
        bridge("10.87.0.0/16").ensure().await.unwrap();
        let listing = run("nft", &["list", "ruleset"]);
        let expected = "table ip coracle_coracle0 {\n\tchain postrouting {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tip saddr 10.87.0.0/16 ip daddr != 10.87.0.0/16 masquerade\n\t}\n}\n";
        assert_eq!(listing, expected);
        assert_eq!(forward(), "1\n");
    });
}

fn forward() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()
}

#[test]
fn setting_up_twice_changes_nothing() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        bridge.ensure().await.unwrap();
        let before = (run("nft", &["list", "ruleset"]), run("ip", &["-o", "addr", "show", "coracle0"]));
        bridge.ensure().await.unwrap();
        assert_eq!(before, (run("nft", &["list", "ruleset"]), run("ip", &["-o", "addr", "show", "coracle0"])));
    });
}

#[test]
fn a_second_attempt_replaces_what_the_first_left() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let (pod, other) = (Pod::attached(&bridge, 1).await, Pod::attached(&bridge, 2).await);
        let retry = Pod { lease: bridge.lease(&pod.id).unwrap(), ..pod };
        retry.attach(&bridge).await;
        connect(&other.namespace, &retry.namespace, retry.lease.address);
        let addresses = retry.namespace.inside(|| run("ip", &["-4", "-o", "addr", "show", POD_INTERFACE]));
        assert_eq!(addresses.matches("inet ").count(), 1, "{addresses}");
        assert_eq!(run("ip", &["-o", "link", "show", "master", "coracle0"]).lines().count(), 2);
    });
}

#[test]
fn a_pods_link_goes_with_its_namespace() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let pod = Pod::attached(&bridge, 1).await;
        let name = host_link_name(&pod.id);
        assert!(link_exists(&name));
        bridge.detach(&pod.id).await.unwrap();
        bridge.detach(&pod.id).await.unwrap();
        drop(pod);
        eventually("the link's end", || !link_exists(&name)).await;
    });
}

#[test]
fn an_address_is_anothers_only_when_the_link_of_who_had_it_is_gone() {
    on_a_host(|| async {
        // It has one address for pods.
        let bridge = bridge("10.87.0.0/30");
        let kept = Pod::attached(&bridge, 1).await;
        bridge.detach(&kept.id).await.unwrap();
        bridge.release(&kept.id);
        let heir = Pod::attached(&bridge, 2).await;
        assert_eq!(heir.lease.address, kept.lease.address);
        assert!(!link_exists(&host_link_name(&kept.id)), "though somebody holds its namespace");
        assert!(link_exists(&host_link_name(&heir.id)));
    });
}

#[test]
fn a_sweep_deletes_the_links_of_unknown_pods_only() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        assert!(bridge.sweep(&HashSet::new()).await.unwrap().is_empty());
        let (known, stray) = (Pod::attached(&bridge, 1).await, Pod::attached(&bridge, 2).await);
        run("ip", &["link", "add", "foreign", "type", "veth", "peer", "name", "corforeign"]);
        run("ip", &["link", "set", "corforeign", "master", "coracle0"]);
        let names = HashSet::from([host_link_name(&known.id)]);
        assert_eq!(bridge.sweep(&names).await.unwrap(), [host_link_name(&stray.id)]);
        assert!(link_exists(&host_link_name(&known.id)) && link_exists("corforeign") && !link_exists(&host_link_name(&stray.id)));
    });
}

#[test]
fn what_somebody_deleted_is_put_right_by_the_next_attachment() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let first = Pod::attached(&bridge, 1).await;
        let breakages: [&[&str]; 4] = [
            &["ip", "link", "delete", "coracle0"],
            &["nft", "flush", "ruleset"],
            &["ip", "addr", "flush", "dev", "coracle0"],
            &["ip", "link", "set", "coracle0", "down"],
        ];
        for (seed, breakage) in (10..).zip(breakages) {
            run(breakage[0], &breakage[1..]);
            let (left, right) = (Pod::attached(&bridge, seed).await, Pod::attached(&bridge, seed + 100).await);
            connect(&left.namespace, &right.namespace, right.lease.address);
            connect(&first.namespace, &left.namespace, left.lease.address);
            connect(&right.namespace, &first.namespace, first.lease.address);
            assert!(run("nft", &["list", "ruleset"]).contains("masquerade"), "{breakage:?}");
            assert!(run("ip", &["addr", "show", "coracle0"]).contains("10.87.0.1/16"), "{breakage:?}");
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(bridge.ready().await, Ok(()));
        assert_eq!(forward(), "1\n");
    });
}

#[test]
fn pods_of_an_earlier_subnet_live_on() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let old = Pod::attached(&bridge, 1).await;
        bridge.set_subnet("10.99.3.0/24".parse().unwrap());
        let new = Pod::attached(&bridge, 2).await;
        assert_eq!(new.lease.gateway, Ipv4Addr::new(10, 99, 3, 1));
        connect(&old.namespace, &new.namespace, new.lease.address);
        connect(&new.namespace, &old.namespace, old.lease.address);
        assert_eq!(run("nft", &["list", "ruleset"]).matches("masquerade").count(), 2);
        bridge.release(&old.id);
        bridge.ensure().await.unwrap();
        assert!(!run("nft", &["list", "ruleset"]).contains("10.87.0.0"));
        assert!(!run("ip", &["addr", "show", "coracle0"]).contains("10.87.0.1"));
    });
}

#[test]
fn a_link_that_is_no_bridge_is_left_alone_and_named() {
    on_a_host(|| async {
        run("ip", &["link", "add", "coracle0", "type", "veth", "peer", "name", "other"]);
        let problem = bridge("10.87.0.0/16").ready().await.unwrap_err();
        assert!(problem.contains("coracle0") && problem.contains("veth"), "{problem}");
        assert!(link_exists("coracle0"));
    });
}

#[test]
fn a_failed_attachment_names_its_step_and_leaves_nothing() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let pod = Pod::unattached(&bridge, 1);
        let file = fs::File::open("/proc/version").unwrap();
        let error = bridge.attach(&pod.id, file.as_fd(), &pod.lease).await.unwrap_err();
        assert!(error.to_string().contains("entering the network namespace"), "{error}");
        assert!(!link_exists(&host_link_name(&pod.id)));
    });
}

#[test]
fn counters_are_those_of_the_pods_own_interface() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        let (sender, receiver) = (Pod::attached(&bridge, 1).await, Pod::attached(&bridge, 2).await);
        let listener = receiver.namespace.inside(|| TcpListener::bind((receiver.lease.address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        sender.namespace.inside(|| TcpStream::connect(target).unwrap().write_all(&[0; 10_000]).unwrap());
        std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap();
        let of = |pod: &Pod| {
            let mut sleeper = pod.namespace.inside(|| Command::new("sleep").arg("100").spawn().unwrap());
            let stats = interfaces_of(sleeper.id().try_into().unwrap()).unwrap();
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
            stats.interfaces.into_iter().find(|interface| interface.name == POD_INTERFACE).unwrap()
        };
        let (sender, receiver) = (of(&sender), of(&receiver));
        assert!(sender.sent.bytes > 10_000 && sender.received.bytes < 10_000 && sender.sent.packets > 1, "{sender:?}");
        assert!(receiver.received.bytes > 10_000 && receiver.sent.bytes < 10_000, "{receiver:?}");
    });
}

#[test]
fn a_torn_down_network_leaves_nothing_and_can_stand_again() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        bridge.teardown().await.unwrap();
        let pod = Pod::attached(&bridge, 1).await;
        bridge.teardown().await.unwrap();
        bridge.teardown().await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        assert!(!link_exists("coracle0") && !link_exists(&host_link_name(&pod.id)));
        pod.attach(&bridge).await;
        assert!(link_exists(&host_link_name(&pod.id)));
    });
}

#[test]
fn without_masquerading_there_is_no_table() {
    on_a_host(|| async {
        bridge("10.87.0.0/16").ensure().await.unwrap();
        Bridge::new(BridgeConfig { masquerade: false, ..BridgeConfig::default() }).ready().await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn many_pods_attach_at_the_same_time() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/24");
        let attachments: Vec<_> = (0..30).map(|seed| Pod::attached(&bridge, seed)).collect();
        let pods = futures_util::future::join_all(attachments).await;
        let addresses: HashSet<_> = pods.iter().map(|pod| pod.lease.address).collect();
        assert_eq!(addresses.len(), 30);
        connect(&pods[0].namespace, &pods[29].namespace, pods[29].lease.address);
    });
}

/// Prints how long an attachment takes. `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_long_an_attachment_takes() {
    on_a_host(|| async {
        let bridge = bridge("10.87.0.0/16");
        bridge.ensure().await.unwrap();
        let mut pods = Vec::new();
        let mut times: Vec<Duration> = Vec::new();
        for seed in 0..60 {
            let pod = Pod::unattached(&bridge, seed);
            let before = Instant::now();
            pod.attach(&bridge).await;
            times.push(before.elapsed());
            pods.push(pod);
        }
        let before = Instant::now();
        bridge.ready().await.unwrap();
        let ready = before.elapsed();
        times.drain(..10);
        times.sort();
        println!("attach: median {:?}, fastest {:?}, slowest {:?}; ready: {ready:?}", times[25], times[0], times[49]);
    });
}
