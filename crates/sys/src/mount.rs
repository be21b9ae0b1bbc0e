//! mount_setattr(2), which rustix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// MOUNT_ATTR_RDONLY: no writing.
pub const READ_ONLY: u64 = 0x1;
/// MOUNT_ATTR_NOSUID: set-user-id bits are ignored.
pub const NO_SUID: u64 = 0x2;
/// MOUNT_ATTR_NODEV: device nodes are inert.
pub const NO_DEVICES: u64 = 0x4;
/// MOUNT_ATTR_NOEXEC: programs are not executed.
pub const NO_EXEC: u64 = 0x8;
/// MOUNT_ATTR_NOATIME: access times are not kept.
pub const NO_ACCESS_TIME: u64 = 0x10;
/// MOUNT_ATTR_IDMAP: owners are shown through a user namespace.
const ID_MAPPED: u64 = 0x10_0000;
/// MOUNT_ATTR__ATIME: the bits that hold the choice about access times.
const ACCESS_TIME: u64 = 0x70;

/// What to change on a mount. The default changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Attributes to set: the sum of this module's constants.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// How it propagates from now on: `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED` of mount(2), or 0.
    pub propagation: u64,
    /// Whether the mounts beneath are changed too (AT_RECURSIVE); all or none are.
    pub recursive: bool,
}

/// Changes the mount whose root `mount` is, attached or not: mount_setattr(2).
///
/// # Errors
/// EINVAL: `mount` is no mount's root. EPERM: an attribute is locked by a less privileged user namespace. ENOSYS: before Linux 5.12.
pub fn change(mount: BorrowedFd<'_>, change: Change) -> io::Result<()> {
    let mut attributes = libc::mount_attr { attr_set: change.set, attr_clr: change.clear, propagation: change.propagation, userns_fd: 0 };
    if change.set & ACCESS_TIME != 0 {
        attributes.attr_clr |= ACCESS_TIME;
    }
    let flags = libc::AT_EMPTY_PATH | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    set(mount, flags, attributes)
}

/// Shows the owners of files in an unattached mount as `user_namespace` maps them: mount_setattr(2), MOUNT_ATTR_IDMAP.
///
/// # Errors
/// EINVAL: the file system cannot, or the mount is mapped already. EPERM: the mount is attached.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = u64::try_from(user_namespace.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    set(mount, libc::AT_EMPTY_PATH, libc::mount_attr { attr_set: ID_MAPPED, attr_clr: 0, propagation: 0, userns_fd: descriptor })
}

fn set(mount: BorrowedFd<'_>, flags: libc::c_int, mut attributes: libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is an empty C string; the structure outlives the call and its size is told.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw mut attributes, size_of::<libc::mount_attr>())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_mount_is_refused() {
        let file = std::fs::File::open("/etc/passwd").unwrap();
        let refused = change(file.as_fd(), Change { set: READ_ONLY, ..Change::default() }).unwrap_err();
        assert!(matches!(refused.raw_os_error(), Some(libc::EINVAL | libc::EPERM)), "{refused}");
    }
}
