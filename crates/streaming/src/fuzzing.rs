//! Doors for the fuzz targets into what is private here. Built for them only.
//!
//! A session is led by a script: each of its lines is an operation of the client or of the program, so that a fuzzer gets to
//! well-formed nonsense as easily as to rubbish. Time must be paused by whoever runs this: all limits pass at once.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_domain::{ContainerId, PodId, Refusal, Result};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::time::timeout;

use crate::backend::{Backend, Ending, Process};
use crate::clock::Limits;
use crate::handshake::{self, Forward, Remote};
use crate::request::{AttachRequest, ExecRequest, PortForwardRequest, StreamFlags, Streams};
use crate::spdy::frame::{self, Reset, control_head, data_head};
use crate::spdy::headers::{Deflater, Headers};
use crate::spdy::{Event, Listener};
use crate::status::Report;
use crate::websocket::{Codec, Said, read_message};
use crate::{remote, session};

/// Terminal sizes that arrive in two pieces: what is none is not kept.
pub fn sizes(bytes: &[u8], cut: usize) {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut text = Vec::new();
    for part in [first, second] {
        text.extend_from_slice(part);
        remote::sizes(&mut text);
        assert!(text.len() <= remote::MAX_SIZE);
    }
}

/// A WebSocket message, as every codec reads it.
pub fn message(bytes: &[u8]) {
    for codec in [Codec::Raw { closing: true }, Codec::Raw { closing: false }, Codec::Base64] {
        if let Said::Data(_, read) = read_message(codec, Bytes::copy_from_slice(bytes)) {
            assert!(read.len() < bytes.len());
        }
    }
}

/// The headers of a request for an upgrade, a line each.
pub fn upgrade(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|&byte| byte == b'\n').take(100) {
        let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':').unwrap_or(line.len()));
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.get(1..).unwrap_or_default())) {
            headers.append(name, value);
        }
    }
    let statuses = [
        handshake::remote(&headers).map_or_else(|refused| refused.status, |(_, answer)| answer.status()),
        handshake::forward(&headers).map_or_else(|refused| refused.status, |(_, answer)| answer.status()),
    ];
    assert!(statuses.iter().all(|status| [101, 400, 403].contains(&status.as_u16())));
}

/// How a session is led.
enum Kind {
    Remote(Remote, bool),
    Forward(Forward),
}

impl Kind {
    fn new(number: u8) -> Option<Self> {
        let spdy = Remote::Spdy { report: Report::Json, resizes: true };
        let websocket = |codec| Remote::WebSocket { codec, report: Report::Text };
        let plain = Codec::Raw { closing: false };
        Some(match number {
            0 => Self::Remote(spdy, false),
            1 => Self::Remote(spdy, true),
            2 => Self::Forward(Forward::Spdy),
            3 => Self::Forward(Forward::Tunnel),
            4 => Self::Forward(Forward::WebSocket { codec: plain }),
            5 => Self::Remote(websocket(Codec::Raw { closing: true }), false),
            6 => Self::Remote(websocket(plain), true),
            7 => Self::Remote(websocket(Codec::Base64), true),
            _ => return None,
        })
    }

    fn is_plain_spdy(&self) -> bool {
        matches!(self, Self::Remote(Remote::Spdy { .. }, _) | Self::Forward(Forward::Spdy))
    }
}

/// A session as `script` leads it. It must end once its client is gone.
pub async fn converse(script: &[u8]) {
    let mut script = Script(script);
    let first = script.byte();
    let Some(kind) = Kind::new(first & 0x7f) else { return };
    let (ours, theirs) = duplex(8 << 10);
    let (process, program) = Program::new();
    let (reading, io) = tokio::io::split(ours);
    let judging = tokio::spawn(judge(reading, kind.is_plain_spdy()));
    let framed = !kind.is_plain_spdy();
    let spdy = !framed || matches!(kind, Kind::Forward(Forward::Tunnel));
    let start = async move { if first < 0x80 { Ok(process) } else { Err(Refusal::wrong_state("there is no program").into()) } };
    let serving = match kind {
        Kind::Remote(how, tty) => {
            let streams = Streams::new(StreamFlags { stdin: true, stdout: true, stderr: !tty, tty }).unwrap();
            tokio::spawn(session::remote(theirs, how, streams, start, LIMITS))
        }
        Kind::Forward(how) => {
            let request = PortForwardRequest::new(PodId::from_entropy([0; 32]), &[1, 80]).unwrap();
            tokio::spawn(session::forward(theirs, how, Arc::new(Echo), request, LIMITS))
        }
    };
    let mut client = Client { io, deflater: Deflater::default(), next: 1, framed, spdy, program };
    while client.step(&mut script).await.is_some() {}
    // The connection is closed for good when its reader has gone too, which hears the server out first.
    let _ = timeout(LIMITS.creation, client.io.shutdown()).await;
    drop(client);
    timeout(Duration::from_secs(7200), serving).await.expect("the session outlives its client").expect("no panic");
    judging.await.expect("what the server says is lawful");
}

const LIMITS: Limits = Limits { idle: Duration::from_secs(600), creation: Duration::from_secs(30) };

/// Reads what the server says: SPDY it can be, with nothing on a stream after its end and nothing at all after GOAWAY.
async fn judge(mut io: ReadHalf<DuplexStream>, spdy: bool) {
    if !spdy {
        let _ = io.read_to_end(&mut Vec::new()).await;
        return;
    }
    let (mut listener, mut ended, mut goodbye) = (Listener::new(io), HashSet::new(), false);
    while let Some(event) = listener.event().await {
        assert!(!goodbye, "after GOAWAY: {event:?}");
        let after_end = match event {
            Event::Data { stream, fin: true, .. } => !ended.insert(stream),
            Event::Data { stream, .. } | Event::SynReply { stream, .. } => ended.contains(&stream),
            // Who sends on a stream before opening it is told so each time.
            Event::Reset { stream, status } if status != Reset::InvalidStream as u32 => {
                ended.insert(stream);
                false
            }
            Event::GoAway { .. } => {
                goodbye = true;
                false
            }
            _ => false,
        };
        assert!(!after_end, "after the end of a stream: {event:?}");
    }
}

/// What is left of a script.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number<const N: usize>(&mut self) -> u32 {
        self.take(N).iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The other side of a session's program.
struct Program {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    exit: Option<tokio::sync::oneshot::Sender<Ending>>,
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).unwrap()
}

impl Program {
    fn new() -> (Process, Self) {
        let ((write, stdin), (read, stdout), (read_error, stderr)) = (pair(), pair(), pair());
        let (exit, exited) = tokio::sync::oneshot::channel();
        let process = Process {
            stdin: Some(write),
            stdout: Some(read),
            stderr: Some(read_error),
            resize: Some(Box::new(|_| {})),
            exit: Box::pin(async { exited.await.map_err(|_| Refusal::wrong_state("the program is lost").into()) }),
        };
        (process, Self { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), exit: Some(exit) })
    }

    fn act(&mut self, what: u8, amount: u32) {
        let bytes = vec![what; amount.min(256 << 10) as usize];
        let written = |to: &Option<OwnedFd>| to.as_ref().map(|to| rustix::io::write(to, &bytes).is_ok());
        match what % 7 {
            0 => drop(written(&self.stdout)),
            1 => drop(written(&self.stderr)),
            2 => drop(self.stdin.as_ref().map(|from| rustix::io::read(from, &mut vec![0; bytes.len()][..]).is_ok())),
            3 => drop(self.stdout.take()),
            4 => drop(self.stderr.take()),
            5 => drop(self.stdin.take()),
            _ => drop(self.exit.take().map(|exit| exit.send(Ending::Exited(amount as u8)))),
        }
    }
}

/// Ports of a pod: what is sent to an even one comes back, odd ones are closed.
struct Echo;

impl Backend for Echo {
    async fn exec(&self, request: ExecRequest) -> Result<Process> {
        Err(Refusal::not_found("container", ContainerId::as_str(&request.container)).into())
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process> {
        Err(Refusal::not_found("container", ContainerId::as_str(&request.container)).into())
    }

    async fn dial(&self, _: &PodId, port: u16) -> Result<OwnedFd> {
        if !port.is_multiple_of(2) {
            return Err(Refusal::wrong_state("nobody listens").into());
        }
        let (client, server) = pair();
        let mut server = tokio::net::UnixStream::from_std(server.into()).unwrap();
        tokio::spawn(async move {
            let (mut read, mut write) = server.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Ok(client)
    }

    async fn pod_ends(&self, _: &PodId) {
        std::future::pending().await
    }
}

/// Who acts out the script.
struct Client {
    io: WriteHalf<DuplexStream>,
    deflater: Deflater,
    /// The number of the next stream that is opened as it should be.
    next: u32,
    /// What is sent is wrapped into WebSocket frames.
    framed: bool,
    /// What is wrapped is SPDY.
    spdy: bool,
    program: Program,
}

const KINDS: [&str; 8] = ["error", "stdin", "stdout", "stderr", "resize", "data", "error", "video"];
const PORTS: [&str; 4] = ["80", "81", "0", "65536"];

impl Client {
    /// One operation; none at the script's end or when the server takes nothing any more.
    async fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        if script.0.is_empty() {
            return None;
        }
        match script.byte() {
            0 => {
                let count = script.byte();
                self.raw(script.take(count.into())).await
            }
            1 => {
                let (what, amount) = (script.byte(), script.number::<2>());
                self.program.act(what, amount);
                Some(())
            }
            2 => {
                tokio::time::sleep(Duration::from_secs(script.byte().into())).await;
                Some(())
            }
            3 => {
                for _ in 0..script.byte() {
                    tokio::task::yield_now().await;
                }
                Some(())
            }
            operation if self.spdy => {
                let frame = self.frame(operation, script);
                if self.framed { self.message(0x82, &frame).await } else { self.raw(&frame).await }
            }
            operation => {
                let count = script.number::<2>().min(4096);
                self.message(0x80 | operation % 16, script.take(count as usize)).await
            }
        }
    }

    /// A WebSocket frame whose mask changes nothing.
    async fn message(&mut self, head: u8, bytes: &[u8]) -> Option<()> {
        let mut frame = vec![head, 0x80 | 127];
        frame.extend((bytes.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend_from_slice(bytes);
        self.raw(&frame).await
    }

    async fn raw(&mut self, bytes: &[u8]) -> Option<()> {
        timeout(Duration::from_secs(1), self.io.write_all(bytes)).await.ok()?.ok()
    }

    fn frame(&mut self, operation: u8, script: &mut Script<'_>) -> Vec<u8> {
        match operation % 10 {
            0 | 4 => self.open(script),
            1 | 5 => {
                let (stream, flags) = (script.byte(), script.byte());
                let count = script.byte();
                let mut bytes = script.take(count.into()).to_vec();
                bytes.resize(bytes.len() + script.number::<2>() as usize, 0);
                [&data_head(stream.into(), flags, bytes.len())[..], &bytes].concat()
            }
            6 => numbers(frame::RST_STREAM, &[script.byte().into(), script.byte().into()]),
            7 => numbers(frame::SETTINGS, &[1, frame::INITIAL_WINDOW_SIZE, script.number::<4>()]),
            8 => numbers(frame::WINDOW_UPDATE, &[script.byte().into(), script.number::<4>()]),
            9 => numbers(frame::PING, &[script.byte().into()]),
            2 => numbers(frame::GOAWAY, &[script.byte().into(), 0]),
            _ => {
                let headers = Headers::from_iter([("a", "b")]);
                let block = self.deflater.write(&headers);
                let mut frame = control_head(frame::HEADERS, script.byte(), 4 + block.len()).to_vec();
                frame.extend(u32::from(script.byte()).to_be_bytes());
                frame.extend(block);
                frame
            }
        }
    }

    fn open(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        let (what, flags) = (script.byte(), script.byte());
        let mut headers = vec![("streamType", KINDS[usize::from(what % 8)])];
        if what & 0x08 != 0 {
            headers.push(("port", PORTS[usize::from(what >> 6)]));
        }
        if what & 0x10 != 0 {
            headers.push(("requestID", ["0", "1"][usize::from(what >> 5 & 1)]));
        }
        let block = self.deflater.write(&Headers::from_iter(headers));
        let mut frame = control_head(frame::SYN_STREAM, flags & 3, 10 + block.len()).to_vec();
        frame.extend(self.next.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.next += if flags & 0x40 == 0 { 2 } else { 1 };
        frame
    }
}

fn numbers(kind: u16, payload: &[u32]) -> Vec<u8> {
    let mut frame = control_head(kind, 0, payload.len() * 4).to_vec();
    frame.extend(payload.iter().flat_map(|number| number.to_be_bytes()));
    frame
}
