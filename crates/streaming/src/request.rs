//! What may be asked for: parsed once, valid afterwards.

use coracle_domain::{ContainerId, PodId, Refusal};

/// Which streams a session has. There is one at least, and no standard error beside a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// CRI's four flags, as they came.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamFlags {
    /// `stdin`
    pub stdin: bool,
    /// `stdout`
    pub stdout: bool,
    /// `stderr`
    pub stderr: bool,
    /// `tty`
    pub tty: bool,
}

impl Streams {
    /// The streams that `flags` ask for.
    ///
    /// # Errors
    /// None is asked for, or a terminal with a standard error of its own: a terminal has one output.
    pub fn new(flags: StreamFlags) -> Result<Self, Refusal> {
        let StreamFlags { stdin, stdout, stderr, tty } = flags;
        if tty && stderr {
            return Err(Refusal::invalid("stderr", "a terminal has no standard error of its own"));
        }
        if !(stdin || stdout || stderr) {
            return Err(Refusal::invalid("stdin, stdout, stderr", "none of them is asked for"));
        }
        Ok(Self { stdin, stdout, stderr, tty })
    }

    /// The client sends standard input.
    pub fn stdin(self) -> bool {
        self.stdin
    }

    /// The client takes standard output, or what the terminal shows.
    pub fn stdout(self) -> bool {
        self.stdout
    }

    /// The client takes standard error.
    pub fn stderr(self) -> bool {
        self.stderr
    }

    /// The program has a terminal.
    pub fn tty(self) -> bool {
        self.tty
    }
}

/// A program to be run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Where.
    pub container: ContainerId,
    /// The program and its arguments; not empty.
    pub command: Vec<String>,
    /// Its streams.
    pub streams: Streams,
}

impl ExecRequest {
    /// A request to run `command`.
    ///
    /// # Errors
    /// The command is empty.
    pub fn new(container: ContainerId, command: Vec<String>, streams: Streams) -> Result<Self, Refusal> {
        if command.first().is_none_or(String::is_empty) {
            return Err(Refusal::invalid("cmd", "is empty"));
        }
        Ok(Self { container, command, streams })
    }
}

/// A container whose own streams are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Which.
    pub container: ContainerId,
    /// Which streams of it.
    pub streams: Streams,
}

/// A pod to whose ports connections are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Which.
    pub pod: PodId,
    /// The ports of a client that cannot name them itself (WebSocket without a tunnel). A port may occur twice.
    pub ports: Vec<u16>,
}

impl PortForwardRequest {
    /// A request for `pod`, with CRI's `port` as it came.
    ///
    /// # Errors
    /// A number is no port, or there are more than 100, for channels have one byte for their number.
    pub fn new(pod: PodId, ports: &[i32]) -> Result<Self, Refusal> {
        if ports.len() > 100 {
            return Err(Refusal::invalid("port", "more than 100 ports in one request"));
        }
        let ports = ports.iter().map(|&port| match u16::try_from(port) {
            Ok(port @ 1..) => Ok(port),
            _ => Err(Refusal::invalid("port", format!("{port} is no port"))),
        });
        Ok(Self { pod, ports: ports.collect::<Result<_, _>>()? })
    }
}

/// One of the three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// The first word of the URL's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// How many bytes a command takes while it waits; all else is small.
    pub(crate) fn bytes(&self) -> usize {
        let Self::Exec(ExecRequest { command, .. }) = self else { return 0 };
        command.iter().map(|word| size_of::<String>() + word.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: StreamFlags = StreamFlags { stdin: false, stdout: false, stderr: false, tty: false };

    #[test]
    fn a_terminal_with_stderr_is_refused_and_so_is_no_stream_at_all() {
        assert!(Streams::new(StreamFlags { stdout: true, stderr: true, tty: true, ..NONE }).is_err());
        assert!(Streams::new(StreamFlags { tty: true, ..NONE }).is_err());
        assert!(Streams::new(NONE).is_err());
        let streams = Streams::new(StreamFlags { stdin: true, tty: true, ..NONE }).unwrap();
        assert!(streams.stdin() && streams.tty() && !streams.stdout() && !streams.stderr());
    }

    #[test]
    fn a_command_has_a_program() {
        let streams = Streams::new(StreamFlags { stdout: true, ..NONE }).unwrap();
        let container = ContainerId::from_entropy([1; 32]);
        assert!(ExecRequest::new(container.clone(), vec![], streams).is_err());
        assert!(ExecRequest::new(container.clone(), vec![String::new()], streams).is_err());
        assert!(ExecRequest::new(container, vec!["true".into()], streams).is_ok());
    }

    #[test]
    fn ports_are_ports() {
        let pod = PodId::from_entropy([1; 32]);
        assert_eq!(PortForwardRequest::new(pod.clone(), &[80, 65535, 80]).unwrap().ports, [80, 65535, 80]);
        for bad in [0, -1, 65536] {
            assert!(PortForwardRequest::new(pod.clone(), &[bad]).is_err());
        }
        assert!(PortForwardRequest::new(pod, &[80; 101]).is_err());
    }
}
