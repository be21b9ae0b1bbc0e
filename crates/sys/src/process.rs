//! Processes: clone3(2) with a pidfd, execve(2), close_range(2), setrlimit(2), pidfd_send_signal(2).
//!
//! Nothing here decides which namespaces, programs or limits; arguments are the kernel's own numbers.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// The namespaces of a new process (clone(2), `CLONE_NEW*`); absent ones are its parent's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewNamespaces {
    /// CLONE_NEWNS.
    pub mount: bool,
    /// CLONE_NEWPID: the process is its init.
    pub pid: bool,
    /// CLONE_NEWUSER: it owns the other new ones.
    pub user: bool,
    /// CLONE_NEWNET.
    pub network: bool,
    /// CLONE_NEWIPC.
    pub ipc: bool,
    /// CLONE_NEWUTS.
    pub uts: bool,
}

impl NewNamespaces {
    fn flags(self) -> u64 {
        [
            (self.mount, libc::CLONE_NEWNS),
            (self.pid, libc::CLONE_NEWPID),
            (self.user, libc::CLONE_NEWUSER),
            (self.network, libc::CLONE_NEWNET),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
        ]
        .into_iter()
        .filter_map(|(wanted, flag)| wanted.then_some(flag as u64))
        .sum()
    }
}

/// Of `linux/sched.h`; the C library's constant has too few bits for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

unsafe extern "C" {
    /// 0 once this process has, or had, a second thread (glibc, `sys/single_threaded.h`).
    static __libc_single_threaded: u8;
}

/// Runs `child` in a new process, as fork(2) would, and ends that process with the code it returns: clone3(2).
///
/// The process may be born into `cgroup`, a cgroup v2 directory (CLONE_INTO_CGROUP). It holds all of the parent's
/// descriptors and memory; no destructors run at its end.
///
/// # Errors
/// The kernel's, and EBUSY where the calling process has more than one thread: the child would hold a memory
/// whose locks nobody frees.
pub fn spawn(namespaces: NewNamespaces, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> io::Result<(Pid, OwnedFd)> {
    let mut arguments = no_arguments();
    arguments.flags = namespaces.flags();
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    arguments.exit_signal = libc::SIGCHLD as u64;
    clone(arguments, child)
}

/// Runs `child` in a new process as [`spawn`] does, but as a child of this process's parent (CLONE_PARENT), which hears
/// of its end and reaps it. It is born in the pid namespace that this process unshared, if it did.
///
/// # Errors
/// As for [`spawn`]; EINVAL in an init process.
pub fn spawn_sibling(child: impl FnOnce() -> i32) -> io::Result<(Pid, OwnedFd)> {
    let mut arguments = no_arguments();
    arguments.flags = libc::CLONE_PARENT as u64;
    clone(arguments, child)
}

/// A process in new namespaces that holds no descriptor and does nothing until it is killed, or its maker's thread ends. It may
/// be made by a process of several threads. In a new pid namespace, from which it cannot see its maker, it would end at once.
///
/// # Errors
/// The kernel's.
pub fn spawn_idle(namespaces: NewNamespaces) -> io::Result<(Pid, OwnedFd)> {
    let mut arguments = no_arguments();
    arguments.flags = namespaces.flags();
    arguments.exit_signal = libc::SIGCHLD as u64;
    let maker = std::process::id();
    let idle = || {
        // SAFETY: no call touches memory; a null timeout and no descriptors make ppoll(2) wait for a signal.
        unsafe {
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The maker may have been killed before this one could hear of it.
            while libc::getppid().cast_unsigned() == maker {
                libc::syscall(libc::SYS_ppoll, std::ptr::null_mut::<libc::pollfd>(), 0, std::ptr::null::<libc::timespec>(), 0, 0);
            }
        }
        0
    };
    // SAFETY: the child makes nothing but system calls: no lock that another thread held can matter to it.
    unsafe { clone_unchecked(arguments, idle) }
}

fn no_arguments() -> libc::clone_args {
    // SAFETY: every field of the structure may be zero.
    unsafe { std::mem::zeroed() }
}

/// # Errors
/// EBUSY: this process has, or had, a second thread.
pub(crate) fn refuse_threads() -> io::Result<()> {
    // SAFETY: glibc defines the variable; it is only read.
    match unsafe { (&raw const __libc_single_threaded).read_volatile() } {
        0 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        _ => Ok(()),
    }
}

fn clone(arguments: libc::clone_args, child: impl FnOnce() -> i32) -> io::Result<(Pid, OwnedFd)> {
    refuse_threads()?;
    // SAFETY: this process has a single thread, so the child's copy of its memory is consistent.
    unsafe { clone_unchecked(arguments, child) }
}

/// # Safety
///
/// In a process of several threads `child` may do nothing but system calls.
unsafe fn clone_unchecked(mut arguments: libc::clone_args, child: impl FnOnce() -> i32) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    arguments.flags |= libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    // SAFETY: the arguments outlive the call; without CLONE_VM the child has its own copy of this memory, of which the
    // caller says that the child can live with it.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: _exit(2) takes any number and does not return.
        0 => unsafe { libc::_exit(child()) },
        _ => {
            // SAFETY: the kernel has put a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            Ok((pid, pidfd))
        }
    }
}

/// Strings in the form execve(2) takes them, made beforehand: to execute a program then needs no memory.
#[derive(Debug)]
pub struct Strings {
    strings: Vec<CString>,
    /// To each of them, and a null pointer.
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    /// These, in this order.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Self { strings, pointers }
    }

    /// The first one, if there is one.
    pub fn first(&self) -> Option<&CStr> {
        self.strings.first().map(CString::as_c_str)
    }
}

/// Replaces the program of this process: execve(2). Returns only if that fails.
pub fn execute(program: &CStr, arguments: &Strings, environment: &Strings) -> io::Result<Infallible> {
    // SAFETY: all are NUL-terminated strings, in arrays that end with a null pointer, and outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Marks all descriptors above 2 to be closed by execve: close_range(2) with CLOSE_RANGE_CLOEXEC.
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: no descriptor is closed now, so no owner is affected.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes all descriptors above 2 but those to `keep`: close_range(2).
///
/// For the first moments of a [`spawn`]ed process: owners from before the clone are left with dead numbers, and
/// must neither be used nor dropped in it.
pub fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).filter(|fd| *fd > 2).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        close_range(first, number.saturating_sub(1))?;
        first = number + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the caller's contract says that the owners in this process are never used again.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `work` on a thread that has none of the process's descriptors above 2: close_range(2) with CLOSE_RANGE_UNSHARE. While it
/// waits in the kernel where it cannot be killed, it so keeps neither sockets nor locks of a process that was. Blocks.
///
/// `work` must neither use nor own descriptors that were opened before. Its own are in `/proc/thread-self/fd`, not in
/// `/proc/self/fd` (proc(5)).
///
/// # Errors
/// No thread, or no table of descriptors, can be made.
pub fn without_descriptors<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let apart = || {
        // SAFETY: the thread has a table of its own from now on, so that no owner's descriptor is closed; it owns none itself.
        let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
        if done == 0 { Ok(work()) } else { Err(io::Error::last_os_error()) }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("coracle-apart".to_owned()).spawn_scoped(scope, apart)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets a limit of this process by the kernel's number of the resource: setrlimit(2).
///
/// # Errors
/// EPERM: a hard limit was to be raised without CAP_SYS_RESOURCE. EINVAL: no such resource, or soft above hard.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call; unknown resources are refused by the kernel.
    let done = unsafe { libc::setrlimit(resource, &raw const limit) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process run on every processor that its cgroup allows, also on those that come later: sched_setaffinity(2).
///
/// # Errors
/// EINVAL: its cgroup allows none. EPERM: a security module forbids it.
pub fn use_all_processors() -> io::Result<()> {
    // As many as Linux can be built for: the kernel passes over what is beyond those it has.
    let all = [u8::MAX; 8192 / 8];
    // SAFETY: the mask outlives the call and its size is told.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal, real-time ones included, by its number: pidfd_send_signal(2).
///
/// # Errors
/// ESRCH: the process is gone. EINVAL: no such signal.
pub fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; the descriptor is borrowed for the call.
    let done =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_cloned() {
        std::thread::spawn(|| ()).join().unwrap();
        let refused = spawn(NewNamespaces::default(), None, || 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn an_idle_process_is_made_by_any_thread_holds_nothing_and_ends_when_killed() {
        let (pid, process) = std::thread::spawn(|| {
            let made = spawn_idle(NewNamespaces::default()).unwrap();
            let held = || std::fs::read_dir(format!("/proc/{}/fd", made.0.as_raw_pid())).unwrap().count();
            let begin = std::time::Instant::now();
            while held() > 0 && begin.elapsed().as_secs() < 30 {
                std::thread::yield_now();
            }
            assert_eq!(held(), 0, "open descriptors");
            send_signal(made.1.as_fd(), libc::SIGKILL).unwrap();
            made
        })
        .join()
        .unwrap();
        let status = rustix::process::waitid(rustix::process::WaitId::PidFd(process.as_fd()), rustix::process::WaitIdOptions::EXITED);
        assert_eq!(status.unwrap().unwrap().terminating_signal(), Some(libc::SIGKILL), "{pid:?}");
    }

    #[test]
    fn a_thread_without_descriptors_closes_nobodys() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let count = || std::fs::read_dir("/proc/thread-self/fd").unwrap().filter_map(|name| name.unwrap().file_name().into_string().ok());
        let above = without_descriptors(|| count().filter(|name| name.parse::<u32>().unwrap() > 2).count()).unwrap();
        assert_eq!(above, 1, "that of the directory which it looks into");
        file.metadata().unwrap();
    }

    #[test]
    fn a_missing_program_is_an_error_and_not_the_end() {
        let none = Strings::new(Vec::new());
        let missing = execute(c"/no/such/program", &none, &none).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_limit_with_soft_above_hard_is_refused() {
        assert_eq!(set_limit(libc::RLIMIT_CORE, 2, 1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
