//! The harness itself: its leak check finds leaks, and what the documentation says of tests is so.

use coracle_e2e::{Node, host};

#[tokio::test]
async fn every_kind_of_leak_is_found() {
    let Some(node) = Node::own().await else { return };
    let pod = node.pod("leaky").await;
    pod.stop().await;
    pod.remove().await;
    assert_eq!(node.remains(), Vec::<String>::new());

    let state = node.footprint.state.clone();
    let mount = state.join("mount");
    std::fs::create_dir(&mount).expect("making a directory");
    host::run("mount", &["-t", "tmpfs", "none", &host::text(&mount)]).expect("mounting");
    std::fs::create_dir(state.join("pods").join("left")).expect("making a directory");
    let group = host::cgroup_mounts().pop().expect("a hierarchy of cgroups").join(&node.footprint.cgroup_root).join("left");
    std::fs::create_dir_all(&group).expect("making a cgroup");
    let bridge = node.footprint.bridge.clone();
    let (here, there) = (format!("{bridge}a"), format!("{bridge}b"));
    host::run("ip", &["link", "add", &here, "type", "veth", "peer", "name", &there]).expect("making a link");
    host::run("ip", &["link", "set", &here, "master", &bridge]).expect("attaching it");
    let table = node.footprint.table();
    let map = "{ type inet_proto . inet_service : ipv4_addr . inet_service; elements = { tcp . 1 : 192.0.2.1 . 1 }; }";
    host::run("nft", &["add", "map", "ip", &table, "left", map]).expect("adding a map");
    let mut process = std::process::Command::new("/bin/sleep").arg("1000").current_dir(&state).spawn().expect("starting a process");

    let found = node.objects();
    for kind in ["process", "mount", "link", "cgroup", "host port tcp 1 192.0.2.1 1", "file"] {
        assert!(found.iter().any(|what| what.starts_with(kind)), "no {kind} in {found:?}");
    }

    process.kill().and_then(|()| process.wait()).expect("ending the process");
    host::run("ip", &["link", "delete", &here]).expect("removing the link");
    host::run("nft", &["delete", "map", "ip", &table, "left"]).expect("removing the map");
    std::fs::remove_dir(&group).expect("removing the cgroup");
    host::unmount(&[], &mount).expect("unmounting");
    std::fs::remove_dir(&mount).expect("removing a directory");
    std::fs::remove_dir(state.join("pods").join("left")).expect("removing a directory");
    node.finish().await;
}

#[tokio::test]
#[should_panic(expected = "the test did not finish its node")]
async fn a_node_that_is_not_finished_fails_its_test() {
    if let Some(node) = Node::own().await {
        node.pod("forgotten").await;
    } else {
        panic!("the test did not finish its node: nothing to try it on here");
    }
}

#[test]
fn every_test_that_the_tables_name_is_there() {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["conformance", "reliability"] {
        let tables = std::fs::read_to_string(package.join(format!("../docs/{document}.md"))).expect("reading a document");
        let named: Vec<(&str, &str)> =
            tables.split('`').filter(|word| !word.contains(' ')).filter_map(|word| word.split_once("::")).collect();
        assert!(named.len() > 20, "{document}: {named:?}");
        for (file, test) in named.into_iter().filter(|name| *name != ("file", "test")) {
            let source = std::fs::read_to_string(package.join(format!("tests/{file}.rs"))).unwrap_or_default();
            assert!(source.contains(&format!("fn {test}(")), "{document}: there is no {file}::{test}");
        }
    }
}
