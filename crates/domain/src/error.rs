//! What can go wrong, in two kinds that never mix.
//!
//! A [`Refusal`] is the caller's fault: the request was malformed or names what is not there. A
//! [`Failure`] is ours or the machine's: it says at which stage, on which object, with which cause, and
//! where we know it what to do about it. Both are logged once, at the edge that answers the caller.

use std::borrow::Cow;
use std::fmt;

use rustix::io::Errno;

/// The result of an operation that can be refused or can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal or a failure.
#[derive(Debug)]
pub enum Error {
    /// The caller's fault.
    Refused(Refusal),
    /// Our fault, the machine's or a peer's.
    Failed(Failure),
}

/// Why a request was turned down. It decides the gRPC status code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A field is malformed or contradicts another.
    Invalid {
        /// The field, as CRI names it.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The subject does not exist.
    NotFound {
        /// The field's word for it: `pod sandbox`, `container`, `image`…
        noun: &'static str,
        /// The name or id asked for.
        name: String,
    },
    /// The subject exists in a state that does not allow this.
    WrongState {
        /// What stands in the way, with the subject's name.
        problem: String,
    },
    /// The runtime cannot do this, or not yet.
    Unsupported {
        /// What was asked for.
        feature: String,
    },
}

/// The failure's class, where a caller treats it in a way of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureKind {
    /// No class of its own.
    #[default]
    Internal,
    /// A deadline passed.
    TimedOut,
    /// No room, no descriptors, no processes.
    Exhausted,
    /// A peer (a registry, a monitor) does not answer.
    Unavailable,
    /// A peer says that we may not.
    Denied,
    /// A registry could not be reached; kubelet's sentinel `RegistryUnavailable`.
    RegistryUnavailable,
    /// An image could not be mounted as a volume; kubelet's sentinel `ImageVolumeMountFailed`.
    ImageVolume,
    /// The kernel cannot make mounts beneath a mount read-only; kubelet's sentinel `RROUnsupported`.
    RecursiveReadOnly,
}

/// An operation that failed: `stage` on `subject`, because of `source`.
#[derive(Debug)]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// What was being done, as a gerund phrase: `mounting the root file system`.
    pub stage: Cow<'static, str>,
    /// The object it was done to: a path, a reference, an id.
    pub subject: String,
    /// The cause.
    pub source: Box<dyn std::error::Error + Send + Sync>,
    /// What the operator can do, where we know.
    pub hint: Option<&'static str>,
}

impl Failure {
    /// A failure of the kind its source suggests.
    pub fn new(
        stage: impl Into<Cow<'static, str>>,
        subject: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let errno = errno_of(&*source);
        let kind = errno.map_or_else(|| source.downcast_ref().map(kind_of_io).unwrap_or_default(), kind_of);
        Self { kind, stage: stage.into(), subject: subject.to_string(), source, hint: errno.and_then(hint_for) }
    }

    /// The same with another kind.
    pub fn kind(mut self, kind: FailureKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same with advice.
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

/// The kernel's error that this is, if it is one.
fn errno_of(source: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    source.downcast_ref::<Errno>().copied().or_else(|| source.downcast_ref().and_then(Errno::from_io_error))
}

fn kind_of(errno: Errno) -> FailureKind {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => FailureKind::Exhausted,
        Errno::TIMEDOUT => FailureKind::TimedOut,
        _ => FailureKind::Internal,
    }
}

/// For errors that the kernel did not give a number.
fn kind_of_io(error: &std::io::Error) -> FailureKind {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::TimedOut => FailureKind::TimedOut,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => FailureKind::Exhausted,
        _ => FailureKind::Internal,
    }
}

/// What makes room, where the error's own text does not say it.
fn hint_for(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::NOSPC => Some("df and df -i say whether its file system is full"),
        Errno::DQUOT => Some("the quota of its file system for this user, group or project is used up"),
        Errno::MFILE => Some("raise LimitNOFILE of the daemon"),
        Errno::NFILE => Some("raise fs.file-max"),
        _ => None,
    }
}

/// Names stage and object of an error on its way up: `open(path).during("opening the log", path)?`.
pub trait During<T> {
    /// Turns the error into a [`Failure`] at `stage` on `subject`.
    fn during(self, stage: &'static str, subject: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> During<T> for std::result::Result<T, E> {
    fn during(self, stage: &'static str, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|source| Failure::new(stage, subject, source).into())
    }
}

impl Refusal {
    /// A malformed or contradictory field.
    pub fn invalid(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Invalid { field: field.into(), problem: problem.to_string() }
    }

    /// An absent subject.
    pub fn not_found(noun: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound { noun, name: name.into() }
    }

    /// A subject in the wrong state.
    pub fn wrong_state(problem: impl Into<String>) -> Self {
        Self::WrongState { problem: problem.into() }
    }

    /// Something the runtime cannot do.
    pub fn unsupported(feature: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.into() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { field, problem } => write!(f, "{field}: {problem}"),
            Self::NotFound { noun, name } => write!(f, "{noun} {name:?} not found"),
            Self::WrongState { problem } => f.write_str(problem),
            Self::Unsupported { feature } => write!(f, "{feature} is not supported"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.stage, self.subject, self.source)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if let Some(hint) = self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}
impl std::error::Error for Failure {}
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_said_to_be_used_up_with_what_to_do() {
        for (errno, word) in [(Errno::NOSPC, "df -i"), (Errno::DQUOT, "quota"), (Errno::MFILE, "LimitNOFILE"), (Errno::NFILE, "file-max")] {
            for failure in [Failure::new("writing", "/x", errno), Failure::new("writing", "/x", std::io::Error::from(errno))] {
                assert_eq!(failure.kind, FailureKind::Exhausted, "{failure}");
                assert!(failure.to_string().contains(word), "{failure}");
            }
        }
        assert_eq!(Failure::new("cloning", "x", Errno::NOMEM).kind, FailureKind::Exhausted);
        assert_eq!(Failure::new("connecting", "x", Errno::NOBUFS).kind, FailureKind::Exhausted);
        assert_eq!(Failure::new("opening", "x", Errno::NOENT).kind, FailureKind::Internal);
        assert_eq!(Failure::new("waiting", "x", std::io::Error::from(std::io::ErrorKind::TimedOut)).kind, FailureKind::TimedOut);
    }
}
