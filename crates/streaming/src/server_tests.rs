//! Tests of the server from outside: HTTP on loopback, plain and encrypted.

use std::fs;
use std::sync::Mutex;

use coracle_domain::{ContainerId, PodId};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::backend::Ending;
use crate::spdy::client::client;
use crate::testing::{Fake, Program, echo, program, streams};

const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

async fn serve(settings: Settings) -> (Urls, SocketAddr, Program) {
    let (process, program) = program();
    let server = Server::bind(settings, Fake { process: Mutex::new(Some(process)), ..Fake::default() }).await.unwrap();
    let (urls, address) = (server.urls(), server.listener.local_addr().unwrap());
    tokio::spawn(server.serve(std::future::pending()));
    (urls, address, program)
}

fn exec() -> ExecRequest {
    ExecRequest::new(ContainerId::from_entropy([1; 32]), vec!["true".into()], streams(false, false, false)).unwrap()
}

fn path(url: &str) -> String {
    format!("/{}", url.splitn(4, '/').nth(3).unwrap())
}

/// Sends a request and hears the head of the answer.
async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin), method: &str, path: &str, headers: &str) -> String {
    io.write_all(format!("{method} {path} HTTP/1.1\r\nHost: node\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn ask_anew(address: SocketAddr, method: &str, path: &str, headers: &str) -> String {
    ask(&mut TcpStream::connect(address).await.unwrap(), method, path, headers).await
}

async fn converse<S: AsyncRead + AsyncWrite>(io: S, mut program: Program) {
    let (mut speaker, mut listener) = client(io);
    let [error, stdout] = speaker.open_all(["error", "stdout"]).await;
    program.stdout.as_mut().unwrap().write_all(b"hello").await.unwrap();
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    let (heard, _) = listener.rest().await;
    assert_eq!(heard[&stdout].bytes, b"hello");
    assert!(String::from_utf8_lossy(&heard[&error].bytes).contains("Success"));
}

#[tokio::test]
async fn a_url_leads_to_a_session_and_only_once() {
    let (urls, address, program) = serve(Settings::default()).await;
    let url = urls.exec(exec()).unwrap();
    assert!(url.starts_with(&format!("http://{address}/exec/")), "{url}");
    let mut io = TcpStream::connect(address).await.unwrap();
    let head = ask(&mut io, "POST", &path(&url), SPDY).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for header in ["connection: upgrade\r\n", "upgrade: spdy/3.1\r\n", "x-stream-protocol-version: v4.channel.k8s.io\r\n"] {
        assert!(head.to_lowercase().contains(header), "{head}");
    }
    assert!(ask_anew(address, "POST", &path(&url), SPDY).await.starts_with("HTTP/1.1 404 "));
    converse(io, program).await;
}

#[tokio::test]
async fn every_version_is_spoken() {
    for (version, in_json) in
        [("v4.channel.k8s.io", true), ("v3.channel.k8s.io", false), ("v2.channel.k8s.io", false), ("channel.k8s.io", false)]
    {
        let (urls, address, mut program) = serve(Settings::default()).await;
        let mut io = TcpStream::connect(address).await.unwrap();
        let head = ask(&mut io, "POST", &path(&urls.exec(exec()).unwrap()), &SPDY.replace("v4.channel.k8s.io", version)).await;
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {version}\r\n")), "{head}");
        let (mut speaker, mut listener) = client(io);
        let [error, stdout] = speaker.open_all(["error", "stdout"]).await;
        program.stdout.as_mut().unwrap().write_all(b"hello").await.unwrap();
        program.exit.send(Ok(Ending::Exited(3))).unwrap();
        let (heard, _) = listener.rest().await;
        assert_eq!(heard[&stdout].bytes, b"hello");
        let told = String::from_utf8_lossy(&heard[&error].bytes);
        assert!(told.starts_with('{') == in_json && told.contains("exit code 3"), "{version}: {told}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_what_it_was_issued_for() {
    let (urls, address, _program) = serve(Settings::default()).await;
    let url = urls.exec(exec()).unwrap();
    let attach = path(&url).replace("/exec/", "/attach/");
    assert!(ask_anew(address, "GET", &attach, SPDY).await.starts_with("HTTP/1.1 404 "));
    assert!(ask_anew(address, "GET", &path(&url), SPDY).await.starts_with("HTTP/1.1 404 "), "it was used up");
    for path in ["/", "/exec", "/exec/", "/exec/x/y", "/exec/../exec/x"] {
        assert!(ask_anew(address, "GET", path, SPDY).await.starts_with("HTTP/1.1 404 "));
    }
    assert!(ask_anew(address, "DELETE", &path(&urls.exec(exec()).unwrap()), SPDY).await.starts_with("HTTP/1.1 405 "));
    let url = urls.exec(exec()).unwrap();
    let head = ask_anew(address, "GET", &path(&url), &SPDY.replace("v4", "v9")).await;
    assert!(head.starts_with("HTTP/1.1 403 ") && head.to_lowercase().contains("x-accepted-stream-protocol-versions"), "{head}");
}

#[tokio::test]
async fn attach_and_port_forward_have_urls_of_their_own() {
    let (urls, address, _program) = serve(Settings::default()).await;
    let container = ContainerId::from_entropy([2; 32]);
    let url = urls.attach(AttachRequest { container, streams: streams(false, false, false) }).unwrap();
    let mut io = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut io, "GET", &path(&url), SPDY).await.starts_with("HTTP/1.1 101 "));
    let (mut speaker, mut listener) = client(io);
    let [error, _] = speaker.open_all(["error", "stdout"]).await;
    let (heard, _) = listener.rest().await;
    assert!(String::from_utf8_lossy(&heard[&error].bytes).contains("not found"));

    let url = urls.port_forward(PortForwardRequest::new(PodId::from_entropy([3; 32]), &[]).unwrap()).unwrap();
    let mut io = TcpStream::connect(address).await.unwrap();
    let head = ask(&mut io, "GET", &path(&url), &SPDY.replace("v4.channel", "portforward")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let port = echo().await.to_string();
    let (mut speaker, mut listener) = client(io);
    speaker.open(&[("streamType", "error"), ("port", &port), ("requestID", "0")]).await;
    let data = speaker.open(&[("streamType", "data"), ("port", &port), ("requestID", "0")]).await;
    speaker.data(data, b"there and back").await;
    assert_eq!(listener.bytes(data, 14).await, b"there and back");
}

#[tokio::test]
async fn what_a_client_sends_with_its_request_is_not_lost() {
    let (urls, address, program) = serve(Settings::default()).await;
    let url = urls.exec(exec()).unwrap();
    let mut io = TcpStream::connect(address).await.unwrap();
    // The first frame in the same packet as the request.
    let ping = b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x01";
    let request = [format!("POST {} HTTP/1.1\r\nHost: node\r\n{SPDY}\r\n", path(&url)).as_bytes(), ping].concat();
    io.write_all(&request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let (mut speaker, mut listener) = client(io);
    listener.until(|event| matches!(event, crate::spdy::Event::Ping(1))).await;
    speaker.open_all(["error", "stdout"]).await;
    drop(program);
}

#[tokio::test]
async fn it_is_encrypted_if_there_is_a_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    assert!(Tls::read(&key, &certificate).is_err(), "the other way round");
    let tls = Tls::read(&certificate, &key).unwrap();
    let (urls, address, program) = serve(Settings { tls: Some(tls), ..Settings::default() }).await;

    let url = urls.exec(exec()).unwrap();
    assert!(url.starts_with("https://"));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut io = TlsConnector::from(Arc::new(config)).connect(name, connection).await.unwrap();
    assert!(ask(&mut io, "POST", &path(&url), SPDY).await.starts_with("HTTP/1.1 101 "));
    converse(io, program).await;
}

#[test]
fn who_listens_everywhere_is_reached_by_loopback() {
    assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
    assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
    assert_eq!(reachable("10.0.0.1:80".parse().unwrap()).to_string(), "10.0.0.1:80");
}
