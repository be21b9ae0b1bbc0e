//! A shortened filter against the one it was made of, run by an interpreter for as many calls as can differ.

use std::collections::BTreeSet;

use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;

use super::bpf::{Instruction, LOAD_WORD, RETURN, plain};
use super::compile::{Unshortened, unshortened};
use super::shorten::shorten;
use super::tests::interpret;
use super::{Surroundings, default, default_profile, parse};
use crate::capabilities;

const X32: u32 = 0x4000_0000;
/// What no filter answers.
const ASKS: u32 = u32::MAX;

/// Every number a table of system calls has, in every way it can be called, and numbers beyond.
fn numbers(program: &[Instruction]) -> BTreeSet<u32> {
    let near =
        program.iter().flat_map(|instruction| [instruction.value.wrapping_sub(1), instruction.value, instruction.value.wrapping_add(1)]);
    (0..600).flat_map(|number| [number, number | X32, number | 1 << 31]).chain(near).chain([u32::MAX]).collect()
}

/// Arguments at which comparisons of `profile` could have another answer, in either half of their 64 bits.
fn arguments(profile: &LinuxSeccomp) -> BTreeSet<u64> {
    let rules = profile.syscalls().iter().flatten();
    let conditions = rules.flat_map(|rule| rule.args().iter().flatten());
    let constants = conditions.flat_map(|condition| [condition.value(), condition.value_two().unwrap_or_default()]);
    let near = constants.flat_map(|constant| [constant.wrapping_sub(1), constant, constant.wrapping_add(1)]);
    near.flat_map(|argument| [argument, argument | 1 << 32, argument << 32]).chain([0, u64::MAX]).collect()
}

/// The program with [`ASKS`] as the answer wherever it looks at an argument.
fn without_arguments(program: &[Instruction]) -> Vec<Instruction> {
    program.iter().map(|one| if one.code == LOAD_WORD && one.value >= 16 { plain(RETURN, ASKS) } else { *one }).collect()
}

/// Fails where the two differ; returns how many instructions each has.
fn compare(profile: &LinuxSeccomp) -> (usize, usize) {
    let Unshortened { program, tokens } = unshortened(profile).unwrap();
    let Some(short) = shorten(&program, &tokens) else { return (program.len(), program.len()) };
    let (arguments, blind) = (arguments(profile), without_arguments(&program));
    for architecture in tokens.iter().copied().chain([0, 0x4000_0028, 0xc000_00b7, u32::MAX]) {
        for number in numbers(&program) {
            let same = |arguments: [u64; 6]| {
                let answer = |program| interpret(program, architecture, number, arguments);
                assert_eq!(answer(&program[..]), answer(&short[..]), "{architecture:#x} {number:#x} {arguments:x?}");
            };
            same([0; 6]);
            if interpret(&blind, architecture, number, [0; 6]) != ASKS {
                continue;
            }
            for argument in &arguments {
                same([*argument; 6]);
                for index in 0..6 {
                    let mut one = [0; 6];
                    one[index] = *argument;
                    same(one);
                }
            }
        }
    }
    (program.len(), short.len())
}

#[test]
fn the_default_filters_answer_every_call_as_before_in_a_third_of_the_instructions() {
    let relevant = default::relevant(u64::MAX);
    let single = (0..64).map(|number| 1 << number).filter(|bit| relevant & bit != 0);
    for capabilities in [0, relevant].into_iter().chain(single) {
        let (before, after) = compare(&default_profile(capabilities));
        assert!(after * 3 < before, "{} for {:?}", after, capabilities::names(capabilities).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_unusual_is_left_as_it_is() {
    let returns = plain(RETURN, 7);
    let masks = [plain(LOAD_WORD, 0), plain(0x54, 1), returns];
    assert_eq!(shorten(&masks, &[]), None);
    let looks_for_a_number_first = [plain(LOAD_WORD, 0), Instruction { code: 0x15, jump_true: 0, jump_false: 0, value: 1 }, returns];
    assert_eq!(shorten(&looks_for_a_number_first, &[0xc000_003e]), None);
    assert_eq!(shorten(&[returns], &[0xc000_003e]), None, "nothing is shorter");
    assert_eq!(shorten(&[], &[0xc000_003e]), None);
}

/// One rule of a profile, as JSON.
fn rule() -> impl Strategy<Value = String> {
    let names = prop::sample::subsequence(
        vec![
            "read",
            "write",
            "open",
            "close",
            "stat",
            "ioctl",
            "clone",
            "socket",
            "personality",
            "mkdir",
            "prctl",
            "mseal",
            "listns",
            "no_such",
        ],
        1..6,
    );
    let actions = prop::sample::select(vec!["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "LOG", "TRACE", "TRAP"]);
    let operators = prop::sample::select(vec!["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]);
    let values = || prop::sample::select(vec![0, 1, 7, 0x7e02_0000, 1 << 31, 1 << 32, (1 << 40) + 5, u64::MAX]);
    let argument = (0..6u8, operators, values(), values()).prop_map(|(index, operator, value, two)| {
        format!(r#"{{"index":{index},"op":"SCMP_CMP_{operator}","value":{value},"valueTwo":{two}}}"#)
    });
    (names, actions, 1..50u8, prop::collection::vec(argument, 0..3)).prop_map(|(names, action, errno, arguments)| {
        let arguments = arguments.join(",");
        format!(r#"{{"names":{names:?},"action":"SCMP_ACT_{action}","errnoRet":{errno},"args":[{arguments}]}}"#)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_profile_means_the_same_when_it_is_shorter(
        rules in prop::collection::vec(rule(), 0..8), default in "ALLOW|ERRNO|KILL|LOG",
        architectures in prop::sample::subsequence(vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"], 0..4),
    ) {
        let rules = rules.join(",");
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_{default}","architectures":{architectures:?},"syscalls":[{rules}]}}"#);
        let profile = parse(json.as_bytes(), Surroundings { capabilities: 0, kernel: (6, 12) }).unwrap();
        // Rules that contradict each other are refused.
        if unshortened(&profile).is_ok() {
            compare(&profile);
        }
    }
}
