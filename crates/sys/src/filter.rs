//! seccomp(2): loading a compiled system call filter.

use std::io;

/// Puts the calling thread, and all it becomes and makes, behind a filter: an array of `struct sock_filter` in
/// native byte order, with `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// EACCES: neither CAP_SYS_ADMIN nor no_new_privs. EINVAL: not a valid program, or flags that return a listener.
pub fn load(program: &[u8], flags: u32) -> io::Result<()> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 || !program.len().is_multiple_of(size_of::<libc::sock_filter>()) {
        return Err(invalid());
    }
    let mut instructions: Vec<libc::sock_filter> = program
        .as_chunks::<8>()
        .0
        .iter()
        .map(|[a, b, jt, jf, w, x, y, z]| libc::sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes([*w, *x, *y, *z]),
        })
        .collect();
    let program = libc::sock_fprog { len: u16::try_from(instructions.len()).map_err(|_| invalid())?, filter: instructions.as_mut_ptr() };
    // SAFETY: the program points to as many instructions as it says, and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_instruction_is_refused() {
        assert_eq!(load(&[6, 0, 0, 0, 0, 0, 255], 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_filter_holds_in_its_thread() {
        let instruction = |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
        let program = [
            instruction(0x20, 0, 0, 0), // load the call's number
            instruction(0x15, 0, 1, u32::try_from(libc::SYS_getppid).unwrap()),
            instruction(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 99),
            instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
        .concat();
        // SAFETY: getppid takes no arguments.
        let parent = || unsafe { libc::syscall(libc::SYS_getppid) };
        let filtered = std::thread::spawn(move || {
            load(&program, 0).unwrap();
            (parent(), io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(filtered.join().unwrap(), (-1, Some(99)));
        assert!(parent() >= 0);
    }
}
