//! The C library's heap.

/// Gives free memory back to the kernel: malloc_trim(3).
pub fn give_back() {
    // SAFETY: takes no pointers, and moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
