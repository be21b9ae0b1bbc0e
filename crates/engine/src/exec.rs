//! Execs: a program run in a container; and ExecSync, which waits for it and takes all it says. What a client talks to
//! is in `session`.
//!
//! An exec changes no pod, so it goes straight to the monitor. The daemon reads the pipes itself; the monitor only
//! forks. The call returns when the program itself ends: what its descendants still hold open is not waited for.
//! They live in a leaf cgroup of the exec's own, which is killed and removed when the call ends, however it ends.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_cgroup::ExecLeaf;
use coracle_domain::{ContainerId, ContainerView, During, Failure, FailureKind, Result};
use coracle_monitor::protocol::Exec;
use coracle_plan::Cgroups;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Engine;
use crate::deadline::{SET_UP, within};
use crate::live::Live;

/// The stage of making an exec's pipes.
pub(crate) const PIPES: &str = "making pipes for an exec in container";

/// What is kept of each stream; the rest is dropped, as kubelet expects.
const OUTPUT_LIMIT: usize = 16 << 20;

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
        let (container, entry) = self.shared.index.container(id)?;
        run(&container, &entry.live, self.new_exec(command, false), limit).await
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
    let subject = container.id.as_str();
    // One mkdir(2) in memory: shorter than handing it to another thread would take.
    let leaf = Leaf(Some(target.cgroup.exec_leaf(&request.name)?));
    let exec = Exec {
        exec: request.name,
        container: subject.to_owned(),
        process: coracle_spec::exec_process(&target.process, &request.command, request.terminal)?,
        cgroups: leaf.cgroups(),
    };
    let running = within(SET_UP, "starting an exec in container", subject, monitor.exec(exec, streams)).await?;
    Ok(Started { exited: running.exited, leaf })
}

impl Started {
    /// Waits for the end of the program itself; its exit status, or 128 and the number of the signal that killed it.
    pub(crate) async fn exited(&mut self, container: &ContainerId) -> Result<i32> {
        (&mut self.exited).await.during("waiting for an exec in container", container)
    }
}

/// Runs a program in a running container until it ends, or is killed after `limit`.
pub(crate) async fn run(container: &ContainerView, live: &Live, request: Request, limit: Option<Duration>) -> Result<ExecOutput> {
    let subject = container.id.as_str();
    let (mut stdout, stdout_end) = Capture::new().during(PIPES, subject)?;
    let (mut stderr, stderr_end) = Capture::new().during(PIPES, subject)?;
    let mut started = start(container, live, request, [null()?, stdout_end, stderr_end]).await?;
    let reading = async {
        tokio::join!(stdout.read_to_end(), stderr.read_to_end());
        pending::<()>().await
    };
    let exit_code = tokio::select! {
        code = started.exited(&container.id) => code?,
        () = reading => return Err(lost(subject)),
        () = passed(limit) => {
            // The caller may look at once whether anything is left.
            started.leaf.end().await;
            let problem = format!("no end after {} s", limit.unwrap_or_default().as_secs_f32());
            return Err(Failure::new("running a command in container", subject, problem).kind(FailureKind::TimedOut).into());
        }
    };
    stdout.drain();
    stderr.drain();
    Ok(ExecOutput { stdout: stdout.kept, stderr: stderr.kept, exit_code })
}

async fn passed(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => pending().await,
    }
}

fn lost(subject: &str) -> coracle_domain::Error {
    Failure::new("waiting for an exec in container", subject, "its output is lost").into()
}

/// Where nothing comes from and all goes that nobody wants.
pub(crate) fn null() -> Result<OwnedFd> {
    const NULL: &str = "/dev/null";
    rustix::fs::open(NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("opening", NULL)
}

/// The cgroup of one exec; its processes are killed and it is removed when dropped, off the caller's path.
#[derive(Debug)]
struct Leaf(Option<ExecLeaf>);

impl Leaf {
    fn cgroups(&self) -> Cgroups {
        self.0.as_ref().map(|leaf| Cgroups { unified: leaf.dir.clone(), join: leaf.join.clone() }).unwrap_or_default()
    }

    /// Kills its processes and waits until they are gone.
    async fn end(&mut self) {
        if let Some(ending) = self.ending() {
            // It cannot fail but by a panic, which was reported.
            let _ = ending.await;
        }
    }

    /// Starts to end it, unless that was done.
    fn ending(&mut self) -> Option<JoinHandle<()>> {
        let leaf = self.0.take()?;
        Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = leaf.remove() {
                tracing::warn!(%error, "the cgroup of an exec is left for its container's end");
            }
        }))
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        drop(self.ending());
    }
}

/// One output stream.
struct Capture {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
}

/// What reading until there is no more for now came to.
#[derive(PartialEq, Eq)]
enum Taken {
    Everything,
    End,
}

impl Capture {
    /// A pipe: the reading end, which does not block, and the writing end, which does.
    fn new() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Self { pipe: pipe::Receiver::from_owned_fd(reader)?, kept: Vec::new() }, writer))
    }

    async fn read_to_end(&mut self) {
        while self.pipe.readable().await.is_ok() && self.take(|pipe, buffer| pipe.try_read(buffer)) != Taken::End {}
    }

    /// Takes what is there, and does not wait for more. Asks the kernel: the runtime may not have heard yet.
    fn drain(&mut self) {
        self.take(|pipe, buffer| Ok(rustix::io::read(pipe, buffer)?));
    }

    fn take(&mut self, read: impl Fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>) -> Taken {
        let mut buffer = [0; 16 << 10];
        loop {
            match read(&self.pipe, &mut buffer) {
                Ok(0) => return Taken::End,
                Ok(length) => {
                    let room = OUTPUT_LIMIT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..length.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Taken::Everything,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Taken::End,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_capped_and_the_rest_is_swallowed() {
        let (mut capture, writer) = Capture::new().unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..20 {
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    rest = &rest[rustix::io::write(&writer, rest).unwrap()..];
                }
            }
        });
        capture.read_to_end().await;
        writing.await.unwrap();
        assert_eq!(capture.kept.len(), OUTPUT_LIMIT);
    }

    #[tokio::test]
    async fn what_is_there_is_taken_without_waiting_for_the_end() {
        let (mut capture, writer) = Capture::new().unwrap();
        rustix::io::write(&writer, b"said").unwrap();
        capture.drain();
        assert_eq!(capture.kept, b"said");
    }
}
