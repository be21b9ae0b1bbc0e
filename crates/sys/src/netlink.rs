//! Netlink sockets' options, for which no safe wrapper exists elsewhere. See netlink(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the kernel explain its refusals: error answers carry a sentence (`NETLINK_EXT_ACK`) and no copy
/// of the request (`NETLINK_CAP_ACK`).
///
/// # Errors
/// `ENOPROTOOPT` where the socket is no netlink socket.
pub fn explain_refusals(socket: BorrowedFd<'_>) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open while it is borrowed; `on` outlives the call and is `length` bytes long.
        let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
