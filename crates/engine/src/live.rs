//! What is alive of a pod: its monitor's connection and its containers' cgroups.
//!
//! Owners publish it beside the view, so that execs and stats, which change no pod, go past the owner's inbox.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use coracle_cgroup::Cgroup;
use coracle_domain::{ContainerId, ContainerPhase, ContainerView, Failure, FailureKind, Refusal, Result};
use coracle_monitor::client::Monitor;
use coracle_plan::{Namespaces, PidNamespace, Process};
use rustix::thread::CapabilitySet;
use serde::Deserialize;
use tokio::sync::watch;

use crate::leaf::{self, Leaves};
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

    /// Whether processes of ours may wait in its containers ([`coracle_monitor::berth`]): nobody there can look into one, or
    /// put others into its cgroup. A container that is to look into another one may come at any time.
    pub(crate) fn is_fit_for_berths(&self) -> bool {
        self.containers.values().all(|container| container.model().is_some_and(Model::keeps_to_itself))
    }
}

/// What a container runs, as far as its execs need to know: of its [`coracle_plan::Plan`].
#[derive(Debug, Deserialize)]
pub(crate) struct Model {
    process: Process,
    namespaces: Namespaces,
}

impl Model {
    /// Of a container with such a Plan.
    pub(crate) fn new(process: Process, namespaces: Namespaces) -> Self {
        Self { process, namespaces }
    }

    fn keeps_to_itself(&self) -> bool {
        let capabilities = self.process.capabilities;
        let powers = CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_ADMIN;
        (capabilities.bounding | capabilities.permitted | capabilities.effective) & powers.bits() == 0
            && self.namespaces.pid == PidNamespace::New
            && self.namespaces.user.is_none()
    }
}

/// A container that was made and has not ended.
#[derive(Debug)]
pub(crate) struct LiveContainer {
    /// Where it is limited and accounted.
    pub(crate) cgroup: Arc<Cgroup>,
    /// Not set until this daemon has taken it up; `None` if its Plan was lost.
    model: OnceLock<Option<Model>>,
    /// Cgroups for execs in it.
    pub(crate) leaves: Leaves,
    /// Whether it has ended.
    pub(crate) ended: watch::Sender<bool>,
    /// What it uses.
    pub(crate) meter: Meter,
}

impl LiveContainer {
    /// One that this daemon makes.
    pub(crate) fn made(cgroup: Arc<Cgroup>, model: Model) -> Self {
        Self { model: OnceLock::from(Some(model)), ..Self::found(cgroup) }
    }

    /// One that is on record. Where it is accounted is known; its execs and its Plan are for [`Self::take_up`].
    pub(crate) fn found(cgroup: Arc<Cgroup>) -> Self {
        let (meter, ended) = (Meter::new(Arc::clone(&cgroup)), watch::Sender::new(false));
        Self { meter, cgroup, model: OnceLock::new(), leaves: Leaves::default(), ended }
    }

    /// Ends the execs of a former daemon, since whoever talked to them is gone, and learns what the container runs: once.
    ///
    /// # Errors
    /// Those of `model`; then it is to be called again.
    pub(crate) fn take_up(&self, model: impl FnOnce() -> Result<Option<Model>>) -> Result<()> {
        if self.model.get().is_none() {
            // One that cannot be killed delays nobody.
            drop(leaf::end_all(&self.cgroup));
            let _ = self.model.set(model()?);
        }
        Ok(())
    }

    fn model(&self) -> Option<&Model> {
        self.model.get()?.as_ref()
    }

    /// What it runs: the model of its execs.
    ///
    /// # Errors
    /// This daemon has not taken it up yet, or its Plan was damaged then.
    pub(crate) fn process(&self) -> Result<&Process> {
        let failure = |problem| Failure::new("reading the plan of the container in", self.cgroup.location(), problem);
        match self.model.get() {
            Some(Some(model)) => Ok(&model.process),
            Some(None) => {
                let failure = failure("it was damaged and put aside");
                Err(failure.hint("the container runs on and can be stopped, but takes no execs").into())
            }
            None => Err(failure("there is no connection to the pod's monitor yet").kind(FailureKind::Unavailable).into()),
        }
    }
}
