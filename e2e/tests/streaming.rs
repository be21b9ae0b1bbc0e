//! Sessions: exec, attach and port-forward at the URLs that CRI answers with. The clients are tokio-tungstenite and, where
//! there is one on PATH, crictl, which speaks SPDY as kubectl does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use coracle_e2e::api::{AttachRequest, ExecRequest, LinuxContainerSecurityContext};
use coracle_e2e::session::{GET, REMOTE, STDERR, STDIN, STDOUT, Session, answering, exit_code, in_terminal, script, server};
use coracle_e2e::{Code, Container, ContainerSpec, Node, PodSpec, eventually, number, skip};

/// crictl with the node's endpoint, or `None` and a word of it where there is none.
fn crictl(node: &Node, arguments: &[&str]) -> Option<Command> {
    if Command::new("crictl").arg("--version").output().is_err() {
        skip("there is no crictl on PATH");
        return None;
    }
    let mut command = Command::new("crictl");
    // Without a configuration of this machine's.
    command.args(["--config", "/dev/null", "--runtime-endpoint", &format!("unix://{}", node.cri.socket().display())]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// Ends with the test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_exec_has_streams_apart_and_an_exit_status() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("exec").await.start(&ContainerSpec::new("c", &image)).await;
    let mut session = Session::exec(&node, script(&container, "echo out; echo err >&2; exit 7")).await;
    assert_eq!(exit_code(&session.end().await), 7);
    assert_eq!((session.text(STDOUT).as_str(), session.text(STDERR).as_str()), ("out\n", "err\n"));

    let mut killed = Session::exec(&node, script(&container, "kill -9 $$")).await;
    assert_eq!(exit_code(&killed.end().await), 137);

    let mut only_errors = Session::exec(&node, ExecRequest { stdout: false, ..script(&container, "echo out; echo err >&2") }).await;
    assert_eq!(exit_code(&only_errors.end().await), 0);
    assert_eq!((only_errors.text(STDOUT).as_str(), only_errors.text(STDERR).as_str()), ("", "err\n"));

    let mut absent = Session::exec(&node, ExecRequest { cmd: vec!["/no/such/program".to_owned()], ..script(&container, "") }).await;
    let status = absent.end().await;
    assert_eq!(status["status"], "Failure");
    assert!(node.target.is_foreign() || status["message"].as_str().is_some_and(|message| message.contains("/no/such/program")), "{status}");
    node.finish().await;
}

#[tokio::test]
async fn input_reaches_an_exec_and_so_does_its_end() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("input").await.start(&ContainerSpec::new("c", &image)).await;
    let mut session = Session::exec(&node, ExecRequest { stdin: true, ..script(&container, "cat; echo end") }).await;
    session.send(STDIN, b"first\n").await;
    assert_eq!(session.until(STDOUT, "first\n").await, "first\n");
    session.send(STDIN, b"second\n").await;
    session.close(STDIN).await;
    assert_eq!(exit_code(&session.end().await), 0);
    assert_eq!(session.text(STDOUT), "first\nsecond\nend\n");

    let mut without = Session::exec(&node, script(&container, "cat; echo end")).await;
    assert_eq!(exit_code(&without.end().await), 0);
    assert_eq!(without.text(STDOUT), "end\n", "without standard input there is nothing to read");
    node.finish().await;
}

#[tokio::test]
async fn output_of_any_size_arrives_whole() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("output").await.start(&ContainerSpec::new("c", &image)).await;
    let mut session = Session::exec(&node, script(&container, "seq 1 1000000; seq 5 >&2")).await;
    assert_eq!(exit_code(&session.end().await), 0);
    let expected: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    assert!(session.bytes(STDOUT) == expected.as_bytes(), "{} bytes came of {}", session.bytes(STDOUT).len(), expected.len());
    assert_eq!(session.text(STDERR), "1\n2\n3\n4\n5\n");
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_exec_with_all_descendants() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("gone").await.start(&ContainerSpec::new("c", &image)).await;
    let alone = container.host_pids();
    let mut session = Session::exec(&node, script(&container, "setsid sleep 100000 & echo ready; sleep 100000")).await;
    session.until(STDOUT, "ready").await;
    assert!(container.host_pids().len() > alone.len());
    drop(session);
    eventually("the end of the exec", || async { (container.host_pids() == alone).then_some(()) }).await;
    node.finish().await;
}

#[tokio::test]
async fn an_exec_has_a_terminal_of_the_clients_size() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("terminal").await;
    let user = |security: &mut LinuxContainerSecurityContext| security.run_as_user = number(1000);
    let container = pod.start(&ContainerSpec::new("c", &image).security(user)).await;
    let tell = "stat -c 'owner %u' $(tty); echo TERM=$TERM; echo err >&2; echo ready; \
                for size in '33 101' '24 80'; do while [ \"$(stty size)\" != \"$size\" ]; do sleep 0.02; done; echo size $size; done; \
                while read line; do echo got $line; done; exit 9";
    let request = in_terminal(&container, tell);
    let mut session = Session::exec(&node, request).await;
    let said = session.until(STDOUT, "ready").await;
    assert!(said.contains("owner 1000\r\n") && said.contains("TERM=xterm\r\n") && said.contains("err\r\n"), "{said}");
    for (width, height) in [(101, 33), (80, 24)] {
        session.resize(width, height).await;
        session.until(STDOUT, &format!("size {height} {width}\r\n")).await;
    }
    session.send(STDIN, b"line\n").await;
    session.until(STDOUT, "got line\r\n").await;
    // What a terminal takes for the end of the input.
    session.send(STDIN, b"\x04").await;
    assert_eq!(exit_code(&session.end().await), 9, "{}", session.text(STDOUT));

    let request = in_terminal(&container, "seq 1 20000");
    let mut whole = Session::exec(&node, request).await;
    assert_eq!(exit_code(&whole.end().await), 0);
    let expected: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    assert!(whole.text(STDOUT) == expected, "{} bytes came of {}", whole.bytes(STDOUT).len(), expected.len());

    let alone = container.host_pids();
    let request = in_terminal(&container, "echo ready; sleep 100000");
    let mut gone = Session::exec(&node, request).await;
    gone.until(STDOUT, "ready").await;
    drop(gone);
    eventually("the end of the exec", || async { (container.host_pids() == alone).then_some(()) }).await;
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_in_a_pod_with_users_of_its_own_belongs_to_them() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let Ok(pod) = node.try_run(&PodSpec::new("users").users(1_000_000, 65_536)).await else {
        skip("pods cannot have users of their own here");
        return node.finish().await;
    };
    let mut spec = ContainerSpec::new("c", &image);
    spec.namespaces().userns_options = Some(coracle_e2e::users(1_000_000, 65_536));
    let container = pod.start(&spec).await;
    let request = in_terminal(&container, "stat -c 'owner %u' $(tty)");
    let mut session = Session::exec(&node, request).await;
    assert_eq!(exit_code(&session.end().await), 0, "{}", session.text(STDOUT));
    assert_eq!(session.text(STDOUT), "owner 0\r\n");
    node.finish().await;
}

#[tokio::test]
async fn all_who_are_attached_see_what_is_written_from_then_on() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("attach").await.start(&answering(&image, true)).await;
    container.logged("before").await;
    let mut first = Session::attach(&node, &container, false).await;
    first.send(STDIN, b"one\n").await;
    first.until(STDOUT, "got one\n").await;
    // Both are out before the second one comes.
    first.until(STDERR, "err one\n").await;
    let mut second = Session::attach(&node, &container, false).await;
    second.send(STDIN, b"two\n").await;
    second.until(STDOUT, "got two\n").await;
    first.until(STDOUT, "got two\n").await;
    first.close(STDIN).await;
    for (session, stdout, stderr) in
        [(&mut first, "got one\ngot two\nend\n", "err one\nerr two\n"), (&mut second, "got two\nend\n", "err two\n")]
    {
        assert_eq!(exit_code(&session.end().await), 0, "the container's exit status is told elsewhere");
        assert_eq!((session.text(STDOUT).as_str(), session.text(STDERR).as_str()), (stdout, stderr));
    }
    assert_eq!(container.exited().await.exit_code, 3);
    assert_eq!(container.lines("stdout"), ["before", "got one", "got two", "end"]);
    assert_eq!(container.lines("stderr"), ["err one", "err two"]);
    node.finish().await;
}

#[tokio::test]
async fn a_container_outlives_those_who_are_attached_and_the_daemon() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("outlives").await.start(&answering(&image, false)).await;
    for word in ["one", "two"] {
        let mut session = Session::attach(&node, &container, false).await;
        session.send(STDIN, format!("{word}\n").as_bytes()).await;
        session.until(STDOUT, &format!("got {word}\n")).await;
        session.close(STDIN).await;
    }
    let mut cut_off = Session::attach(&node, &container, false).await;
    cut_off.send(STDIN, b"three\n").await;
    cut_off.until(STDOUT, "got three\n").await;
    node.restart().await;
    let mut session = Session::attach(&node, &container, false).await;
    session.send(STDIN, b"four\n").await;
    session.until(STDOUT, "got four\n").await;
    container.stop(0).await;
    assert_eq!(exit_code(&session.end().await), 0);
    assert_eq!(container.lines("stdout"), ["before", "got one", "got two", "got three", "got four"]);
    node.finish().await;
}

#[tokio::test]
async fn a_containers_terminal_is_attached_to() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = "echo ready; while [ \"$(stty size)\" != '33 101' ]; do sleep 0.02; done; echo sized; read line; echo got $line; \
                  trap 'exit 5' INT; echo trapped; while :; do sleep 0.05; done";
    let spec =
        ContainerSpec::new("c", &image).script(script).with(|config| (config.stdin, config.stdin_once, config.tty) = (true, true, true));
    let container = node.pod("terminal").await.start(&spec).await;
    container.logged("ready").await;
    let mut session = Session::attach(&node, &container, true).await;
    session.resize(101, 33).await;
    session.until(STDOUT, "sized\r\n").await;
    session.send(STDIN, b"hello\n").await;
    session.until(STDOUT, "got hello\r\ntrapped\r\n").await;
    session.send(STDIN, b"\x03").await;
    session.end().await;
    assert_eq!(container.exited().await.exit_code, 5, "a terminal's keys interrupt");
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_nobody() {
    const WRITTEN: usize = 24 << 20;
    let node = Node::start().await;
    let image = node.busybox().await;
    let script = format!("read line; head -c {WRITTEN} /dev/zero | tr '\\0' x; echo; read line; echo got $line; echo >/done; read line");
    let spec = ContainerSpec::new("c", &image).script(&script).with(|config| config.stdin = true);
    let container = node.pod("slow").await.start(&spec).await;
    let mut slow = Session::attach(&node, &container, false).await;
    slow.send(STDIN, b"go\nagain\n").await;
    // Its log is too long to be looked at again and again.
    eventually("the end of writing", || async { (container.exec(&["/bin/sh", "-c", "test -e /done"]).await.code == 0).then_some(()) })
        .await;
    let lines = container.lines("stdout");
    assert_eq!((lines[0].len(), lines[1].as_str()), (WRITTEN, "got again"), "the log is whole");
    // It lost some, and is still attached.
    slow.send(STDIN, b"end\n").await;
    assert_eq!(exit_code(&slow.end().await), 0);
    assert!(node.target.is_foreign() || slow.bytes(STDOUT).len() < WRITTEN);
    node.finish().await;
}

#[tokio::test]
async fn sessions_are_refused_where_there_is_nobody_to_talk_to() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("refused").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let good = script(&container, "true");
    node.refused(
        node.cri.exec_url(ExecRequest { stdout: false, stderr: false, ..good.clone() }).await,
        Code::InvalidArgument,
        "stdin, stdout, stderr",
    );
    node.refused(node.cri.exec_url(ExecRequest { tty: true, ..good.clone() }).await, Code::InvalidArgument, "stderr");
    node.refused(node.cri.exec_url(ExecRequest { cmd: Vec::new(), ..good.clone() }).await, Code::InvalidArgument, "cmd");
    node.refused(node.cri.exec_url(ExecRequest { container_id: "ab".repeat(32), ..good.clone() }).await, Code::NotFound, "container");
    let everything = AttachRequest { container_id: container.id.clone(), stdout: true, stderr: true, ..Default::default() };
    node.refused(node.cri.attach_url(AttachRequest { tty: true, ..everything.clone() }).await, Code::InvalidArgument, "stderr");
    node.refused(node.cri.forward_url(&"ab".repeat(32), &[]).await, Code::NotFound, "pod sandbox");
    node.refused(node.cri.forward_url(&pod.id, &[65_536]).await, Code::InvalidArgument, "65536");

    let url = node.cri.exec_url(good.clone()).await.expect("Exec");
    assert_eq!(exit_code(&Session::begin(&url, REMOTE).await.end().await), 0);
    assert!(Session::try_begin(&url, REMOTE).await.is_err(), "a URL works once");

    container.stop(0).await;
    node.refused(node.cri.exec_url(good).await, Code::FailedPrecondition, &container.id);
    node.refused(node.cri.attach_url(everything).await, Code::FailedPrecondition, &container.id);
    let forward = node.cri.forward_url(&pod.id, &[]).await;
    assert!(forward.is_ok(), "a pod without a container has a network: {forward:?}");
    pod.stop().await;
    node.refused(node.cri.forward_url(&pod.id, &[]).await, Code::FailedPrecondition, &pod.id);
    node.finish().await;
}

/// Waits until it listens: 8080 as the kernel writes it.
async fn listening(container: &Container) {
    eventually("a listener", || async { container.shell("cat /proc/net/tcp").await.contains(":1F90 ").then_some(()) }).await;
}

#[tokio::test]
async fn ports_of_localhost_inside_a_pod_are_reached() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("forward").await;
    let container = pod.start(&server(&image, &["127.0.0.1:8080"])).await;
    listening(&container).await;

    let mut session = Session::forward(&node, &pod.id, &[8080, 8081, 8080]).await;
    session.send(0, GET).await;
    session.until(0, "ahoy").await;
    let data = session.bytes(0);
    assert_eq!(data[..2], 8080_u16.to_le_bytes(), "each channel begins with its port");
    let nobody = session.until(3, "refused").await;
    assert!(node.target.is_foreign() || nobody.contains("port 8081"), "one port's error is told on its own channel: {nobody}");
    drop(session);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_with_the_nodes_network_is_dialled_there() {
    let node = Node::start().await;
    let pod = node.run(&PodSpec::new("host").host_network()).await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let serving = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("a connection");
        peer.write_all(b"from the node").expect("writing");
    });
    let mut session = Session::forward(&node, &pod.id, &[port.into()]).await;
    session.until(0, "from the node").await;
    serving.join().expect("the server");
    node.finish().await;
}

#[tokio::test]
async fn crictl_executes_attaches_and_forwards_over_both_transports() {
    let node = Node::start().await;
    if crictl(&node, &[]).is_none() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("crictl").await;
    let container = pod.start(&server(&image, &["127.0.0.1:8080"])).await;
    listening(&container).await;
    for transport in ["spdy", "websocket"] {
        let run = |more: &[&str], script: &str| {
            let arguments = [&["exec", "--transport", transport], more, &[container.id.as_str(), "/bin/sh", "-c", script]].concat();
            crictl(&node, &arguments).expect("crictl is there")
        };
        let output = run(&[], "echo out; echo err >&2").output().expect("crictl");
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]), "{transport}");
        let failed = run(&[], "exit 3").output().expect("crictl");
        assert!(String::from_utf8_lossy(&failed.stderr).contains("exit code 3"), "{transport}: {failed:?}");

        let mut reader = Running(run(&["-i"], "cat; echo end").stdin(Stdio::piped()).spawn().expect("crictl"));
        reader.0.stdin.take().expect("its input").write_all(b"hello\n").expect("writing");
        let mut said = String::new();
        reader.0.stdout.take().expect("its output").read_to_string(&mut said).expect("reading");
        assert_eq!(said, "hello\nend\n", "{transport}");

        let spec = answering(&image, true).with(|config| config.metadata.get_or_insert_default().name = transport.to_owned());
        let attached = pod.start(&spec).await;
        attached.logged("before").await;
        let arguments = ["attach", "--transport", transport, "-i", &attached.id];
        let mut reader = Running(crictl(&node, &arguments).expect("crictl is there").stdin(Stdio::piped()).spawn().expect("crictl"));
        reader.0.stdin.take().expect("its input").write_all(b"hello\n").expect("writing");
        let mut said = String::new();
        reader.0.stdout.take().expect("its output").read_to_string(&mut said).expect("reading");
        assert_eq!(said, "got hello\nend\n", "{transport}");

        let mut forward = crictl(&node, &["port-forward", "--transport", transport, &pod.id, ":8080"]).expect("crictl is there");
        let mut forward = Running(forward.spawn().expect("crictl"));
        let mut first = String::new();
        // It goes on to write there.
        let mut output = BufReader::new(forward.0.stdout.take().expect("its output"));
        output.read_line(&mut first).expect("reading");
        let port: u16 = first.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).expect(&first);
        for _ in 0..2 {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("connecting");
            connection.write_all(GET).expect("writing");
            let mut answer = String::new();
            connection.read_to_string(&mut answer).expect("reading");
            assert!(answer.ends_with("ahoy\n"), "{transport}: {answer}");
        }
    }
    node.finish().await;
}
