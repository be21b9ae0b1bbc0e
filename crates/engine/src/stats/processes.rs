//! What the processes of a container have open.
//!
//! Format: `/proc/PID/fd` and `/proc/PID/limits` (proc(5)).

use std::fs;
use std::io::{self, ErrorKind};

use coracle_domain::ProcessCounts;

/// Counts what `processes` have open; what ends meanwhile does not count. `None` if one may not be looked at.
pub(super) fn count(processes: &[i32]) -> Option<ProcessCounts> {
    let mut counts = ProcessCounts::default();
    for process in processes {
        match add(&mut counts, *process) {
            Ok(()) => counts.processes += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    Some(counts)
}

fn add(counts: &mut ProcessCounts, process: i32) -> io::Result<()> {
    for descriptor in fs::read_dir(format!("/proc/{process}/fd"))? {
        // One that is closed between the two looks was open at the first.
        let target = fs::read_link(descriptor?.path()).unwrap_or_default();
        counts.descriptors += 1;
        counts.sockets += u64::from(target.to_string_lossy().starts_with("socket:["));
    }
    Ok(())
}

/// The soft limit on open files of a process; `None` if it has ended or has none.
pub(super) fn open_files_limit(process: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_sockets_are_counted_and_the_dead_are_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = count(&[own]).unwrap();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        // Other tests of this process open and close files meanwhile.
        assert!(before.processes == 1 && before.descriptors >= 3, "{before:?}");
        assert!(count(&[own]).unwrap().sockets >= 2);
        assert_eq!(count(&[i32::MAX]), Some(ProcessCounts::default()));
        assert!(open_files_limit(own).is_some_and(|limit| limit >= 64));
        assert_eq!(open_files_limit(i32::MAX), None);
    }
}
