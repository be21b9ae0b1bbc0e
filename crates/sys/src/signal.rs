//! Signals taken as data: every disposition default, everything blocked, the interesting ones read from a
//! signalfd(2). A process made this way inherits nothing that it would have to undo but the mask.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Gives every signal its default disposition, those too that the C library keeps for itself: rt_sigaction(2).
pub fn reset_dispositions() {
    /// `struct sigaction` of the kernel: handler (SIG_DFL is 0), flags, restorer, and a mask of 64 signals.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = size_of::<u64>();
    for signal in 1..=64 {
        // SAFETY: the structure outlives the call, and the default disposition runs no code of this process. The kernel
        // refuses it for SIGKILL and SIGSTOP, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null_mut::<u64>(), MASK_SIZE) };
    }
}

/// Blocks every signal: sigprocmask(2).
pub fn block_all() -> io::Result<()> {
    // SAFETY: sigfillset initialises the set.
    let set = unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    };
    set_mask(&set)
}

/// Unblocks every signal; pending ones arrive: sigprocmask(2).
pub fn unblock_all() -> io::Result<()> {
    set_mask(&set_of(&[]))
}

/// A queue of the signals it was made for, which must be blocked.
#[derive(Debug)]
pub struct SignalQueue(OwnedFd);

impl SignalQueue {
    /// A queue of `signals`, closed on exec: signalfd(2).
    ///
    /// # Errors
    /// The kernel's: no descriptors, no memory.
    pub fn new(signals: &[i32], blocking: bool) -> io::Result<Self> {
        let set = set_of(signals);
        let flags = if blocking { libc::SFD_CLOEXEC } else { libc::SFD_CLOEXEC | libc::SFD_NONBLOCK };
        // SAFETY: the set outlives the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made it just now, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal's number. Equal signals may have become one.
    ///
    /// # Errors
    /// EAGAIN: there is none, and the queue does not block.
    pub fn next(&self) -> io::Result<i32> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.0, &mut record)?;
        // `ssi_signo` is the first field.
        let number = record.first_chunk().map(|number| i32::from_ne_bytes(*number));
        number.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; sigaddset refuses what is no signal.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set outlives the call, and the old mask is not asked for.
    let done = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_says_so() {
        let queue = SignalQueue::new(&[libc::SIGUSR2], false).unwrap();
        assert_eq!(queue.next().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
