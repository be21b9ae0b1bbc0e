//! Stop signals between CRI's index and the kernel's numbers.
//!
//! CRI numbers signals alphabetically; the kernel does not (signal(7), the column for x86 and ARM). The
//! real-time range is what libc leaves to programs: 34 to 64.

use crate::StopSignal;

/// The kernel's numbers in CRI's order, which begins with index 1.
#[rustfmt::skip]
const CLASSIC: [i32; 34] = [
    // ABRT ALRM BUS CHLD CLD CONT FPE
    6, 14, 7, 17, 17, 18, 8,
    // HUP ILL INT IO IOT
    1, 4, 2, 29, 6,
    // KILL PIPE POLL PROF PWR QUIT
    9, 13, 29, 27, 30, 3,
    // SEGV STKFLT STOP SYS
    11, 16, 19, 31,
    // TERM TRAP TSTP TTIN TTOU
    15, 5, 20, 21, 22,
    // URG USR1 USR2 VTALRM WINCH XCPU XFSZ
    23, 10, 12, 26, 28, 24, 25,
];

const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
/// SIGRTMIN has index 35 and number 34, and so on upwards.
const REAL_TIME_OFFSET: i32 = 1;

impl StopSignal {
    /// The kernel's number; `None` for an index that CRI does not have.
    pub fn number(self) -> Option<i32> {
        let before = self.0.checked_sub(1)?;
        let classic = usize::try_from(before).ok().and_then(|index| CLASSIC.get(index).copied());
        classic.or_else(|| Some(self.0 - REAL_TIME_OFFSET).filter(|number| REAL_TIME.contains(number)))
    }

    /// The signal with the kernel's `number`; `None` for one that CRI cannot name. Of two names for one
    /// number (ABRT and IOT, CHLD and CLD, IO and POLL) it is the first.
    pub fn from_number(number: i32) -> Option<Self> {
        if REAL_TIME.contains(&number) {
            return Some(Self(number + REAL_TIME_OFFSET));
        }
        let index = CLASSIC.iter().position(|known| *known == number)?;
        i32::try_from(index + 1).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_a_number_and_comes_back_from_it() {
        for index in 1..=65 {
            let number = StopSignal(index).number().unwrap();
            assert_eq!(StopSignal::from_number(number).and_then(StopSignal::number), Some(number), "index {index}");
        }
        for number in (1..=31).chain(34..=64) {
            assert_eq!(StopSignal::from_number(number).and_then(StopSignal::number), Some(number), "signal {number}");
        }
    }

    #[test]
    fn what_is_no_signal_has_no_number() {
        for index in [i32::MIN, -1, 0, 66, i32::MAX] {
            assert_eq!(StopSignal(index).number(), None, "index {index}");
        }
        for number in [i32::MIN, -1, 0, 32, 33, 65, i32::MAX] {
            assert_eq!(StopSignal::from_number(number), None, "signal {number}");
        }
    }
}
