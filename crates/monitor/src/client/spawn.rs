//! Starting a monitor: from a large process, without copying it, and from a binary that containers cannot write to.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use coracle_domain::{During, Result};
use coracle_failpoint::{Point, reach};
use rustix::fs::{AtFlags, Mode, OFlags, open, unlinkat};
use rustix::io::Errno;
use tokio::process::Command;

use super::{LOG, SOCKET};
use crate::unwritable;

/// The monitor's binary, as it was when it was opened.
///
/// A process in a container can reach the binary of whatever ran there through /proc/PID/exe. So monitors are executed
/// by way of a mount that refuses writes.
#[derive(Debug)]
pub struct Program {
    handle: OwnedFd,
}

impl Program {
    /// Takes hold of the binary at `path`.
    ///
    /// # Errors
    /// It is missing or not a file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { handle: unwritable::handle(path).during("opening the monitor's program", path.display())? })
    }
}

/// Starts a monitor for the pod with this directory, listening on [`SOCKET`] in it and complaining into [`LOG`]. It goes
/// on when this process ends. It can be connected to at once. Returns its process id.
///
/// # Errors
/// The socket cannot be made or the program cannot be executed.
pub async fn spawn(program: &Program, directory: &Path) -> Result<i32> {
    let stage = "starting the monitor in";
    let handle = open_directory(directory).during(stage, directory.display())?;
    let socket = listen(&handle).during("making the monitor's socket in", directory.display())?;
    let log = open_log(&directory.join(LOG)).during("opening the monitor's log in", directory.display())?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.handle.as_raw_fd()))
        .arg0("coracle-monitor")
        .env_clear()
        .envs(coracle_failpoint::environment())
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(|error| super::failure::of_spawning(stage, directory.display(), error))?;
    reach(Point::MonitorSpawn);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    // Reaped when it ends; how it ended is for those who talk to it to find out.
    tokio::spawn(async move { child.wait().await });
    Ok(pid)
}

fn listen(directory: &OwnedFd) -> io::Result<UnixListener> {
    match unlinkat(directory, SOCKET, AtFlags::empty()) {
        Err(Errno::NOENT) => {}
        done => done?,
    }
    let listener = UnixListener::bind(socket_path(directory))?;
    reach(Point::MonitorSocket);
    // The directory's mode keeps others away until now.
    std::fs::set_permissions(socket_path(directory), Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// A handle to a directory, to reach what is in it by a short path.
pub(super) fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    Ok(open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Bytes of the longest path that a socket's address has room for: unix(7), without the zero at its end.
pub(super) const LONGEST_ADDRESS: usize = 107;

/// The socket's path by way of a handle, for directories whose path is too long for a socket's address.
pub(super) fn socket_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}
