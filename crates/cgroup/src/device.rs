//! Which devices a cgroup's processes may open or make: rules as the OCI runtime spec has them, and what the
//! kernel takes instead: lines for v1's `devices.allow` and `devices.deny`, a BPF program for v2. Pure.
//!
//! Formats: OCI runtime spec, `linux.resources.devices`; the kernel's `admin-guide/cgroup-v1/devices.rst`,
//! `include/uapi/linux/bpf.h` (`struct bpf_cgroup_dev_ctx`) and `Documentation/bpf/standardization/instruction-set.rst`.

use coracle_domain::{DeviceAccess, DeviceKind, DeviceRule};

/// Rules in order: the last one that fits an access decides, and what none fits is refused. No rules at
/// all: the cgroup has no say, and its parent's rules hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceRules<'a>(pub(crate) &'a [DeviceRule]);

const EVERYTHING: DeviceAccess = DeviceAccess { read: true, write: true, mknod: true };

fn is_everything(rule: &DeviceRule) -> bool {
    rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == EVERYTHING
}

/// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`.
fn bits(access: DeviceAccess) -> i32 {
    i32::from(access.mknod) | i32::from(access.read) << 1 | i32::from(access.write) << 2
}

/// As v1 writes it: some of `r`, `w` and `m`.
fn letters(access: DeviceAccess) -> String {
    let letters = [(access.read, 'r'), (access.write, 'w'), (access.mknod, 'm')];
    letters.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect()
}

/// A file of v1's devices controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceFile {
    Allow,
    Deny,
}

impl DeviceFile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Allow => "devices.allow",
            Self::Deny => "devices.deny",
        }
    }
}

impl<'a> DeviceRules<'a> {
    /// The rules that count: those from the last one that covers everything, which itself comes as `true`
    /// when it allows. `None`: nothing is restricted.
    fn effective(self) -> Option<(bool, &'a [DeviceRule])> {
        let everything = self.0.iter().rposition(is_everything);
        let (base, rest) = match everything.and_then(|index| self.0.get(index).zip(self.0.get(index + 1..))) {
            Some((rule, rest)) => (rule.allow, rest),
            None => (self.0.is_empty(), self.0),
        };
        (!base || rest.iter().any(|rule| !rule.allow)).then_some((base, rest))
    }

    /// The writes that make a fresh v1 cgroup, which allows what its parent does, follow the rules.
    ///
    /// v1 knows one kind of exception: to "all" a device that is refused, to "none" one that is allowed.
    /// A refusal after an allowance takes it back only where both name the same devices.
    pub(crate) fn legacy_lines(self) -> Vec<(DeviceFile, String)> {
        let Some((base, rest)) = self.effective() else { return Vec::new() };
        let mut lines = Vec::new();
        if !base {
            lines.push((DeviceFile::Deny, "a".to_owned()));
        }
        for rule in rest.iter().filter(|rule| rule.access != DeviceAccess::default()) {
            let file = if rule.allow { DeviceFile::Allow } else { DeviceFile::Deny };
            let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
            // A line of kind `a` means everything whatever else it says: two lines say what was meant.
            let kinds: &[char] = match rule.kind {
                None => &['b', 'c'],
                Some(DeviceKind::Block) => &['b'],
                Some(DeviceKind::Character) => &['c'],
            };
            lines.extend(
                kinds.iter().map(|kind| (file, format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), letters(rule.access)))),
            );
        }
        lines
    }

    /// The program that decides each access on v2; `None`: nothing is restricted.
    pub(crate) fn program(self) -> Option<Vec<u64>> {
        let (base, rest) = self.effective()?;
        let mut program = vec![load_word(2, 0), move_register(3, 2), shift_right(3, 16), and(2, 0xffff), load_word(4, 4), load_word(5, 8)];
        for rule in rest.iter().rev() {
            program.extend(decide(rule));
        }
        program.extend(answer(base));
        Some(program)
    }
}

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

fn number_of(kind: DeviceKind) -> i32 {
    match kind {
        DeviceKind::Block => BLOCK,
        DeviceKind::Character => CHARACTER,
    }
}

/// Instructions of one answer.
const ANSWER_LENGTH: usize = 2;

/// Answers if the access in registers 2 (kind), 3 (access), 4 (major) and 5 (minor) fits the rule, else
/// falls through. An allowance fits an access that is wholly within it, a refusal one that touches it.
fn decide(rule: &DeviceRule) -> Vec<u64> {
    let mut tests: Vec<Vec<Test>> = Vec::new();
    let kind = rule.kind.map(number_of);
    let equals = |register: u8, value: i32| vec![Test::SkipUnlessEqual(register, value)];
    tests.extend(kind.map(|kind| equals(2, kind)));
    let access = bits(rule.access);
    tests.push(match rule.allow {
        true => vec![Test::Plain(move_register(6, 3)), Test::Plain(and(6, !access)), Test::SkipUnlessEqual(6, 0)],
        false => vec![Test::Plain(move_register(6, 3)), Test::Plain(and(6, access)), Test::SkipIfEqual(6, 0)],
    });
    tests.extend(rule.major.map(|major| equals(4, major.cast_signed())));
    tests.extend(rule.minor.map(|minor| equals(5, minor.cast_signed())));
    let tests: Vec<Test> = tests.into_iter().flatten().collect();
    let total = tests.len();
    let jump = |index: usize| i16::try_from(total - index - 1 + ANSWER_LENGTH).unwrap_or(i16::MAX);
    let placed = tests.into_iter().enumerate().map(|(index, test)| match test {
        Test::Plain(instruction) => instruction,
        Test::SkipUnlessEqual(register, value) => instruction(JUMP_NOT_EQUAL, register, 0, jump(index), value),
        Test::SkipIfEqual(register, value) => instruction(JUMP_EQUAL, register, 0, jump(index), value),
    });
    placed.chain(answer(rule.allow)).collect()
}

/// An instruction whose jump, past the rule's answer, is known once the rule is complete.
enum Test {
    Plain(u64),
    SkipUnlessEqual(u8, i32),
    SkipIfEqual(u8, i32),
}

/// All on 32 bits. `BPF_LDX | BPF_MEM | BPF_W`
const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV | BPF_X`
const MOVE: u8 = 0xbc;
/// `BPF_ALU | BPF_MOV | BPF_K`
const MOVE_VALUE: u8 = 0xb4;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP32 | BPF_JEQ | BPF_K`
const JUMP_EQUAL: u8 = 0x16;
/// `BPF_JMP32 | BPF_JNE | BPF_K`
const JUMP_NOT_EQUAL: u8 = 0x56;
/// `BPF_JMP | BPF_EXIT`
const EXIT: u8 = 0x95;

fn answer(allow: bool) -> [u64; ANSWER_LENGTH] {
    [instruction(MOVE_VALUE, 0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// Register 1 points at the context when the program starts.
fn load_word(register: u8, offset: i16) -> u64 {
    instruction(LOAD_WORD, register, 1, offset, 0)
}

fn move_register(to: u8, from: u8) -> u64 {
    instruction(MOVE, to, from, 0, 0)
}

fn shift_right(register: u8, bits: i32) -> u64 {
    instruction(SHIFT_RIGHT, register, 0, 0, bits)
}

fn and(register: u8, mask: i32) -> u64 {
    instruction(AND, register, 0, 0, mask)
}

/// `struct bpf_insn` of a little-endian machine.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_ne_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn access(text: &str) -> DeviceAccess {
        DeviceAccess { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') }
    }

    pub(crate) fn rule(allow: bool, kind: Option<DeviceKind>, major: Option<u32>, minor: Option<u32>, letters: &str) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: access(letters) }
    }

    pub(crate) fn usual() -> Vec<DeviceRule> {
        vec![
            rule(false, None, None, None, "rwm"),
            rule(true, Some(DeviceKind::Character), None, None, "m"),
            rule(true, Some(DeviceKind::Character), Some(1), Some(3), "rwm"),
            rule(true, Some(DeviceKind::Character), Some(136), None, "rwm"),
        ]
    }

    /// A machine with the few instructions that the programs use.
    fn run(program: &[u64], access_type: u32, major: u32, minor: u32) -> u32 {
        let mut registers = [0u32; 8];
        let mut at = 0usize;
        loop {
            let [code, ends, low, high, a, b, c, d] = program[at].to_ne_bytes();
            let (to, from) = (usize::from(ends & 15), usize::from(ends >> 4));
            let offset = i16::from_le_bytes([low, high]);
            let value = i32::from_le_bytes([a, b, c, d]).cast_unsigned();
            at += 1;
            match code {
                LOAD_WORD => registers[to] = [access_type, major, minor][usize::try_from(offset / 4).unwrap()],
                MOVE => registers[to] = registers[from],
                MOVE_VALUE => registers[to] = value,
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_EQUAL if registers[to] == value => at = at.checked_add_signed(offset.into()).unwrap(),
                JUMP_NOT_EQUAL if registers[to] != value => at = at.checked_add_signed(offset.into()).unwrap(),
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn on_v1_the_usual_rules_are_a_list_of_what_is_allowed() {
        let lines: Vec<String> =
            DeviceRules(&usual()).legacy_lines().into_iter().map(|(file, line)| format!("{} {line}", file.name())).collect();
        let expected = ["devices.deny a", "devices.allow c *:* m", "devices.allow c 1:3 rwm", "devices.allow c 136:* rwm"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn no_rules_and_everything_allowed_restrict_nothing() {
        let all_allowed = [rule(false, None, None, None, "rwm"), rule(true, None, None, None, "rwm")];
        for rules in [DeviceRules(&[]), DeviceRules(&all_allowed)] {
            assert_eq!((rules.program(), rules.legacy_lines()), (None, Vec::new()));
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_allow() {
        let program = DeviceRules(&usual()).program().unwrap();
        let ask =
            |kind: i32, letters: &str, major, minor| run(&program, (bits(access(letters)) << 16 | kind).cast_unsigned(), major, minor) == 1;
        assert!(ask(CHARACTER, "rw", 1, 3), "/dev/null");
        assert!(ask(CHARACTER, "m", 10, 200), "any character device may be made");
        assert!(!ask(CHARACTER, "r", 10, 200) && !ask(CHARACTER, "rm", 10, 200), "and none else be opened");
        assert!(ask(CHARACTER, "w", 136, 9) && !ask(BLOCK, "r", 1, 3) && !ask(BLOCK, "m", 8, 0));
    }

    /// The meaning of the rules, said without a program.
    fn allowed(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let fits = |rule: &&DeviceRule| {
            let kind_fits = rule.kind.is_none_or(|wanted| number_of(wanted) == kind);
            let covered = bits(rule.access);
            let access_fits = if rule.allow { access & !covered == 0 } else { access & covered != 0 };
            kind_fits && access_fits && rule.major.is_none_or(|m| m == major) && rule.minor.is_none_or(|m| m == minor)
        };
        rules.iter().rev().find(fits).map_or(rules.is_empty(), |rule| rule.allow)
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![Just(None), Just(Some(DeviceKind::Block)), Just(Some(DeviceKind::Character))];
        let access = (0u8..8).prop_map(|bits| DeviceAccess { mknod: bits & 1 != 0, read: bits & 2 != 0, write: bits & 4 != 0 });
        let number = || proptest::option::of(0u32..3);
        (any::<bool>(), kind, number(), number(), access).prop_map(|(allow, kind, major, minor, access)| DeviceRule {
            allow,
            kind,
            major,
            minor,
            access,
        })
    }

    proptest! {
        #[test]
        fn program_and_rules_agree(rules in proptest::collection::vec(any_rule(), 0..8), kind in 1i32..3, access in 1i32..8, major in 0u32..3, minor in 0u32..3) {
            let by_program = DeviceRules(&rules).program().is_none_or(|program| run(&program, (access << 16 | kind).cast_unsigned(), major, minor) == 1);
            prop_assert_eq!(by_program, allowed(&rules, kind, access, major, minor));
        }
    }
}
