//! What a monitor reports, as the rest of the daemon words it.

use std::io;
use std::path::Path;

use coracle_domain::{Error, Failure, FailureKind, Refusal};
use rustix::io::Errno;

use crate::protocol::Fault;

/// What EAGAIN means where a process is made: clone(2).
const PIDS: &str = "a pids limit is reached: of the cgroup, of the user or of the machine";

/// The failure to make a process of the daemon's own.
pub(super) fn of_spawning(stage: &'static str, subject: impl std::fmt::Display, error: io::Error) -> Failure {
    let exhausted = error.kind() == io::ErrorKind::WouldBlock;
    let failure = Failure::new(stage, subject, error);
    if exhausted { failure.kind(FailureKind::Exhausted).hint(PIDS) } else { failure }
}

/// The failure to connect to a monitor. Only of some errors it follows that none is there: the daemon may lack descriptors or
/// memory, or the monitor stand still and its queue be full.
pub(super) fn of_connecting(directory: &Path, error: io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Some(FailureKind::Unavailable),
        io::ErrorKind::WouldBlock => Some(FailureKind::Exhausted),
        _ => None,
    };
    let failure = Failure::new("connecting to the monitor of", directory.display(), error);
    Failure { kind: kind.unwrap_or(failure.kind), ..failure }
}

/// A failure with the kernel's error as its source, and advice where the cause is well known. A program that cannot be
/// executed is the fault of whoever named it, and so is a container that has ended while the call was under way.
pub(super) fn from(fault: Fault) -> Error {
    if fault.stage == "finding the running container" && fault.errno == Errno::SRCH.raw_os_error() {
        return Refusal::wrong_state(format!("container {} is not running", fault.subject)).into();
    }
    let named_wrongly = is_the_programs(&fault);
    let failure = failure(fault);
    if named_wrongly { Refusal::invalid("command", failure).into() } else { failure.into() }
}

fn failure(fault: Fault) -> Failure {
    let hint = hint(&fault);
    let mut failure = if fault.errno == 0 {
        Failure::new(fault.stage, fault.subject, "no error number is known")
    } else {
        Failure::new(fault.stage, fault.subject, io::Error::from_raw_os_error(fault.errno))
    };
    failure.hint = hint.or(failure.hint);
    if hint == Some(PIDS) {
        failure.kind = FailureKind::Exhausted;
    }
    failure
}

fn is_the_programs(fault: &Fault) -> bool {
    let about_the_program = ["finding the program", "executing the program"].iter().any(|stage| fault.stage.starts_with(stage));
    let error = Errno::from_io_error(&io::Error::from_raw_os_error(fault.errno));
    let of_the_file = matches!(
        error,
        Some(
            Errno::NOENT | Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::TOOBIG
        )
    );
    about_the_program && of_the_file
}

fn hint(fault: &Fault) -> Option<&'static str> {
    let error = Errno::from_io_error(&io::Error::from_raw_os_error(fault.errno))?;
    match (fault.stage.as_str(), error) {
        ("finding the program", Errno::NOENT) => Some("it is not in the image, or not in the container's PATH"),
        ("executing the program", Errno::ACCESS) => {
            Some("it is not executable for the container's user, or its file system is mounted noexec")
        }
        ("executing the program", Errno::NOEXEC) => Some("it is built for another architecture, or is a script without #!"),
        ("mounting the layers on", Errno::INVAL) => Some("the kernel log names the layer or option it refuses"),
        ("making namespaces", Errno::NOSPC) => Some("see the limits in /proc/sys/user/max_*_namespaces"),
        ("making a process" | "making a process in" | "beginning a proc file system in", Errno::AGAIN) => Some(PIDS),
        (stage, Errno::NOMEM) if stage.starts_with("setting up") => Some("the memory limit leaves too little to start in"),
        (stage, Errno::NOSPC) if stage.starts_with("mounting") => Some("fs.mount-max limits the mounts in a namespace"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(stage: &str, errno: Errno) -> Fault {
        Fault { stage: stage.to_owned(), subject: "/bin/x".to_owned(), errno: errno.raw_os_error() }
    }

    #[test]
    fn nobody_is_there_only_if_the_kernel_says_so() {
        use FailureKind::{Exhausted, Internal, Unavailable};
        let kind = |errno: Errno| of_connecting(Path::new("/pod"), errno.into()).kind;
        assert_eq!([Errno::CONNREFUSED, Errno::NOENT].map(kind), [Unavailable; 2]);
        assert_eq!([Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN].map(kind), [Exhausted; 5]);
        assert_eq!([Errno::LOOP, Errno::PROTOTYPE].map(kind), [Internal; 2]);
    }

    #[test]
    fn a_container_that_has_just_ended_is_in_the_wrong_state() {
        let error = from(fault("finding the running container", Errno::SRCH));
        assert!(matches!(error, Error::Refused(Refusal::WrongState { .. })), "{error:?}");
    }

    #[test]
    fn a_pids_limit_is_named_wherever_a_process_is_made() {
        for stage in ["making a process", "making a process in", "beginning a proc file system in"] {
            let error = from(fault(stage, Errno::AGAIN));
            let is_exhausted = matches!(&error, Error::Failed(Failure { kind: FailureKind::Exhausted, .. }));
            assert!(is_exhausted && error.to_string().contains("pids"), "{error:?}");
        }
    }

    #[test]
    fn a_program_that_is_no_program_is_the_callers_fault_and_all_else_is_not() {
        for (stage, errno) in [
            ("finding the program", Errno::NOENT),
            ("executing the program", Errno::ACCESS),
            ("executing the program, whose interpreter is missing,", Errno::NOENT),
        ] {
            let error = from(fault(stage, errno));
            assert!(matches!(error, Error::Refused(Refusal::Invalid { .. })) && error.to_string().contains("/bin/x"), "{error}");
        }
        for (stage, errno) in [("executing the program", Errno::NOMEM), ("mounting", Errno::NOENT)] {
            assert!(matches!(from(fault(stage, errno)), Error::Failed(_)));
        }
    }
}
