//! The same filter in fewer instructions. The kernel takes a filter in anew for every container and exec, and what that
//! costs grows with its length.
//!
//! libseccomp compares with every system call's number. Profiles, though, treat most calls as their neighbours, so that
//! looking for the *range* a number is in takes a few comparisons. Nothing of a profile's meaning is known here: the
//! program is run for one number of every range between the constants that it compares with, until it returns or asks for
//! an argument, which is where the instructions of the original take over.
//!
//! ```text
//! load architecture; is it this one? …            (each)
//!     load number
//!     at least the middle of all ranges? …        (a binary search)
//!         → return, or the original's instructions on arguments
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::bpf::{ARCHITECTURE, Instruction, JUMP, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, JUMP_IF_GREATER, LOAD_WORD, NUMBER, RETURN, plain};

/// How far a comparison is made to jump: less than the 255 that it could, as one more instruction may come in between.
const REACH: usize = 250;

/// What becomes of a call as far as its number tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is answered.
    Return(u32),
    /// The instruction at this index looks at an argument.
    Arguments(usize),
}

/// The first number of a range, and what becomes of all in it.
type Range = (u32, Outcome);

/// A program that does the same, for `architectures` (`AUDIT_ARCH_*`) and all others. `None`: `program` does something
/// unusual, or is short enough.
pub(super) fn shorten(program: &[Instruction], architectures: &[u32]) -> Option<Vec<Instruction>> {
    let constants = program.iter().filter(|instruction| instruction.branches()).map(|instruction| instruction.value);
    // Within these bounds no comparison with a constant has two answers.
    let bounds: BTreeSet<u32> = constants.flat_map(|constant| [Some(constant), constant.checked_add(1)]).flatten().chain([0]).collect();
    let others = others(program, &bounds, architectures)?;
    let sections = architectures.iter().map(|architecture| ranges(program, &bounds, *architecture)).collect::<Option<Vec<_>>>()?;

    let mut writer = Writer::default();
    writer.copy_blocks(program, &sections)?;
    let mut next = writer.leaf(others);
    for (architecture, ranges) in architectures.iter().zip(&sections).rev() {
        let search = writer.search(ranges);
        writer.go_to(search);
        let section = writer.push(plain(LOAD_WORD, NUMBER));
        next = writer.branch(JUMP_IF_EQUAL, *architecture, section, next);
    }
    writer.go_to(next);
    writer.push(plain(LOAD_WORD, ARCHITECTURE));
    let mut shortened = writer.reversed;
    shortened.reverse();
    (shortened.len() < program.len()).then_some(shortened)
}

/// What becomes of the calls of all other architectures: one and the same, whatever their number.
fn others(program: &[Instruction], bounds: &BTreeSet<u32>, architectures: &[u32]) -> Option<Outcome> {
    let mut others = bounds.iter().filter(|bound| !architectures.contains(bound)).map(|other| outcome(program, *other, None));
    let first = others.next()??;
    others.all(|other| other == Some(first)).then_some(first)
}

fn ranges(program: &[Instruction], bounds: &BTreeSet<u32>, architecture: u32) -> Option<Vec<Range>> {
    let mut ranges: Vec<Range> = Vec::new();
    for first in bounds {
        let outcome = outcome(program, architecture, Some(*first))?;
        if ranges.last().is_none_or(|(_, last)| *last != outcome) {
            ranges.push((*first, outcome));
        }
    }
    Some(ranges)
}

/// Runs a program as far as it looks at nothing but architecture and number. `None`: it needs a number where there is
/// none, or does something else than comparing.
fn outcome(program: &[Instruction], architecture: u32, number: Option<u32>) -> Option<Outcome> {
    let (mut loaded, mut at) = (0, 0);
    loop {
        let instruction = program.get(at)?;
        let holds = match instruction.code {
            JUMP_IF_EQUAL => loaded == instruction.value,
            JUMP_IF_GREATER => loaded > instruction.value,
            JUMP_IF_AT_LEAST => loaded >= instruction.value,
            JUMP => {
                at = at.checked_add(1)?.checked_add(instruction.value as usize)?;
                continue;
            }
            LOAD_WORD => {
                match instruction.value {
                    NUMBER => loaded = number?,
                    ARCHITECTURE => loaded = architecture,
                    _ => return Some(Outcome::Arguments(at)),
                }
                at += 1;
                continue;
            }
            RETURN => return Some(Outcome::Return(instruction.value)),
            _ => return None,
        };
        at += 1 + usize::from(if holds { instruction.jump_true } else { instruction.jump_false });
    }
}

/// Where the instruction at `at` may go next.
fn successors(program: &[Instruction], at: usize) -> Vec<usize> {
    match program.get(at) {
        Some(Instruction { code: RETURN, .. }) | None => Vec::new(),
        Some(Instruction { code: JUMP, value, .. }) => vec![at + 1 + *value as usize],
        Some(instruction) if instruction.branches() => {
            vec![at + 1 + usize::from(instruction.jump_true), at + 1 + usize::from(instruction.jump_false)]
        }
        Some(_) => vec![at + 1],
    }
}

/// A place in a program that is written from its end: the number of instructions after it.
type Place = usize;

/// Writes a program backwards, so that whatever a jump leads to has its place already.
#[derive(Debug, Default)]
struct Writer {
    reversed: Vec<Instruction>,
    returns: BTreeMap<u32, Place>,
    /// The places of the original's instructions, by their indices.
    blocks: BTreeMap<usize, Place>,
}

impl Writer {
    fn push(&mut self, instruction: Instruction) -> Place {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How many instructions the next one has to skip to get to `place`.
    fn distance(&self, place: Place) -> usize {
        self.reversed.len() - 1 - place
    }

    /// Sees to it that what comes next goes on at `place`.
    fn go_to(&mut self, place: Place) -> Place {
        match self.distance(place) {
            0 => place,
            distance => self.push(plain(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))),
        }
    }

    /// A place from which `place` is reached, and that a comparison can reach.
    fn near(&mut self, place: Place) -> Place {
        if self.distance(place) > REACH { self.go_to(place) } else { place }
    }

    fn branch(&mut self, code: u16, value: u32, holds: Place, fails: Place) -> Place {
        let (holds, fails) = (self.near(holds), self.near(fails));
        let jump = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
        let (jump_true, jump_false) = (jump(self.distance(holds)), jump(self.distance(fails)));
        self.push(Instruction { code, jump_true, jump_false, value })
    }

    fn leaf(&mut self, outcome: Outcome) -> Place {
        match outcome {
            Outcome::Arguments(at) => self.blocks.get(&at).copied().unwrap_or_default(),
            Outcome::Return(value) => match self.returns.get(&value) {
                Some(place) if self.distance(*place) < REACH => *place,
                _ => {
                    let place = self.push(plain(RETURN, value));
                    self.returns.insert(value, place);
                    place
                }
            },
        }
    }

    /// A binary search for the range of the number that is loaded.
    fn search(&mut self, ranges: &[Range]) -> Place {
        let (lower, upper) = ranges.split_at(ranges.len() / 2);
        match (lower, upper) {
            ([], [(_, outcome), ..]) => self.leaf(*outcome),
            (_, [(first, _), ..]) => {
                let (upper, lower) = (self.search(upper), self.search(lower));
                self.branch(JUMP_IF_AT_LEAST, *first, upper, lower)
            }
            (_, []) => 0,
        }
    }

    /// Copies all instructions that look at arguments, in their order, which keeps every jump a jump forward, and none
    /// longer than it was.
    fn copy_blocks(&mut self, program: &[Instruction], sections: &[Vec<Range>]) -> Option<()> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<usize> = sections
            .iter()
            .flatten()
            .filter_map(|(_, outcome)| if let Outcome::Arguments(at) = outcome { Some(*at) } else { None })
            .collect();
        while let Some(at) = next.pop() {
            if reached.insert(at) {
                next.extend(successors(program, at));
            }
        }
        for at in reached.into_iter().rev() {
            let mut instruction = *program.get(at)?;
            let distances: Vec<usize> =
                successors(program, at).iter().map(|to| Some(self.distance(*self.blocks.get(to)?))).collect::<Option<_>>()?;
            match distances[..] {
                [distance] if instruction.code == JUMP => instruction.value = u32::try_from(distance).ok()?,
                [holds, fails] => (instruction.jump_true, instruction.jump_false) = (u8::try_from(holds).ok()?, u8::try_from(fails).ok()?),
                _ => {}
            }
            let place = self.push(instruction);
            self.blocks.insert(at, place);
        }
        Some(())
    }
}
