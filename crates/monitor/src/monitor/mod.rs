//! The loop: waits for the next event, acts on it, and never waits in between.
//!
//! Signals are data: all are blocked, SIGCHLD and SIGTERM are read from a queue. Nothing ends the monitor but
//! [`Request::Shutdown`](crate::protocol::Request) and SIGTERM, and that only once nothing runs any more: at the
//! machine's shutdown everybody gets one, and the exits of the containers still have to be recorded.

mod calls;
mod lives;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use coracle_failpoint::{Point, reach};
use coracle_sys::signal::SignalQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::{Pid, Signal, geteuid, getpid, set_child_subreaper, setsid, umask};
use rustix::stdio::{dup2_stdin, dup2_stdout, stdin};
use rustix::thread::set_name;

use self::lives::{Launch, Launches};
use crate::attached::Side;
use crate::connection::{Closed, Connection};
use crate::container::Container;
use crate::fault::{OrFault, Result};
use crate::log::Buffers;
use crate::pod::Pod;
use crate::process::Process;
use crate::protocol::{Event, Fault, Message, Reply};

/// After so long without an event the monitor gives back what memory it can.
const REST: Duration = Duration::from_secs(1);

/// How long nobody is accepted after that has failed for want of descriptors or memory.
const DEAF: Duration = Duration::from_secs(1);

/// Runs a monitor on the listening socket that is this process's standard input, until it is told to end.
pub fn serve() -> ExitCode {
    match Monitor::new().and_then(|mut monitor| monitor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            note(&fault);
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever reads the monitor's own log.
fn note(fault: &Fault) {
    let error = std::io::Error::from_raw_os_error(fault.errno);
    let _ = writeln!(std::io::stderr(), "{} {}: {error}", fault.stage, fault.subject);
}

/// Who asked: a connection's number and the call's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    connection: u64,
    call: u64,
}

/// An exec whose process was not reaped.
#[derive(Debug)]
struct Execution {
    process: Process,
    /// Who waits for its end as the answer; `None`: all are told of it.
    asker: Option<Asker>,
}

/// What an event came from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Launch(Pid),
    Output { container: u64, stream: usize },
    Client { container: u64, client: u64, side: Side },
    Input { container: u64 },
}

#[derive(Debug)]
struct Monitor {
    listener: OwnedFd,
    /// Until when nobody is accepted, since that failed for want of descriptors or memory.
    deaf_until: Option<Instant>,
    signals: SignalQueue,
    connections: BTreeMap<u64, Connection>,
    pod: Pod,
    containers: BTreeMap<String, Container>,
    /// The containers whose start failed, until they are forgotten: the daemon that asked for it may not live to be told.
    failed: BTreeMap<String, Fault>,
    execs: BTreeMap<String, Execution>,
    launches: Launches,
    serial: u64,
    buffers: Option<Buffers>,
    /// Whether to end once nothing runs, and who waits for it.
    ending: Option<Option<Asker>>,
}

fn numbered(containers: &mut BTreeMap<String, Container>, serial: u64) -> Option<&mut Container> {
    containers.values_mut().find(|container| container.serial == serial)
}

impl Monitor {
    fn new() -> Result<Self> {
        let listener = fcntl_dupfd_cloexec(stdin(), 3).or_fault("taking", "standard input")?;
        if !matches!(sockopt::socket_acceptconn(&listener), Ok(true)) {
            return Err(Errno::NOTSOCK).or_fault("listening on", "standard input");
        }
        ioctl_fionbio(&listener, true).or_fault("listening on", "standard input")?;
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).or_fault("opening", "/dev/null")?;
        dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).or_fault("taking", "/dev/null")?;
        // Fails for a leader of a session, which is what is wanted.
        let _ = setsid();
        let _ = set_name(c"coracle-monitor");
        set_child_subreaper(Some(getpid())).or_fault("becoming", "the reaper of orphans")?;
        umask(Mode::from_raw_mode(0o022));
        coracle_sys::signal::reset_dispositions();
        coracle_sys::signal::block_all().or_fault("blocking", "signals")?;
        let signals = SignalQueue::new(&[Signal::CHILD.as_raw(), Signal::TERM.as_raw()], false).or_fault("reading", "signals")?;
        reach(Point::MonitorStart);
        Ok(Self {
            listener,
            deaf_until: None,
            signals,
            connections: BTreeMap::new(),
            pod: Pod::default(),
            containers: BTreeMap::new(),
            failed: BTreeMap::new(),
            execs: BTreeMap::new(),
            launches: Launches::new(),
            serial: 0,
            buffers: None,
            ending: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut rest = Some(Instant::now() + REST);
        loop {
            let ready = self.wait(rest).or_fault("waiting for", "events")?;
            let now = Instant::now();
            if !ready.is_empty() {
                rest = Some(now + REST);
            } else if rest.take_if(|rest| *rest <= now).is_some() {
                self.rest();
            }
            for (source, flags) in ready {
                self.act(source, flags);
            }
            if self.has_ended() {
                return Ok(());
            }
        }
    }

    /// Waits until something happens, it is time to rest, or what was left alone for a while is to be waited for again.
    fn wait(&self, rest: Option<Instant>) -> std::result::Result<Vec<(Source, PollFlags)>, Errno> {
        let now = Instant::now();
        let (sources, mut polled): (Vec<Source>, Vec<PollFd<'_>>) =
            self.sources(now).map(|(source, descriptor, interest)| (source, PollFd::from_borrowed_fd(descriptor, interest))).unzip();
        let pauses = self.containers.values().filter_map(|container| container.pause(now)).chain(self.pause(now));
        let patience = pauses.chain(rest).min().map(|end| end.saturating_duration_since(now));
        let patience = patience.map(|time| Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() });
        match poll(&mut polled, patience.as_ref()) {
            Err(Errno::INTR) => Ok(Vec::new()),
            done => done.map(|_| {
                let results = sources.iter().zip(&polled).map(|(source, polled)| (*source, polled.revents()));
                results.filter(|(_, flags)| !flags.is_empty()).collect()
            }),
        }
    }

    /// Until when nobody is accepted, if that is not over.
    fn pause(&self, now: Instant) -> Option<Instant> {
        self.deaf_until.filter(|end| *end > now)
    }

    fn sources(&self, now: Instant) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let input = PollFlags::IN;
        let listener = self.pause(now).is_none().then(|| (Source::Listener, self.listener.as_fd(), input));
        let outputs = self.containers.values().flat_map(move |container| {
            let serial = container.serial;
            container.output_sources(now).map(move |(stream, source)| (Source::Output { container: serial, stream }, source, input))
        });
        let clients = self.containers.values().flat_map(move |container| {
            let serial = container.serial;
            let input = container.awaited_input(now).map(|input| (Source::Input { container: serial }, input, PollFlags::OUT));
            let clients = container.client_sources();
            clients
                .map(move |(client, side, descriptor, interest)| (Source::Client { container: serial, client, side }, descriptor, interest))
                .chain(input)
        });
        let launches = self
            .launches
            .iter()
            .filter(|(_, launch)| !launch.silent)
            .map(move |(pid, launch)| (Source::Launch(*pid), launch.listening.as_fd(), input));
        let connections =
            self.connections.iter().map(|(number, connection)| (Source::Connection(*number), connection.as_fd(), connection.interest()));
        let signals = (Source::Signals, self.signals.as_fd(), input);
        outputs.chain(clients).chain(launches).chain(connections).chain(listener).chain([signals])
    }

    fn act(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.take_signals(),
            Source::Connection(number) => self.serve_connection(number, flags),
            Source::Launch(pid) => self.hear(pid, None),
            Source::Output { container, stream } => {
                let buffers = self.buffers.get_or_insert_with(Buffers::new);
                if let Some(container) = numbered(&mut self.containers, container) {
                    container.copy_output(stream, buffers);
                }
                self.tell_losses(false);
            }
            Source::Client { container, client, side } => {
                if let Some(container) = numbered(&mut self.containers, container) {
                    container.serve_client(client, side);
                }
            }
            Source::Input { container } => {
                if let Some(container) = numbered(&mut self.containers, container) {
                    container.copy_input();
                }
            }
        }
    }

    fn rest(&mut self) {
        self.tell_losses(true);
        self.buffers = None;
        coracle_sys::heap::give_back();
    }

    fn accept(&mut self) {
        match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                // Only who runs the monitor may command it.
                if sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == geteuid()) {
                    let number = self.next_serial();
                    self.connections.insert(number, Connection::new(socket));
                    // Its first calls mostly come with it: to wait for them again would cost another waking.
                    self.serve_connection(number, PollFlags::IN);
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(_) => self.deaf_until = Some(Instant::now() + DEAF),
        }
    }

    fn serve_connection(&mut self, number: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let mut done = if flags.contains(PollFlags::OUT) { connection.flush() } else { Ok(()) };
        if done.is_ok() && flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            done = connection.receive();
        }
        while done.is_ok() {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            done = match connection.next_frame() {
                Ok(Some(frame)) => self.call(number, &frame),
                // The next daemon must not be told a state that what this one left would still change.
                Ok(None) if flags.contains(PollFlags::HUP) => connection.receive(),
                Ok(None) => return,
                Err(Closed) => Err(Closed),
            };
        }
        self.connections.remove(&number);
    }

    fn reply(&mut self, asker: Asker, reply: Reply) {
        reach(Point::MonitorAnswer);
        if let Some(connection) = self.connections.get_mut(&asker.connection)
            && connection.send(&Message::Reply { id: asker.call, reply }).is_err()
        {
            self.connections.remove(&asker.connection);
        }
    }

    fn tell_all(&mut self, event: Event) {
        let message = Message::Event(event);
        self.connections.retain(|_, connection| connection.send(&message).is_ok());
    }

    /// Tells what logs did not take, where it is time to.
    fn tell_losses(&mut self, at_rest: bool) {
        let news = |(id, container): (&String, &mut Container)| Some((id.clone(), container.log.news(at_rest)?));
        for (container, loss) in self.containers.iter_mut().filter_map(news).collect::<Vec<_>>() {
            self.tell_all(Event::LogLost { container, loss });
        }
    }

    fn has_ended(&mut self) -> bool {
        let Some(asker) = self.ending else { return false };
        if !self.launches.is_empty() || !self.execs.is_empty() || self.containers.values().any(Container::lives) {
            return false;
        }
        if let Some(init) = self.pod.init() {
            // Nobody lives in its namespace any more, or it is to be ended with all who do.
            let _ = init.signal(Signal::KILL.as_raw());
            return false;
        }
        if let Some(asker) = asker {
            self.reply(asker, Reply::Done);
        }
        true
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}
