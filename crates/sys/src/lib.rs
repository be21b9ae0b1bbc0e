//! Thin safe wrappers over system calls; the only crate with unsafe code.

#![allow(unsafe_code)]

pub mod bpf;
pub mod filter;
pub mod heap;
pub mod keyring;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod signal;
pub mod vfork;
