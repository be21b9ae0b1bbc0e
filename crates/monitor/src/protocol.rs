//! What a daemon and a monitor say to each other.
//!
//! A connection is a stream socket. A frame is a length (u32, little endian, at most [`MAX_FRAME`]) and that
//! many bytes of JSON; descriptors travel with a frame's first byte (SCM_RIGHTS). The daemon sends [`Call`]s,
//! the monitor [`Message`]s: one reply per call, in any order, and events as they happen. Several daemons may be
//! connected at once, as during an upgrade; each gets all events.
//!
//! Monitors outlive daemons, and a daemon may be replaced by an earlier one. So within a [`VERSION`]:
//!
//! - Only optional fields (`#[serde(default)]`) and new calls are added, and each addition makes a new [`REVISION`].
//! - A monitor tells both numbers in [`Reply::Hello`]. A daemon may rely on what its table says for them, and manages
//!   without the rest.
//! - What a daemon does not know in an answer, and an event that it does not know, it passes over: daemons that know revision 1
//!   do so. A monitor answers a call that it does not know with [`Fault`] and `ENOSYS`.
//!
//! | version | revision | what was added |
//! |---|---|---|
//! | 1 | 0 | Everything that is not below. Monitors of this revision do not tell it. |
//! | 1 | 1 | [`Request::AwaitStart`]; `failed` in [`Reply::State`]; [`Answer`] and [`Reply::Ended`]; `lost` in [`ContainerState`]; [`Event::LogLost`] |
//! | 1 | 2 | An [`Exec`] without arguments is a berth |
//!
//! Another version is another language: a daemon that speaks a new one must, for one release, speak the old one as well.

use std::path::PathBuf;

use coracle_plan::{Cgroups, Process, UserNamespace};
use serde::{Deserialize, Serialize};

/// The protocol's version, told in [`Reply::Hello`].
pub const VERSION: u32 = 1;

/// How often something was added to the version, told in [`Reply::Hello`].
pub const REVISION: u32 = 2;

/// The first revision whose monitors know how a start ended that nobody waited for.
pub const REMEMBERS_STARTS: u32 = 1;

/// The first revision whose monitors make berths ([`crate::berth`]).
pub const MAKES_BERTHS: u32 = 2;

/// The longest frame: above CRI's own bound of 16 MiB on a message, with room for JSON.
pub const MAX_FRAME: usize = 64 << 20;

/// A request with the number its reply will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the daemon, unique on its connection.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// What a daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? → [`Reply::Hello`].
    Hello,
    /// Make and pin the pod's namespaces, and move into them. Done once, before anything else; the same again changes
    /// nothing, anything else is EALREADY. → [`Reply::Done`].
    Prepare(Prepare),
    /// Start a container. → [`Reply::Started`] once its program was executed; EEXIST for an id that was started and is not
    /// forgotten.
    Start(Start),
    /// Wait for the end of a start for which this or another daemon asked. → What [`Request::Start`] was or will be
    /// answered with; ESRCH if nobody asked for one.
    AwaitStart {
        /// Whose.
        container: String,
    },
    /// Run a program in a running container. Descriptors: standard input, output and error, in this order. A program
    /// with a terminal has that for all three: then the first is a socket that keeps messages apart, over which the
    /// terminal's master side comes with a message of one byte before the reply, and the others are not used.
    /// → [`Reply::Started`] once it was executed, and later [`Event::ExecExited`]; or, if that is what is asked for,
    /// [`Reply::Ended`] and no event. Without a program it is a berth ([`crate::berth`]), and the first descriptor its socket; it
    /// counts as executed once it is set up.
    Exec(Box<Exec>),
    /// Send a signal to a first process. → [`Reply::Done`], also when it is gone or was never there.
    Signal {
        /// Whose.
        target: Target,
        /// The kernel's number.
        signal: i32,
    },
    /// Give a client a running container's output from now on, and the container its input. Descriptors: where input comes
    /// from, where output and error output go to, in this order, wanted or not. The client's departure is their end.
    /// → [`Reply::Done`]; ESRCH if it does not run.
    Attach(Attach),
    /// Make a container's terminal this large. → [`Reply::Done`]; ENOTTY if it has none.
    Resize {
        /// Whose.
        container: String,
        /// Characters across.
        columns: u16,
        /// Characters down.
        rows: u16,
    },
    /// Open a running container's log anew under its path (after rotation). → [`Reply::Done`]; ESRCH, and no new
    /// file, if it does not run.
    ReopenLog {
        /// Whose.
        container: String,
    },
    /// Drop what is remembered of an ended container. → [`Reply::Done`], also for an unknown one; EBUSY while it runs.
    Forget {
        /// Which.
        container: String,
    },
    /// → [`Reply::State`].
    State,
    /// Kill everything and end. → [`Reply::Done`], then the connection closes.
    Shutdown,
}

/// The pod's own namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Directory for the pins: files named `net`, `ipc`, `uts` (and `pid`, `user`, `time`), on which the namespaces are
    /// mounted.
    pub pins: PathBuf,
    /// Whether the pod has a network namespace of its own.
    pub network: bool,
    /// Whether it has an IPC namespace of its own.
    pub ipc: bool,
    /// Its host name, in a UTS namespace of its own; `None`: the node's.
    pub hostname: Option<String>,
    /// Kernel parameters, name and value, set in these namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Whether its containers share a pid namespace, which then gets an init process that reaps.
    pub share_pid: bool,
    /// A user namespace, pinned as `user`, which owns the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserNamespace>,
    /// How far its clocks are ahead of the node's. A pod with any has a time namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub time_offsets: Vec<TimeOffset>,
}

/// How far a clock of a pod is ahead of the node's: `seconds` and `nanoseconds` together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// Which.
    pub clock: Clock,
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// What is left, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// A clock that a time namespace has of its own (time_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clock {
    /// CLOCK_MONOTONIC.
    Monotonic,
    /// CLOCK_BOOTTIME, which /proc/uptime shows.
    BootTime,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Its id.
    pub container: String,
    /// The file with its [`coracle_plan::Plan`].
    pub plan: PathBuf,
    /// Where its [`ExitRecord`] is to be written, by a temporary file beside it and a rename.
    pub exit: PathBuf,
    /// Its log in CRI's format; `None`: output is dropped.
    pub log: Option<PathBuf>,
    /// Whether its standard input stays open for clients; else it reads end of file.
    pub stdin: bool,
    /// Where the kernel counts its OOM kills.
    pub oom: Option<OomSource>,
}

/// A counter of OOM kills: the line `key N` of a cgroup's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomSource {
    /// `memory.events` (v2) or `memory.oom_control` (v1) of the container's cgroup.
    pub path: PathBuf,
    /// `oom_kill`.
    pub key: String,
}

/// A program to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The daemon's name for it, unique in the pod.
    pub exec: String,
    /// In which container.
    pub container: String,
    /// The program.
    pub process: Process,
    /// Its own leaf cgroups.
    pub cgroups: Cgroups,
    /// When it is answered. An older monitor answers at the start whatever is asked for.
    #[serde(default)]
    pub answer: Answer,
}

impl Exec {
    /// Whether it has no program, and waits for programs to start ([`crate::berth`]).
    pub(crate) fn is_berth(&self) -> bool {
        self.process.arguments.is_empty()
    }
}

/// When an exec that could be started is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Once its program was executed.
    #[default]
    AtStart,
    /// Once its program has ended: two messages fewer, for one who has nothing to do in between.
    AtEnd,
}

/// A client to attach to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which container.
    pub container: String,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether it takes output, or the terminal's.
    pub stdout: bool,
    /// Whether it takes error output.
    pub stderr: bool,
    /// Whether the end of its input is the end of the container's, where that is no terminal.
    pub stdin_once: bool,
}

/// A first process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A container's.
    Container(String),
    /// An exec's.
    Exec(String),
}

/// What a monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a call.
    Reply {
        /// The call's number.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Who the monitor is.
    Hello {
        /// Its [`VERSION`].
        version: u32,
        /// Its [`REVISION`].
        #[serde(default)]
        revision: u32,
        /// Its process id.
        pid: i32,
    },
    /// It is done.
    Done,
    /// A program was executed.
    Started {
        /// Its process id in the node's namespace.
        pid: i32,
        /// When, in nanoseconds since the epoch.
        at: i64,
    },
    /// An exec's first process has ended.
    Ended {
        /// Its exit status, or 128 and the number of the signal that killed it.
        code: i32,
    },
    /// What the monitor knows.
    State {
        /// Every container it was told to start and not to forget, but for those below.
        containers: Vec<ContainerState>,
        /// Those that could not be started. They are kept apart, because daemons that do not know of them would take them
        /// for containers that live.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed: Vec<FailedStart>,
    },
    /// It could not be done.
    Failed(Fault),
}

/// An operation that failed in the monitor or in a process it set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What was being done, as a gerund phrase.
    pub stage: String,
    /// To what.
    pub subject: String,
    /// The kernel's error number; 0 where the kernel had no part in it.
    pub errno: i32,
}

/// A container as its monitor knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its id.
    pub container: String,
    /// Its first process, in the node's namespace.
    pub pid: i32,
    /// When that was executed, in nanoseconds since the epoch; 0 while it is still being set up.
    pub started_at: i64,
    /// How it ended, if it did.
    pub exit: Option<ExitRecord>,
    /// How much of its output could not be written to its log.
    #[serde(default)]
    pub lost: Lost,
}

/// Output that is missing in a container's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many entries: lines, or parts of long ones.
    pub entries: u64,
    /// How many bytes were in them, ends of lines not counted.
    pub bytes: u64,
}

/// A log that could not be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLoss {
    /// The log's path.
    pub path: PathBuf,
    /// How much was lost since the container was started.
    pub lost: Lost,
    /// The last failure, by the kernel's error number.
    pub errno: i32,
}

/// A container whose program was not executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStart {
    /// Its id.
    pub container: String,
    /// Why.
    pub fault: Fault,
}

/// How a first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Its exit status, or 128 and the number of the signal that killed it.
    pub code: i32,
    /// When, in nanoseconds since the epoch.
    pub at: i64,
    /// Whether the kernel killed a process of its cgroup for want of memory.
    pub oom_killed: bool,
    /// When it was started, in nanoseconds since the epoch.
    pub started_at: i64,
}

/// Happenings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process ended; its [`ExitRecord`] is on file already.
    Exited {
        /// Which.
        container: String,
        /// How.
        exit: ExitRecord,
    },
    /// Output of a container was lost since it was told last. Told at once, and then every few seconds.
    LogLost {
        /// Which.
        container: String,
        /// What is missing, and where.
        loss: LogLoss,
    },
    /// An exec's first process ended.
    ExecExited {
        /// Which.
        exec: String,
        /// Its exit status, or 128 and the number of the signal that killed it.
        code: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_monitors_of_revision_0_say_is_understood() {
        let hello: Message = serde_json::from_str(r#"{"Reply":{"id":1,"reply":{"Hello":{"version":1,"pid":7}}}}"#).unwrap();
        assert_eq!(hello, Message::Reply { id: 1, reply: Reply::Hello { version: 1, revision: 0, pid: 7 } });
        let state = r#"{"Reply":{"id":2,"reply":{"State":{"containers":[{"container":"a","pid":8,"started_at":9,"exit":null}]}}}}"#;
        let Message::Reply { reply: Reply::State { containers, failed }, .. } = serde_json::from_str(state).unwrap() else {
            panic!("a state is a reply")
        };
        assert_eq!((containers.len(), containers[0].lost, failed.len()), (1, Lost::default(), 0));
    }

    #[test]
    fn what_was_said_to_monitors_of_revision_0_is_said_in_the_same_words() {
        let start = Start {
            container: "a".to_owned(),
            plan: "/p".into(),
            exit: "/e".into(),
            log: None,
            stdin: false,
            oom: Some(OomSource { path: "/o".into(), key: "oom_kill".to_owned() }),
        };
        let words = [
            (Request::Hello, r#""Hello""#),
            (Request::State, r#""State""#),
            (Request::Shutdown, r#""Shutdown""#),
            (
                Request::Start(start),
                r#"{"Start":{"container":"a","plan":"/p","exit":"/e","log":null,"stdin":false,"oom":{"path":"/o","key":"oom_kill"}}}"#,
            ),
            (
                Request::Signal { target: Target::Container("a".to_owned()), signal: 15 },
                r#"{"Signal":{"target":{"Container":"a"},"signal":15}}"#,
            ),
            (Request::ReopenLog { container: "a".to_owned() }, r#"{"ReopenLog":{"container":"a"}}"#),
            (Request::Forget { container: "a".to_owned() }, r#"{"Forget":{"container":"a"}}"#),
        ];
        for (request, text) in words {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn what_later_monitors_add_to_an_answer_is_passed_over() {
        let later = r#"{"Reply":{"id":1,"reply":{"Hello":{"version":1,"revision":900,"pid":7,"mood":"good"}}}}"#;
        assert!(matches!(serde_json::from_str(later), Ok(Message::Reply { reply: Reply::Hello { revision: 900, .. }, .. })));
    }
}
