//! How fast bytes go through: measured, not asserted.
//!
//! `cargo test --release -p coracle-streaming throughput -- --ignored --nocapture --test-threads=1`
//!
//! The client only counts bytes, on the same machine; a real one costs more.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use coracle_domain::{ContainerId, During, PodId, Result};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::backend::{Backend, Ending, Process};
use crate::request::{AttachRequest, ExecRequest, PortForwardRequest, StreamFlags, Streams};
use crate::server::{Server, Settings, Urls};

const GIB: usize = 1 << 30;

/// Runs programs of this machine with one output, dials loopback.
struct Bare;

impl Backend for Bare {
    async fn exec(&self, request: ExecRequest) -> Result<Process> {
        let (stdout, output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (input, stdin) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new(&request.command[0]);
        let mut child = command.args(&request.command[1..]).stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn().unwrap();
        drop(command);
        let exited = tokio::task::spawn_blocking(move || child.wait());
        let exit = Box::pin(async move {
            exited.await.unwrap().unwrap();
            Ok(Ending::Exited(0))
        });
        Ok(Process { stdin: Some(stdin), stdout: Some(stdout), stderr: None, resize: None, exit })
    }

    async fn attach(&self, _: AttachRequest) -> Result<Process> {
        unreachable!()
    }

    async fn dial(&self, _: &PodId, port: u16) -> Result<OwnedFd> {
        let socket = TcpStream::connect(("127.0.0.1", port)).during("dialing", port)?;
        Ok(socket.into())
    }

    async fn pod_ends(&self, _: &PodId) {
        std::future::pending().await
    }
}

fn serve() -> (tokio::runtime::Runtime, Urls) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::bind(Settings::default(), Bare)).unwrap();
    let urls = server.urls();
    runtime.spawn(server.serve(std::future::pending()));
    (runtime, urls)
}

const SPDY: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: portforward.k8s.io";
const WEBSOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io";

fn upgrade(url: &str, headers: &str) -> TcpStream {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut io = TcpStream::connect(address).unwrap();
    io.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n\r\n").as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        io.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    io
}

/// SYN_STREAM frames for streams 1, 3…
fn streams(all: &[&[(&str, &str)]]) -> Vec<u8> {
    let mut deflater = crate::spdy::headers::Deflater::default();
    let mut frames = Vec::new();
    for (number, headers) in (1_u32..).step_by(2).zip(all) {
        let block = deflater.write(&headers.iter().copied().collect());
        frames.extend(crate::spdy::frame::control_head(1, 0, 10 + block.len()));
        frames.extend(number.to_be_bytes());
        frames.extend([0; 6]);
        frames.extend(block);
    }
    frames
}

/// Reads a GiB and says how fast it came.
fn count(what: &str, mut io: impl Read) {
    let begun = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    while bytes < GIB {
        match io.read(&mut buffer).unwrap() {
            0 => panic!("{bytes} bytes came"),
            read => bytes += read,
        }
    }
    println!("{what}: {:.0} MB/s", bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
}

fn exec(urls: &Urls, stdin: bool, command: &[&str]) -> String {
    let streams = Streams::new(StreamFlags { stdin, stdout: true, stderr: false, tty: false }).unwrap();
    let command = command.iter().map(|&word| word.to_owned()).collect();
    urls.exec(ExecRequest::new(ContainerId::from_entropy([0; 32]), command, streams).unwrap()).unwrap()
}

#[test]
#[ignore = "measures"]
fn throughput_of_execs_output() {
    let (_runtime, urls) = serve();
    let gib = GIB.to_string();
    let mut io = upgrade(&exec(&urls, false, &["head", "-c", &gib, "/dev/zero"]), SPDY);
    io.write_all(&streams(&[&[("streamtype", "error")], &[("streamtype", "stdout")]])).unwrap();
    count("exec, stdout, SPDY", io);
    count("exec, stdout, WebSocket", upgrade(&exec(&urls, false, &["head", "-c", &gib, "/dev/zero"]), WEBSOCKET));
}

#[test]
#[ignore = "measures"]
fn throughput_of_execs_input() {
    let (_runtime, urls) = serve();
    let mut io = upgrade(&exec(&urls, true, &["cat"]), SPDY);
    io.write_all(&streams(&[&[("streamtype", "error")], &[("streamtype", "stdin")], &[("streamtype", "stdout")]])).unwrap();
    let reading = io.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let mut frame = crate::spdy::frame::data_head(3, 0, 32 << 10).to_vec();
        frame.resize(frame.len() + (32 << 10), 0);
        for _ in 0..GIB / (32 << 10) {
            io.write_all(&frame).unwrap();
        }
        io
    });
    count("exec, stdin to cat and back, SPDY", reading);
    writing.join().unwrap();
}

#[test]
#[ignore = "measures"]
fn throughput_of_port_forward() {
    let (_runtime, urls) = serve();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let pod = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let chunk = vec![0; 128 << 10];
        for _ in 0..GIB / chunk.len() {
            socket.write_all(&chunk).unwrap();
        }
        let (mut socket, _) = listener.accept().unwrap();
        count("port-forward, to the pod, SPDY", &mut socket);
    });
    let connect = || {
        let url = urls.port_forward(PortForwardRequest::new(PodId::from_entropy([0; 32]), &[]).unwrap()).unwrap();
        let mut io = upgrade(&url, SPDY);
        let [error, data] = ["error", "data"].map(|kind| [("streamtype", kind), ("port", &port), ("requestid", "0")]);
        io.write_all(&streams(&[&error, &data])).unwrap();
        io
    };
    count("port-forward, from the pod, SPDY", connect());
    let mut io = connect();
    let mut frame = crate::spdy::frame::data_head(3, 0, 32 << 10).to_vec();
    frame.resize(frame.len() + (32 << 10), 0);
    for _ in 0..GIB / (32 << 10) {
        io.write_all(&frame).unwrap();
    }
    pod.join().unwrap();
}
