//! The daemon's side: starting a monitor and talking to it.
//!
//! A [`Monitor`] is a cheap handle to a task that owns the connection. Calls carry no deadlines; those are their
//! caller's. When the monitor goes away, calls fail as [`FailureKind::Unavailable`] and the events end.

mod berth;
mod failure;
mod link;
mod spawn;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use coracle_domain::{Error, Failure, FailureKind, Result};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

pub use self::berth::Berth;
use self::link::{Link, Outgoing};
pub use self::spawn::{Program, spawn};
use crate::protocol::{Answer, Attach, ContainerState, Event, Exec, Prepare, REMEMBERS_STARTS, Reply, Request, Start, Target, VERSION};

/// The name of a monitor's socket in its pod's directory.
pub const SOCKET: &str = "monitor.sock";
/// The name of a monitor's own log in its pod's directory.
pub const LOG: &str = "monitor.log";

/// How many calls may wait to be sent before callers wait.
const CALLS: usize = 64;
/// How often a monitor is asked about a start that cannot tell its end by itself.
const GLANCES: Duration = Duration::from_millis(20);

/// A connection to a monitor.
#[derive(Debug, Clone)]
pub struct Monitor {
    outgoing: mpsc::Sender<Box<Outgoing>>,
    pid: i32,
    revision: u32,
}

/// What a monitor knows.
#[derive(Debug, Default)]
pub struct State {
    /// Every container it was told to start and not to forget.
    pub containers: Vec<ContainerState>,
    /// Why others could not be started, by their ids. Monitors before revision 1 do not remember them.
    pub failed: HashMap<String, Error>,
}

/// A program that was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its process id in the node's namespace.
    pub pid: i32,
    /// When, in nanoseconds since the epoch.
    pub at: i64,
}

/// A program that runs in a container.
#[derive(Debug)]
pub struct RunningExec {
    /// Its process id in the node's namespace.
    pub pid: i32,
    /// Its exit status, or 128 and the number of the signal that killed it. Ends without one if the monitor, or the connection
    /// to it, goes away.
    pub exited: oneshot::Receiver<i32>,
}

impl Monitor {
    /// Connects to the monitor of a pod, by its directory. Events other than the ends of this connection's own execs
    /// come from the receiver, which ends with the monitor; it must be read, or it grows.
    ///
    /// # Errors
    /// As for [`Monitor::open`], or it does not answer as a monitor.
    pub async fn connect(directory: &Path) -> Result<(Self, mpsc::UnboundedReceiver<Box<Event>>)> {
        let (monitor, events) = Self::open(directory, 0).await?;
        let hello = monitor.call(Request::Hello, Vec::new()).await?;
        Ok((monitor.introduced(hello, directory)?, events))
    }

    /// Connects, and leaves the rest to [`Monitor::greet`]. Until then the monitor is taken for process `pid` and one of the
    /// first revision.
    ///
    /// # Errors
    /// No monitor listens there ([`FailureKind::Unavailable`]), or no connection can be made just now
    /// ([`FailureKind::Exhausted`]).
    pub async fn open(directory: &Path, pid: i32) -> Result<(Self, mpsc::UnboundedReceiver<Box<Event>>)> {
        let stream = connect(directory).await.map_err(|error| failure::of_connecting(directory, error))?;
        let (outgoing, calls) = mpsc::channel(CALLS);
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Link::new(stream, events).run(calls));
        Ok((Self { outgoing, pid, revision: 0 }, receiver))
    }

    /// The monitor that is process `pid`, without a connection: all calls fail as [`FailureKind::Unavailable`].
    pub fn unreached(pid: i32) -> Self {
        Self { outgoing: mpsc::channel(1).0, pid, revision: 0 }
    }

    /// Hears who the monitor is and what it knows of its containers. Both are asked for at once, which wakes it once.
    ///
    /// # Errors
    /// It does not answer as a monitor.
    pub async fn greet(self, directory: &Path) -> Result<(Self, State)> {
        let (hello, state) = tokio::join!(self.call(Request::Hello, Vec::new()), self.state());
        Ok((self.introduced(hello?, directory)?, state?))
    }

    fn introduced(self, hello: Reply, directory: &Path) -> Result<Self> {
        match hello {
            Reply::Hello { version: VERSION, revision, pid } => Ok(Self { pid, revision, ..self }),
            Reply::Hello { version, .. } => {
                let problem = format!("it speaks version {version} of the protocol, and this daemon version {VERSION}");
                Err(Failure::new("greeting the monitor of", directory.display(), problem).into())
            }
            other => Err(unexpected("greeting", &other)),
        }
    }

    /// The monitor's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The revision of the protocol that the monitor speaks.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Sends a request with descriptors and awaits its reply. An answer of [`Reply::Failed`] is a failure here.
    ///
    /// # Errors
    /// What the monitor reports; [`FailureKind::Unavailable`] where it went away.
    pub async fn call(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply> {
        self.send(request, descriptors, None).await
    }

    async fn send(&self, request: Request, descriptors: Vec<OwnedFd>, exited: Option<(String, oneshot::Sender<i32>)>) -> Result<Reply> {
        let (reply, answer) = oneshot::channel();
        self.outgoing.send(Box::new(Outgoing { request, descriptors, reply, exited })).await.map_err(|_| self.gone())?;
        match answer.await.map_err(|_| self.gone())? {
            Reply::Failed(fault) => Err(failure::from(fault)),
            reply => Ok(reply),
        }
    }

    fn gone(&self) -> Failure {
        let problem = "it, or the connection to it, has gone away";
        Failure::new("asking the monitor", format_args!("process {}", self.pid), problem).kind(FailureKind::Unavailable)
    }

    async fn done(&self, request: Request) -> Result<()> {
        match self.call(request, Vec::new()).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected("waiting for an answer", &other)),
        }
    }

    /// Makes and pins the pod's namespaces.
    ///
    /// # Errors
    /// As for [`Monitor::call`], here and below.
    pub async fn prepare(&self, prepare: Prepare) -> Result<()> {
        self.done(Request::Prepare(prepare)).await
    }

    /// Starts a container; returns once its program was executed.
    pub async fn start(&self, start: Start) -> Result<Started> {
        started(self.call(Request::Start(start), Vec::new()).await?)
    }

    /// Waits for the end of a start that was asked for over another connection.
    pub async fn await_start(&self, container: &str) -> Result<Started> {
        if self.revision >= REMEMBERS_STARTS {
            return started(self.call(Request::AwaitStart { container: container.to_owned() }, Vec::new()).await?);
        }
        loop {
            let known = self.state().await?.containers.into_iter().find(|known| known.container == container);
            match known {
                Some(known) if known.started_at != 0 || known.exit.is_some() => {
                    return Ok(Started { pid: known.pid, at: known.started_at });
                }
                Some(_) => tokio::time::sleep(GLANCES).await,
                None => {
                    let problem = "it failed, and its pod's monitor, of an earlier release, does not remember why";
                    return Err(Failure::new("starting container", container, problem).into());
                }
            }
        }
    }

    /// Runs a program in a running container, with these standard streams: input, output, error.
    pub async fn exec(&self, exec: Exec, streams: [OwnedFd; 3]) -> Result<RunningExec> {
        let (sender, exited) = oneshot::channel();
        let name = exec.exec.clone();
        let reply = self.send(Request::Exec(Box::new(exec)), streams.into(), Some((name, sender))).await?;
        Ok(RunningExec { pid: started(reply)?.pid, exited })
    }

    /// Runs a program in a running container to its end: its exit status, or 128 and the number of the signal that killed it.
    pub async fn run(&self, exec: Exec, streams: [OwnedFd; 3]) -> Result<i32> {
        let exec = Exec { answer: Answer::AtEnd, ..exec };
        let (sender, exited) = oneshot::channel();
        let name = exec.exec.clone();
        match self.send(Request::Exec(Box::new(exec)), streams.into(), Some((name, sender))).await? {
            Reply::Ended { code } => Ok(code),
            // A monitor of an older release tells the end by an event.
            reply => started(reply).map(drop).and(exited.await.map_err(|_| self.gone().into())),
        }
    }

    /// Sends a signal, by the kernel's number; a process that is gone needs none.
    pub async fn signal(&self, target: Target, signal: i32) -> Result<()> {
        self.done(Request::Signal { target, signal }).await
    }

    /// Attaches a client to a running container: where its input comes from, where output and error output go to.
    pub async fn attach(&self, attach: Attach, streams: [OwnedFd; 3]) -> Result<()> {
        match self.call(Request::Attach(attach), streams.into()).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected("attaching", &other)),
        }
    }

    /// Makes a container's terminal this large.
    pub async fn resize(&self, container: &str, columns: u16, rows: u16) -> Result<()> {
        self.done(Request::Resize { container: container.to_owned(), columns, rows }).await
    }

    /// Opens a running container's log anew under its path.
    pub async fn reopen_log(&self, container: &str) -> Result<()> {
        self.done(Request::ReopenLog { container: container.to_owned() }).await
    }

    /// Drops what the monitor remembers of an ended container.
    pub async fn forget(&self, container: &str) -> Result<()> {
        self.done(Request::Forget { container: container.to_owned() }).await
    }

    /// What the monitor knows of its containers.
    pub async fn state(&self) -> Result<State> {
        match self.call(Request::State, Vec::new()).await? {
            Reply::State { containers, failed } => {
                let failed = failed.into_iter().map(|failed| (failed.container, failure::from(failed.fault))).collect();
                Ok(State { containers, failed })
            }
            other => Err(unexpected("reading the state", &other)),
        }
    }

    /// Kills everything and ends the monitor; returns once all its processes are reaped.
    pub async fn shutdown(&self) -> Result<()> {
        self.done(Request::Shutdown).await
    }
}

fn started(reply: Reply) -> Result<Started> {
    match reply {
        Reply::Started { pid, at } => Ok(Started { pid, at }),
        other => Err(unexpected("starting a process", &other)),
    }
}

fn unexpected(stage: &'static str, reply: &Reply) -> coracle_domain::Error {
    Failure::new(stage, "the monitor", format!("unexpected answer {reply:?}")).into()
}

async fn connect(directory: &Path) -> std::io::Result<UnixStream> {
    let path = directory.join(SOCKET);
    if path.as_os_str().len() <= spawn::LONGEST_ADDRESS {
        return UnixStream::connect(path).await;
    }
    let handle = spawn::open_directory(directory)?;
    UnixStream::connect(spawn::socket_path(&handle)).await
}
