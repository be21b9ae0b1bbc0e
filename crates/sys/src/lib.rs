//! Thin safe wrappers over system calls; the only crate with unsafe code.
