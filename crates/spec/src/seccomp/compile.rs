//! From a profile to a filter: classic BPF, by libseccomp, with the [`super::newer`] prologue in front, made shorter by
//! [`super::shorten`].
//!
//! Names that nobody knows are skipped, as every runtime does: profiles list calls of kernels yet to come.

use std::io::Read;

use coracle_domain::{During, Refusal, Result};
use coracle_plan::Filter;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::bpf::Instruction;
use super::profile::refusal;
use super::shorten::shorten;
use super::{bpf, newer};

const STAGE: &str = "compiling the seccomp profile";
const EPERM: u32 = 1;

/// The kernel's limit on instructions (BPF_MAXINSNS).
const LONGEST_PROGRAM: usize = 4096;

/// From this many rules on a binary search pays.
const MANY_RULES: usize = 32;

/// Compiles `profile`. Refused: rules that contradict each other, and filters beyond the kernel's limit.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let Unshortened { program, tokens } = unshortened(profile)?;
    let program = shorten(&program, &tokens).unwrap_or(program);
    if program.len() > LONGEST_PROGRAM {
        return Err(refusal("the profile is too long for the kernel once it is compiled".to_owned()).into());
    }
    Ok(Filter { program: bpf::encode(&program), flags: flags(profile) })
}

/// A filter as libseccomp makes it, behind the prologue.
pub(super) struct Unshortened {
    pub(super) program: Vec<Instruction>,
    /// The architectures it tells apart (`AUDIT_ARCH_*`).
    pub(super) tokens: Vec<u32>,
}

pub(super) fn unshortened(profile: &LinuxSeccomp) -> Result<Unshortened> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).during(STAGE, "")?;
    let architectures = architectures(profile)?;
    for architecture in &architectures {
        context.add_arch(*architecture).during(STAGE, format!("for {architecture:?}"))?;
    }
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if rules.iter().map(|rule| rule.names().len()).sum::<usize>() > MANY_RULES {
        context.set_ctl_optimize(2).during(STAGE, "")?;
    }
    let mut unknown = Vec::new();
    for rule in rules {
        unknown.extend(add(&mut context, rule, default)?);
    }
    let mut program = newer::prologue(profile, &architectures, &unknown)?;
    program.extend(bpf::decode(&export(&context)?));
    // x32 has no token of its own: it is told from x86-64 by its numbers.
    let tokens = architectures.iter().filter_map(|architecture| newer::audit_token(*architecture)).collect();
    Ok(Unshortened { program, tokens })
}

/// Adds a rule; returns the names libseccomp does not know with what is to happen to them.
fn add(context: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> Result<Vec<(String, u32)>> {
    let action = action(rule.action(), rule.errno_ret())?;
    let conditions: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(condition).collect();
    let mut unknown = Vec::new();
    for name in rule.names() {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            if conditions.is_empty() {
                unknown.push((name.clone(), newer::returned(rule.action(), rule.errno_ret())));
            }
            continue;
        };
        if action == default {
            continue;
        }
        let result = match conditions.as_slice() {
            [] => context.add_rule(action, syscall).map(drop),
            // The kernel's filters cannot say "and" about one argument: each is a rule of its own.
            conditions if repeats_an_argument(rule) => {
                conditions.iter().try_for_each(|one| context.add_rule_conditional(action, syscall, &[*one]).map(drop))
            }
            conditions => context.add_rule_conditional(action, syscall, conditions).map(drop),
        };
        result.map_err(|error| refusal(format!("the rule on {name} cannot be added: {error}")))?;
    }
    Ok(unknown)
}

fn repeats_an_argument(rule: &LinuxSyscall) -> bool {
    let mut seen = std::collections::HashSet::new();
    !rule.args().iter().flatten().all(|argument| seen.insert(argument.index()))
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    let value = argument.value();
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), argument.value_two().unwrap_or_default()),
    };
    ScmpArgCompare::new(index, operator, value)
}

fn action(action: LinuxSeccompAction, number: Option<u32>) -> Result<ScmpAction> {
    let number = number.unwrap_or(EPERM);
    let too_large = |_| refusal(format!("{number} is no error number"));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(u16::try_from(number).map_err(too_large)?.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number.try_into().map_err(too_large)?),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => return Err(Refusal::unsupported("a seccomp profile with a listener").into()),
    })
}

/// The profile's architectures and the machine's own, which libseccomp always includes.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<ScmpArch>> {
    let mut architectures = vec![ScmpArch::native()];
    for arch in profile.architectures().iter().flatten() {
        let known = match arch {
            Arch::ScmpArchNative => ScmpArch::native(),
            Arch::ScmpArchX86 => ScmpArch::X86,
            Arch::ScmpArchX86_64 => ScmpArch::X8664,
            Arch::ScmpArchX32 => ScmpArch::X32,
            Arch::ScmpArchArm => ScmpArch::Arm,
            Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
            Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
            // Of no machine we run on: its calls cannot happen here.
            _ => continue,
        };
        if !architectures.contains(&known) {
            architectures.push(known);
        }
    }
    Ok(architectures)
}

/// `SECCOMP_FILTER_FLAG_*` (linux/seccomp.h). Without a word in the profile, no mitigation of Speculative Store Bypass
/// is forced on the container: the kernel's own default since 5.16, and runc's.
fn flags(profile: &LinuxSeccomp) -> u32 {
    const LOG: u32 = 1 << 1;
    const SPEC_ALLOW: u32 = 1 << 2;
    let Some(flags) = profile.flags() else { return SPEC_ALLOW };
    flags
        .iter()
        .map(|flag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            // One thread installs it, and there is no listener to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        })
        .fold(0, |all, flag| all | flag)
}

/// libseccomp writes its program into a descriptor only; a thread reads along, so that no pipe is too small.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>> {
    let (mut reader, writer) = std::io::pipe().during(STAGE, "")?;
    let read = std::thread::spawn(move || {
        let mut program = Vec::new();
        reader.read_to_end(&mut program).map(|_| program)
    });
    let written = context.export_bpf(&writer);
    drop(writer);
    let program = read.join().map_err(|_| "the reader panicked").during(STAGE, "")?;
    written.during(STAGE, "")?;
    program.during(STAGE, "")
}
