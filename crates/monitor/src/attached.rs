//! Clients attached to a container: copies of its output for them, and input from them.
//!
//! A client never makes the container, its log or another client wait. What its pipe has no room for is lost to it
//! alone. Its input waits, in its own pipe, until the container reads.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio, read, write};

use crate::protocol::Attach;

/// How much of a client's input is taken at once.
const INPUT: usize = 16 << 10;
/// How often in one turn of the loop, so that a flood from one client does not keep everybody else waiting.
const READS_PER_TURN: usize = 8;

/// Which of a client's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where its input comes from.
    Input,
    /// Where this stream of output goes to.
    Output(usize),
}

/// The container's streams of output, in the order in which a client has them.
pub(crate) const OUTPUTS: [&str; 2] = ["stdout", "stderr"];

/// One attached client.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its number in the monitor, never used again.
    pub(crate) serial: u64,
    input: Option<OwnedFd>,
    /// Input that the container has not taken yet.
    pending: Vec<u8>,
    /// Whether the end of its input is the end of the container's.
    once: bool,
    outputs: [Option<OwnedFd>; 2],
}

/// What became of a client's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// There may be more one day.
    Open,
    /// The client has ended it, and with it the container's.
    EndsContainers,
    /// The container reads no more.
    Refused,
}

impl Client {
    /// Takes the descriptors of a call: where input comes from, where output and error output go to.
    pub(crate) fn new(serial: u64, attach: &Attach, descriptors: [OwnedFd; 3]) -> Result<Self, Errno> {
        for descriptor in &descriptors {
            ioctl_fionbio(descriptor, true)?;
        }
        let [input, output, error] = descriptors;
        Ok(Self {
            serial,
            input: attach.stdin.then_some(input),
            pending: Vec::new(),
            once: attach.stdin_once,
            outputs: [attach.stdout.then_some(output), attach.stderr.then_some(error)],
        })
    }

    /// What to wait for: input where there is none left to pass on, and the departure of whoever takes the output.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (Side, BorrowedFd<'_>, PollFlags)> {
        let input = self.input.as_ref().filter(|_| self.pending.is_empty()).map(|input| (Side::Input, input.as_fd(), PollFlags::IN));
        let outputs = self.outputs.iter().enumerate().filter_map(|(index, output)| {
            // An error needs no asking for.
            Some((Side::Output(index), output.as_ref()?.as_fd(), PollFlags::empty()))
        });
        input.into_iter().chain(outputs)
    }

    /// Whether the container is to be waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether nothing connects it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.input.is_none() && self.pending.is_empty() && self.outputs.iter().all(Option::is_none)
    }

    /// Gives it what the container has written.
    pub(crate) fn give(&mut self, stream: &str, bytes: &[u8]) {
        for (output, name) in self.outputs.iter_mut().zip(OUTPUTS) {
            if name == stream
                && let Some(descriptor) = output
                && let Err(error) = write(descriptor, bytes)
                && !matches!(error, Errno::AGAIN | Errno::INTR)
            {
                *output = None;
            }
        }
    }

    /// Ends one stream of output.
    pub(crate) fn end(&mut self, stream: &str) {
        for (output, name) in self.outputs.iter_mut().zip(OUTPUTS) {
            if name == stream {
                *output = None;
            }
        }
    }

    /// Forgets a stream of output that nobody takes.
    pub(crate) fn close(&mut self, output: usize) {
        if let Some(output) = self.outputs.get_mut(output) {
            *output = None;
        }
    }

    /// Takes no more input.
    pub(crate) fn refuse_input(&mut self) {
        self.input = None;
        self.pending = Vec::new();
    }

    /// Passes on for a while what has come, for as long as the container takes it.
    pub(crate) fn pass_on(&mut self, to: &OwnedFd) -> Input {
        for _ in 0..READS_PER_TURN {
            match write_all(&mut self.pending, to) {
                Ok(()) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Input::Refused,
            }
            let Some(input) = &self.input else { break };
            let mut bytes = [0; INPUT];
            match read(input, &mut bytes) {
                Ok(count) if count > 0 => self.pending.extend_from_slice(bytes.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => {
                    self.input = None;
                    return if self.once { Input::EndsContainers } else { Input::Open };
                }
            }
        }
        Input::Open
    }
}

fn write_all(bytes: &mut Vec<u8>, to: &OwnedFd) -> Result<(), Errno> {
    let mut written = 0;
    let done = loop {
        match bytes.get(written..).filter(|rest| !rest.is_empty()).map(|rest| write(to, rest)) {
            None => break Ok(()),
            Some(Ok(count)) => written += count,
            Some(Err(Errno::INTR)) => {}
            Some(Err(error)) => break Err(error),
        }
    };
    bytes.drain(..written);
    done
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// A client that wants everything, and its ends: input, output, error output.
    fn client(once: bool) -> (Client, [OwnedFd; 3]) {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((input, sends), (takes, output), (takes_error, error)) = (pipe(), pipe(), pipe());
        let attach = Attach { container: String::new(), stdin: true, stdout: true, stderr: true, stdin_once: once };
        (Client::new(1, &attach, [input, output, error]).unwrap(), [sends, takes, takes_error])
    }

    #[test]
    fn a_slow_client_loses_output_and_never_blocks() {
        let (mut client, ends) = client(false);
        for _ in 0..100 {
            client.give("stdout", &[b'x'; 64 << 10]);
        }
        let mut bytes = vec![0; 1 << 20];
        assert_eq!(read(&ends[1], &mut bytes), Ok(64 << 10));
        client.give("stdout", b"again");
        assert_eq!(read(&ends[1], &mut bytes), Ok(5));
        assert!(!client.is_gone());
    }

    #[test]
    fn a_client_without_any_end_left_is_gone() {
        let (mut client, ends) = client(false);
        drop(ends);
        client.give("stdout", b"x");
        client.give("stderr", b"x");
        assert!(!client.is_gone());
        let (_reads, container) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert_eq!(client.pass_on(&container), Input::Open);
        assert!(client.is_gone());
    }

    #[test]
    fn input_waits_for_the_container_and_ends_it_if_it_may() {
        let (mut client, [sends, ..]) = client(true);
        let (reads, container) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&container, 4096).unwrap();
        write(&sends, &[b'x'; 20_000]).unwrap();
        drop(sends);
        let (mut seen, mut bytes) = (0, [0; 4096]);
        loop {
            let passed = client.pass_on(&container);
            while let Ok(count) = read(&reads, &mut bytes) {
                seen += count;
            }
            if passed == Input::EndsContainers {
                break;
            }
            assert!(passed == Input::Open && client.is_waiting());
        }
        assert_eq!(seen, 20_000);
    }

    #[test]
    fn a_flood_of_input_lets_others_have_their_turn() {
        let file = |path: &str| OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap());
        let attach = Attach { container: String::new(), stdin: true, stdout: false, stderr: false, stdin_once: false };
        let mut client = Client::new(1, &attach, [file("/dev/zero"), file("/dev/null"), file("/dev/null")]).unwrap();
        assert_eq!(client.pass_on(&file("/dev/null")), Input::Open);
        assert!(!client.is_gone());
    }

    #[test]
    fn a_container_that_reads_no_more_refuses_input() {
        let (mut client, [sends, ..]) = client(false);
        let (reads, container) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        drop(reads);
        write(&sends, b"x").unwrap();
        assert_eq!(client.pass_on(&container), Input::Refused);
    }
}
