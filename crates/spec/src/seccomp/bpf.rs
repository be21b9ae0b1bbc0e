//! Classic BPF as seccomp(2) runs it: the instructions that filters of system calls are made of (linux/bpf_common.h,
//! linux/seccomp.h).

/// The size of a `struct sock_filter`, bytes.
pub(super) const INSTRUCTION: usize = 8;

pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
pub(super) const JUMP_IF_GREATER: u16 = 0x25;
pub(super) const JUMP_IF_AT_LEAST: u16 = 0x35;
pub(super) const JUMP_IF_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;

/// A `struct sock_filter`. Distances of jumps are counted from the next instruction, and lead forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) value: u32,
}

impl Instruction {
    /// Whether it compares, and goes one of two ways.
    pub(super) fn branches(self) -> bool {
        matches!(self.code, JUMP_IF_EQUAL | JUMP_IF_GREATER | JUMP_IF_AT_LEAST | JUMP_IF_ANY_BIT)
    }
}

/// An instruction that goes on with the next one, or jumps by `value`.
pub(super) const fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

/// As the kernel takes it.
pub(super) fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * INSTRUCTION);
    for Instruction { code, jump_true, jump_false, value } in program {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([*jump_true, *jump_false]);
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// What the kernel takes.
pub(super) fn decode(bytes: &[u8]) -> Vec<Instruction> {
    let (instructions, _) = bytes.as_chunks::<INSTRUCTION>();
    let decoded = instructions.iter().map(|[a, b, jump_true, jump_false, w, x, y, z]| Instruction {
        code: u16::from_ne_bytes([*a, *b]),
        jump_true: *jump_true,
        jump_false: *jump_false,
        value: u32::from_ne_bytes([*w, *x, *y, *z]),
    });
    decoded.collect()
}
