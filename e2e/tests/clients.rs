//! Sessions taken up by Python's clients, from `kubernetes` and `websocket-client`: `e2e/clients/client.py` says what each
//! scenario asks for and expects. `hack/install-deps` puts the packages under the target directory.

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_e2e::api::{AttachRequest, ExecRequest};
use coracle_e2e::session::{answering, in_terminal, script, server};
use coracle_e2e::{Container, ContainerSpec, Node, eventually, skip};

/// Where the packages are, or `None` and a word of it where they are not.
fn packages() -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| package.with_file_name("target"), PathBuf::from);
    let packages = target.join("clients");
    if !packages.join("kubernetes").is_dir() {
        skip(format_args!("{} does not have the packages: run hack/install-deps", packages.display()));
        return None;
    }
    Some(packages)
}

/// Plays a scenario, and fails with what it says if that fails.
fn play(packages: &Path, scenario: &str, arguments: &[&str]) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/client.py");
    let mut python = Command::new("python3");
    // Without a proxy of this machine's.
    python.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path))).env("PYTHONPATH", packages);
    let output = python.arg(program).arg(scenario).args(arguments).output().expect("python3");
    assert!(output.status.success(), "{scenario}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

async fn url(node: &Node, request: ExecRequest) -> String {
    node.cri.exec_url(request).await.expect("Exec")
}

fn with_input(container: &Container, text: &str) -> ExecRequest {
    ExecRequest { stdin: true, ..script(container, text) }
}

#[tokio::test]
async fn kubernetes_client_executes_and_attaches() {
    let Some(packages) = packages() else { return };
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("python").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    play(&packages, "streams", &[&url(&node, script(&container, "echo out; echo err >&2; exit 7")).await]);
    play(&packages, "input", &[&url(&node, with_input(&container, "cat; echo end; exit 4")).await]);
    play(&packages, "whole", &[&url(&node, script(&container, "seq 1 300000")).await]);
    let sized = "stty -echo; echo ready; while [ \"$(stty size 2>/dev/null)\" != '33 101' ]; do sleep 0.02; done; \
                 echo sized; read line; echo got $line; exit 9";
    play(&packages, "terminal", &[&url(&node, in_terminal(&container, sized)).await]);

    let attached = pod.start(&answering(&image, true)).await;
    attached.logged("before").await;
    let everything = AttachRequest { container_id: attached.id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
    play(&packages, "attach", &[&node.cri.attach_url(everything).await.expect("Attach")]);
    assert_eq!(attached.exited().await.exit_code, 3);
    node.finish().await;
}

#[tokio::test]
async fn every_subprotocol_is_spoken() {
    let Some(packages) = packages() else { return };
    let node = Node::start().await;
    let image = node.busybox().await;
    let container = node.pod("python").await.start(&ContainerSpec::new("c", &image)).await;
    let mut urls = Vec::new();
    for _ in 0..8 {
        urls.push(url(&node, with_input(&container, "read line; echo got $line; echo err >&2; exit 3")).await);
    }
    play(&packages, "subprotocols", &urls.iter().map(String::as_str).collect::<Vec<_>>());
    node.finish().await;
}

#[tokio::test]
async fn ports_are_forwarded_by_number_and_through_a_tunnel() {
    let Some(packages) = packages() else { return };
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("python").await;
    let container = pod.start(&server(&image, &["127.0.0.1:8080", "8082"])).await;
    eventually("two listeners", || async {
        let listening = container.shell("cat /proc/net/tcp /proc/net/tcp6").await;
        (listening.contains(":1F90 ") && listening.contains(":1F92 ")).then_some(())
    })
    .await;
    let url = node.cri.forward_url(&pod.id, &[8080, 8081, 8082]).await.expect("PortForward");
    play(&packages, "forward", &[&url, "8080", "8081", "8082"]);
    let url = node.cri.forward_url(&pod.id, &[]).await.expect("PortForward");
    play(&packages, "tunnel", &[&url, "8080"]);
    node.finish().await;
}

#[tokio::test]
async fn sessions_are_encrypted_where_there_is_a_certificate() {
    let Some(packages) = packages() else { return };
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("writing the certificate");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writing its key");
    let Some(node) = Node::own_configured(&format!("[streaming]\ncertificate = {certificate:?}\nkey = {key:?}\n")).await else { return };
    let image = node.busybox().await;
    let container = node.pod("python").await.start(&ContainerSpec::new("c", &image)).await;

    let url = url(&node, script(&container, "echo out; echo err >&2; exit 7")).await;
    let (scheme, rest) = url.split_once("://").expect("a URL");
    assert_eq!(scheme, "https");
    let (address, path) = rest.split_once('/').expect("a path");
    let mut plain = TcpStream::connect(address).expect("connecting");
    plain.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).expect("writing");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&answer));
    // Neither has used up the URL.
    play(&packages, "distrust", &[&url]);
    play(&packages, "streams", &[&url, &certificate.to_string_lossy()]);
    node.finish().await;
}
