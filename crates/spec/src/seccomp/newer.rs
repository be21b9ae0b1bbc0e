//! System calls newer than the libseccomp on the machine, by a few instructions in front of its program.
//!
//! Two things libseccomp cannot do. It skips names it does not know, so that an old one would deny what the profile
//! allows: since Linux 5.1 new calls have one number on all architectures, and the table here knows it. And it
//! answers calls that no author of the profile could have known with the default EPERM, where C libraries need ENOSYS
//! to fall back: whatever lies beyond the newest call that the profile names gets ENOSYS, as with runc.
//!
//! ```text
//! load architecture
//! for each architecture:  is it this one?  load number
//!     number below everything new → libseccomp's program
//!     number = a call of the table → its action     (each)
//!     number beyond the profile's newest → ENOSYS
//!     → libseccomp's program
//! ```

use coracle_domain::Result;
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

use super::bpf::{ARCHITECTURE, Instruction, JUMP, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, JUMP_IF_GREATER, LOAD_WORD, NUMBER, RETURN, plain};
use super::profile::refusal;

/// Numbers of calls since Linux 6.5 (include/uapi/asm-generic/unistd.h); uretprobe, of x86-64 alone, is below.
const NUMBERS: [(&str, u32); 20] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
];

const URETPROBE: (&str, u32) = ("uretprobe", 335);

/// The bit that tells x32 from x86-64, which share an architecture.
const X32_BIT: u32 = 0x4000_0000;

// What a filter returns (linux/seccomp.h).
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// A distance to libseccomp's program that is not known yet.
const TO_THE_END: u32 = u32::MAX;

/// Skips `otherwise` instructions unless the comparison holds.
const fn unless(code: u16, value: u32, otherwise: u8) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: otherwise, value }
}

/// What the kernel is to be told for an action.
pub(super) fn returned(action: LinuxSeccompAction, number: Option<u32>) -> u32 {
    let number = number.unwrap_or(EPERM) & 0xffff;
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActNotify => RET_ERRNO | number,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | number,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
    }
}

/// The instructions to put in front of a program made for `architectures`. `unknown`: names libseccomp did not know,
/// and what is to be returned for them.
pub(super) fn prologue(profile: &LinuxSeccomp, architectures: &[ScmpArch], unknown: &[(String, u32)]) -> Result<Vec<Instruction>> {
    let mut program = vec![plain(LOAD_WORD, ARCHITECTURE)];
    let of_x32 = architectures.contains(&ScmpArch::X32).then(|| body(profile, ScmpArch::X32, unknown));
    for architecture in architectures {
        let Some(token) = audit_token(*architecture) else { continue };
        let mut block = vec![plain(LOAD_WORD, NUMBER)];
        let own = body(profile, *architecture, unknown);
        if let (ScmpArch::X8664, Some(of_x32)) = (architecture, &of_x32) {
            block.push(Instruction { jump_true: length(&own)?, ..plain(JUMP_IF_AT_LEAST, X32_BIT) });
            block.extend(own);
            block.extend(of_x32);
        } else {
            block.extend(own);
        }
        program.push(unless(JUMP_IF_EQUAL, token, length(&block)?));
        program.extend(block);
    }
    Ok(linked(program))
}

fn length(block: &[Instruction]) -> Result<u8> {
    Ok(u8::try_from(block.len()).map_err(|_| refusal("the profile names too many new system calls".to_owned()))?)
}

/// What is done with a number of one architecture. Never falls through.
fn body(profile: &LinuxSeccomp, architecture: ScmpArch, unknown: &[(String, u32)]) -> Vec<Instruction> {
    let bit = if architecture == ScmpArch::X32 { X32_BIT } else { 0 };
    let mut new: Vec<(u32, u32)> = unknown.iter().filter_map(|(name, action)| Some((number(name, architecture)? | bit, *action))).collect();
    // Of rules on the same call the first holds.
    new.sort_by_key(|(number, _)| *number);
    new.dedup_by_key(|(number, _)| *number);
    let newest = answers_unknown_with_enosys(profile).then(|| newest(profile, architecture, bit)).flatten();

    let lowest = new.first().map(|(number, _)| *number).into_iter().chain(newest.map(|newest| newest + 1)).min();
    let Some(lowest) = lowest else {
        return vec![plain(JUMP, TO_THE_END)];
    };
    let mut body = vec![Instruction { jump_true: 1, ..plain(JUMP_IF_AT_LEAST, lowest) }, plain(JUMP, TO_THE_END)];
    for (number, action) in new {
        body.extend([unless(JUMP_IF_EQUAL, number, 1), plain(RETURN, action)]);
    }
    if let Some(newest) = newest {
        body.extend([unless(JUMP_IF_GREATER, newest, 1), plain(RETURN, RET_ERRNO | ENOSYS)]);
    }
    body.push(plain(JUMP, TO_THE_END));
    body
}

/// Where the default is to deny; a profile that allows or watches wants to see new calls as well.
fn answers_unknown_with_enosys(profile: &LinuxSeccomp) -> bool {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActNotify, ScmpActTrace};
    !matches!(profile.default_action(), ScmpActAllow | ScmpActLog | ScmpActNotify | ScmpActTrace)
}

/// The highest number among the calls that the profile names.
fn newest(profile: &LinuxSeccomp, architecture: ScmpArch, bit: u32) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let known = |name: &String| {
        let resolved = ScmpSyscall::from_name_by_arch(name, architecture).ok();
        let resolved = resolved.and_then(|syscall| u32::try_from(syscall.as_raw_syscall()).ok());
        resolved.or_else(|| number(name, architecture)).map(|number| number | bit)
    };
    names.filter_map(known).max()
}

fn number(name: &str, architecture: ScmpArch) -> Option<u32> {
    if name == URETPROBE.0 {
        return (architecture == ScmpArch::X8664).then_some(URETPROBE.1);
    }
    NUMBERS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// `AUDIT_ARCH_*` (linux/audit.h). x32 is part of x86-64.
pub(super) fn audit_token(architecture: ScmpArch) -> Option<u32> {
    match architecture {
        ScmpArch::X8664 => Some(0xc000_003e),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xc000_00b7),
        ScmpArch::Arm => Some(0x4000_0028),
        ScmpArch::Riscv64 => Some(0xc000_00f3),
        _ => None,
    }
}

/// Fills in the distances to libseccomp's program.
fn linked(mut program: Vec<Instruction>) -> Vec<Instruction> {
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP && instruction.value == TO_THE_END {
            instruction.value = u32::try_from(end - index - 1).unwrap_or_default();
        }
    }
    program
}
