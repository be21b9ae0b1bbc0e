//! A container as its monitor holds it, from the clone until the daemon forgets it.
//!
//! ```text
//! SettingUp ──program executed──> Running ──reaped──> Ended
//!     └──failed──> gone
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_plan::{Plan, UserNamespace};
use rustix::event::PollFlags;
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::CapabilitySet;

use crate::attached::{Client, Input, Side};
use crate::child::Streams;
use crate::child::cgroups::Entrances;
use crate::exit;
use crate::fault::{OrFault, Result};
use crate::log::{Buffers, Log, Progress, Stream, time};
use crate::process::Process;
use crate::protocol::{ContainerState, ExitRecord, OomSource, Start};
use crate::unwritable::null;

/// How many reads of a stream one turn of the loop makes, so that a flood in one does not keep the others waiting.
const READS_PER_TURN: usize = 8;
/// How long one turn may take: the kernel slows down whoever writes faster than its disk.
const TURN: Duration = Duration::from_millis(5);
/// How often a terminal is looked at that nobody has open: the kernel does not tell when somebody opens it, and until then it
/// says at once of whoever waits for more that there will be none.
const LOOK: Duration = Duration::from_millis(100);
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
    /// By which its execs enter its cgroups.
    pub(crate) entrances: Entrances,
    /// Its user namespace, if it has one.
    pub(crate) user: Option<UserNamespace>,
    /// Whether its processes may look into others (CAP_SYS_PTRACE).
    pub(crate) may_trace: bool,
    /// Who is attached to it.
    clients: Vec<Client>,
    /// The writing side of its standard input, kept open for clients.
    input: Option<OwnedFd>,
    /// Whether it is to have a terminal and has not made it yet.
    awaits_terminal: bool,
    /// The master side of its terminal, if it has one.
    terminal: Option<OwnedFd>,
    /// When its terminal is to be looked at again, if nobody had it open the last time.
    look_at: Option<Instant>,
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

    fn open(stdin: bool, terminal: bool) -> io::Result<Self> {
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

impl Container {
    /// One whose process was just made.
    pub(crate) fn new(serial: u64, process: Process, start: Start, pipes: Pipes, log: Log) -> Self {
        let Pipes { input, streams, .. } = pipes;
        let Start { exit, oom, .. } = start;
        Self {
            serial,
            process,
            streams,
            log,
            phase: Phase::SettingUp,
            entrances: Entrances::default(),
            user: None,
            may_trace: false,
            clients: Vec::new(),
            input,
            awaits_terminal: false,
            terminal: None,
            look_at: None,
            exit,
            oom,
        }
    }

    /// The same, as its plan has it: with these capabilities, perhaps in a user namespace, perhaps with a terminal.
    pub(crate) fn planned(self, plan: Plan) -> Self {
        let capabilities = &plan.process.capabilities;
        let may_trace = (capabilities.bounding | capabilities.permitted | capabilities.effective) & CapabilitySet::SYS_PTRACE.bits() != 0;
        Self { user: plan.namespaces.user, may_trace, awaits_terminal: plan.process.terminal, ..self }
    }

    /// Takes the master side of the terminal that the container made for itself, once, if it is to have one.
    pub(crate) fn take_terminal(&mut self, master: Option<OwnedFd>) -> std::result::Result<(), Errno> {
        if !std::mem::take(&mut self.awaits_terminal) {
            return Ok(());
        }
        let master = master.ok_or(Errno::BADF)?;
        // A client on the other side set it not to block, but that side is not trusted with it.
        ioctl_fionbio(&master, true)?;
        self.terminal = Some(fcntl_dupfd_cloexec(&master, 3)?);
        self.streams.push(Stream::new(master, "stdout"));
        Ok(())
    }

    /// Attaches a client.
    pub(crate) fn attach(&mut self, client: Client) {
        self.clients.push(client);
        self.copy_input();
    }

    /// Makes its terminal this large.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> std::result::Result<(), Errno> {
        let terminal = self.terminal.as_ref().ok_or(Errno::NOTTY)?;
        tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
    }

    /// Until when its streams are not waited for, if that is not over.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        self.look_at.filter(|at| *at > now)
    }

    /// The streams of output that are waited for, each with its index.
    pub(crate) fn output_sources(&self, now: Instant) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let streams = if self.pause(now).is_none() { self.streams.as_slice() } else { &[] };
        streams.iter().map(AsFd::as_fd).enumerate()
    }

    /// What its clients are waited for with: each with its number and side.
    pub(crate) fn client_sources(&self) -> impl Iterator<Item = (u64, Side, BorrowedFd<'_>, PollFlags)> {
        self.clients
            .iter()
            .flat_map(|client| client.sources().map(|(side, descriptor, interest)| (client.serial, side, descriptor, interest)))
    }

    /// Where input goes, if some has to wait until it is taken.
    pub(crate) fn awaited_input(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        let is_awaited = self.pause(now).is_none() && self.clients.iter().any(Client::is_waiting);
        is_awaited.then(|| self.input().map(AsFd::as_fd)).flatten()
    }

    /// Acts on what a client did.
    pub(crate) fn serve_client(&mut self, serial: u64, side: Side) {
        match side {
            Side::Input => self.copy_input(),
            Side::Output(output) => {
                for client in self.clients.iter_mut().filter(|client| client.serial == serial) {
                    client.close(output);
                }
            }
        }
        self.clients.retain(|client| !client.is_gone());
    }

    /// Copies input of all clients for as long as it is taken.
    pub(crate) fn copy_input(&mut self) {
        for client in &mut self.clients {
            let passed = match self.terminal.as_ref().or(self.input.as_ref()) {
                Some(to) => client.pass_on(to),
                None => Input::Refused,
            };
            match passed {
                Input::Open => {}
                Input::Refused => client.refuse_input(),
                // A terminal has no end of input of its own.
                Input::EndsContainers => self.input = None,
            }
        }
        self.clients.retain(|client| !client.is_gone());
    }

    fn input(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref().or(self.input.as_ref())
    }

    /// Copies output for a while. Streams that ended are dropped.
    pub(crate) fn copy_output(&mut self, index: usize, buffers: &mut Buffers) {
        let begun = Instant::now();
        for _ in 0..READS_PER_TURN {
            if self.copy(index, buffers) != Progress::More || begun.elapsed() > TURN {
                break;
            }
        }
        self.drop_ended_streams();
    }

    fn drop_ended_streams(&mut self) {
        let lives = self.lives();
        let has_ended = |stream: &mut Stream| match stream.progress() {
            Progress::Ended => true,
            Progress::Deserted => !lives,
            Progress::More | Progress::Idle => false,
        };
        for stream in self.streams.extract_if(.., has_ended) {
            for client in &mut self.clients {
                client.end(stream.name());
            }
        }
    }

    /// Takes note of the end of the first process: what it has written goes into the log, and its end on record.
    pub(crate) fn end(&mut self, code: i32, buffers: &mut Buffers) -> (ExitRecord, Result<()>) {
        let at = time::now();
        let oom_killed = self.is_oom_killed();
        let started_at = match self.phase {
            Phase::Running { started_at } => started_at,
            Phase::SettingUp | Phase::Ended(_) => at,
        };
        for index in 0..self.streams.len() {
            let _ = (0..READS_TO_EMPTY).find(|_| self.copy(index, buffers) != Progress::More);
        }
        self.log.finish();
        let record = ExitRecord { code, at, oom_killed, started_at };
        self.phase = Phase::Ended(record.clone());
        self.drop_ended_streams();
        // Clients are attached to the program, not to what it left behind.
        (self.clients, self.input, self.terminal) = (Vec::new(), None, None);
        let recorded = exit::record(&self.exit, &record);
        (record, recorded)
    }

    /// Whether the kernel has killed something in it for want of memory.
    pub(crate) fn is_oom_killed(&self) -> bool {
        self.oom.as_ref().is_some_and(exit::oom_killed)
    }

    /// Copies what one read of a stream gives, to its log and to all clients.
    fn copy(&mut self, index: usize, buffers: &mut Buffers) -> Progress {
        let Some(stream) = self.streams.get_mut(index) else { return Progress::Ended };
        let progress = stream.copy(&mut self.log, buffers);
        match progress {
            Progress::More => self.clients.iter_mut().for_each(|client| client.give(stream.name(), buffers.read())),
            Progress::Deserted => self.look_at = Some(Instant::now() + LOOK),
            Progress::Idle | Progress::Ended => {}
        }
        progress
    }

    /// What the daemon is told of it.
    pub(crate) fn state(&self, container: &str) -> ContainerState {
        let (started_at, exit) = match &self.phase {
            Phase::SettingUp => (0, None),
            Phase::Running { started_at } => (*started_at, None),
            Phase::Ended(exit) => (exit.started_at, Some(exit.clone())),
        };
        let pid = self.process.pid.as_raw_pid();
        ContainerState { container: container.to_owned(), pid, started_at, exit, lost: self.log.lost() }
    }

    /// Whether its first process still has to be reaped.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn a_terminal_is_taken_once_and_only_where_there_is_to_be_one() {
        let process = Process::new(getpid(), pidfd_open(getpid(), PidfdFlags::empty()).unwrap());
        let start = Start { container: "c".to_owned(), plan: PathBuf::new(), exit: PathBuf::new(), log: None, stdin: false, oom: None };
        let pipes = Pipes { theirs: Streams { input: file(), output: file(), error: file() }, input: None, streams: Vec::new() };
        let mut container = Container::new(1, process, start, pipes, Log::open(None).unwrap());
        for (awaits_terminal, streams) in [(false, 0), (true, 1)] {
            container.awaits_terminal = awaits_terminal;
            for _ in 0..3 {
                container.take_terminal(Some(file())).unwrap();
                assert_eq!((container.streams.len(), container.terminal.is_some()), (streams, awaits_terminal));
            }
        }
        container.awaits_terminal = true;
        assert_eq!(container.take_terminal(None), Err(Errno::BADF));
    }
}
