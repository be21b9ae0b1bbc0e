//! What a daemon does with the pods it finds at its start.
//!
//! A pod's monitor went on reaping and writing logs while no daemon was there. So a pod that was ready is ready
//! again as soon as its monitor has told what happened; a pod that was being made, or being torn down, is torn
//! down; a pod whose monitor is gone has ended. What cannot be read costs only its own pod.

use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Cgroup;
use coracle_domain::{ContainerId, ContainerPhase, PodId, PodPhase, Result};
use coracle_monitor::client::Monitor;
use coracle_monitor::protocol::ContainerState;
use coracle_plan::{Plan, Process};
use tracing::{info, warn};

use super::Owner;
use super::events::lost_output;
use super::teardown::{Subject, Teardown, containers_in};
use crate::Shared;
use crate::deadline::{ANSWER, within};
use crate::leaf;
use crate::live::LiveContainer;
use crate::record::{self, PodRecord};

/// Takes over one pod, or finishes its end.
pub(crate) async fn recover(shared: Arc<Shared>, id: PodId) {
    let directory = shared.layout.pod(&id);
    match PodRecord::load(&directory.record()) {
        Ok(record) if record.id == id => take_over(shared, record).await,
        Ok(_) => discard(&shared, id, "its record names another pod").await,
        Err(error) => discard(&shared, id, &error.to_string()).await,
    }
}

/// Tears down a pod of which nothing reliable is known; its record is kept aside for whoever wants to know.
async fn discard(shared: &Arc<Shared>, id: PodId, reason: &str) {
    warn!(pod = id.short(), reason, "a pod without a readable record is torn down");
    let directory = shared.layout.pod(&id);
    for path in [directory.record(), directory.path().to_owned()] {
        let in_the_way = path.symlink_metadata().is_ok_and(|found| path != directory.path() || !found.is_dir());
        if in_the_way {
            shared.layout.quarantine().take(&path, reason);
        }
    }
    Teardown::new(shared, Subject::found(id)).to_the_end(shared).await;
}

async fn take_over(shared: Arc<Shared>, record: PodRecord) {
    let mut owner = Owner::new(shared, record);
    match owner.record.phase {
        PodPhase::Creating => {
            info!(pod = owner.id().short(), "a pod that was being made is torn down");
            return Teardown::new(&owner.shared, Subject::of(&owner.record)).to_the_end(&owner.shared).await;
        }
        PodPhase::Ready => {
            if let Err(error) = owner.reconnect().await {
                warn!(pod = owner.id().short(), %error, "the pod's monitor is gone; ending the pod");
                owner.finish_stop().await;
            }
        }
        PodPhase::Stopped => {
            if owner.record.lease.is_some() || owner.record.monitor.is_some() {
                owner.finish_stop().await;
            }
        }
    }
    owner.serve();
}

/// What a monitor knows once no start is under way: how one ends for which the former daemon asked is known soon.
async fn settled_state(monitor: &Monitor) -> Result<Vec<ContainerState>> {
    loop {
        let containers = monitor.state().await?;
        if containers.iter().all(|container| container.started_at != 0 || container.exit.is_some()) {
            return Ok(containers);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Owner {
    /// Ends the pod, or goes on where a former daemon was: how the containers end, the monitor sees that did not end yet.
    async fn finish_stop(&mut self) {
        if self.record.phase == PodPhase::Stopped
            && let Err(error) = self.reconnect().await
        {
            info!(pod = self.id().short(), %error, "the pod's end goes on without its monitor");
        }
        if let Err(error) = self.stop().await {
            warn!(pod = self.id().short(), %error, "the pod was not ended cleanly");
        }
    }

    async fn reconnect(&mut self) -> Result<()> {
        if let Some(lease) = &self.record.lease {
            self.shared.network.adopt(lease);
            if let Err(error) = self.shared.network.adopt_ports(&self.record.port_request(lease)) {
                warn!(pod = self.id().short(), %error, "the pod's host ports are closed");
            }
        }
        let subject = self.record.id.to_string();
        let work = Monitor::connect(self.directory.path());
        let (monitor, events) = within(ANSWER, "greeting the monitor of pod", &subject, work).await?;
        let containers = within(ANSWER, "asking the monitor of pod", &subject, settled_state(&monitor)).await?;
        (self.monitor, self.events) = (Some(monitor), Some(events));
        self.discard_half_made().await;
        for id in self.record.containers.iter().map(|container| container.id.clone()).collect::<Vec<_>>() {
            let state = containers.iter().find(|state| state.container == id.as_str());
            self.take_over_container(&id, state).await;
        }
        self.note();
        Ok(())
    }

    /// Containers that were being made when the daemon ended are not on record.
    async fn discard_half_made(&mut self) {
        for id in containers_in(&self.directory) {
            if self.record.container(&id).is_none()
                && let Err(error) = self.discard_container(&id).await
            {
                warn!(container = id.short(), %error, "a container that was being made could not be removed");
            }
        }
    }

    async fn take_over_container(&mut self, id: &ContainerId, state: Option<&ContainerState>) {
        let Some(container) = self.record.container_mut(id) else { return };
        if let Some(state) = state {
            container.lost_output = lost_output(state.lost);
        }
        match (&container.phase, state) {
            (ContainerPhase::Exited { .. }, _) => return,
            (ContainerPhase::Created | ContainerPhase::Running { .. }, Some(state)) => {
                container.phase = ContainerPhase::Running { pid: state.pid, started_at: state.started_at };
            }
            (ContainerPhase::Running { .. }, None) => return self.note_unseen_end(id).await,
            (ContainerPhase::Created, None) => {}
        }
        match Subject::of(&self.record).location(&self.shared.hierarchy, id) {
            Ok(location) => {
                let cgroup = Arc::new(Cgroup::open(&self.shared.hierarchy, location));
                // Whoever talked to its execs is gone. One that cannot be killed delays nobody.
                drop(leaf::end_all(&cgroup));
                self.containers.insert(id.clone(), Arc::new(LiveContainer::new(cgroup, self.process_of(id))));
            }
            Err(error) => warn!(container = id.short(), %error, "the container's cgroup is not known"),
        }
        if let Some(exit) = state.and_then(|state| state.exit.as_ref()) {
            self.note_exit(id, exit).await;
        }
    }

    /// What a container runs, if its Plan can be read. Without one it takes no execs, and cannot be started.
    fn process_of(&self, id: &ContainerId) -> Option<Process> {
        let path = self.directory.container(id).plan();
        match record::read::<Plan>(&path) {
            Ok(plan) => Some(plan.process),
            Err(error) => {
                self.shared.layout.quarantine().take(&path, error);
                None
            }
        }
    }
}
