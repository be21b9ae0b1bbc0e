//! How a command fails: one line on standard error, and an exit status of 1, or 2 where the command line is at fault.

use std::fmt;
use std::io;

use coracle_domain::{Failure, Refusal};
use tonic::{Code, Status};

/// The result of a client's command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command line asks for what cannot be.
    Usage(String),
    /// The server said no, in its own words.
    Server(Box<Status>),
    /// It went wrong on this side.
    Local(coracle_domain::Error),
    /// A name that is not clear, with what it could mean.
    Ambiguous { name: String, candidates: Vec<String> },
    /// Nobody reads what we print.
    Output(io::Error),
    /// Parts failed, and each has been reported.
    Reported,
}

impl Error {
    /// Prints it, unless there is nothing to say.
    pub(crate) fn report(&self) {
        if !matches!(self, Self::Reported) && !self.is_broken_pipe() {
            eprintln!("coracle: {self}");
        }
    }

    /// The exit status for it.
    pub(crate) fn status(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }

    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problem) => f.write_str(problem),
            Self::Server(status) => write!(f, "{}: {}", words(status.code()), one_line(status.message())),
            Self::Local(error) => f.write_str(&one_line(&error.to_string())),
            Self::Ambiguous { name, candidates } => write!(f, "{name:?} could be any of: {}", candidates.join(", ")),
            Self::Output(error) => write!(f, "writing the output: {error}"),
            Self::Reported => f.write_str("failed"),
        }
    }
}

/// A server's message on one line, and without what would move a terminal's cursor.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The code's name in words.
fn words(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown error",
        Code::InvalidArgument => "invalid argument",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::PermissionDenied => "permission denied",
        Code::ResourceExhausted => "resource exhausted",
        Code::FailedPrecondition => "failed precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out of range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal error",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Server(Box::new(status))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<coracle_domain::Error> for Error {
    fn from(error: coracle_domain::Error) -> Self {
        Self::Local(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Local(failure.into())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Local(refusal.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_words_stay_on_one_line() {
        let error = Error::from(Status::not_found("container \"x\"\n\tnot\x1b[31m found"));
        assert_eq!(error.to_string(), "not found: container \"x\" not [31m found");
    }

    #[test]
    fn only_a_wrong_command_line_exits_with_two() {
        assert_eq!(Error::Usage(String::new()).status(), 2);
        assert_eq!(Error::from(Status::invalid_argument("")).status(), 1);
    }

    #[test]
    fn a_reader_that_left_is_not_worth_a_word() {
        assert!(Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_broken_pipe());
        assert!(!Error::from(io::Error::from(io::ErrorKind::StorageFull)).is_broken_pipe());
    }
}
