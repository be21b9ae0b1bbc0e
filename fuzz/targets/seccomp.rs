//! Profiles of system call filters, down to the kernel's instructions.
#![no_main]

use coracle_spec::seccomp::{Surroundings, compile, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(profile) = parse(file, Surroundings { capabilities: 0, kernel: (6, 12) }) {
        let _ = compile(&profile);
    }
});
