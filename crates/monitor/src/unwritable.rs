//! Files of the node's that containers come to hold: reached by way of a mount that refuses writes and that nobody can find or
//! change. What a process holds it can also change the mode and the owner of (`fchmod(2)`, `/proc/PID/exe`), or write to.
//! Devices can be used as ever.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use coracle_sys::mount::{Change, READ_ONLY, change};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, open_tree};

/// A handle (`O_PATH`) to the file at `path` by way of such a mount. Without CAP_SYS_ADMIN it is one to the file itself.
///
/// # Errors
/// The kernel's: the file is missing, for instance.
pub(crate) fn handle(path: &Path) -> io::Result<OwnedFd> {
    match mount(path) {
        // Then no container could be started either, but a monitor can.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?),
        done => done,
    }
}

/// A mount of the file at `path`, attached nowhere, that refuses writes. What is mounted on it shows nowhere else: a copy of a
/// shared mount would be its peer, and who mounts on the one mounts on the other.
pub(crate) fn mount(path: &Path) -> io::Result<OwnedFd> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let propagation = u64::from(MountPropagationFlags::PRIVATE.bits());
    change(mount.as_fd(), Change { set: READ_ONLY, propagation, ..Change::default() })?;
    Ok(mount)
}

/// The node's /dev/null by way of such a mount, for the standard streams of containers: where nothing comes from and all goes that nobody wants.
///
/// # Errors
/// The kernel's.
pub fn null() -> io::Result<OwnedFd> {
    // Kept, since to make and to end a mount takes long.
    static NULL: OnceLock<OwnedFd> = OnceLock::new();
    let null = match NULL.get() {
        Some(null) => null,
        None => {
            let made = handle(Path::new("/dev/null"))?;
            NULL.get_or_init(|| made)
        }
    };
    Ok(open(format!("/proc/self/fd/{}", null.as_raw_fd()), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn nothing_comes_from_null_and_all_goes_there() {
        let mut null = std::fs::File::from(null().unwrap());
        null.write_all(b"anything").unwrap();
        assert_eq!(null.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn what_is_reached_by_way_of_such_a_mount_cannot_be_changed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Ok(mount) = mount(file.path()) else { return };
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        for refused in [
            open(&path, OFlags::RDWR, Mode::empty()).map(drop),
            rustix::fs::chmod(&path, Mode::RUSR),
            open(&path, OFlags::RDONLY, Mode::empty()).and_then(|held| rustix::fs::fchmod(held, Mode::RUSR)),
        ] {
            assert_eq!(refused.unwrap_err(), rustix::io::Errno::ROFS);
        }
    }
}
