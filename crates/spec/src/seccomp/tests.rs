use std::time::Instant;

use super::bpf::Instruction;
use super::*;

/// What a classic BPF program returns for a call, by the kernel's rules (linux/filter.h).
fn run(program: &[u8], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    interpret(&bpf::decode(program), architecture, number, arguments)
}

/// The same for instructions. Words of arguments are in the order of this machine, which is a little-endian one.
pub(super) fn interpret(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => architecture,
        8 | 12 => 0,
        16..64 if offset.is_multiple_of(4) => (arguments[offset as usize / 8 - 2] >> (offset % 8 * 8)) as u32,
        _ => panic!("no word at {offset}"),
    };
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let Instruction { code, jump_true, jump_false, value } = program[at];
        let branch = |holds: bool| 1 + usize::from(if holds { jump_true } else { jump_false });
        at += match code {
            0x20 => {
                accumulator = word(value);
                1
            }
            0x54 => {
                accumulator &= value;
                1
            }
            0x05 => 1 + value as usize,
            0x15 => branch(accumulator == value),
            0x25 => branch(accumulator > value),
            0x35 => branch(accumulator >= value),
            0x45 => branch(accumulator & value != 0),
            0x06 => return value,
            other => panic!("instruction {other:#x} at {at}"),
        };
    }
}

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const SYS_ADMIN: u64 = 1 << 21;

fn default(capabilities: u64) -> Vec<u8> {
    Seccomp::RuntimeDefault { capabilities }.filter().unwrap().unwrap().program
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_profile_allows_the_usual_and_denies_the_rest() {
    let program = default(0);
    let call = |number| run(&program, X86_64, number, [0; 6]);
    for (name, number, expected) in [
        ("read", 0, ALLOW),
        ("execve", 59, ALLOW),
        ("ptrace", 101, ALLOW),
        ("mount", 165, ERRNO | 1),
        ("reboot", 169, ERRNO | 1),
        ("keyctl", 250, ERRNO | 1),
        ("unshare", 272, ERRNO | 1),
        ("io_uring_setup", 425, ERRNO | 1),
        ("clone3", 435, ERRNO | 38),
        ("futex_waitv", 449, ALLOW),
        ("fchmodat2", 452, ALLOW),
        ("lsm_get_self_attr", 459, ERRNO | 1),
        ("mseal", 462, ALLOW),
        ("removexattrat", 466, ALLOW),
        ("uretprobe", 335, ALLOW),
        ("a call of the future", 467, ERRNO | 38),
        ("a call of the far future", 9999, ERRNO | 38),
    ] {
        assert_eq!(call(number), expected, "{name}: {:#x}", call(number));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn arguments_decide_where_they_must() {
    let program = default(0);
    let call = |number, first| run(&program, X86_64, number, [first, 0, 0, 0, 0, 0]);
    for (name, number, first, expected) in [
        ("clone of a thread", 56, 0x003d_0f00, ALLOW),
        ("clone into a user namespace", 56, 0x1000_0000, ERRNO | 1),
        ("socket of AF_INET", 41, 2, ALLOW),
        ("socket of AF_ALG", 41, 38, ERRNO | 1),
        ("socket of AF_NFC", 41, 39, ALLOW),
        ("socket of AF_VSOCK", 41, 40, ERRNO | 1),
        ("socket of AF_XDP", 41, 44, ALLOW),
        ("socket of AF_MCTP", 41, 45, ALLOW),
        ("socket of AF_ALG, with a bit that the kernel does not look at", 41, 1 << 32 | 38, ERRNO | 1),
        ("socket of AF_VSOCK, with a bit that the kernel does not look at", 41, 1 << 32 | 40, ERRNO | 1),
        ("personality without randomisation", 135, 0x0004_0000, ERRNO | 1),
        ("personality of Linux", 135, 0, ALLOW),
    ] {
        assert_eq!(call(number, first), expected, "{name}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn capabilities_open_their_calls() {
    let admin = default(SYS_ADMIN);
    for number in [56, 165, 272, 308, 435, 459, 460, 461] {
        assert_eq!(run(&admin, X86_64, number, [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW, "{number}");
    }
    let module = default(1 << 16);
    assert_eq!(run(&module, X86_64, 175, [0; 6]), ALLOW);
    assert_eq!(run(&admin, X86_64, 175, [0; 6]), ERRNO | 1);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_other_architectures_of_the_machine_are_filtered_as_well() {
    let program = default(0);
    let x32 = 0x4000_0000;
    for (architecture, number, expected) in [
        (X86, 3, ALLOW),
        (X86, 21, ERRNO | 1),
        (X86, 452, ALLOW),
        (X86, 9999, ERRNO | 38),
        (X86_64, x32, ERRNO | 38),
        (X86_64, x32 | 165, ERRNO | 38),
        (X86_64, x32 | 452, ERRNO | 38),
        (X86_64, x32 | 9999, ERRNO | 38),
    ] {
        let found = run(&program, architecture, number, [0; 6]);
        assert_eq!(found, expected, "{architecture:#x} {number:#x}: {found:#x}");
    }
    assert_ne!(run(&program, 0x1234, 0, [0; 6]), ALLOW, "an unknown architecture");
}

#[test]
fn the_defaults_differ_by_relevant_capabilities_only() {
    let chown = default_filter(1).unwrap();
    assert_eq!(chown, default_filter(0).unwrap());
    assert_ne!(chown, default_filter(SYS_ADMIN).unwrap());
}

/// Not a test of anything: prints what compiling costs.
#[test]
#[ignore = "a measurement"]
fn how_long_compiling_takes() {
    let began = Instant::now();
    let mut length = 0;
    for _ in 0..20 {
        length = compile(&default_profile(0)).unwrap().program.len();
    }
    eprintln!("compiling: {:?}, {} instructions", began.elapsed() / 20, length / 8);
    let began = Instant::now();
    for _ in 0..1000 {
        default_filter(0).unwrap();
    }
    eprintln!("from the cache: {:?}", began.elapsed() / 1000);
    let began = Instant::now();
    for _ in 0..1000 {
        default_profile(0);
    }
    eprintln!("the profile itself: {:?}", began.elapsed() / 1000);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_profile_that_allows_by_default_denies_what_it_lists_and_nothing_new() {
    let json = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mseal","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    let profile = parse(json, Surroundings { capabilities: 0, kernel: (6, 1) }).unwrap();
    let program = compile(&profile).unwrap().program;
    for (number, expected) in [(83, ERRNO | 13), (462, ERRNO | 13), (0, ALLOW), (9999, ALLOW)] {
        assert_eq!(run(&program, X86_64, number, [0; 6]), expected, "{number}");
    }
}

#[test]
fn profiles_of_the_node_are_kept_apart_and_the_oldest_is_forgotten() {
    let profile = |errno: usize| {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno}}}]}}"#
        );
        parse(json.as_bytes(), Surroundings { capabilities: 0, kernel: (6, 1) }).unwrap()
    };
    for errno in 1..KEPT + 5 {
        let filter = profile_filter(&profile(errno)).unwrap();
        assert_eq!(filter, compile(&profile(errno)).unwrap());
        assert_eq!(filter, profile_filter(&profile(errno)).unwrap());
    }
    assert!(PROFILE_FILTERS.lock().unwrap().len() <= KEPT);
}

#[test]
fn warming_up_makes_the_filter_of_an_ordinary_container() {
    warm_up(u64::MAX).unwrap();
    let capabilities = capabilities::sets(&SecurityContext::default(), 0, u64::MAX).unwrap().bounding;
    assert!(DEFAULT_FILTERS.lock().unwrap().contains_key(&default::relevant(capabilities)));
}

#[test]
fn privileged_containers_are_never_filtered() {
    let mut security = SecurityContext { seccomp: Profile::RuntimeDefault, ..SecurityContext::default() };
    assert!(matches!(Seccomp::chosen(&security, 7, None, (6, 1)).unwrap(), Seccomp::RuntimeDefault { capabilities: 7 }));
    security.privileged = true;
    assert_eq!(Seccomp::chosen(&security, 7, None, (6, 1)).unwrap(), Seccomp::Unconfined);
}

#[test]
fn a_named_profile_must_have_been_read() {
    let security = SecurityContext { seccomp: Profile::Localhost("/p.json".into()), ..SecurityContext::default() };
    assert!(Seccomp::chosen(&security, 0, None, (6, 1)).unwrap_err().to_string().contains("/p.json"));
}
