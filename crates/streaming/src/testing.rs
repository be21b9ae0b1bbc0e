//! What tests of sessions share: a program made of pipes, and a backend that runs it.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use coracle_domain::{PodId, Refusal, Result};
use tokio::net::unix::pipe::{Receiver, Sender, pipe};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::backend::{Backend, Ending, Process, TerminalSize};
use crate::clock::Limits;
use crate::request::{AttachRequest, ExecRequest, StreamFlags, Streams};

pub(crate) const LIMITS: Limits = Limits { idle: Duration::from_secs(600), creation: Duration::from_secs(30) };

/// The program's side of its streams: dropped ends are closed.
pub(crate) struct Program {
    pub(crate) stdin: Option<Receiver>,
    pub(crate) stdout: Option<Sender>,
    pub(crate) stderr: Option<Sender>,
    pub(crate) sizes: mpsc::UnboundedReceiver<TerminalSize>,
    pub(crate) exit: oneshot::Sender<Result<Ending>>,
}

fn ends() -> (Sender, OwnedFd, OwnedFd, Receiver) {
    let (out, read) = pipe().unwrap();
    let (write, input) = pipe().unwrap();
    (out, read.into_nonblocking_fd().unwrap(), write.into_nonblocking_fd().unwrap(), input)
}

/// A program as a backend hands it over, and its other side.
pub(crate) fn program() -> (Process, Program) {
    let (stdout, stdout_read, stdin_write, stdin) = ends();
    let (stderr, stderr_read, _, _) = ends();
    let (size, sizes) = mpsc::unbounded_channel();
    let (exit, exited) = oneshot::channel();
    let process = Process {
        stdin: Some(stdin_write),
        stdout: Some(stdout_read),
        stderr: Some(stderr_read),
        resize: Some(Box::new(move |new| {
            let _ = size.send(new);
        })),
        exit: Box::pin(async { exited.await.unwrap_or_else(|_| Err(Refusal::wrong_state("the program is lost").into())) }),
    };
    (process, Program { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), sizes, exit })
}

pub(crate) fn streams(stdin: bool, stderr: bool, tty: bool) -> Streams {
    Streams::new(StreamFlags { stdin, stdout: true, stderr, tty }).unwrap()
}

/// Runs one program, and dials real ports of loopback.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) process: Mutex<Option<Process>>,
    /// Tells that the pod ends.
    pub(crate) ends: Notify,
}

impl Backend for Fake {
    async fn exec(&self, _: ExecRequest) -> Result<Process> {
        self.process.lock().unwrap().take().ok_or_else(|| Refusal::wrong_state("the container is not running").into())
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process> {
        Err(Refusal::not_found("container", request.container.as_str()).into())
    }

    async fn dial(&self, _: &PodId, port: u16) -> Result<OwnedFd> {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(socket) => Ok(socket.into_std().unwrap().into()),
            Err(error) => Err(Refusal::wrong_state(format!("dialing port {port}: {error}")).into()),
        }
    }

    async fn pod_ends(&self, _: &PodId) {
        self.ends.notified().await;
    }
}

/// A server on loopback that sends back whatever comes.
pub(crate) async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// Bytes that look like nothing.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    (0..length)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect()
}
