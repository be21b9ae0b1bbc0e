//! Terminals, made in the container's own devpts. Of the container's the master side goes to the monitor, the slave side is
//! standard streams, controlling terminal and `/dev/console`. That of an exec is nobody's but its program's and the daemon's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_plan::User;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::stdin;

use super::mount::{attach, clone};
use super::root::{Leaf, Root};
use crate::channel::{Report, Reporting, hand_over};
use crate::fault::{OrFault, Result};

const STAGE: &str = "making a terminal with";
const MULTIPLEXER: &str = "/dev/ptmx";

/// The slave side of the container's terminal, which belongs to `user`.
pub(crate) fn make(user: &User, reporting: &Reporting) -> Result<OwnedFd> {
    let root = open_root()?;
    let (master, slave) = open_pair(&root, user).or_fault(STAGE, MULTIPLEXER)?;
    reporting.hand_over(&Report::Terminal, master.as_fd()).or_fault(STAGE, MULTIPLEXER)?;
    let console = Path::new("/dev/console");
    show(&root, &slave, console).or_fault("mounting the terminal on", console.display())?;
    Ok(slave)
}

/// The slave side of a terminal of an exec of `user`. The master side is sent over the socket that is standard input.
pub(crate) fn make_for_exec(user: &User) -> Result<OwnedFd> {
    let (master, slave) = open_pair(&open_root()?, user).or_fault(STAGE, MULTIPLEXER)?;
    hand_over(stdin(), b"t", master.as_fd()).or_fault("sending the terminal over", "standard input")?;
    Ok(slave)
}

/// Makes it the standard streams and the controlling terminal of this process, which leads a session.
pub(crate) fn take(slave: &OwnedFd) -> Result<()> {
    let stage = "taking the terminal";
    super::take_streams([slave, slave, slave]).or_fault(stage, "standard streams")?;
    ioctl_tiocsctty(slave).or_fault(stage, "controlling terminal")
}

fn open_root() -> Result<Root> {
    Root::open(Path::new("/")).or_fault("opening the root directory", "/")
}

/// Master and slave.
fn open_pair(root: &Root, user: &User) -> std::result::Result<(OwnedFd, OwnedFd), Errno> {
    let master = root.open_at(Path::new(MULTIPLEXER), OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&slave, Some(Uid::from_raw(user.uid)), None::<Gid>)?;
    fchmod(&slave, Mode::from_raw_mode(0o620))?;
    Ok((master, slave))
}

fn show(root: &Root, slave: &OwnedFd, place: &Path) -> std::result::Result<(), Errno> {
    let place = root.make(place, Leaf::File)?;
    attach(clone(slave.as_fd(), OpenTreeFlags::empty())?.as_fd(), place.as_fd())
}
