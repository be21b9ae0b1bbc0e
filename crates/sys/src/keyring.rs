//! Kernel keyrings (keyrings(7)): keyctl(2).

use std::io;

/// Gives the calling process a new, empty session keyring, in the place of the one it inherited.
///
/// # Errors
/// ENOSYS: a kernel without keyrings. EDQUOT: the user has too many keys.
pub fn join_new_session() -> io::Result<()> {
    // SAFETY: without a name the call reads no memory of this process.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> i64 {
        // SAFETY: the call takes two numbers; -3 names the session keyring.
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, -3, 1) }
    }

    #[test]
    fn a_new_session_keyring_is_not_the_old_one() {
        let (before, after) = std::thread::spawn(|| {
            let before = session();
            join_new_session().unwrap();
            (before, session())
        })
        .join()
        .unwrap();
        assert_ne!(before, after);
    }
}
