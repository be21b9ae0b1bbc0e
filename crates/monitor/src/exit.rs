//! How a process ended: its code, whether memory was the cause, and the record of it.

use std::path::Path;

use coracle_failpoint::{Point, reach};
use rustix::fs::{Mode, OFlags, open, rename};
use rustix::io::write;
use rustix::process::WaitStatus;

use crate::fault::{OrFault, Result};
use crate::protocol::{ExitRecord, OomSource};

/// The exit status, or 128 and the number of the signal that killed the process.
pub(crate) fn code(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or_default()
}

/// Whether the kernel counts an OOM kill there. What cannot be read was not seen.
pub(crate) fn oom_killed(source: &OomSource) -> bool {
    let counters = std::fs::read_to_string(&source.path).unwrap_or_default();
    counters.lines().any(|line| line.split_once(' ').is_some_and(|(key, count)| key == source.key && count.trim() != "0"))
}

/// Puts a record in its place, whole or not at all.
pub(crate) fn record(path: &Path, record: &ExitRecord) -> Result<()> {
    let stage = "recording the exit in";
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let content = serde_json::to_vec(record).map_err(std::io::Error::from).or_fault(stage, path.display())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = open(&temporary, flags, Mode::from_raw_mode(0o600)).or_fault(stage, path.display())?;
    let written = write(&file, &content).or_fault(stage, path.display())?;
    if written != content.len() {
        return Err(rustix::io::Errno::NOSPC).or_fault(stage, path.display());
    }
    reach(Point::ExitDraft);
    rename(&temporary, path).or_fault(stage, path.display())?;
    reach(Point::ExitRename);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_above_zero_is_a_kill() {
        let directory = tempfile::tempdir().unwrap();
        let source = OomSource { path: directory.path().join("memory.events"), key: "oom_kill".to_owned() };
        assert!(!oom_killed(&source));
        for (content, killed) in [
            ("oom 3\noom_kill 0\n", false),
            ("oom_kill 2\noom_group_kill 0\n", true),
            ("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n", false),
        ] {
            std::fs::write(&source.path, content).unwrap();
            assert_eq!(oom_killed(&source), killed, "{content}");
        }
    }

    #[test]
    fn a_record_replaces_the_file_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        let exit = ExitRecord { code: 137, at: 2, oom_killed: true, started_at: 1 };
        record(&path, &exit).unwrap();
        assert_eq!(serde_json::from_slice::<ExitRecord>(&std::fs::read(&path).unwrap()).unwrap(), exit);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
