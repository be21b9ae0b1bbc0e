//! The command line's client, against the same endpoint that the tests use: what people see and what programs read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use coracle_e2e::{ContainerSpec, Node, eventually};
use serde_json::Value;

/// What a command printed and how it ended.
struct Run {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

/// `coracle` with the node's endpoint.
fn client(node: &Node, arguments: &[&str]) -> Command {
    let mut command = Command::new(&node.target.binary);
    command.args(arguments).env("CORACLE_ENDPOINT", format!("unix://{}", node.cri.socket().display()));
    command
}

/// Runs it to its end.
fn coracle(node: &Node, arguments: &[&str]) -> Run {
    let output = client(node, arguments).output().unwrap_or_else(|error| panic!("{}: {error}", node.target.binary.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { stdout: text(&output.stdout), stderr: text(&output.stderr), code: output.status.code() }
}

/// The same, which must succeed; what it printed.
fn good(node: &Node, arguments: &[&str]) -> String {
    let run = coracle(node, arguments);
    assert_eq!(run.code, Some(0), "{arguments:?}: {}{}", run.stdout, run.stderr);
    run.stdout
}

/// The same with `-o json`.
fn json(node: &Node, arguments: &[&str]) -> Value {
    let text = good(node, &[&["-o", "json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

#[tokio::test]
async fn a_container_from_pull_to_rm() {
    let Some(node) = Node::own().await else { return };
    let pushed = node.push("cli", &coracle_e2e::image::Image::busybox());
    let image = pushed.reference.as_str();
    let logs = node.scratch().join("cli-logs").to_string_lossy().into_owned();
    assert!(good(&node, &["pull", image]).contains(&pushed.id));
    let listed = good(&node, &["images"]);
    assert!(listed.contains(&format!("{}/cli", node.registry.host())), "{listed}");
    assert_eq!(json(&node, &["images"])["images"][0]["id"], Value::String(pushed.id.clone()));

    let script = "echo ahoy; echo astern >&2; exec sleep 100000";
    let made = json(
        &node,
        &["run", "--name", "boat", "--log-dir", &logs, "--env", "COLOUR=blue", "--memory", "64Mi", image, "/bin/sh", "-c", script],
    );
    let (pod, container) = (made["podSandboxId"].as_str().expect("a pod's id"), made["containerId"].as_str().expect("a container's id"));

    let pods = good(&node, &["pods"]);
    assert!(pods.lines().any(|line| line.contains(&pod[..12]) && line.contains("boat") && line.contains("ready")), "{pods}");
    assert_eq!(json(&node, &["pods"])["items"][0]["id"], pod);
    let containers = good(&node, &["ps"]);
    assert!(containers.lines().any(|line| line.contains(&container[..12]) && line.contains("boat")), "{containers}");
    assert_eq!(json(&node, &["ps"])["containers"][0]["id"], container);

    let log = eventually("the container's words", || async {
        let run = coracle(&node, &["logs", &container[..12]]);
        (run.stdout.contains("ahoy") && run.stderr.contains("astern")).then_some(run)
    })
    .await;
    assert_eq!((log.stdout.as_str(), log.stderr.as_str()), ("ahoy\n", "astern\n"), "each stream goes to its own");

    assert_eq!(good(&node, &["exec", container, "--", "/bin/sh", "-c", "echo $COLOUR"]), "blue\n");
    assert_eq!(coracle(&node, &["exec", "boat", "/bin/sh", "-c", "exit 9"]).code, Some(9), "its status is the command's");
    let stats = good(&node, &["stats"]);
    assert!(stats.contains(&container[..12]) || stats.contains("boat"), "{stats}");
    assert!(json(&node, &["stats"]).to_string().contains(container));
    for subject in [container, pod, image] {
        let shown = good(&node, &["inspect", subject]);
        let value: Value = serde_json::from_str(&shown).unwrap_or_else(|error| panic!("inspect {subject}: {error}"));
        let id = if subject == image { pushed.id.as_str() } else { subject };
        assert!(value.to_string().contains(id), "{shown}");
    }

    good(&node, &["stop", "--timeout", "0", container]);
    assert!(!good(&node, &["ps"]).contains(&container[..12]), "ps tells what runs");
    assert!(good(&node, &["ps", "--all"]).contains(&container[..12]));
    good(&node, &["rm", container]);
    good(&node, &["stop", pod]);
    good(&node, &["rm", pod]);
    assert!(!good(&node, &["pods"]).contains(&pod[..12]));
    good(&node, &["rmi", image]);
    assert!(!good(&node, &["images"]).contains("/cli"));
    node.finish().await;
}

#[tokio::test]
async fn run_with_rm_shows_output_and_passes_the_status_on() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let logs = node.scratch().join("cli-logs").to_string_lossy().into_owned();
    let run = coracle(&node, &["run", "--rm", "--log-dir", &logs, &image, "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((run.stdout.as_str(), run.code), ("out\n", Some(5)), "{}", run.stderr);
    assert!(run.stderr.contains("err"));
    let pods = json(&node, &["pods"]);
    assert!(pods["items"].as_array().is_none_or(Vec::is_empty), "{pods}");
    let failed = coracle(&node, &["run", "--rm", "--log-dir", &logs, &image, "--", "/no/such/program"]);
    assert_ne!(failed.code, Some(0));
    assert!(failed.stderr.contains("/no/such/program"), "{}", failed.stderr);
    node.finish().await;
}

#[tokio::test]
async fn mistakes_are_told_on_standard_error() {
    let Some(node) = Node::own().await else { return };
    for (arguments, subject) in [
        (&["exec", "nonesuch", "/bin/true"][..], "nonesuch"),
        (&["logs", "nonesuch"], "nonesuch"),
        (&["inspect", "nonesuch"], "nonesuch"),
        (&["pull", "UPPER/Case"], "UPPER/Case"),
        (&["stop", "nonesuch"], "nonesuch"),
    ] {
        let run = coracle(&node, arguments);
        assert!(run.code.is_some_and(|code| code != 0), "{arguments:?} succeeds");
        assert!(run.stdout.is_empty() && run.stderr.contains(subject), "{arguments:?}: {}{}", run.stdout, run.stderr);
    }
    let nowhere =
        Command::new(&node.target.binary).args(["pods", "--endpoint", "unix:///no/such/socket"]).output().expect("running coracle");
    assert!(!nowhere.status.success() && String::from_utf8_lossy(&nowhere.stderr).contains("/no/such/socket"));
    node.finish().await;
}

#[tokio::test]
async fn info_and_version_tell_of_the_runtime() {
    let Some(node) = Node::own().await else { return };
    assert!(good(&node, &["version"]).contains("coracle"));
    assert!(good(&node, &["info"]).contains("coracle"));
    assert!(json(&node, &["info"]).to_string().contains("RuntimeReady"));
    node.finish().await;
}

#[tokio::test]
async fn containers_made_by_others_are_shown_and_found_by_name() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("theirs").await.start(&ContainerSpec::new("named-container", &image)).await;
    assert!(good(&node, &["ps"]).contains("named-container"));
    assert_eq!(good(&node, &["exec", "named-container", "/bin/hostname"]), "theirs\n");
    let short = &container.id[..12];
    assert_eq!(good(&node, &["exec", short, "/bin/hostname"]), "theirs\n");
    node.finish().await;
}

/// A command of the client that goes on, with pipes to it; killed at the test's end.
struct Session(Child);

impl Session {
    fn begin(node: &Node, arguments: &[&str]) -> Self {
        let mut command = client(node, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap_or_else(|error| panic!("{arguments:?}: {error}")))
    }

    fn say(&mut self, words: &str) {
        self.0.stdin.as_mut().expect("a pipe").write_all(words.as_bytes()).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }

    fn line(&mut self) -> String {
        let stdout = self.0.stdout.as_mut().expect("a pipe");
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(stdout.read(&mut byte).expect("output"), 1, "it ended after {:?}", String::from_utf8_lossy(&line));
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Ends the input and waits.
    fn end(mut self) -> Option<i32> {
        drop(self.0.stdin.take());
        self.0.wait().expect("its end").code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_and_attach_pass_on_what_is_typed() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let script = "while read line; do echo heard $line; done; exit 3";
    let spec = ContainerSpec::new("talker", &image).script(script).with(|config| (config.stdin, config.stdin_once) = (true, true));
    let container = node.pod("talk").await.start(&spec).await;

    let mut exec = Session::begin(&node, &["exec", "-i", "talker", "/bin/sh", "-c", "cat; exit 4"]);
    exec.say("ahoy\n");
    assert_eq!(exec.line(), "ahoy", "it arrives before the end of the input");
    assert_eq!(exec.end(), Some(4));

    let mut attach = Session::begin(&node, &["attach", "-i", "talker"]);
    attach.say("ahoy\n");
    assert_eq!(attach.line(), "heard ahoy");
    assert_eq!(attach.end(), Some(0));
    assert_eq!(container.exited().await.exit_code, 3, "the end of the input was passed on as well");

    let late = coracle(&node, &["exec", "-i", "talker", "/bin/true"]);
    assert_eq!(late.code, Some(1));
    assert!(late.stderr.contains("talker") || late.stderr.contains(&container.id), "{}", late.stderr);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_as_large_as_ours_and_ours_is_restored() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    node.pod("terminal").await.start(&ContainerSpec::new("terminal", &image)).await;
    let script = "stty rows 33 cols 101; before=$(stty -g); \
                  \"$CORACLE\" exec -it terminal -- /bin/sh -c 'until [ \"$(stty size)\" = \"33 101\" ]; do sleep 0.02; done; echo good; exit 5'; \
                  code=$?; [ \"$(stty -g)\" = \"$before\" ] && echo restored; exit $code";
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", script, "/dev/null"])
        .env("CORACLE", &node.target.binary)
        .env("CORACLE_ENDPOINT", format!("unix://{}", node.cri.socket().display()))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("script: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("good\r\n") && said.contains("restored\r\n"), "{said}");
    assert_eq!(output.status.code(), Some(5), "{said}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_a_pod_is_reached_at_a_port_of_ours() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let serve = "mkdir /tmp/www; echo ahoy > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www";
    node.pod("server").await.start(&ContainerSpec::new("server", &image).script(serve)).await;
    let mut forward = Session::begin(&node, &["port-forward", "server", "0:8080", "0:9"]);
    let [good, closed] = [forward.line(), forward.line()].map(|line| line.split_whitespace().next().expect("an address").to_owned());
    let get = |address: &str| {
        let mut socket = TcpStream::connect(address).expect("a connection");
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request");
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    eventually("the server's word", || async { get(&good).ends_with("ahoy\n").then_some(()) }).await;
    assert_eq!(get(&closed), "", "nobody listens there");
    assert!(get(&good).ends_with("ahoy\n"), "the other port does not mind");
    node.finish().await;
}
