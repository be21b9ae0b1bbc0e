//! The three commands of bpf(2) that guard a cgroup's devices: load a program of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE`, attach it to a cgroup v2 directory, count what is attached.
//!
//! It generates no programs and knows no rules. Formats: `union bpf_attr` and `struct bpf_insn` of the
//! kernel's `include/uapi/linux/bpf.h`; the kernel takes what lies behind the given size as zero.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups below run as well: none can loosen what one above refuses.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to `prog_flags`.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`, whole: Linux 6.17 writes `revision` whatever size it is given.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

/// Loads a device program; each element is one `struct bpf_insn` in the machine's byte order.
///
/// The error carries the verifier's complaint, where it has one.
pub fn load_cgroup_device(program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut log = vec![0u8; 4096];
    let mut attributes = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes point at `program` and `license`, which outlive the call; there is no log.
    let first = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) };
    let descriptor = match first {
        Ok(descriptor) => descriptor,
        Err(error) => {
            attributes.log_level = 1;
            attributes.log_size = log.len() as u32;
            attributes.log_buffer = log.as_mut_ptr() as u64;
            // SAFETY: as above; the log buffer is writable for `log_size` bytes and outlives the call.
            unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }.map_err(|_| with_log(error, &log))?
        }
    };
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a device program to the cgroup whose directory is open; it stays until the cgroup is gone.
pub fn attach_cgroup_device(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes hold two open descriptors and no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }.map(drop)
}

/// How many device programs are attached to this very cgroup.
pub fn count_cgroup_device(cgroup: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = Query { target: cgroup.as_raw_fd() as u32, attach_type: BPF_CGROUP_DEVICE, ..Query::default() };
    // SAFETY: the attributes hold an open descriptor and null arrays of length zero: the kernel only counts. It writes
    // within the attributes, whose last field is the last one that a query has.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    Ok(attributes.program_count)
}

fn with_log(error: io::Error, log: &[u8]) -> io::Error {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    match String::from_utf8_lossy(text).trim() {
        "" => error,
        complaint => io::Error::new(error.kind(), format!("{error}: {complaint}")),
    }
}

/// # Safety
///
/// `attributes` must be the kernel's layout for `command`, and every pointer in it valid for what the
/// command does with it.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the structure is exclusively borrowed and its size is given; the rest is the caller's duty.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_refused_program_comes_with_the_verifiers_complaint() {
        // BPF_EXIT without an answer in register 0.
        let exit = u64::from_ne_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]);
        let error = super::load_cgroup_device(&[exit]).unwrap_err();
        if error.raw_os_error() == Some(libc::EPERM) {
            return; // Not root: there is no verdict to complain about.
        }
        assert!(error.to_string().contains("R0 !read_ok"), "{error}");
    }
}
