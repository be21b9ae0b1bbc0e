//! What a daemon does with the pods it finds at its start.
//!
//! First it reads what is on record, so that nothing that is somebody's is given away or swept. Then it serves, and takes
//! over each pod for itself: a pod's monitor went on reaping and writing logs while no daemon was there, so a pod that was
//! ready is ready again as soon as its monitor has told what happened. A pod that was being made, or being torn down, is
//! torn down; a pod whose monitor is gone has ended. What cannot be read costs only its own pod. Calls about a pod wait until
//! it is taken over (`recoveries`).
//!
//! Lists cannot wait for a thousand monitors. But of most pods the kernel tells without them that nothing has happened: each
//! container that runs by the record is a living child of the pod's monitor, and there is no record of its exit.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::Cgroup;
use coracle_domain::{ContainerPhase, During, PodId, PodPhase, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::{info, warn};

use super::connection::is_exhausted;
use super::teardown::{Subject, Teardown};
use super::{Owner, PAUSE};
use crate::live::LiveContainer;
use crate::record::{ContainerRecord, MonitorIdentity, PodRecord};
use crate::recoveries::Recovery;
use crate::{Shared, process, shares};

/// How many pods are looked at before others have their turn.
const HANDFUL: usize = 8;
/// How many pods are taken over at a time.
const AT_A_TIME: usize = 8;
/// A pod that takes longer leaves its place to others.
const PATIENCE: Duration = Duration::from_millis(50);

/// The pods that a daemon found, and who of them is still to be taken over.
#[derive(Debug)]
pub(crate) struct Found(Vec<FoundPod>);

#[derive(Debug)]
struct FoundPod {
    id: PodId,
    recovery: Recovery,
    finding: Finding,
}

/// What is on record of a pod.
#[derive(Debug)]
enum Finding {
    /// It was made.
    Made(Box<Owner>),
    /// It was being made.
    HalfMade(Subject),
    /// Nothing reliable, because of this.
    Unreadable(String),
}

impl Found {
    /// Reads the records of all pods that have a directory, and publishes what they say. Addresses and ports on record are
    /// nobody else's from now on.
    pub(crate) async fn read(shared: &Arc<Shared>) -> Result<Self> {
        let ids = shared.layout.pods_there()?;
        let shared = Arc::clone(shared);
        let found = shares::each(ids, move |id| FoundPod::read(&shared, id)).await;
        Ok(Self(found.during("reading", "the pods' records")?))
    }

    /// The names of the links on the node that a sweep is to spare. The address of a pod that has none on record could be
    /// given away, or is another pod's already, so its link goes at once.
    pub(crate) fn links(&self) -> HashSet<String> {
        let may_have_one = |pod: &&FoundPod| match &pod.finding {
            Finding::Made(owner) => owner.record.lease.is_some(),
            Finding::HalfMade(_) => true,
            Finding::Unreadable(_) => false,
        };
        self.0.iter().filter(may_have_one).map(|pod| coracle_network::host_link_name(&pod.id)).collect()
    }

    /// Those that lists wait for before the others.
    async fn in_order(self) -> VecDeque<FoundPod> {
        let mut order = VecDeque::with_capacity(self.0.len());
        for (number, pod) in self.0.into_iter().enumerate() {
            if number % HANDFUL == HANDFUL - 1 {
                yield_now().await;
            }
            if pod.is_confirmed() { order.push_back(pod) } else { order.push_front(pod) }
        }
        order
    }

    /// Takes over every pod while others do other things: some at a time, since all at once they would stand in the way of
    /// calls that come meanwhile. First come those that somebody waits for, then those that lists wait for.
    pub(crate) fn take_over(self, shared: &Arc<Shared>) {
        let shared = Arc::clone(shared);
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        tokio::spawn(async move {
            let mut queue = self.in_order().await;
            while let Ok(place) = Arc::clone(&room).acquire_owned().await {
                shared.index.recoveries().give_way().await;
                for id in shared.index.recoveries().take_wanted() {
                    if let Some(pod) = queue.iter().position(|pod| pod.id == id).and_then(|position| queue.remove(position)) {
                        queue.push_front(pod);
                    }
                }
                let Some(pod) = queue.pop_front() else { break };
                tokio::spawn(pod.take_over(Arc::clone(&shared), place));
            }
        });
    }
}

impl FoundPod {
    fn read(shared: &Arc<Shared>, id: PodId) -> Self {
        let recovery = shared.index.recoveries().begin(&id);
        let finding = find(shared, &id);
        Self { id, recovery, finding }
    }

    /// Whether the kernel confirms what is on record; then lists need not wait.
    fn is_confirmed(&self) -> bool {
        let is_confirmed = matches!(&self.finding, Finding::Made(owner) if owner.is_as_recorded());
        if is_confirmed {
            self.recovery.vouch();
        }
        is_confirmed
    }

    async fn take_over(self, shared: Arc<Shared>, place: OwnedSemaphorePermit) {
        match self.finding {
            Finding::Made(mut owner) => {
                in_place(place, owner.take_over()).await;
                drop(self.recovery);
                owner.run().await;
            }
            Finding::HalfMade(subject) => {
                info!(pod = self.id.short(), "a pod that was being made is torn down");
                in_place(place, Teardown::new(&shared, subject).to_the_end(&shared)).await;
            }
            Finding::Unreadable(reason) => in_place(place, discard(&shared, self.id, &reason)).await,
        }
    }
}

/// Does the work, and holds the place for as long as that takes, or patience lasts.
async fn in_place(place: OwnedSemaphorePermit, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    if timeout(PATIENCE, &mut work).await.is_err() {
        drop(place);
        work.await;
    }
}

fn find(shared: &Arc<Shared>, id: &PodId) -> Finding {
    let record = match load(&shared.layout.pod(id).record()) {
        Ok(record) if &record.id == id => record,
        Ok(_) => return Finding::Unreadable("its record names another pod".to_owned()),
        Err(error) => return Finding::Unreadable(error.to_string()),
    };
    adopt_network(shared, &record);
    if record.phase == PodPhase::Creating {
        return Finding::HalfMade(Subject::of(&record));
    }
    let mut owner = Owner::new(Arc::clone(shared), record);
    owner.find_containers();
    owner.publish();
    Finding::Made(Box::new(owner))
}

/// Host ports of a pod that has come to its end, or has not come to be, lead nowhere any more.
fn adopt_network(shared: &Shared, record: &PodRecord) {
    let Some(lease) = &record.lease else { return };
    shared.network.adopt(&record.id, lease);
    let request = record.port_request(lease);
    let adopted = match record.phase {
        PodPhase::Ready => shared.network.adopt_ports(&request),
        PodPhase::Creating | PodPhase::Stopped => shared.network.give_up_ports(&request),
    };
    if let Err(error) = adopted {
        warn!(pod = record.id.short(), %error, "the pod's host ports are closed");
    }
}

/// Reads a record, and waits for what that takes. Blocks.
fn load(path: &Path) -> Result<PodRecord> {
    let mut is_told = false;
    loop {
        match PodRecord::load(path) {
            Err(error) if is_exhausted(&error) => {
                if !std::mem::replace(&mut is_told, true) {
                    warn!(%error, "a pod's record cannot be read now");
                }
                std::thread::sleep(PAUSE);
            }
            loaded => return loaded,
        }
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

impl Owner {
    /// Ends the pod, or goes on where a former daemon was: how the containers end, the monitor sees that did not end yet.
    async fn finish_stop(&mut self) {
        if self.record.phase == PodPhase::Stopped
            && let Err(error) = self.connect().await
        {
            info!(pod = self.id().short(), %error, "the pod's end goes on without its monitor");
        }
        if let Err(error) = self.stop().await {
            warn!(pod = self.id().short(), %error, "the pod was not ended cleanly");
        }
    }

    /// Goes on with the pod where it is now, or finishes its end.
    async fn take_over(&mut self) {
        match self.record.phase {
            PodPhase::Ready => {
                if let Err(error) = self.connect().await {
                    warn!(pod = self.id().short(), %error, "the pod's monitor is gone; ending the pod");
                    self.finish_stop().await;
                }
            }
            PodPhase::Creating | PodPhase::Stopped => {
                if self.record.lease.is_some() || self.record.monitor.is_some() {
                    self.finish_stop().await;
                }
            }
        }
        self.publish();
    }

    /// Whether, by the kernel's word, nothing has happened to the pod that its record does not tell.
    fn is_as_recorded(&self) -> bool {
        let record = &self.record;
        match (record.phase, &record.monitor) {
            (PodPhase::Ready, Some(monitor)) => {
                record.containers.iter().all(|container| self.is_container_as_recorded(container, monitor))
                    // Who has a child lives.
                    && (record.containers.iter().any(ContainerRecord::is_running) || process::is_there(monitor))
            }
            (PodPhase::Stopped, None) => record.lease.is_none(),
            _ => false,
        }
    }

    /// Of one that was not started on record only the monitor knows whether it was since.
    fn is_container_as_recorded(&self, container: &ContainerRecord, monitor: &MonitorIdentity) -> bool {
        match container.phase {
            ContainerPhase::Created => false,
            ContainerPhase::Running { pid, .. } => {
                let is_unseen = self.directory.container(&container.id).exit().symlink_metadata().is_err();
                is_unseen && process::is_living_child(pid, monitor.pid)
            }
            ContainerPhase::Exited { .. } => true,
        }
    }

    /// Where the containers that have not ended are accounted follows from the record.
    fn find_containers(&mut self) {
        let (hierarchy, subject) = (&self.shared.hierarchy, Subject::of(&self.record));
        for ContainerRecord { id, .. } in self.record.containers.iter().filter(|container| !container.has_ended()) {
            match subject.location(hierarchy, id) {
                Ok(location) => {
                    let found = LiveContainer::found(Arc::new(Cgroup::open(hierarchy, location)));
                    self.containers.insert(id.clone(), Arc::new(found));
                }
                Err(error) => warn!(container = id.short(), %error, "the container's cgroup is not known"),
            }
        }
    }
}
