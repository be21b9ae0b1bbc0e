//! The smallest programs: one system call, and its outcome as the exit code. Made here byte by byte (ELF for x86-64), so
//! that a test can make calls that no shell makes, through every gate of the kernel.

/// A way into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `syscall`, as all programs of 64 bits do.
    Native,
    /// `int 0x80`: the numbers and rules of 32 bits, open to programs of 64 bits as well.
    Compat,
}

/// Whether these programs run on this machine.
pub const AVAILABLE: bool = cfg!(target_arch = "x86_64");

/// A program that makes one call with one argument and exits with what it returned: the number of the error, where it
/// failed; else the lowest eight bits.
pub fn one_call(gate: Gate, number: u32, argument: u32) -> Vec<u8> {
    let mut code = vec![0xb8]; // mov eax, number
    code.extend(number.to_le_bytes());
    code.push(if gate == Gate::Native { 0xbf } else { 0xbb }); // mov edi or ebx, argument
    code.extend(argument.to_le_bytes());
    code.extend([0x31, 0xf6, 0x31, 0xd2, 0x31, 0xc9]); // xor esi, esi; xor edx, edx; xor ecx, ecx
    code.extend(if gate == Gate::Native { [0x0f, 0x05] } else { [0xcd, 0x80] });
    // mov edi, eax; test eax, eax; jns +2; neg edi; mov eax, 60 (exit); syscall
    code.extend([0x89, 0xc7, 0x85, 0xc0, 0x79, 0x02, 0xf7, 0xdf, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    executable(&code)
}

/// An ELF file (System V ABI, chapters 4 and 5) of one segment.
fn executable(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let halves = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let words = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let longs = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    halves(&mut file, &[2, 62]); // an executable for x86-64
    words(&mut file, &[1]);
    longs(&mut file, &[BASE + HEADERS, 64, 0]); // entry, program headers, no sections
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 1, 64, 0, 0]);
    words(&mut file, &[1, 5]); // loaded, readable and executable
    longs(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(code);
    file
}
