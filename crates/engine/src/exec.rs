//! Execs: a program run in a container; and ExecSync, which waits for it and takes all it says. What a client talks to
//! is in `session`.
//!
//! An exec changes no pod, so it goes straight to the monitor. The daemon reads the pipes itself, on threads that may block
//! (see [`Capture`]); the monitor only forks. The call returns when the program itself ends: what its descendants still hold
//! open is not waited for. They live in a leaf cgroup of the exec's own, which is killed when the call ends, however it ends: if
//! by the daemon's death, then by the next daemon, for nobody could be told what they say (see `leaf`).

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_domain::{ContainerId, ContainerView, During, Failure, FailureKind, Result};
use coracle_monitor::client::Monitor;
use coracle_monitor::protocol::{Answer, Exec};
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::deadline::{SET_UP, within};
use crate::leaf::{self, Leaf, Left};
use crate::live::{Live, LiveContainer};
use crate::{Engine, berth};

/// The stage of making an exec's pipes.
pub(crate) const PIPES: &str = "making pipes for an exec in container";

/// What is kept of each stream; the rest is dropped, as kubelet expects.
const OUTPUT_LIMIT: usize = 16 << 20;
const READ: usize = 16 << 10;
/// How long what was said last is waited for while somebody has the pipe locked.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How many reads empty a pipe that processes left behind go on filling: the largest pipe holds a mebibyte.
const READS_TO_EMPTY: usize = (1 << 20) / READ;

/// What an exec said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// Its exit status, or 128 and the number of the signal that killed it.
    pub exit_code: i32,
}

/// A program to run in a container, under a name that is unique in the pod.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    /// Whether it has one, in place of three streams.
    pub(crate) terminal: bool,
}

/// A program that was started. It is killed with all its descendants when this is dropped.
#[derive(Debug)]
pub(crate) struct Started {
    exited: oneshot::Receiver<i32>,
    leaf: Leaf,
}

impl Engine {
    /// Runs a command in a running container until it ends, or until `limit` has passed.
    ///
    /// # Errors
    /// Refused if the container is absent or does not run; times out after `limit`. A command that ends with a
    /// status other than 0 is no error.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, limit: Option<Duration>) -> Result<ExecOutput> {
        let (container, entry) = self.shared.index.container(id).await?;
        run(&container, &entry.live, self.new_exec(command, false), limit).await
    }

    /// Kills all execs, of whichever daemon, and waits until they are gone.
    pub async fn end_execs(&self) {
        let live: Vec<_> = self.shared.index.pods_now().iter().filter_map(|pod| self.shared.index.live(&pod.id)).collect();
        let cgroups = live.iter().flat_map(|live| live.containers.values()).map(|container| &container.cgroup);
        for ending in cgroups.flat_map(|cgroup| leaf::end_all(cgroup)).collect::<Vec<_>>() {
            // It cannot fail but by a panic, which was reported.
            let _ = ending.await;
        }
    }

    /// A command under a name of its own.
    pub(crate) fn new_exec(&self, command: Vec<String>, terminal: bool) -> Request {
        Request { name: format!("{}-{}", self.mark, self.execs.fetch_add(1, Ordering::Relaxed)), command, terminal }
    }
}

/// Starts a program in a running container, with these standard streams, or with a socket as the first of them, over
/// which its terminal comes (see [`coracle_monitor::protocol::Request::Exec`]).
pub(crate) async fn start(container: &ContainerView, live: &Live, request: Request, streams: [OwnedFd; 3]) -> Result<Started> {
    let (target, monitor) = live.reach(container)?;
    let (leaf, exec) = prepare(container, target, request)?;
    let running = within(SET_UP, "starting an exec in container", container.id.as_str(), monitor.exec(exec, streams)).await?;
    Ok(Started { exited: running.exited, leaf })
}

/// What the monitor is asked for, and the cgroup that is made for it.
fn prepare(container: &ContainerView, target: &Arc<LiveContainer>, request: Request) -> Result<(Leaf, Exec)> {
    let process = coracle_spec::exec_process(target.process()?, &request.command, request.terminal)?;
    let leaf = Leaf::new(target, &container.id, &request.name)?;
    let cgroups = leaf.cgroups();
    let container = container.id.as_str().to_owned();
    Ok((leaf, Exec { exec: request.name, container, process, cgroups, answer: Answer::AtStart }))
}

impl Started {
    /// Waits for the end of the program itself; its exit status, or 128 and the number of the signal that killed it.
    pub(crate) async fn exited(&mut self, container: &ContainerId) -> Result<i32> {
        let lost = "its pod's monitor, or the connection to it, has gone away";
        let lost = |_| Failure::new("waiting for an exec in container", container, lost).kind(FailureKind::Unavailable);
        let code = (&mut self.exited).await.map_err(lost)?;
        self.leaf.vacate();
        Ok(code)
    }
}

/// Runs a program in a running container until it ends, or is killed after `limit`, which is that of its set-up too.
pub(crate) async fn run(container: &ContainerView, live: &Live, request: Request, limit: Option<Duration>) -> Result<ExecOutput> {
    let subject = container.id.as_str();
    let mut stdout = Capture::new().during(PIPES, subject)?;
    let mut stderr = Capture::new().during(PIPES, subject)?;
    let streams = [null()?, stdout.end().during(PIPES, subject)?, stderr.end().during(PIPES, subject)?];
    let (target, monitor) = live.reach(container)?;
    let (mut leaf, exec) = prepare(container, target, request)?;
    leaf.pipes = vec![stdout.ours().during(PIPES, subject)?, stderr.ours().during(PIPES, subject)?];
    let exit_code = tokio::select! {
        code = carry_out(live, monitor, exec, &mut leaf, streams) => code?,
        never = stdout.read() => match never {},
        never = stderr.read() => match never {},
        () = passed(limit) => {
            // The caller may look at once whether anything is left.
            leaf.end().await;
            let problem = format!("no end after {} s", limit.unwrap_or_default().as_secs_f32());
            return Err(Failure::new("running a command in container", subject, problem).kind(FailureKind::TimedOut).into());
        }
    };
    let left = leaf.vacate();
    tokio::join!(stdout.drain(left), stderr.drain(left));
    Ok(ExecOutput { stdout: stdout.kept, stderr: stderr.kept, exit_code })
}

/// Runs a program to its end: its exit status, or 128 and the number of the signal that killed it.
async fn carry_out(live: &Live, monitor: &Monitor, exec: Exec, leaf: &mut Leaf, streams: [OwnedFd; 3]) -> Result<i32> {
    if live.is_fit_for_berths()
        && let Some(code) = berth::run(monitor, &exec, leaf, &streams).await?
    {
        return Ok(code);
    }
    if let Some(berth) = leaf.berth.take() {
        berth.end().await;
    }
    monitor.run(exec, streams).await
}

async fn passed(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => pending().await,
    }
}

/// Where nothing comes from and all goes that nobody wants.
pub(crate) fn null() -> Result<OwnedFd> {
    coracle_monitor::null().during("opening", "/dev/null")
}

/// One output stream: a pipe, of which the reading end does not block and the writing end does.
///
/// But whoever hands a file on to a pipe, or writes what a file is mapped to, has the pipe locked while the file is waited for
/// (Linux, fs/splice.c and fs/pipe.c), and whoever reads from the other end or closes it waits for the lock whatever its flags
/// say. So programs that may still run are read from on threads that may block, and our end is open until they have ended
/// ([`Leaf::pipes`]).
struct Capture {
    reader: Arc<pipe::Receiver>,
    /// Held until the call ends, or the program's end would be told twice: by the pipes, and by the monitor.
    writer: OwnedFd,
    kept: Vec<u8>,
    /// What is being read on such a thread.
    reading: Option<JoinHandle<Option<Vec<u8>>>>,
}

impl Capture {
    fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { reader: Arc::new(pipe::Receiver::from_owned_fd(reader)?), writer, kept: Vec::new(), reading: None })
    }

    /// The program's end of it.
    fn end(&self) -> io::Result<OwnedFd> {
        self.writer.try_clone()
    }

    /// Our end once more.
    fn ours(&self) -> io::Result<OwnedFd> {
        self.reader.as_fd().try_clone_to_owned()
    }

    /// Takes all that comes, for as long as it is waited for.
    async fn read(&mut self) -> Infallible {
        while self.reading.is_some() || self.reader.readable().await.is_ok() {
            self.take(|pipe, buffer| pipe.try_read(buffer)).await;
        }
        pending().await
    }

    /// Takes what is there, and does not wait for more. Asks the kernel: the runtime may not have heard yet.
    async fn drain(&mut self, left: Left) {
        let read = |pipe: &pipe::Receiver, buffer: &mut [u8]| Ok(rustix::io::read(pipe, buffer)?);
        // What is being read may have found nothing, where there is something by now.
        if self.reading.is_some() && timeout(LAST_WORDS, self.take(read)).await.is_err() {
            return;
        }
        for _ in 0..READS_TO_EMPTY {
            let there_is_more = match left {
                Left::Nothing => self.keep(chunk(&self.reader, read)),
                Left::Something => timeout(LAST_WORDS, self.take(read)).await.unwrap_or(false),
            };
            if !there_is_more {
                return;
            }
        }
    }

    /// Takes what one read gives, on a thread that may block; whether there was anything. Nothing is lost if this is dropped.
    async fn take(&mut self, read: fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>) -> bool {
        let reading = self.reading.get_or_insert_with(|| {
            let reader = Arc::clone(&self.reader);
            tokio::task::spawn_blocking(move || chunk(&reader, read))
        });
        let chunk = reading.await.ok().flatten();
        self.reading = None;
        self.keep(chunk)
    }

    fn keep(&mut self, chunk: Option<Vec<u8>>) -> bool {
        let Some(chunk) = chunk else { return false };
        let room = OUTPUT_LIMIT - self.kept.len();
        self.kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        true
    }
}

/// What one read gives; `None`: there is nothing.
fn chunk(pipe: &pipe::Receiver, read: fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>) -> Option<Vec<u8>> {
    let mut buffer = [0; READ];
    let length = read(pipe, &mut buffer).ok().filter(|length| *length > 0)?;
    Some(buffer[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_capped_and_the_rest_is_swallowed() {
        let mut capture = Capture::new().unwrap();
        let writer = capture.end().unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..20 {
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    rest = &rest[rustix::io::write(&writer, rest).unwrap()..];
                }
            }
        });
        tokio::select! {
            never = capture.read() => match never {},
            written = writing => written.unwrap(),
        }
        capture.drain(Left::Nothing).await;
        assert_eq!(capture.kept.len(), OUTPUT_LIMIT);
    }

    #[tokio::test]
    async fn what_is_there_is_taken_without_waiting_for_the_end() {
        for left in [Left::Nothing, Left::Something] {
            for read_before in [None, Some(None), Some(Some(b"this was ".to_vec()))] {
                let mut capture = Capture::new().unwrap();
                let before = read_before.clone().flatten().unwrap_or_default();
                capture.reading = read_before.map(|found| tokio::task::spawn_blocking(|| found));
                rustix::io::write(&capture.writer, b"said").unwrap();
                capture.drain(left).await;
                assert_eq!(capture.kept, [before, b"said".to_vec()].concat());
            }
        }
    }
}
