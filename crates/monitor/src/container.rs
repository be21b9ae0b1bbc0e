//! A container as its monitor holds it, from the clone until the daemon forgets it.
//!
//! ```text
//! SettingUp ──program executed──> Running ──reaped──> Ended
//!     └──failed──> gone
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use coracle_plan::{Plan, UserNamespace};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::child::Streams;
use crate::exit;
use crate::fault::{OrFault, Result};
use crate::log::{Buffers, Log, Progress, Stream, time};
use crate::process::Process;
use crate::protocol::{ContainerState, ExitRecord, OomSource, Start};

/// How many reads of a stream one turn of the loop makes, so that a flood in one does not keep the others waiting.
const READS_PER_TURN: usize = 8;
/// How many reads empty a pipe that processes left behind go on filling: the largest pipe holds a mebibyte.
const READS_TO_EMPTY: usize = 64;

/// The monitor's side of a container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its number in the monitor, never used again.
    pub(crate) serial: u64,
    /// Its first process.
    pub(crate) process: Process,
    /// Its output, while somebody holds the other side.
    pub(crate) streams: Vec<Stream>,
    /// Its log.
    pub(crate) log: Log,
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// Its user namespace, if it has one.
    pub(crate) user: Option<UserNamespace>,
    /// The writing side of its standard input, kept open for clients.
    _input: Option<OwnedFd>,
    exit: PathBuf,
    oom: Option<OomSource>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its process carries out the plan.
    SettingUp,
    /// Its program was executed, then.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Its first process was reaped.
    Ended(ExitRecord),
}

/// Both sides of a new container's standard streams.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// The container's.
    pub(crate) theirs: Streams,
    input: Option<OwnedFd>,
    streams: Vec<Stream>,
}

impl Pipes {
    /// Pipes as the container wants them. One with a terminal makes that itself.
    pub(crate) fn new(start: &Start, plan: &Plan) -> Result<Self> {
        Self::open(start.stdin, plan.process.terminal).or_fault("making the standard streams of", &start.container)
    }

    fn open(stdin: bool, terminal: bool) -> std::result::Result<Self, Errno> {
        if terminal {
            let theirs = Streams { input: null()?, output: null()?, error: null()? };
            return Ok(Self { theirs, input: None, streams: Vec::new() });
        }
        let (input, ours) = if stdin { pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| (read, Some(write)))? } else { (null()?, None) };
        let (output_source, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (error_source, error) = pipe_with(PipeFlags::CLOEXEC)?;
        for end in [Some(&output_source), Some(&error_source), ours.as_ref()].into_iter().flatten() {
            ioctl_fionbio(end, true)?;
        }
        let streams = vec![Stream::new(output_source, "stdout"), Stream::new(error_source, "stderr")];
        Ok(Self { theirs: Streams { input, output, error }, input: ours, streams })
    }
}

fn null() -> std::result::Result<OwnedFd, Errno> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

impl Container {
    /// One whose process was just made.
    pub(crate) fn new(serial: u64, process: Process, start: Start, pipes: Pipes, log: Log) -> Self {
        let Pipes { input, streams, .. } = pipes;
        Self { serial, process, streams, log, phase: Phase::SettingUp, user: None, _input: input, exit: start.exit, oom: start.oom }
    }

    /// The same, in a user namespace.
    pub(crate) fn in_user_namespace(self, user: Option<UserNamespace>) -> Self {
        Self { user, ..self }
    }

    /// Takes the master side of the terminal that the container made for itself.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) {
        // A client on the other side set it not to block, but that side is not trusted with it.
        if ioctl_fionbio(&master, true).is_ok() {
            self.streams.push(Stream::new(master, "stdout"));
        }
    }

    /// Copies output for a while. Streams that ended are dropped.
    pub(crate) fn copy_output(&mut self, index: usize, buffers: &mut Buffers) {
        self.copy(index, READS_PER_TURN, buffers);
        self.streams.retain(|stream| !stream.ended());
    }

    /// Takes note of the end of the first process: what it has written goes into the log, and its end on record.
    pub(crate) fn end(&mut self, code: i32, buffers: &mut Buffers) -> (ExitRecord, Result<()>) {
        let at = time::now();
        let oom_killed = self.oom.as_ref().is_some_and(exit::oom_killed);
        let started_at = match self.phase {
            Phase::Running { started_at } => started_at,
            Phase::SettingUp | Phase::Ended(_) => at,
        };
        for index in 0..self.streams.len() {
            self.copy(index, READS_TO_EMPTY, buffers);
        }
        self.streams.retain(|stream| !stream.ended());
        let record = ExitRecord { code, at, oom_killed, started_at };
        self.phase = Phase::Ended(record.clone());
        let recorded = exit::record(&self.exit, &record);
        (record, recorded)
    }

    fn copy(&mut self, index: usize, reads: usize, buffers: &mut Buffers) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        for _ in 0..reads {
            if stream.copy(&mut self.log, buffers) != Progress::More {
                return;
            }
        }
    }

    /// What the daemon is told of it.
    pub(crate) fn state(&self, container: &str) -> ContainerState {
        let (started_at, exit) = match &self.phase {
            Phase::SettingUp => (0, None),
            Phase::Running { started_at } => (*started_at, None),
            Phase::Ended(exit) => (exit.started_at, Some(exit.clone())),
        };
        let pid = self.process.pid.as_raw_pid();
        ContainerState { container: container.to_owned(), pid, started_at, exit, dropped: self.log.dropped() }
    }

    /// Whether its first process still has to be reaped.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.process.as_fd()
    }
}
