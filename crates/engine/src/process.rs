//! Processes that are not our children: told apart by number and start time, ended through a pidfd.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_domain::{During, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroups;
use crate::deadline::DEATH;
use crate::record::MonitorIdentity;

/// Longer than /proc/PID/stat gets: 52 numbers and a name of at most 64 bytes.
const LONGEST_STAT: usize = 2048;

/// When a process started: field 22 of /proc/PID/stat (proc(5)), in clock ticks after boot.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    let started = start_time_in(&read_stat(pid)?);
    started.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
}

/// The same in the file's content.
pub(crate) fn start_time_in(stat: &[u8]) -> Option<u64> {
    after_name(stat)?.split_whitespace().nth(19)?.parse().ok()
}

/// What a process does, by the letter of field 3 of /proc/PID/stat; `None`: there is no such process.
pub(crate) fn state(pid: i32) -> io::Result<Option<char>> {
    match read_stat(pid) {
        Ok(stat) => state_in(&stat).map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no state in /proc/PID/stat")),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a look at /proc/PID/stat says that there is no such process.
fn is_gone(error: &io::Error) -> bool {
    // Which of the two depends on when it went.
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// Whether a process has not ended. What cannot be read is not known to.
pub(crate) fn is_there(identity: &MonitorIdentity) -> bool {
    let stat = read_stat(identity.pid).unwrap_or_default();
    start_time_in(&stat) == Some(identity.started) && lives(&stat)
}

/// Whether a process lives and is a child of another one. What cannot be read is not known to.
pub(crate) fn is_living_child(pid: i32, parent: i32) -> bool {
    let stat = read_stat(pid).unwrap_or_default();
    is_living_child_in(&stat, parent)
}

fn is_living_child_in(stat: &[u8], parent: i32) -> bool {
    let its_parent = after_name(stat).and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
    lives(stat) && its_parent == Some(parent)
}

/// Field 3.
fn state_in(stat: &[u8]) -> Option<char> {
    after_name(stat)?.trim_start().chars().next()
}

/// Whether it is neither dead nor to be reaped.
fn lives(stat: &[u8]) -> bool {
    state_in(stat).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// What is in /proc/PID/stat, by one read: at its start a daemon looks at each pod's.
fn read_stat(pid: i32) -> io::Result<Vec<u8>> {
    let mut stat = vec![0; LONGEST_STAT];
    let length = File::open(format!("/proc/{pid}/stat"))?.read(&mut stat)?;
    stat.truncate(length);
    Ok(stat)
}

/// The file's content from field 3 on. The second field is the name in parentheses, which may hold any bytes: spaces and
/// parentheses too.
fn after_name(stat: &[u8]) -> Option<&str> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    str::from_utf8(stat.get(name_end + 1..)?).ok()
}

/// The processes whose standard error is the file `path`, told by names, since who asks a dead disk for more waits for it.
pub(crate) fn complaining_into(path: &Path) -> io::Result<Vec<MonitorIdentity>> {
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        path => path?,
    };
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found = Vec::new();
    for pid in pids {
        // In this order: who gets the number of one that ends meanwhile started later.
        let started = match start_time(pid) {
            Err(error) if is_gone(&error) => continue,
            started => started?,
        };
        if fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|file| file == path) {
            found.push(MonitorIdentity { pid, started });
        }
    }
    Ok(found)
}

/// Kills a process and waits until it is gone. Nothing happens to another one that has got its number since.
pub(crate) async fn end(identity: &MonitorIdentity) -> Result<()> {
    let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(()) };
    let subject = identity.pid;
    let process = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(io::Error::from(error)).during("opening process", subject),
    };
    match start_time(identity.pid) {
        Ok(started) if started == identity.started => {}
        Ok(_) => return Ok(()),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error).during("looking at process", subject),
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(io::Error::from(error)).during("killing process", subject),
    }
    cgroups::blocking(move || wait(&process).during("waiting for the death of process", subject)).await
}

/// Waits until a process is gone. Blocks.
fn wait(process: &OwnedFd) -> io::Result<()> {
    let limit = Timespec { tv_sec: DEATH.as_secs().cast_signed(), tv_nsec: 0 };
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_be_anything() {
        let stat = b"7 (\xff) 1 2) S 1 7 7 0 -1 4194560 3 0 0 0 0 0 0 0 20 0 1 0 98765 2301952 0\n";
        assert_eq!(start_time_in(stat), Some(98765));
        assert_eq!(start_time_in(b"7 (x) S 1 7"), None);
        assert_eq!(start_time_in(b"7 (x) S \xff"), None);
    }

    #[test]
    fn who_has_ended_or_has_another_parent_is_no_living_child() {
        let stat = |state: &str, parent: i32| format!("7 (a b) Z) {state} {parent} 7 7 0 -1").into_bytes();
        assert!(is_living_child_in(&stat("S", 3), 3) && is_living_child_in(&stat("T", 3), 3));
        assert!(!is_living_child_in(&stat("S", 4), 3) && !is_living_child_in(&stat("Z", 3), 3) && !is_living_child_in(b"", 3));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (pid, ours) = (i32::try_from(child.id()).unwrap(), i32::try_from(std::process::id()).unwrap());
        rustix::process::waitid(
            rustix::process::WaitId::Pid(Pid::from_raw(pid).unwrap()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert!(!is_living_child(pid, ours), "nobody has reaped it");
        child.wait().unwrap();
        assert!(!is_living_child(pid, ours));
    }

    #[test]
    fn who_complains_into_a_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut child = std::process::Command::new("sleep").arg("1000").stderr(File::create(&log).unwrap()).spawn().unwrap();
        let _elsewhere = File::open(&log).unwrap();
        let found = complaining_into(&log).unwrap().into_iter().map(|identity| identity.pid).collect::<Vec<_>>();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [i32::try_from(child.id()).unwrap()]);
        assert_eq!(complaining_into(&log).unwrap().len(), 0);
        assert_eq!(complaining_into(&directory.path().join("absent")).unwrap().len(), 0);
    }

    #[test]
    fn who_cannot_be_looked_at_for_want_of_descriptors_is_not_taken_for_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = MonitorIdentity { pid, started: start_time(pid).unwrap() };
        let ended = coracle_sys::process::without_descriptors(|| {
            let mut files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            files.pop();
            // One is left, for the process itself.
            std::pin::pin!(end(&identity)).poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let std::task::Poll::Ready(Err(error)) = ended.unwrap() else { panic!("it is not known whether it is the one that was meant") };
        assert!(error.to_string().contains("looking at process"), "{error}");
    }

    #[tokio::test]
    async fn only_the_process_that_was_meant_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        end(&MonitorIdentity { pid, started: started + 1 }).await.unwrap();
        assert!(child.try_wait().unwrap().is_none());
        end(&MonitorIdentity { pid, started }).await.unwrap();
        assert!(child.wait().unwrap().code().is_none());
        end(&MonitorIdentity { pid, started }).await.unwrap();
    }
}
