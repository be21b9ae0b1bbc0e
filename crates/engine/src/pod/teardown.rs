//! Teardown: making sure that a pod holds nothing, however far its creation came.
//!
//! It is a list of steps that each succeed when there is nothing to do; a failing step does not keep the others
//! from being tried. A failed create, StopPodSandbox, RemovePodSandbox and recovery all run it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_cgroup::{Hierarchy, Location};
use coracle_domain::{ContainerId, During, Error, PodId, Result};
use coracle_failpoint::{Point, reach};
use coracle_monitor::client::{LOG, Monitor};
use rustix::mount::UnmountFlags;
use tracing::{info, warn};

use super::connection::is_unavailable;
use crate::deadline::{ANSWER, DEATH, within};
use crate::layout::PodDirectory;
use crate::record::{MonitorIdentity, PodRecord};
use crate::{Shared, cgroups, process};

/// Between two tries of a teardown that keeps failing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of a pod that is to be torn down.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    id: PodId,
    containers: Vec<ContainerId>,
    cgroup_parent: Option<String>,
    /// Whether `cgroup_parent` is not what was asked for, but not known.
    parent_lost: bool,
    monitor: Option<MonitorIdentity>,
}

impl Subject {
    /// A pod with a record.
    pub(crate) fn of(record: &PodRecord) -> Self {
        Self {
            id: record.id.clone(),
            containers: record.containers.iter().map(|container| container.id.clone()).collect(),
            cgroup_parent: record.request.cgroup_parent.clone(),
            parent_lost: false,
            monitor: record.monitor.clone(),
        }
    }

    /// A pod of which there is only a directory.
    pub(crate) fn found(id: PodId) -> Self {
        Self { id, containers: Vec::new(), cgroup_parent: None, parent_lost: true, monitor: None }
    }

    /// The cgroup of one of its containers.
    pub(crate) fn location(&self, hierarchy: &Hierarchy, container: &ContainerId) -> Result<Location> {
        hierarchy.container(self.cgroup_parent.as_deref(), &self.id, container)
    }
}

/// The containers that have a directory.
pub(crate) fn containers_in(directory: &PodDirectory) -> Vec<ContainerId> {
    let entries = fs::read_dir(directory.path().join("containers")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The teardown of one pod.
#[derive(Debug)]
pub(crate) struct Teardown<'a> {
    shared: &'a Shared,
    directory: PodDirectory,
    subject: Subject,
    monitor: Option<Monitor>,
}

impl<'a> Teardown<'a> {
    /// Of the containers of `subject` and of those that a former daemon was making, which have a directory only.
    pub(crate) fn new(shared: &'a Shared, mut subject: Subject) -> Self {
        let directory = shared.layout.pod(&subject.id);
        let half_made = containers_in(&directory).into_iter().filter(|id| !subject.containers.contains(id));
        subject.containers.extend(half_made.collect::<Vec<_>>());
        Self { directory, shared, subject, monitor: None }
    }

    /// The same, with the connection to its monitor.
    pub(crate) fn with(mut self, monitor: Option<Monitor>) -> Self {
        self.monitor = monitor;
        self
    }

    /// Everything the pod holds of the kernel goes: processes, cgroups, network, namespaces, mounts.
    pub(crate) async fn release(&self) -> Result<()> {
        let mut faults = Faults::default();
        faults.note(self.remove_cgroups().await);
        faults.note(self.end_monitor().await);
        faults.note(self.shared.network.detach(&self.subject.id).await);
        faults.note(self.unmount());
        faults.result()?;
        // While host ports lead to it, or anything may live that has it, the address is nobody else's.
        self.shared.network.release(&self.subject.id);
        Ok(())
    }

    /// Everything the pod holds of the disk goes, its directory last.
    pub(crate) async fn erase(&self) -> Result<()> {
        let mut faults = Faults::default();
        for container in &self.subject.containers {
            faults.note(self.shared.images.remove_rootfs(container).await);
        }
        faults.result()?;
        remove_directory(self.directory.path())
    }

    /// Both, tried again until it is done; for pods that nobody will ask to remove. Who waits does so for a few tries.
    pub(crate) async fn to_the_end(&self, shared: &Arc<Shared>) {
        for pause in [0, 100, 1000].map(Duration::from_millis) {
            tokio::time::sleep(pause).await;
            if self.is_torn_down().await {
                return;
            }
        }
        let (shared, subject) = (Arc::clone(shared), self.subject.clone());
        tokio::spawn(async move {
            let mut pause = Duration::from_secs(5);
            loop {
                tokio::time::sleep(pause).await;
                if Teardown::new(&shared, subject.clone()).is_torn_down().await {
                    return info!(pod = subject.id.short(), "the pod is torn down at last");
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    async fn is_torn_down(&self) -> bool {
        let torn_down = match self.release().await {
            Ok(()) => self.erase().await,
            failed => failed,
        };
        if let Err(error) = &torn_down {
            warn!(pod = self.subject.id.short(), %error, "the pod could not be torn down");
        }
        torn_down.is_ok()
    }

    async fn remove_cgroups(&self) -> Result<()> {
        let mut faults = Faults::default();
        let hierarchy = &self.shared.hierarchy;
        for container in &self.subject.containers {
            faults.note(cgroups::remove_container(hierarchy, &self.subject.location(hierarchy, container)).await);
        }
        if self.subject.parent_lost {
            faults.note(cgroups::remove_wherever(hierarchy, &self.subject.containers).await);
        }
        faults.note(cgroups::remove_pod(hierarchy, &self.subject.id).await);
        faults.result()
    }

    async fn end_monitor(&self) -> Result<()> {
        let subject = self.subject.id.as_str();
        let connected = match &self.monitor {
            Some(monitor) => Ok(monitor.clone()),
            None => Monitor::open(self.directory.path(), 0).await.map(|(monitor, _)| monitor),
        };
        let nobody_listens = connected.as_ref().is_err_and(is_unavailable);
        if let Ok(monitor) = connected {
            // One that does not answer is killed below.
            let _ = within(ANSWER, "ending the monitor of pod", subject, monitor.shutdown()).await;
        }
        let identities = match &self.subject.monitor {
            Some(identity) => vec![identity.clone()],
            None if nobody_listens => Vec::new(),
            None => self.find_monitor().await?,
        };
        for identity in &identities {
            within(DEATH, "killing the monitor of pod", subject, process::end(identity)).await?;
        }
        reach(Point::MonitorEnd);
        Ok(())
    }

    /// The monitor of a pod whose record does not tell it: the record is lost, or its daemon was killed before it wrote it down.
    async fn find_monitor(&self) -> Result<Vec<MonitorIdentity>> {
        let log = self.directory.path().join(LOG);
        cgroups::blocking(move || process::complaining_into(&log).during("looking for the monitor that writes", log.display())).await
    }

    fn unmount(&self) -> Result<()> {
        let mut faults = Faults::default();
        for kind in ["net", "ipc", "uts", "pid", "user", "time"] {
            faults.note(remove_mount(&self.directory.pin(kind)));
        }
        faults.note(remove_mount(&self.directory.shm()));
        faults.result()
    }
}

/// Makes sure that nothing is mounted on `path`, nor on its copies: a container that was given a directory of the node has
/// what is mounted below it mounted too, and only with the mount point does that end as well.
fn remove_mount(path: &Path) -> Result<()> {
    unmount(path).during("unmounting", path.display())?;
    coracle_files::remove(path).during("removing the mount point", path.display())?;
    reach(Point::PodUnpin);
    Ok(())
}

fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => reach(Point::PodUnmount),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes sure that a directory and all beneath it is gone.
pub(super) fn remove_directory(path: &Path) -> Result<()> {
    coracle_files::remove(path).during("removing", path.display())?;
    reach(Point::PodErase);
    Ok(())
}

/// The errors of a list of steps that are all tried.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Error>);

impl Faults {
    /// Keeps the error, if it is one.
    pub(super) fn note<T>(&mut self, result: Result<T>) {
        self.0.extend(result.err());
    }

    /// The first error; the others are logged, since only one can be answered.
    pub(super) fn result(self) -> Result<()> {
        let mut errors = self.0.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        for error in errors {
            warn!(%error, "a step of the teardown failed as well");
        }
        Err(first)
    }
}
