//! The last part of every set-up: from a prepared file system to the program's first instruction.
//!
//! Where others in sight may trace, the process that executes the program is born among them not before it has the
//! program's rights and sees the program's files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::CString;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_failpoint::{Point, reach};
use coracle_plan::{Bytes, Process};
use coracle_sys::process::{Strings, execute};
use rustix::fs::{Access, Mode, OFlags, access};
use rustix::io::Errno;
use rustix::process::{fchdir, getcwd, setsid, umask};

use super::root::{Leaf, Root};
use super::{Birth, crossing, identity, terminal};
use crate::channel::{Report, Reporting};
use crate::fault::{OrFault, Result};
use crate::protocol::Fault;

/// Where programs are looked for if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to do where the working directory is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it.
    Make,
    /// Fail.
    Refuse,
}

/// Becomes the program, on `terminal` if there is one. Returns how this process ends if another goes on in its place.
pub(crate) fn run(process: &Process, terminal: Option<&OwnedFd>, birth: Birth<'_>, missing: Missing, reporting: &Reporting) -> Result<i32> {
    if let Birth::Last(neighbour) = birth {
        crossing::let_children_be_born_beside(neighbour)?;
    }
    let program = Program::new(process)?;
    assume(process, missing)?;
    let finish = || {
        let Err(fault) = begin(process, terminal, &program, reporting);
        super::report(&fault, reporting)
    };
    match birth {
        Birth::First => Ok(finish()),
        Birth::Last(_) => crossing::replace(reporting, finish),
    }
}

/// Has the program's rights from now on, and its working directory.
pub(super) fn assume(process: &Process, missing: Missing) -> Result<()> {
    let directory = process.working_directory.as_path();
    identity::limit(process)?;
    // Root may reach what the user may not, and on a network file system the other way round: either will do.
    let entered = enter(directory, missing);
    identity::assume(process)?;
    if entered.is_err() {
        enter(directory, Missing::Refuse).or_fault("entering the working directory", directory.display())?;
    }
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn begin(process: &Process, terminal: Option<&OwnedFd>, program: &Program, reporting: &Reporting) -> Result<Infallible> {
    make_ready(process, terminal, program.name(), reporting)?;
    Err(program.execute())
}

/// Does all that is left to do before `subject` can be executed, and says so.
pub(super) fn make_ready(process: &Process, terminal: Option<&OwnedFd>, subject: impl Display, reporting: &Reporting) -> Result<()> {
    setsid().or_fault("making a session for", subject)?;
    terminal.map_or(Ok(()), terminal::take)?;
    reach(Point::ChildReady);
    coracle_sys::process::close_on_exec().or_fault("closing", "descriptors")?;
    coracle_sys::signal::unblock_all().or_fault("unblocking", "signals")?;
    reporting.report(&Report::Ready).or_fault("reporting to", "the monitor")?;
    match &process.seccomp {
        Some(filter) => coracle_sys::filter::load(&filter.program, filter.flags).or_fault("loading", "the system call filter"),
        None => Ok(()),
    }
}

/// Makes it the working directory, which must be inside the root.
pub(super) fn enter(directory: &Path, missing: Missing) -> std::result::Result<(), Errno> {
    let root = Root::open(Path::new("/"))?;
    if missing == Missing::Make {
        root.make(directory, Leaf::Directory(0o755))?;
    }
    fchdir(root.open_at(directory, OFlags::PATH | OFlags::DIRECTORY)?)?;
    // The kernel names a directory outside the root `(unreachable)…`.
    if getcwd(Vec::new())?.to_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV) }
}

/// A program in the form execve takes, made before anything that could fail halfway.
pub(super) struct Program {
    candidates: Vec<CString>,
    arguments: Strings,
    environment: Strings,
}

impl Program {
    pub(super) fn new(process: &Process) -> Result<Self> {
        let name =
            process.arguments.first().filter(|name| !name.0.is_empty()).ok_or(Errno::INVAL).or_fault("finding", "a program to run")?;
        let strings = |list: &[Bytes]| list.iter().map(c_string).collect::<Result<Vec<_>>>();
        Ok(Self {
            candidates: candidates(&name.0, search_path(&process.environment)).iter().map(c_string).collect::<Result<_>>()?,
            arguments: strings(&process.arguments).map(Strings::new)?,
            environment: strings(&process.environment).map(Strings::new)?,
        })
    }

    pub(super) fn name(&self) -> Cow<'_, str> {
        self.arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default()
    }

    /// Tries every candidate; returns what stood in the way, as a shell would say it. Takes no memory before that.
    pub(super) fn execute(&self) -> Fault {
        let mut error = io::Error::from_raw_os_error(Errno::NOENT.raw_os_error());
        for candidate in &self.candidates {
            let Err(refusal) = execute(candidate, &self.arguments, &self.environment);
            match Errno::from_io_error(&refusal) {
                Some(Errno::NOENT) if access(candidate, Access::EXISTS).is_ok() => {
                    return Fault::new("executing the program, whose interpreter is missing,", self.name(), Errno::NOENT);
                }
                Some(Errno::NOENT | Errno::NOTDIR) => {}
                Some(Errno::ACCESS) => error = refusal,
                _ => return fault("executing the program", &self.name(), &refusal),
            }
        }
        let stage = if error.kind() == io::ErrorKind::NotFound { "finding the program" } else { "executing the program" };
        fault(stage, &self.name(), &error)
    }
}

fn fault(stage: &str, name: &str, error: &io::Error) -> Fault {
    Fault::new(stage, name, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

fn c_string(bytes: &Bytes) -> Result<CString> {
    CString::new(bytes.0.as_slice()).map_err(|_| Errno::INVAL).or_fault("reading a string with a NUL", String::from_utf8_lossy(&bytes.0))
}

fn search_path(environment: &[Bytes]) -> &[u8] {
    environment.iter().find_map(|variable| variable.0.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH.as_bytes())
}

fn candidates(name: &[u8], path: &[u8]) -> Vec<Bytes> {
    if name.contains(&b'/') {
        return vec![Bytes(name.to_vec())];
    }
    let directories = path.split(|byte| *byte == b':');
    directories.map(|directory| Bytes([if directory.is_empty() { b"." } else { directory }, b"/", name].concat())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_not_looked_up() {
        assert_eq!(candidates(b"./run", b"/bin"), [Bytes::from("./run")]);
    }

    #[test]
    fn a_name_is_looked_up_in_the_containers_path() {
        let environment = [Bytes::from("HOME=/"), Bytes::from("PATH=/a::/b")];
        let found = candidates(b"run", search_path(&environment));
        assert_eq!(found, [Bytes::from("/a/run"), Bytes::from("./run"), Bytes::from("/b/run")]);
    }

    #[test]
    fn without_a_path_the_usual_one_is_used() {
        assert_eq!(candidates(b"run", search_path(&[])).len(), 6);
    }
}
