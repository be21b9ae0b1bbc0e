//! The container's own terminal: made in its own devpts, its master side handed to the monitor, its slave side the
//! standard streams, the controlling terminal and `/dev/console`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_plan::User;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::mount::{attach, clone};
use super::root::{Leaf, Root};
use crate::channel::{Report, Reporting};
use crate::fault::{OrFault, Result};

/// The slave side of a new terminal of the container, which belongs to `user`.
pub(crate) fn make(user: &User, reporting: &Reporting) -> Result<OwnedFd> {
    let root = Root::open(Path::new("/")).or_fault("opening the root directory", "/")?;
    let slave = open_pair(&root, user, reporting).or_fault("making a terminal with", "/dev/ptmx")?;
    let console = Path::new("/dev/console");
    show(&root, &slave, console).or_fault("mounting the terminal on", console.display())?;
    Ok(slave)
}

/// Makes it the standard streams and the controlling terminal of this process, which leads a session.
pub(crate) fn take(slave: &OwnedFd) -> Result<()> {
    let stage = "taking the terminal";
    super::take_streams([slave, slave, slave]).or_fault(stage, "standard streams")?;
    ioctl_tiocsctty(slave).or_fault(stage, "controlling terminal")
}

fn open_pair(root: &Root, user: &User, reporting: &Reporting) -> std::result::Result<OwnedFd, Errno> {
    let master = root.open_at(Path::new("/dev/ptmx"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&slave, Some(Uid::from_raw(user.uid)), None::<Gid>)?;
    fchmod(&slave, Mode::from_raw_mode(0o620))?;
    reporting.hand_over(&Report::Terminal, master.as_fd())?;
    Ok(slave)
}

fn show(root: &Root, slave: &OwnedFd, place: &Path) -> std::result::Result<(), Errno> {
    let place = root.make(place, Leaf::File)?;
    attach(clone(slave.as_fd(), OpenTreeFlags::empty())?.as_fd(), place.as_fd())
}
