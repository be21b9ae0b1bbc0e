//! Killing, listing and removing: a cgroup with everything below it, in every hierarchy at once.
//!
//! All of it is idempotent, and a cgroup that is not there is an empty one.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_domain::{During, Failure, FailureKind, Result};
use coracle_failpoint::{Point, reach};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::file;

/// How long a killed process may take to leave its cgroup. It takes milliseconds unless it hangs in the kernel.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// The directories of one cgroup; not all of them need exist.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) unified: Option<PathBuf>,
    /// The one in v1's freezer hierarchy, which is also among `legacy`.
    pub(crate) freezer: Option<PathBuf>,
    pub(crate) legacy: Vec<PathBuf>,
}

impl Tree {
    /// The processes in it and below, from the hierarchy that groups them: the unified one, else the freezer,
    /// else any other that has the cgroup.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        let grouping = self.unified.iter().chain(&self.freezer).chain(&self.legacy).find(|directory| directory.exists());
        match grouping {
            Some(directory) => listed(directory).during("listing the processes of", directory.display()),
            None => Ok(Vec::new()),
        }
    }

    /// Whether a process lives in it or below.
    pub(crate) fn populated(&self) -> Result<bool> {
        let Some(directory) = &self.unified else {
            return Ok(!self.processes()?.is_empty());
        };
        match file::read(directory, "cgroup.events") {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(error) if file::is_gone(&error) => Ok(false),
            Err(error) => Err(error).during("reading the events of", directory.display()),
        }
    }

    /// Sends SIGKILL to every process in it and below; does not wait for them to die.
    pub(crate) fn kill(&self) -> Result<()> {
        if let Some(directory) = self.unified.as_deref().filter(|directory| directory.exists()) {
            match file::write(directory, "cgroup.kill", "1") {
                // Kernels before 5.14 have no cgroup.kill.
                Err(error) if file::is_gone(&error) => {}
                outcome => {
                    outcome.during("killing the processes of", directory.display())?;
                    reach(Point::CgroupKill);
                    return Ok(());
                }
            }
        }
        self.kill_one_by_one().during("killing the processes of", self.first().display())?;
        reach(Point::CgroupKill);
        Ok(())
    }

    /// Signals process by process until a look finds none that was not signalled. While the freezer holds
    /// them still none can fork away from under it; without one the rounds catch up with what forks.
    fn kill_one_by_one(&self) -> io::Result<()> {
        let freezer = self.freezer.as_deref().filter(|freezer| freezer.exists());
        let mut candidates = freezer.into_iter().chain(self.unified.as_deref()).chain(self.legacy.iter().map(PathBuf::as_path));
        let Some(listing) = candidates.find(|directory| directory.exists()) else {
            return Ok(());
        };
        let mut signalled = HashSet::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(freezer) = freezer {
                ignore_gone(freeze(freezer))?;
            }
            let outcome = signal_all(listing);
            if let Some(freezer) = freezer {
                thaw(freezer)?;
            }
            let known = signalled.len();
            signalled.extend(outcome?);
            if signalled.len() == known || Instant::now() > deadline {
                return Ok(());
            }
        }
    }

    /// Makes sure that it is gone: kills what lives in it, removes what is below, then itself.
    ///
    /// Blocks for as long as the processes take to die, at most [`PATIENCE`].
    pub(crate) fn remove(&self) -> Result<()> {
        let mut left: Vec<&Path> = self.unified.iter().chain(&self.legacy).map(PathBuf::as_path).collect();
        if remove_each(&mut left, remove_one)? {
            return Ok(());
        }
        self.kill()?;
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(100);
        while !remove_each(&mut left, remove_deep)? {
            let late = Instant::now() > deadline;
            for directory in &left {
                // A process may have left the unified cgroup and still be in one of v1.
                let processes = signal_all(directory).during("killing the processes of", directory.display())?;
                if late {
                    return Err(still_busy(directory, &processes));
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    fn first(&self) -> &Path {
        self.unified.iter().chain(&self.legacy).next().map_or(Path::new("/"), PathBuf::as_path)
    }
}

/// Whether a removal succeeded.
#[derive(PartialEq, Eq)]
enum Removal {
    Gone,
    Busy,
}

/// Applies `remove` to each directory and keeps those that are busy; `true`: none is left.
fn remove_each(left: &mut Vec<&Path>, remove: fn(&Path) -> io::Result<Removal>) -> Result<bool> {
    let mut busy = Vec::new();
    for directory in left.drain(..) {
        if remove(directory).during("removing the cgroup", directory.display())? == Removal::Busy {
            busy.push(directory);
        }
    }
    *left = busy;
    Ok(left.is_empty())
}

fn remove_one(directory: &Path) -> io::Result<Removal> {
    match rustix::io::retry_on_intr(|| rustix::fs::rmdir(directory)) {
        Ok(()) => {
            reach(Point::CgroupRemove);
            Ok(Removal::Gone)
        }
        Err(Errno::NOENT) => Ok(Removal::Gone),
        Err(Errno::BUSY | Errno::NOTEMPTY | Errno::AGAIN) => Ok(Removal::Busy),
        Err(error) => Err(error.into()),
    }
}

/// Removes what is below first.
fn remove_deep(directory: &Path) -> io::Result<Removal> {
    let mut outcome = Removal::Gone;
    for each in subtree(directory)?.iter().rev() {
        outcome = remove_one(each)?;
    }
    Ok(outcome)
}

/// The directory and all below it, parents before their children.
pub(crate) fn subtree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![directory.to_path_buf()];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let children = file::children(parent)?;
        all.extend(children);
        next += 1;
    }
    Ok(all)
}

/// The processes that `cgroup.procs` lists in the directory and below.
fn listed(directory: &Path) -> io::Result<Vec<i32>> {
    let mut processes = Vec::new();
    for each in subtree(directory)? {
        match file::read(&each, "cgroup.procs") {
            Ok(text) => processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // A threaded cgroup's processes are listed at the root of its domain.
            Err(error) if file::is_gone(&error) || error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    Ok(processes)
}

/// Sends SIGKILL to the processes listed in the directory and below, and returns them.
///
/// A process is pinned before a second look at the list: if its number was given to a stranger meanwhile,
/// either the stranger is not listed or the signal goes to the pinned one, which is dead.
///
/// Where descriptors do not suffice for all it fails after it has signalled some, so that a later call needs fewer.
fn signal_all(directory: &Path) -> io::Result<Vec<i32>> {
    let (pinned, outcome) = pin(listed(directory)?);
    if pinned.is_empty() {
        return outcome.map(|()| Vec::new());
    }
    let listed: HashSet<i32> = listed(directory)?.into_iter().collect();
    let mut signalled = Vec::new();
    for (process, pidfd) in pinned.into_iter().filter(|(process, _)| listed.contains(process)) {
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => signalled.push(process),
            Err(error) => return Err(error.into()),
        }
    }
    outcome.map(|()| signalled)
}

/// Opens those processes that are there. When one cannot be opened, the rest are not tried, and the last one opened makes
/// room for the next look at the list.
fn pin(processes: Vec<i32>) -> (Vec<(i32, OwnedFd)>, io::Result<()>) {
    let mut pinned = Vec::new();
    for (process, pid) in processes.into_iter().filter_map(|process| Some((process, Pid::from_raw(process)?))) {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pinned.push((process, pidfd)),
            Err(Errno::SRCH) => {}
            Err(error) => {
                pinned.pop();
                return (pinned, Err(error.into()));
            }
        }
    }
    (pinned, Ok(()))
}

/// Waits a little for all tasks to stand still; a straggler is caught by the next round.
fn freeze(freezer: &Path) -> io::Result<()> {
    for _ in 0..10 {
        file::write(freezer, "freezer.state", "FROZEN")?;
        if file::read(freezer, "freezer.state")? == "FROZEN" {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Thaws a cgroup and those below: the container may have frozen some of them itself.
fn thaw(freezer: &Path) -> io::Result<()> {
    let thaw = |each: &PathBuf| ignore_gone(file::write(each, "freezer.state", "THAWED"));
    subtree(freezer)?.iter().try_for_each(thaw)
}

fn ignore_gone(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if file::is_gone(&error) { Ok(()) } else { Err(error) })
}

fn still_busy(directory: &Path, processes: &[i32]) -> coracle_domain::Error {
    let source = match processes {
        [] => "it is busy, though no process is listed in it".to_owned(),
        some => format!("processes {some:?} were killed and are still in it"),
    };
    Failure::new("removing the cgroup", directory.display(), source)
        .kind(FailureKind::TimedOut)
        .hint("a process in uninterruptible sleep cannot die: see /proc/<pid>/stack for what it waits for")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_empty_killed_and_removed() {
        let nowhere = Path::new("/nonexistent/cgroup");
        let tree = Tree { unified: Some(nowhere.into()), freezer: Some(nowhere.into()), legacy: vec![nowhere.into()] };
        assert_eq!((tree.processes().unwrap(), tree.populated().unwrap()), (Vec::new(), false));
        tree.kill().unwrap();
        tree.remove().unwrap();
    }

    #[test]
    fn for_want_of_descriptors_some_are_killed_and_the_rest_is_told() {
        let mut children = [(); 3].map(|()| std::process::Command::new("sleep").arg("100").spawn().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let processes: String = children.iter().map(|child| format!("{}\n", child.id())).collect();
        std::fs::write(directory.path().join("cgroup.procs"), processes).unwrap();
        let tree = Tree { unified: None, freezer: None, legacy: vec![directory.path().to_path_buf()] };
        let killed = coracle_sys::process::without_descriptors(|| {
            let mut files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
            files.truncate(files.len() - 2);
            tree.kill()
        });
        let is_dead = |child: &mut std::process::Child| child.wait().unwrap();
        killed.unwrap().unwrap_err();
        assert!(!is_dead(&mut children[0]).success());
        assert!(children[1..].iter_mut().all(|child| child.try_wait().unwrap().is_none()));
        tree.kill().unwrap();
        children.iter_mut().for_each(|child| assert!(!is_dead(child).success()));
    }

    #[test]
    fn a_subtree_is_removed_from_the_leaves_up() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("a");
        std::fs::create_dir_all(directory.join("b/c")).unwrap();
        std::fs::create_dir_all(directory.join("d")).unwrap();
        let tree = Tree { unified: None, freezer: None, legacy: vec![directory.clone()] };
        tree.remove().unwrap();
        assert!(!directory.exists());
    }
}
