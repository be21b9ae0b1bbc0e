//! Processes that are still there after SIGKILL: which they are and what they do, for the error that tells of them.

use std::fmt::Display;
use std::sync::Arc;

use coracle_domain::{Failure, FailureKind};
use coracle_monitor::client::Monitor;

use crate::deadline::DEATH;
use crate::live::LiveContainer;
use crate::{cgroups, process};

/// How many processes an error names.
const NAMED: usize = 4;

/// What is left of containers, some time after they were killed.
#[derive(Debug)]
pub(crate) struct Undead(Vec<(i32, char)>);

impl Undead {
    /// Looks for processes of these containers that have not ended.
    pub(crate) async fn find(containers: impl IntoIterator<Item = &Arc<LiveContainer>>) -> Self {
        let cgroups: Vec<_> = containers.into_iter().map(|live| Arc::clone(&live.cgroup)).collect();
        let look = move || Ok(cgroups.iter().filter_map(|cgroup| cgroup.processes().ok()).flatten().filter_map(undead).collect());
        Self(cgroups::blocking(look).await.unwrap_or_default())
    }

    /// Whether all processes have ended, whatever their monitor says.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why the subject, a container or a pod with this monitor, did not end in time.
    pub(crate) fn failure(&self, stage: &'static str, subject: impl Display, monitor: Option<&Monitor>) -> Failure {
        let after = format!("{} s after SIGKILL", DEATH.as_secs());
        let (problem, hint) = match (self.is_empty(), monitor.map(|monitor| monitor.pid())) {
            (true, Some(pid)) => {
                let state = process::state(pid).map_or("gone".to_owned(), |state| format!("in state {state}"));
                let problem = format!("no process is left {after}, but the pod's monitor, process {pid} {state}, has not told of the end");
                (problem, "a monitor that stands still is ended with its pod")
            }
            (true, None) => (format!("nobody has told of the end {after}"), "it is ended with its pod"),
            (false, _) => {
                let named: Vec<_> = self.0.iter().take(NAMED).map(|(pid, state)| format!("process {pid} in state {state}")).collect();
                let more = self.0.len().saturating_sub(NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let hint = "a process that survives SIGKILL waits in the kernel, often for a dead disk or file server";
                (format!("still there {after}: {}{more}", named.join(", ")), hint)
            }
        };
        Failure::new(stage, subject, problem).kind(FailureKind::TimedOut).hint(hint)
    }
}

/// The process and its state, if it has not ended.
fn undead(pid: i32) -> Option<(i32, char)> {
    process::state(pid).filter(|state| !matches!(state, 'Z' | 'X')).map(|state| (pid, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_who_is_left_and_in_which_state() {
        let left = Undead((1..=6).map(|pid| (pid, 'D')).collect());
        let error = left.failure("ending container", "c1", None).to_string();
        assert!(error.contains("c1") && error.contains("process 1 in state D") && error.contains("and 2 more"), "{error}");
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(undead(own).is_some_and(|(pid, state)| pid == own && matches!(state, 'R' | 'S' | 'D')));
        assert_eq!(undead(i32::MAX), None);
    }
}
