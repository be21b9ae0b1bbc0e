//! How sessions end: by the program, by a client that goes away, by a limit, by the daemon's end. An exec ends with its
//! session and leaves nothing behind; a container never notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use coracle_e2e::api::ExecRequest;
use coracle_e2e::session::{GET, REMOTE, STDIN, STDOUT, Session, answering, exit_code, in_terminal, script, server};
use coracle_e2e::{Container, ContainerSpec, Node, eventually, host, leaks};

/// Leaves its session and its streams behind, and does not mind a terminal's end.
const STAYS: &str = "trap '' HUP; setsid sh -c 'exec sleep 100000 <&- >&- 2>&-' & echo ready; sleep 100000";

/// Waits until nothing but these processes is left in a container.
async fn only(container: &Container, processes: &[i32]) {
    eventually("the end of all execs", || async { (container.host_pids() == processes).then_some(()) }).await;
}

/// The cgroups of execs that are there.
fn leaves(node: &Node) -> Vec<String> {
    let all = host::cgroups(Path::new(&node.footprint.cgroup_root)).into_iter().flat_map(|root| leaks::tree(&root));
    let names = all.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    names.filter(|name| name.starts_with("exec-")).collect()
}

/// Waits until it listens, on 8080 as the kernel writes it.
async fn listening(container: &Container) {
    eventually("a listener", || async { container.shell("cat /proc/net/tcp /proc/net/tcp6").await.contains(":1F90 ").then_some(()) }).await;
}

/// An exec with a client, another in a terminal and an ExecSync, all of which go on for ever with a process that hides.
async fn three_execs(node: &Node, container: &Container) -> ([Session; 2], tokio::task::JoinHandle<bool>) {
    let mut sessions = [Session::exec(node, script(container, STAYS)).await, Session::exec(node, in_terminal(container, STAYS)).await];
    for session in &mut sessions {
        session.until(STDOUT, "ready").await;
    }
    let before = container.host_pids().len();
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let call = tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", STAYS], 0).await.is_ok() });
    eventually("ExecSync", || async { (container.host_pids().len() >= before + 2).then_some(()) }).await;
    (sessions, call)
}

#[tokio::test]
async fn what_a_killed_daemon_executed_is_ended_by_the_next() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("killed").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let serving = pod.start(&server(&image, &["127.0.0.1:8080"])).await;
    listening(&serving).await;
    let counting = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let counter = pod.start(&ContainerSpec::new("counter", &image).script(counting)).await;
    let alone = container.host_pids();
    let (mut execs, call) = three_execs(&node, &container).await;
    let mut attached = Session::attach(&node, &counter, false).await;
    attached.until(STDOUT, "\n").await;
    let mut forwarded = Session::forward(&node, &pod.id, &[8080]).await;
    forwarded.send(0, GET).await;
    forwarded.until(0, "ahoy").await;

    node.kill_daemon();
    for session in execs.iter_mut().chain([&mut attached, &mut forwarded]) {
        session.broken_off().await;
    }
    assert!(!call.await.expect("the call itself does not panic"), "its daemon died");
    let during = counter.lines("stdout").len();
    eventually("the log to go on", || async { (counter.lines("stdout").len() > during).then_some(()) }).await;
    node.start_daemon().await;

    only(&container, &alone).await;
    eventually("the end of the execs' cgroups", || async { leaves(&node).is_empty().then_some(()) }).await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    let mut again = Session::attach(&node, &counter, false).await;
    again.until(STDOUT, "\n").await;
    let lines = counter.lines("stdout");
    assert!(lines.iter().enumerate().all(|(number, line)| *line == number.to_string()), "the log is whole: {lines:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_leaves_no_exec() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("told").await.start(&answering(&image, false)).await;
    let alone = container.host_pids();
    let (mut execs, call) = three_execs(&node, &container).await;
    let mut attached = Session::attach(&node, &container, false).await;
    attached.send(STDIN, b"one\n").await;
    attached.until(STDOUT, "got one\n").await;

    assert!(node.terminate_daemon().await.success());
    assert_eq!(container.host_pids(), alone, "at its end, not some time later");
    assert_eq!(leaves(&node), [""; 0]);
    for session in execs.iter_mut().chain([&mut attached]) {
        session.broken_off().await;
    }
    let _ = call.await.expect("the call itself does not panic");
    node.start_daemon().await;
    let mut again = Session::attach(&node, &container, false).await;
    again.send(STDIN, b"two\n").await;
    again.until(STDOUT, "got two\n").await;
    node.finish().await;
}

#[tokio::test]
async fn silence_ends_a_session_and_its_exec() {
    let Some(node) = Node::own_configured("[streaming]\nidle_seconds = 5\ncreation_seconds = 1\n").await else { return };
    let image = node.busybox().await;
    let container = node.pod("silent").await.start(&answering(&image, true)).await;
    let alone = container.host_pids();
    // Held open, as by a host that has crashed and says nothing.
    let mut silent = Session::exec(&node, script(&container, STAYS)).await;
    silent.until(STDOUT, "ready").await;
    silent.broken_off().await;
    only(&container, &alone).await;

    // A client that opens none of the streams that it needs.
    let url = node.cri.exec_url(script(&container, "true")).await.expect("Exec");
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut lazy = TcpStream::connect(address).expect("connecting");
    let head = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    lazy.write_all(format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n").as_bytes()).expect("writing");
    let mut answer = Vec::new();
    lazy.read_to_end(&mut answer).expect("the server ends it");
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0, "the container goes on");
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_resets_its_connection_ends_its_exec() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("reset").await.start(&ContainerSpec::new("c", &image)).await;
    let alone = container.host_pids();
    for request in [script(&container, STAYS), in_terminal(&container, STAYS)] {
        let mut session = Session::exec(&node, request).await;
        session.until(STDOUT, "ready").await;
        session.reset();
        only(&container, &alone).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn an_exec_ends_with_its_program_whoever_holds_its_output() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("held").await.start(&ContainerSpec::new("c", &image)).await;
    let alone = container.host_pids();
    let text = "trap '' HUP; setsid sleep 100000 & echo last; exit 4";
    for request in [script(&container, text), in_terminal(&container, text)] {
        let mut session = Session::exec(&node, request).await;
        assert_eq!(exit_code(&session.end().await), 4);
        assert_eq!(session.text(STDOUT).trim_end(), "last");
        only(&container, &alone).await;
    }
    let closed = "exec >&- 2>&-; setsid sleep 100000 & sleep 0.1; exit 5";
    let mut session = Session::exec(&node, script(&container, closed)).await;
    assert_eq!(exit_code(&session.end().await), 5, "its output's end is not its own");
    only(&container, &alone).await;
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_at_which_nobody_looks_holds_up_nobody() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("unseen").await.start(&ContainerSpec::new("c", &image)).await;
    let text = "seq 1 200000; read line; test \"$line\" = word && exit 6";
    let mut session = Session::exec(&node, ExecRequest { stdout: false, ..in_terminal(&container, text) }).await;
    session.send(STDIN, b"word\n").await;
    assert_eq!(exit_code(&session.end().await), 6);
    assert_eq!(session.text(STDOUT), "");
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_has_no_end_of_input() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("endless").await.start(&ContainerSpec::new("c", &image)).await;
    let text = "trap 'echo told; exit 7' USR1; echo \"I am $$.\"; read line; echo ended; exit 8";
    let mut session = Session::exec(&node, in_terminal(&container, text)).await;
    let said = session.until(STDOUT, ".").await;
    let pid = said.trim_start_matches("I am ").split('.').next().expect("a number").to_owned();
    session.close(STDIN).await;
    container.shell(&format!("kill -USR1 {pid}")).await;
    assert_eq!(exit_code(&session.end().await), 7, "the client hears the program to its end: {}", session.text(STDOUT));
    node.finish().await;
}

#[tokio::test]
async fn fifty_sessions_share_a_container() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("crowd").await.start(&answering(&image, false)).await;
    let mut sessions = Vec::new();
    for number in 0..50 {
        sessions.push(match number % 5 {
            0 => Session::attach(&node, &container, false).await,
            _ => Session::exec(&node, ExecRequest { stdin: true, ..script(&container, "cat; exit 2") }).await,
        });
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        session.send(STDIN, format!("I am {number}\n").as_bytes()).await;
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        session.until(STDOUT, &format!("I am {number}\n")).await;
        session.close(STDIN).await;
        if number % 5 != 0 {
            assert_eq!(exit_code(&session.end().await), 2);
            assert_eq!(session.text(STDOUT), format!("I am {number}\n"), "it has its own streams");
        }
    }
    drop(sessions);
    node.finish().await;
}

#[tokio::test]
async fn a_session_with_a_container_that_is_gone_is_told_so() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("gone").await.start(&ContainerSpec::new("c", &image)).await;
    let url = node.cri.exec_url(script(&container, "true")).await.expect("Exec");
    container.stop(0).await;
    container.remove().await;
    let status = Session::begin(&url, REMOTE).await.end().await;
    assert_eq!(status["status"], "Failure");
    assert!(node.target.is_foreign() || status["message"].as_str().is_some_and(|message| message.contains(&container.id)), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn a_listener_on_ipv6_alone_is_reached() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("six").await;
    let container = pod.start(&server(&image, &["[::1]:8080"])).await;
    listening(&container).await;
    let mut session = Session::forward(&node, &pod.id, &[8080]).await;
    session.send(0, GET).await;
    session.until(0, "ahoy").await;
    drop(session);
    node.finish().await;
}

#[tokio::test]
async fn twenty_connections_share_a_session_and_end_with_their_pod() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("many").await;
    let container = pod.start(&server(&image, &["127.0.0.1:8080"])).await;
    listening(&container).await;
    let mut session = Session::forward(&node, &pod.id, &[8080; 20]).await;
    for connection in 0..20 {
        session.send(2 * connection, GET).await;
    }
    for connection in 0..20 {
        session.until(2 * connection, "ahoy").await;
        assert_eq!(session.bytes(2 * connection + 1).len(), 2, "nothing but its port on a good connection's error channel");
    }
    let mut idle = Session::forward(&node, &pod.id, &[8080]).await;
    idle.send(0, b"GET / HTTP").await;
    // Neither who has had an answer nor who waits for one holds the pod.
    pod.stop().await;
    pod.remove().await;
    assert!(node.target.is_foreign() || node.remains().is_empty(), "{:?}", node.remains());
    drop((session, idle));
    node.finish().await;
}
