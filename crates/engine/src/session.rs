//! What a client talks to: the daemon's ends of a program's streams, connections to a pod's ports.
//!
//! Nothing is copied here. Whoever holds a [`Session`] reads and writes its descriptors; when it is dropped, an exec is
//! killed with its descendants.

use std::fmt;
use std::future::{Future, pending};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;

use coracle_domain::{ContainerId, ContainerView, During, PodPhase, Refusal, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Engine;
use crate::attach;
use crate::exec::{self, PIPES, Started, null};
use crate::live::Live;
use crate::terminal;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedStreams {
    /// It sends standard input.
    pub stdin: bool,
    /// It takes standard output.
    pub stdout: bool,
    /// It takes standard error.
    pub stderr: bool,
    /// The program has a terminal in place of all three.
    pub terminal: bool,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

/// The daemon's ends of a program's streams, and its end, which is told as an `E`. All are closed in children.
pub struct Session<E> {
    /// Where its input is written to; closing it is the end of the input.
    pub stdin: Option<OwnedFd>,
    /// Where its output, or its terminal's, is read from.
    pub stdout: Option<OwnedFd>,
    /// Where its error output is read from.
    pub stderr: Option<OwnedFd>,
    /// Makes its terminal this large; does not block.
    pub resize: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>,
    /// Resolves at its end, when all that it wrote itself can be read.
    pub exit: Pin<Box<dyn Future<Output = Result<E>> + Send>>,
}

impl<E> fmt::Debug for Session<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdin, stdout, stderr, .. } = self;
        f.debug_struct("Session").field("stdin", stdin).field("stdout", stdout).field("stderr", stderr).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts a command in a running container, to be talked to. It ends with its exit status, or 128 and the number of
    /// the signal that killed it.
    ///
    /// # Errors
    /// Refused if the container is absent or does not run.
    pub async fn exec(&self, id: &str, command: Vec<String>, wanted: WantedStreams) -> Result<Session<i32>> {
        let (container, entry) = self.shared.index.container(id).await?;
        exec(&container, &entry.live, self.new_exec(command, wanted.terminal), wanted).await
    }

    /// Joins the streams of a running container, from now on. It ends when the container does.
    ///
    /// # Errors
    /// Refused if the container is absent or does not run.
    pub async fn attach(&self, id: &str, wanted: WantedStreams) -> Result<Session<()>> {
        let (container, entry) = self.shared.index.container(id).await?;
        attach::attach(&container, &entry.live, wanted).await
    }

    /// A connection to a port of localhost as a pod has it: IPv4, then IPv6.
    ///
    /// # Errors
    /// Refused if the pod is absent or not ready; fails if nobody listens there.
    pub async fn dial(&self, id: &str, port: u16) -> Result<OwnedFd> {
        let pod = self.shared.index.pod(id).await?.view;
        if pod.phase != PodPhase::Ready {
            return Err(Refusal::wrong_state(format!("pod sandbox {} is not ready", pod.id)).into());
        }
        let namespace = match &pod.network_namespace {
            Some(pin) => Some(open(pin, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).during("opening", pin.display())?),
            None => None,
        };
        coracle_network::dial(&pod.id, namespace, port).await
    }

    /// Resolves when the end of a pod begins that is ready now. Whoever holds a connection into it must then let go: its
    /// network, and with that its address, is there for as long as any socket in it.
    pub async fn pod_ends(&self, id: &str) {
        match self.shared.index.pod_now(id) {
            // An error means that the pod's owner dropped it: it is gone.
            Ok(entry) if entry.view.phase == PodPhase::Ready => drop(entry.live.ends.subscribe().wait_for(|ends| *ends).await),
            _ => pending().await,
        }
    }
}

async fn exec(container: &ContainerView, live: &Live, request: exec::Request, wanted: WantedStreams) -> Result<Session<i32>> {
    if wanted.terminal { in_terminal(container, live, request).await } else { with_pipes(container, live, request, wanted).await }
}

async fn with_pipes(container: &ContainerView, live: &Live, request: exec::Request, wanted: WantedStreams) -> Result<Session<i32>> {
    let id = &container.id;
    let Pipes { theirs, stdin, stdout, stderr } = Pipes::new(wanted, PIPES, id)?;
    let started = exec::start(container, live, request, theirs).await?;
    Ok(Session { stdin, stdout, stderr, resize: None, exit: exit(started, id.clone()) })
}

async fn in_terminal(container: &ContainerView, live: &Live, request: exec::Request) -> Result<Session<i32>> {
    let (stage, id) = ("taking the terminal of an exec in container", &container.id);
    let (ours, theirs) = terminal::line().during(stage, id)?;
    let started = exec::start(container, live, request, [theirs, null()?, null()?]).await?;
    let master = terminal::receive(ours.as_fd()).during(stage, id)?;
    let (input, sized) = (master.try_clone().during(stage, id)?, master.try_clone().during(stage, id)?);
    let resize = move |size| {
        // That of a program that is just ending matters to nobody.
        let _ = terminal::resize(sized.as_fd(), size);
    };
    Ok(Session { stdin: Some(input), stdout: Some(master), stderr: None, resize: Some(Box::new(resize)), exit: exit(started, id.clone()) })
}

/// Waits for the end of an exec, and keeps its descendants alive until then.
fn exit(mut started: Started, id: ContainerId) -> Pin<Box<dyn Future<Output = Result<i32>> + Send>> {
    Box::pin(async move { started.exited(&id).await })
}

/// A pipe for each stream that a client wants.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// The program's ends: input, output and error output; /dev/null for a stream that nobody wants.
    pub(crate) theirs: [OwnedFd; 3],
    /// Ours of its input.
    pub(crate) stdin: Option<OwnedFd>,
    /// Ours of its output.
    pub(crate) stdout: Option<OwnedFd>,
    /// Ours of its error output.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Pipes {
    pub(crate) fn new(wanted: WantedStreams, stage: &'static str, container: &ContainerId) -> Result<Self> {
        let pipe = |wanted: bool| match wanted {
            true => pipe_with(PipeFlags::CLOEXEC).during(stage, container).map(|(read, write)| (Some(read), Some(write))),
            false => Ok((None, None)),
        };
        let ((input, stdin), (stdout, output), (stderr, error)) = (pipe(wanted.stdin)?, pipe(wanted.stdout)?, pipe(wanted.stderr)?);
        let [input, output, error] = [input, output, error].map(|end| end.map_or_else(null, Ok));
        Ok(Self { theirs: [input?, output?, error?], stdin, stdout, stderr })
    }
}
