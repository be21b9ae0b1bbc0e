//! An owner's connection to its pod's monitor: made by a daemon that finds the pod, and again when it breaks, which is no
//! monitor's death. What happened while there was none, the monitor tells.
//!
//! A start that is under way is not waited for: the monitor knows who asks for its outcome, and remembers a failure.
//!
//! A monitor that does not answer may be waiting for a dead disk, and one that cannot be connected to be well, if it is the daemon
//! that lacks descriptors or memory. Until it is heard, or ends, its pod is what it is on record, and calls that need the monitor
//! fail. Only if nobody listens for connections there is no monitor.

use std::io;
use std::path::Path;

use coracle_domain::{ContainerId, ContainerPhase, Error, Failure, FailureKind, PodPhase, Result};
use coracle_monitor::client::{Monitor, Started, State};
use coracle_monitor::protocol::{ContainerState, Event};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::events::lost_output;
use super::teardown::containers_in;
use super::{Command, Owner, PAUSE};
use crate::deadline::{ANSWER, SET_UP, within};
use crate::live::Model;
use crate::record;

/// How many connections are tried: what broke one may break the next.
const CONNECTIONS: usize = 5;

/// Whether its program was not executed yet.
fn is_starting(state: &ContainerState) -> bool {
    state.started_at == 0 && state.exit.is_none()
}

impl Owner {
    /// Connects to the monitor again: the connection broke, or the monitor answers at last. Without a monitor a pod cannot be
    /// served: it ends, and says only what is known.
    pub(super) async fn connect_again(&mut self) {
        (self.monitor, self.events) = (None, None);
        let Err(error) = self.reconnect().await else { return self.publish() };
        if self.record.phase != PodPhase::Ready {
            return;
        }
        warn!(pod = self.id().short(), %error, "the pod's monitor is gone; ending the pod");
        if let Err(error) = self.stop().await {
            warn!(pod = self.id().short(), %error, "the pod was not ended cleanly");
        }
    }

    /// The same, without an end if there is no monitor.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        self.connect().await?;
        if !self.is_unheard {
            warn!(pod = self.id().short(), "connected to the pod's monitor again");
        }
        Ok(())
    }

    /// Connects to the pod's monitor, and takes note of all that happened while nobody was. If that cannot be done now, it is
    /// tried again later.
    ///
    /// # Errors
    /// There is none, or none that can be talked to.
    pub(super) async fn connect(&mut self) -> Result<()> {
        let mut connected = Ok(());
        for _ in 0..CONNECTIONS {
            connected = match Monitor::open(self.directory.path(), self.monitor_pid()).await {
                Err(error) if is_exhausted(&error) => Err(error),
                opened => self.greet(opened?).await,
            };
            // The rest says nothing of the monitor: the connection broke, or what the daemon needs was used up.
            if !connected.as_ref().is_err_and(|error| is_unavailable(error) || is_exhausted(error)) {
                return connected;
            }
        }
        if let Err(error) = connected {
            self.connect_later(&error);
        }
        Ok(())
    }

    fn connect_later(&mut self, error: &Error) {
        if !self.is_unheard {
            warn!(pod = self.id().short(), %error, "the pod's monitor cannot be talked to now; until then, the pod is what it is on record");
        }
        (self.monitor, self.events, self.is_unheard) = (Some(Monitor::unreached(self.monitor_pid())), None, true);
        let handle = self.handle.clone();
        tokio::spawn(async move {
            sleep(PAUSE).await;
            handle.tell(Command::ConnectAgain).await;
        });
    }

    fn monitor_pid(&self) -> i32 {
        self.record.monitor.as_ref().map_or(0, |monitor| monitor.pid)
    }

    async fn greet(&mut self, (monitor, events): (Monitor, mpsc::UnboundedReceiver<Box<Event>>)) -> Result<()> {
        let directory = self.directory.path().to_owned();
        let (pid, ungreeted) = (monitor.pid(), monitor.clone());
        let mut greeting = Box::pin(async move { monitor.greet(&directory).await });
        if let Ok(greeted) = timeout(ANSWER, &mut greeting).await {
            let (monitor, state) = greeted?;
            (self.monitor, self.events, self.is_unheard) = (Some(monitor), Some(events), false);
            return self.catch_up(state).await;
        }
        warn!(pod = self.id().short(), pid, "the pod's monitor does not answer; until it does, the pod is what it is on record");
        (self.monitor, self.events, self.is_unheard) = (Some(ungreeted), Some(events), true);
        self.containers.keys().try_for_each(|id| self.take_up(id))?;
        let handle = self.handle.clone();
        tokio::spawn(async move {
            // Of a connection that breaks the owner hears by itself.
            if !greeting.await.is_err_and(|error| is_unavailable(&error)) {
                handle.tell(Command::ConnectAgain).await;
            }
        });
        Ok(())
    }

    /// Takes note of what happened to the containers while nobody was told.
    async fn catch_up(&mut self, state: State) -> Result<()> {
        self.discard_half_made().await;
        let before = self.told();
        let caught_up = self.take_over_containers(state).await;
        if self.told() != before {
            self.note();
        }
        caught_up
    }

    async fn take_over_containers(&mut self, mut state: State) -> Result<()> {
        for id in self.record.containers.iter().map(|container| container.id.clone()).collect::<Vec<_>>() {
            self.take_over_container(&id, &mut state).await?;
        }
        Ok(())
    }

    /// What monitors tell of containers.
    fn told(&self) -> Vec<impl PartialEq + use<>> {
        self.record.containers.iter().map(|container| (container.phase.clone(), container.lost_output)).collect()
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

    async fn take_over_container(&mut self, id: &ContainerId, known: &mut State) -> Result<()> {
        let state = known.containers.iter().find(|state| state.container == id.as_str());
        let failure = known.failed.remove(id.as_str());
        // Its start may have ended, or is followed again.
        self.starting.remove(id);
        let Some(container) = self.record.container_mut(id) else { return Ok(()) };
        if let Some(state) = state {
            container.lost_output = lost_output(state.lost);
        }
        match (&container.phase, state) {
            (ContainerPhase::Exited { .. }, _) => {
                self.end_remains(id).await;
                return Ok(());
            }
            (ContainerPhase::Running { .. }, None) => return self.note_unseen_end(id).await,
            (ContainerPhase::Created, None) => {}
            (ContainerPhase::Created, Some(state)) if is_starting(state) => self.follow_start(id),
            (ContainerPhase::Created | ContainerPhase::Running { .. }, Some(state)) => {
                container.phase = ContainerPhase::Running { pid: state.pid, started_at: state.started_at };
            }
        }
        self.take_up(id)?;
        if let Some(exit) = state.and_then(|state| state.exit.as_ref()) {
            self.note_exit(id, exit).await;
        }
        if let Some(error) = failure {
            self.note_failed_start(id, &error).await;
        }
        Ok(())
    }

    fn take_up(&self, id: &ContainerId) -> Result<()> {
        self.containers.get(id).map_or(Ok(()), |container| container.take_up(|| self.model_of(id)))
    }

    /// Has a start that is under way concluded when it ends, by its own deadline.
    fn follow_start(&mut self, id: &ContainerId) {
        let Some(monitor) = self.monitor.clone() else { return };
        self.starting.insert(id.clone());
        let (handle, id) = (self.handle.clone(), id.clone());
        tokio::spawn(async move {
            let outcome = within(SET_UP, "starting container", id.as_str(), monitor.await_start(id.as_str())).await;
            // A pod that is gone needs no news.
            handle.tell(Command::ConcludeStart(id.clone(), outcome)).await;
        });
    }

    /// The end of a start that was asked for over another connection, unless somebody heard of it by another way.
    pub(super) async fn conclude_start(&mut self, id: &ContainerId, outcome: Result<Started>) {
        // Of a connection that broke the owner hears by itself; the same may be asked over another by now.
        if outcome.as_ref().is_err_and(is_unavailable) {
            return;
        }
        let is_news = self.starting.remove(id) && self.record.container(id).is_some_and(|it| it.phase == ContainerPhase::Created);
        if is_news && let Err(error) = self.note_start(id, outcome).await {
            warn!(container = id.short(), %error, "a container did not start, and who asked for it had heard no answer");
        }
    }

    /// What a container runs, if its Plan can be read. Without one it takes no execs, and cannot be started.
    fn model_of(&self, id: &ContainerId) -> Result<Option<Model>> {
        let path = self.directory.container(id).plan();
        record::read(&path).map(Some).or_else(|error| self.put_aside(&path, error).map(|()| None))
    }

    /// Puts a file aside that cannot be read.
    ///
    /// # Errors
    /// That says nothing of the file.
    pub(super) fn put_aside(&self, path: &Path, error: io::Error) -> Result<()> {
        match Error::from(Failure::new("reading", path.display(), error)) {
            error if is_exhausted(&error) => Err(error),
            error => {
                self.shared.layout.quarantine().take(path, error);
                Ok(())
            }
        }
    }
}

/// Whether the monitor, or the connection to it, was lost.
pub(super) fn is_unavailable(error: &Error) -> bool {
    matches!(error, Error::Failed(Failure { kind: FailureKind::Unavailable, .. }))
}

/// Whether the daemon lacked descriptors or memory, from which nothing follows for what it was to look at.
pub(super) fn is_exhausted(error: &Error) -> bool {
    matches!(error, Error::Failed(Failure { kind: FailureKind::Exhausted, .. }))
}
