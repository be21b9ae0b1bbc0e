//! Ending containers and pods. Everything here can be called again at any time, and makes progress each time.

use std::io;
use std::sync::Arc;

use coracle_domain::{ContainerId, ContainerPhase, Exit, ExitCode, PodPhase, Result};
use coracle_monitor::protocol::{ExitRecord, Target};
use tokio::sync::watch;
use tracing::warn;

use super::teardown::{Faults, Subject, Teardown, remove_directory};
use super::{Owner, events};
use crate::deadline::{ANSWER, DEATH, within};
use crate::undead::Undead;
use crate::{cgroups, clock, record};

impl Owner {
    /// Sends a running container its stop signal, once. One that is being started has nobody yet to heed it.
    pub(super) async fn ask_to_end(&mut self, id: &ContainerId) -> Result<watch::Receiver<bool>> {
        if self.starting.contains(id) || self.may_have_been_started(id) {
            return self.kill(id).await;
        }
        let news = self.news_of_end(id);
        let running = self.record.container(id).filter(|container| container.is_running());
        let Some(signal) = running.map(|container| container.stop_signal) else { return Ok(news) };
        if !self.asked_to_end.contains(id) {
            let call = self.monitor()?.signal(Target::Container(id.to_string()), signal);
            within(ANSWER, "sending the stop signal to container", id.as_str(), call).await?;
            self.asked_to_end.insert(id.clone());
        }
        Ok(news)
    }

    /// Kills every process of a container, and so ends its start if that is under way.
    ///
    /// # Errors
    /// They cannot be killed, or it is not known whether there are any.
    pub(super) async fn kill(&mut self, id: &ContainerId) -> Result<watch::Receiver<bool>> {
        if let Some(live) = self.containers.get(id) {
            cgroups::kill(Arc::clone(&live.cgroup)).await?;
        }
        self.end_start(id).await?;
        if self.may_have_been_started(id) {
            return Err(self.unheard("ending the start of container", id));
        }
        Ok(self.news_of_end(id))
    }

    /// Turns true when the container has ended; is true if it does not run.
    fn news_of_end(&self, id: &ContainerId) -> watch::Receiver<bool> {
        let running = self.record.container(id).is_some_and(|container| container.is_running());
        match self.containers.get(id) {
            Some(live) if running => live.ended.subscribe(),
            _ => watch::channel(true).1,
        }
    }

    pub(super) async fn remove_container(&mut self, id: &ContainerId) -> Result<()> {
        if self.record.container(id).is_none() {
            return Ok(());
        }
        self.kill(id).await?;
        self.wait_until_ended(Some(id)).await?;
        self.discard_container(id).await?;
        self.record.containers.retain(|container| &container.id != id);
        self.note();
        Ok(())
    }

    /// Waits for the end of a start that was asked for over another connection, and whose process was killed.
    async fn end_start(&mut self, id: &ContainerId) -> Result<()> {
        let Some(monitor) = self.monitor.clone().filter(|_| self.starting.contains(id)) else { return Ok(()) };
        let outcome = async { Ok(monitor.await_start(id.as_str()).await) };
        let outcome = within(DEATH, "ending the start of container", id.as_str(), outcome).await?;
        self.conclude_start(id, outcome).await;
        Ok(())
    }

    /// Makes sure that nothing is left of a container but its entry in the record.
    pub(super) async fn discard_container(&mut self, id: &ContainerId) -> Result<()> {
        let mut faults = Faults::default();
        self.containers.remove(id);
        self.asked_to_end.remove(id);
        self.starting.remove(id);
        let subject = Subject::of(&self.record);
        faults.note(cgroups::remove_container(&self.shared.hierarchy, &subject.location(&self.shared.hierarchy, id)).await);
        if let Some(monitor) = &self.monitor {
            let call = monitor.forget(id.as_str());
            faults.note(within(ANSWER, "telling the monitor to forget container", id.as_str(), call).await);
        }
        faults.note(self.shared.images.remove_rootfs(id).await);
        faults.note(remove_directory(self.directory.container(id).path()));
        faults.result()
    }

    /// Ends the pod: its containers, its network, its namespaces. Its record and its containers' remain.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.record.phase = PodPhase::Stopped;
        if let Err(error) = self.record.save(&self.directory.record()) {
            warn!(pod = self.id().short(), %error, "the pod is ended without a record of it");
        }
        self.ends.send_replace(true);
        let mut faults = Faults::default();
        for live in self.containers.values() {
            faults.note(cgroups::kill(Arc::clone(&live.cgroup)).await);
        }
        // What does not die keeps its monitor, which will see its end, and the pod all that it has: calling again goes on.
        let ended = match self.wait_until_ended(None).await {
            Ok(()) => self.note_unseen_ends().await,
            failed => failed,
        };
        if ended.is_err() {
            faults.note(ended);
            self.note();
            return faults.result();
        }
        self.containers.clear();
        self.events = None;
        let torn_down = Teardown::new(&self.shared, Subject::of(&self.record)).with(self.monitor.take()).release().await;
        if torn_down.is_ok() {
            (self.record.lease, self.record.monitor) = (None, None);
        }
        faults.note(torn_down);
        self.note();
        faults.result()
    }

    pub(super) async fn remove(&mut self) -> Result<()> {
        self.stop().await?;
        Teardown::new(&self.shared, Subject::of(&self.record)).erase().await?;
        self.shared.index.withdraw(self.id());
        Ok(())
    }

    /// Waits, while taking the monitor's events, until one container or all have ended.
    async fn wait_until_ended(&mut self, which: Option<&ContainerId>) -> Result<()> {
        let deadline = tokio::time::Instant::now() + DEATH;
        while self.monitor.is_some() && self.runs(which) {
            let Ok(event) = tokio::time::timeout_at(deadline, events::next(&mut self.events)).await else {
                return self.outlived(which).await;
            };
            match event {
                Some(event) => self.note_event(event).await,
                None if tokio::time::Instant::now() < deadline && self.reconnect().await.is_ok() => {}
                // The owner hears the same again, when it is done with this, and ends the pod.
                None => self.monitor = None,
            }
        }
        Ok(())
    }

    /// The deadline for deaths has passed. A pod whose processes have all ended needs no monitor's word to be ended.
    async fn outlived(&self, which: Option<&ContainerId>) -> Result<()> {
        let undead = match which {
            Some(id) => Undead::find("ending the processes of container", id, self.containers.get(id)).await?,
            None => Undead::find("ending the processes of pod", self.id(), self.containers.values()).await?,
        };
        let failure = undead.failure(self.monitor.as_ref());
        if which.is_none() && undead.is_empty() {
            warn!(pod = self.id().short(), error = %failure, "the pod is ended without its monitor's word");
            return Ok(());
        }
        Err(failure.into())
    }

    fn runs(&self, which: Option<&ContainerId>) -> bool {
        self.record.containers.iter().any(|container| container.is_running() && which.is_none_or(|id| id == &container.id))
    }

    /// Containers of whose end no monitor told: what is on file is believed, and else it is unknown. None is said to have
    /// ended of which a process is left.
    async fn note_unseen_ends(&mut self) -> Result<()> {
        let mut faults = Faults::default();
        let (hierarchy, subject) = (Arc::clone(&self.shared.hierarchy), Subject::of(&self.record));
        let left: Vec<_> = self.record.containers.iter().filter(|container| !container.has_ended()).map(|c| c.id.clone()).collect();
        for id in left {
            match cgroups::remove_container(&hierarchy, &subject.location(&hierarchy, &id)).await {
                Ok(()) => faults.note(self.note_unseen_end(&id).await),
                failed => faults.note(failed),
            }
        }
        faults.result()
    }

    /// A container whose monitor is gone. By its record it may not have been started: its daemon may have been killed before it
    /// wrote that down, and then only the exit on file tells of it.
    ///
    /// # Errors
    /// What is on file cannot be read just now.
    pub(super) async fn note_unseen_end(&mut self, id: &ContainerId) -> Result<()> {
        let path = self.directory.container(id).exit();
        let started_at = match self.record.container(id).map(|container| &container.phase) {
            Some(ContainerPhase::Running { started_at, .. }) => Some(*started_at),
            _ => None,
        };
        match record::read::<ExitRecord>(&path) {
            Ok(exit) => {
                self.note_exit(id, &exit).await;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && started_at.is_none() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.put_aside(&path, error)?,
        }
        let exit = Exit { code: ExitCode::Unknown, at: clock::now(), oom_killed: false };
        self.note_end(id, started_at, exit, "its monitor ended before it did, so its exit status is not known".to_owned()).await;
        Ok(())
    }
}
