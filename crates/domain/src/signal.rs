//! Signals by CRI's index, by the kernel's number and by name.
//!
//! CRI numbers signals alphabetically; the kernel does not (signal(7), the column for x86 and ARM). The
//! real-time range is what libc leaves to programs: 34 to 64.

use crate::StopSignal;

/// Index 1 onwards: the name without `SIG`, and the kernel's number.
const CLASSIC: [(&str, i32); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// CRI's index of SIGRTMIN, and what turns an index of that range into a number.
const FIRST_REAL_TIME_INDEX: i32 = 35;
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
const REAL_TIME_OFFSET: i32 = FIRST_REAL_TIME_INDEX - 34;

impl StopSignal {
    /// The kernel's number; `None` for an index that CRI does not have.
    pub fn number(self) -> Option<i32> {
        let real_time = self.0.checked_sub(REAL_TIME_OFFSET)?;
        if REAL_TIME.contains(&real_time) {
            return Some(real_time);
        }
        let index = usize::try_from(self.0.checked_sub(1)?).ok()?;
        CLASSIC.get(index).map(|(_, number)| *number)
    }

    /// The signal with the kernel's `number`; `None` for one that CRI cannot name. Of two names for one
    /// number (ABRT and IOT, CHLD and CLD, IO and POLL) it is the first.
    pub fn from_number(number: i32) -> Option<Self> {
        if REAL_TIME.contains(&number) {
            return Some(Self(number + REAL_TIME_OFFSET));
        }
        let index = CLASSIC.iter().position(|(_, known)| *known == number)?;
        i32::try_from(index + 1).ok().map(Self)
    }

    /// The signal as an image names it (OCI image-spec, `StopSignal`): `SIGTERM`, `TERM`, `15`,
    /// `SIGRTMIN+3`, `SIGRTMAX-2`.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Ok(number) = name.parse() {
            return Self::from_number(number);
        }
        let upper = name.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(offset) = name.strip_prefix("RTMIN") {
            return real_time(*REAL_TIME.start(), offset, '+');
        }
        if let Some(offset) = name.strip_prefix("RTMAX") {
            return real_time(*REAL_TIME.end(), offset, '-');
        }
        let (_, number) = CLASSIC.iter().find(|(known, _)| *known == name)?;
        Self::from_number(*number)
    }
}

fn real_time(base: i32, offset: &str, sign: char) -> Option<StopSignal> {
    if offset.is_empty() {
        return StopSignal::from_number(base);
    }
    let digits = offset.strip_prefix(sign).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let distance: i32 = digits.parse().ok()?;
    let number = if sign == '+' { base.checked_add(distance)? } else { base.checked_sub(distance)? };
    REAL_TIME.contains(&number).then(|| StopSignal::from_number(number)).flatten()
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

    #[test]
    fn names_are_those_of_images() {
        let number = |name| StopSignal::from_name(name).and_then(StopSignal::number);
        for (name, expected) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("SIGRTMAX", 64), ("SIGCLD", 17)]
        {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        for name in ["", "SIG", "SIGFOO", "0", "-1", "99", "SIGRTMIN+31", "SIGRTMIN+-3", "SIGRTMAX+1"] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
