//! Signals by name, as images write them (`StopSignal`): the kernel's numbers (signal(7)) on the architectures we
//! run on, x86-64 and arm64, where they agree.

/// What asks a process to end unless somebody said otherwise.
pub const SIGTERM: i32 = 15;

/// The first real-time signal free for use: glibc keeps 32 and 33 to itself.
const FIRST_REAL_TIME: i32 = 34;
const LAST_REAL_TIME: i32 = 64;

/// Names without `SIG`; the place is the number less one.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD",
    "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The kernel's number of a signal written as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `RTMAX-1`, in any case.
pub fn signal_number(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse() {
        return (1..=LAST_REAL_TIME).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let synonym = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    let index = NAMES.iter().position(|known| *known == synonym).and_then(|index| i32::try_from(index).ok());
    index.map(|index| index + 1).or_else(|| real_time(name))
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
fn real_time(name: &str) -> Option<i32> {
    let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => (FIRST_REAL_TIME, offset),
        (_, Some(offset)) => (LAST_REAL_TIME, offset),
        _ => return None,
    };
    let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
    let number = base.checked_add(offset)?;
    (FIRST_REAL_TIME..=LAST_REAL_TIME).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_become_the_kernels_numbers() {
        let known = [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGKILL", 9),
            ("USR1", 10),
            ("SIGSYS", 31),
            ("SIGWINCH", 28),
            ("IOT", 6),
            ("SIGPOLL", 29),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("RTMAX", 64),
            ("64", 64),
        ];
        for (text, number) in known {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_signal() {
        for text in ["", "SIG", "0", "65", "-1", "SIGNOPE", "RTMIN-1", "RTMAX+1", "RTMIN+99999999999", "RTMIN+x"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
