//! The command line's client, against the same endpoint that the tests use: what people see and what programs read.

use std::process::Command;

use coracle_e2e::{ContainerSpec, Node, eventually};
use serde_json::Value;

/// What a command printed and how it ended.
struct Run {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

/// Runs `coracle` with the node's endpoint.
fn coracle(node: &Node, arguments: &[&str]) -> Run {
    let output = Command::new(&node.target.binary)
        .args(arguments)
        .env("CORACLE_ENDPOINT", format!("unix://{}", node.cri.socket().display()))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", node.target.binary.display()));
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
