//! What this crate wants of whoever knows containers.

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use coracle_domain::{PodId, Result};
use serde::Deserialize;

use crate::request::{AttachRequest, ExecRequest};

/// Runs programs, attaches to containers, dials into pods.
pub trait Backend: Send + Sync + 'static {
    /// Starts a program in a container.
    ///
    /// # Errors
    /// The container does not run, or the program cannot be started. The client is told.
    fn exec(&self, request: ExecRequest) -> impl Future<Output = Result<Process>> + Send;

    /// Joins the streams of a running container.
    ///
    /// # Errors
    /// The container does not run. The client is told.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<Process>> + Send;

    /// A connected stream socket to `port` of localhost as `pod` sees it: IPv4, then IPv6.
    ///
    /// # Errors
    /// Nobody listens there, or the pod does not run. The client is told, and its other connections go on.
    fn dial(&self, pod: &PodId, port: u16) -> impl Future<Output = Result<OwnedFd>> + Send;

    /// Resolves when the end of `pod` begins: then its connections are closed, for they hold its network. Does not resolve
    /// for a pod that does not run.
    fn pod_ends(&self, pod: &PodId) -> impl Future<Output = ()> + Send;
}

/// A program's ends of its streams, as the daemon holds them.
///
/// Descriptors must be of a kind that epoll takes: pipes, sockets, a terminal's master (for input and output two
/// descriptors of the same). They are set to non-blocking. A client that goes away drops all of this, and with it
/// whatever `exit` keeps alive: the backend decides what that means to the program.
pub struct Process {
    /// Where its input is written to; closed at the client's end of input. Absent if none was asked for.
    pub stdin: Option<OwnedFd>,
    /// Where its output, or its terminal's, is read from.
    pub stdout: Option<OwnedFd>,
    /// Where its error output is read from.
    pub stderr: Option<OwnedFd>,
    /// Makes its terminal this large. It must not block.
    pub resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
    /// Resolves at the end, when all that the program itself wrote can be read from the descriptors. What its
    /// descendants write later is not waited for.
    ///
    /// # Errors
    /// How it ended cannot be known.
    pub exit: Pin<Box<dyn Future<Output = Result<Ending>> + Send>>,
}

/// How a session with a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The program that was executed has ended with this status: 128 and the signal's number if killed.
    Exited(u8),
    /// The container that was attached to has ended; its status is told elsewhere.
    Detached,
}

/// A terminal's size in characters. On the wire: `{"Width":80,"Height":24}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdin, stdout, stderr, .. } = self;
        f.debug_struct("Process").field("stdin", stdin).field("stdout", stdout).field("stderr", stderr).finish_non_exhaustive()
    }
}
