//! unshare(2) for namespaces only. The other things that call can part, descriptors above all, would make
//! descriptors of one thread unknown to another; they are left out, which makes this safe.

use std::io;

/// Of `linux/sched.h`; the C library's bindings lack it.
const CLONE_NEWTIME: libc::c_int = 0x80;

/// A namespace of the calling thread to be replaced by a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Network (network_namespaces(7)).
    Network,
    /// System V IPC and POSIX message queues (ipc_namespaces(7)).
    Ipc,
    /// Host name (uts_namespaces(7)).
    Uts,
    /// Mounts (mount_namespaces(7)).
    Mount,
    /// The view of the cgroup tree, rooted where the thread is now (cgroup_namespaces(7)).
    Cgroup,
    /// Process ids, for children to come: the first of them is its init (pid_namespaces(7)).
    Pid,
    /// The monotonic and the boot-time clock, for children to come (time_namespaces(7)).
    Time,
    /// Users and capabilities; the latter hold in it alone, and over the others made with it (user_namespaces(7)).
    User,
}

/// Moves the calling thread into new namespaces, all or none: unshare(2).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOSPC at the limit of namespaces; EUSERS. EINVAL: the kernel lacks one of them.
pub fn unshare(namespaces: &[Namespace]) -> io::Result<()> {
    let flags = namespaces.iter().fold(0, |flags, namespace| {
        flags
            | match namespace {
                Namespace::Network => libc::CLONE_NEWNET,
                Namespace::Ipc => libc::CLONE_NEWIPC,
                Namespace::Uts => libc::CLONE_NEWUTS,
                Namespace::Mount => libc::CLONE_NEWNS,
                Namespace::Cgroup => libc::CLONE_NEWCGROUP,
                Namespace::Pid => libc::CLONE_NEWPID,
                Namespace::Time => CLONE_NEWTIME,
                Namespace::User => libc::CLONE_NEWUSER,
            }
    });
    // SAFETY: only namespaces are parted, which no safe code relies on.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_a_namespace_of_its_own() {
        let link = || std::fs::read_link("/proc/thread-self/ns/uts").unwrap();
        let outside = link();
        let inside = std::thread::spawn(move || {
            unshare(&[Namespace::Uts]).unwrap();
            link()
        });
        assert_ne!(outside, inside.join().unwrap());
        assert_eq!(outside, link());
    }
}
