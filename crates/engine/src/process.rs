//! Processes that are not our children: told apart by number and start time, ended through a pidfd.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use coracle_domain::{During, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroups;
use crate::deadline::DEATH;
use crate::record::MonitorIdentity;

/// When a process started: field 22 of /proc/PID/stat (proc(5)), in clock ticks after boot.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything, spaces and parentheses too.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
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
    if start_time(identity.pid).ok() != Some(identity.started) {
        return Ok(());
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
