//! A new process for another program, at the cost of nothing but that program: clone(2) with `CLONE_VM` and `CLONE_VFORK`.
//!
//! It is born in its maker's memory, which stands still until the program is executed. No page and no page table is copied
//! for it, as fork(2) would.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;

use rustix::process::Pid;

use crate::process::refuse_threads;

/// As much as formatting an error needs, even unoptimised. Pages that are never touched are never there.
const STACK: usize = 256 << 10;
/// What every calling convention is content with.
const ALIGNMENT: usize = 16;

/// A stack for processes that share their maker's memory, one after the other.
#[derive(Debug)]
pub struct Stack(Box<[MaybeUninit<u8>]>);

impl Stack {
    /// An unused one.
    pub fn new() -> Self {
        Self(Box::new_uninit_slice(STACK))
    }

    /// It grows downwards.
    fn top(&mut self) -> *mut c_void {
        let end = self.0.as_mut_ptr_range().end;
        // Within the allocation, which is longer than that.
        end.wrapping_sub(end.addr() % ALIGNMENT).cast()
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `child` in a new process, which ends with the code that it returns, and comes back when it has ended or executed a
/// program. Of its own it has its descriptors, directories and signals; what it changes in memory is changed here, and what
/// it allocates and does not free before it executes a program is lost.
///
/// # Errors
/// The kernel's, and EBUSY where the calling process has more than one thread: another might hold a lock that `child` wants.
pub fn vfork(stack: &mut Stack, mut child: impl FnMut() -> i32) -> io::Result<Pid> {
    extern "C" fn enter(child: *mut c_void) -> c_int {
        // SAFETY: it is the pointer that `vfork` passes, to what lives on its stack and nobody else uses meanwhile.
        let child = unsafe { &mut *child.cast::<&mut dyn FnMut() -> i32>() };
        child()
    }
    refuse_threads()?;
    let mut child: &mut dyn FnMut() -> i32 = &mut child;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: this thread, the only one, stands still until the process no longer uses this memory (CLONE_VFORK), so both the
    // stack, which nobody else uses, and the closure outlive their use, and nothing is used by two at a time. A panic cannot
    // leave `enter`: it aborts the process.
    let pid = unsafe { libc::clone(enter, stack.top(), flags, (&raw mut child).cast()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_lends_its_memory_to_nobody() {
        std::thread::spawn(|| ()).join().unwrap();
        let refused = vfork(&mut Stack::new(), || 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn a_stack_begins_aligned_and_inside_its_memory() {
        let mut stack = Stack::new();
        let range = stack.0.as_ptr_range();
        let top = stack.top();
        assert_eq!(top.addr() % ALIGNMENT, 0);
        assert!(top.addr() > range.start.addr() && top.addr() <= range.end.addr());
    }
}
