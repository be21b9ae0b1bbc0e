//! What is alive of a pod: its monitor's connection and its containers' cgroups.
//!
//! Owners publish it beside the view, so that execs and stats, which change no pod, go past the owner's inbox.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_cgroup::Cgroup;
use coracle_domain::{ContainerId, ContainerPhase, ContainerView, Failure, Refusal, Result};
use coracle_monitor::client::Monitor;
use coracle_plan::Process;
use tokio::sync::watch;

use crate::leaf::IdleLeaves;
use crate::stats::Meter;

/// A pod's live parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    /// `None` once the pod was stopped or its monitor was lost.
    pub(crate) monitor: Option<Monitor>,
    /// Its containers that have not ended.
    pub(crate) containers: HashMap<ContainerId, Arc<LiveContainer>>,
    /// What all its containers use; `None` where their common cgroup may have others in it.
    pub(crate) meter: Option<Arc<Meter>>,
    /// Whether its end has begun.
    pub(crate) ends: Arc<watch::Sender<bool>>,
}

impl Live {
    /// A container's live parts, if it runs.
    pub(crate) fn running(&self, container: &ContainerView) -> Option<&Arc<LiveContainer>> {
        match container.phase {
            ContainerPhase::Running { .. } => self.containers.get(&container.id),
            _ => None,
        }
    }

    /// A running container's live parts, and the monitor that they are reached by.
    ///
    /// # Errors
    /// Refused if it does not run.
    pub(crate) fn reach(&self, container: &ContainerView) -> Result<(&Arc<LiveContainer>, &Monitor)> {
        let reached = self.running(container).zip(self.monitor.as_ref());
        reached.ok_or_else(|| Refusal::wrong_state(format!("container {} is not running", container.id)).into())
    }
}

/// A container that was made and has not ended.
#[derive(Debug)]
pub(crate) struct LiveContainer {
    /// Where it is limited and accounted.
    pub(crate) cgroup: Arc<Cgroup>,
    /// What it runs: the model of its execs. `None` if its Plan was lost.
    process: Option<Process>,
    /// Cgroups for execs in it.
    pub(crate) leaves: IdleLeaves,
    /// Whether it has ended.
    pub(crate) ended: watch::Sender<bool>,
    /// What it uses.
    pub(crate) meter: Meter,
}

impl LiveContainer {
    pub(crate) fn new(cgroup: Arc<Cgroup>, process: Option<Process>) -> Self {
        Self { meter: Meter::new(Arc::clone(&cgroup)), cgroup, process, leaves: IdleLeaves::default(), ended: watch::Sender::new(false) }
    }

    /// What it runs: the model of its execs.
    ///
    /// # Errors
    /// Its Plan was damaged when this daemon took it over.
    pub(crate) fn process(&self) -> Result<&Process> {
        self.process.as_ref().ok_or_else(|| {
            let failure = Failure::new("reading the plan of the container in", self.cgroup.location(), "it was damaged and put aside");
            failure.hint("the container runs on and can be stopped, but takes no execs").into()
        })
    }
}
