//! Processes that are still there after SIGKILL: which they are and what they do, for the error that tells of them.

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

use coracle_domain::{During, Failure, FailureKind, Result};
use coracle_monitor::client::Monitor;

use crate::deadline::DEATH;
use crate::live::LiveContainer;
use crate::{cgroups, process};

/// How many processes an error names.
const NAMED: usize = 4;
/// Why there are such processes.
pub(crate) const HINT: &str = "a process that survives SIGKILL waits in the kernel, often for a dead disk or file server";

/// What is left of a container or a pod some time after it was killed.
#[derive(Debug)]
pub(crate) struct Undead {
    stage: &'static str,
    subject: String,
    /// Processes and their states.
    left: Vec<(i32, char)>,
}

impl Undead {
    /// Looks for processes of the subject's containers that have not ended.
    ///
    /// # Errors
    /// Whether there are any is not known.
    pub(crate) async fn find(
        stage: &'static str,
        subject: impl Display,
        containers: impl IntoIterator<Item = &Arc<LiveContainer>>,
    ) -> Result<Self> {
        let cgroups: Vec<_> = containers.into_iter().map(|live| Arc::clone(&live.cgroup)).collect();
        let found = cgroups::blocking(move || left_of(cgroups.iter().map(|cgroup| cgroup.processes()))).await;
        Self::of(stage, subject, found)
    }

    fn of(stage: &'static str, subject: impl Display, found: Result<Vec<(i32, char)>>) -> Result<Self> {
        let subject = subject.to_string();
        let unknown = |error| format!("what is left {} s after SIGKILL is not known: {error}", DEATH.as_secs());
        let left = found.map_err(|error| Failure::new(stage, &subject, unknown(error)).kind(FailureKind::TimedOut))?;
        Ok(Self { stage, subject, left })
    }

    /// Whether all processes have ended, whatever their monitor says.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Why the subject, with this monitor, did not end in time.
    pub(crate) fn failure(&self, monitor: Option<&Monitor>) -> Failure {
        let after = format!("{} s after SIGKILL", DEATH.as_secs());
        let (problem, hint) = match (self.is_empty(), monitor.map(|monitor| monitor.pid())) {
            (true, Some(pid)) => {
                let state = match process::state(pid) {
                    Ok(Some(state)) => format!("in state {state}"),
                    Ok(None) => "gone".to_owned(),
                    Err(error) => format!("in a state that is not known ({error})"),
                };
                let problem = format!("no process is left {after}, but the pod's monitor, process {pid} {state}, has not told of the end");
                (problem, "a monitor that stands still is ended with its pod")
            }
            (true, None) => (format!("nobody has told of the end {after}"), "it is ended with its pod"),
            (false, _) => (format!("still there {after}: {}", Named(&self.left)), HINT),
        };
        Failure::new(self.stage, &self.subject, problem).kind(FailureKind::TimedOut).hint(hint)
    }
}

/// Processes and their states, the first few of them by name.
pub(crate) struct Named<'a>(pub(crate) &'a [(i32, char)]);

impl Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (pid, state)) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}process {pid} in state {state}", if n > 0 { ", " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The processes among these that have not ended.
pub(crate) fn left_of(listings: impl IntoIterator<Item = Result<Vec<i32>>>) -> Result<Vec<(i32, char)>> {
    let mut left = Vec::new();
    for listing in listings {
        for pid in listing? {
            left.extend(undead(pid).during("reading the state of process", pid)?);
        }
    }
    Ok(left)
}

/// The process and its state, if it has not ended.
fn undead(pid: i32) -> io::Result<Option<(i32, char)>> {
    Ok(process::state(pid)?.filter(|state| !matches!(state, 'Z' | 'X')).map(|state| (pid, state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_who_is_left_and_in_which_state() {
        let left = Undead { stage: "ending container", subject: "c1".to_owned(), left: (1..=6).map(|pid| (pid, 'D')).collect() };
        let error = left.failure(None).to_string();
        assert!(error.contains("c1") && error.contains("process 1 in state D") && error.contains("and 2 more"), "{error}");
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(undead(own).unwrap().is_some_and(|(pid, state)| pid == own && matches!(state, 'R' | 'S' | 'D')));
        assert_eq!(undead(i32::MAX).unwrap(), None);
    }

    #[test]
    fn a_cgroup_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let unread = || Err(io::Error::from(io::ErrorKind::PermissionDenied)).during("listing the processes of", "/sys/fs/cgroup/c1");
        let error = Undead::of("ending container", "c1", left_of([Ok(Vec::new()), unread()])).unwrap_err().to_string();
        assert!(error.contains("c1") && error.contains("not known") && error.contains("/sys/fs/cgroup/c1"), "{error}");
        assert!(Undead::of("ending container", "c1", left_of([Ok(Vec::new()), Ok(vec![i32::MAX])])).unwrap().is_empty());
    }
}
