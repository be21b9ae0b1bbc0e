//! The owner of one pod: a task with an inbox. Nobody else changes the pod.
//!
//! ```text
//!            create                    stop, or the monitor is lost            remove
//!   (claim) ────────> Ready ─────────────────────────────────────> Stopped ──────────> (gone)
//!      │               ^ start, exit, update… of containers           ^
//!      └── any stage fails: teardown, nothing is left                 └ stop again: teardown again
//! ```
//!
//! Calls that wait for a container's death (StopContainer) do not wait in here: they ask the owner for the
//! signal, watch the container, and ask again. So one that takes its time delays no other call to its pod. Only what follows
//! SIGKILL is waited for in here, for up to 20 s: by RemoveContainer, by a stop that ends a start, and by the pod's own end.

mod connection;
mod container;
mod create;
mod end;
mod events;
mod plan;
mod recover;
mod teardown;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_domain::{ContainerId, ContainerRequest, Error, Failure, PodId, PodPhase, PodResources, PodView, Resources, Result};
use coracle_monitor::client::{Monitor, Started};
use coracle_monitor::protocol::Event;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

pub(crate) use create::create;
pub(crate) use recover::Found;
pub(crate) use teardown::{Subject, containers_in};

use crate::Shared;
use crate::index::Entry;
use crate::layout::PodDirectory;
use crate::live::{Live, LiveContainer};
use crate::record::PodRecord;
use crate::stats::{self, Meter};

/// Commands that may wait in an inbox; a caller beyond that waits for room.
const INBOX: usize = 64;
/// How long what cannot be done for want of room waits for the next attempt.
const PAUSE: Duration = Duration::from_secs(5);

type Answer<T> = oneshot::Sender<Result<T>>;

/// What an owner can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Make a container.
    Create(Box<ContainerRequest>, Answer<ContainerId>),
    /// Start it.
    Start(ContainerId, Answer<()>),
    /// Take note of how its start ended, that was asked for over another connection.
    ConcludeStart(ContainerId, Result<Started>),
    /// Connect to the monitor again, which did not answer or could not be connected to, and may now.
    ConnectAgain,
    /// Send its stop signal, unless it was sent before; answers with the news of its end.
    AskToEnd(ContainerId, Answer<watch::Receiver<bool>>),
    /// Kill all its processes; answers at once with the news of its end.
    Kill(ContainerId, Answer<watch::Receiver<bool>>),
    /// Kill it and remove all traces.
    RemoveContainer(ContainerId, Answer<()>),
    /// Change its limits.
    Update(ContainerId, Box<Resources>, Answer<()>),
    /// Keep what the kubelet gave the pod as a whole.
    Resize(Box<PodResources>, Answer<()>),
    /// Open its log anew.
    ReopenLog(ContainerId, Answer<()>),
    /// End its containers, give back its network and namespaces.
    Stop(Answer<()>),
    /// Stop it and remove all traces.
    Remove(Answer<()>),
}

/// The way to an owner. A channel has room for 32 messages from the beginning, however seldom there is one: so they are boxed.
#[derive(Debug, Clone)]
pub(crate) struct Handle(mpsc::Sender<Box<Command>>);

impl Handle {
    /// The way to an owner that has gone.
    #[cfg(test)]
    pub(crate) fn to_nobody() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Puts a command into the inbox and waits for its answer. `None`: the pod is gone.
    ///
    /// The command is carried out even if the caller does not wait.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Option<Result<T>> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Box::new(command(answer))).await.ok()?;
        answered.await.ok()
    }

    /// Puts a command into the inbox that has no answer.
    async fn tell(&self, command: Command) {
        // Without an owner there is nothing to tell.
        let _ = self.0.send(Box::new(command)).await;
    }
}

/// The state that only the owner's task touches.
#[derive(Debug)]
pub(crate) struct Owner {
    shared: Arc<Shared>,
    directory: PodDirectory,
    record: PodRecord,
    monitor: Option<Monitor>,
    events: Option<mpsc::UnboundedReceiver<Box<Event>>>,
    /// Whether the monitor has not answered this daemon yet.
    is_unheard: bool,
    containers: HashMap<ContainerId, Arc<LiveContainer>>,
    meter: Option<Arc<Meter>>,
    /// The containers whose start was asked for over another connection, of this daemon or a former one.
    starting: HashSet<ContainerId>,
    /// Told to those who hold connections into the pod, when its end begins.
    ends: Arc<watch::Sender<bool>>,
    /// The containers whose stop signal was sent.
    asked_to_end: HashSet<ContainerId>,
    /// Whether the record lacks what has come about.
    unsaved: bool,
    inbox: mpsc::Receiver<Box<Command>>,
    handle: Handle,
}

/// Whether there is still a pod to own.
enum Next {
    Continue,
    Gone,
}

impl Owner {
    fn new(shared: Arc<Shared>, record: PodRecord) -> Self {
        let (sender, inbox) = mpsc::channel(INBOX);
        Self {
            directory: shared.layout.pod(&record.id),
            meter: stats::meter(&shared.hierarchy, &record),
            shared,
            record,
            monitor: None,
            events: None,
            is_unheard: false,
            containers: HashMap::new(),
            starting: HashSet::new(),
            ends: Arc::default(),
            asked_to_end: HashSet::new(),
            unsaved: false,
            inbox,
            handle: Handle(sender),
        }
    }

    /// Publishes the pod and serves it until it is removed.
    fn serve(self) {
        self.publish();
        tokio::spawn(self.run());
    }

    async fn run(mut self) {
        loop {
            // Boxed, so that a pod to which nothing happens has no room for what could.
            tokio::select! {
                event = events::next(&mut self.events) => Box::pin(self.on_event(event)).await,
                command = self.inbox.recv() => match command {
                    Some(command) => if let Next::Gone = Box::pin(self.carry_out(*command)).await { break },
                    None => break,
                },
                () = tokio::time::sleep(PAUSE), if self.unsaved => self.save_at_last(),
            }
        }
        refuse_all(self.inbox).await;
    }

    async fn carry_out(&mut self, command: Command) -> Next {
        match command {
            Command::Create(request, answer) => reply(answer, self.create_container(*request).await),
            Command::Start(id, answer) => reply(answer, self.start_container(&id).await),
            Command::ConcludeStart(id, outcome) => self.conclude_start(&id, outcome).await,
            Command::ConnectAgain if self.is_unheard => self.connect_again().await,
            Command::ConnectAgain => {}
            Command::AskToEnd(id, answer) => reply(answer, self.ask_to_end(&id).await),
            Command::Kill(id, answer) => reply(answer, self.kill(&id).await),
            Command::RemoveContainer(id, answer) => reply(answer, self.remove_container(&id).await),
            Command::Update(id, change, answer) => reply(answer, self.update_container(&id, &change).await),
            Command::Resize(change, answer) => reply(answer, self.resize(*change)),
            Command::ReopenLog(id, answer) => reply(answer, self.reopen_log(&id).await),
            Command::Stop(answer) => reply(answer, self.stop().await),
            Command::Remove(answer) => {
                let removed = self.remove().await;
                let next = if removed.is_ok() { Next::Gone } else { Next::Continue };
                reply(answer, removed);
                return next;
            }
        }
        Next::Continue
    }

    /// The kubelet has changed the pod's cgroup before it tells: there is nothing to do but to remember.
    fn resize(&mut self, change: PodResources) -> Result<()> {
        self.record.resize(change);
        self.commit()
    }

    /// Writes the record, then shows the pod as it is to be: for what must not be without being on record.
    fn commit(&self) -> Result<()> {
        self.record.save_and_reserve(&self.directory.record())?;
        self.publish();
        Ok(())
    }

    /// Shows the pod as it has become, whether or not that can be written down. What the record lacks the next daemon
    /// hears from the monitor, or does again.
    fn note(&mut self) {
        let saved = self.record.save(&self.directory.record());
        self.unsaved = saved.is_err();
        if let Err(error) = saved {
            warn!(pod = self.id().short(), %error, "a change of the pod is not on record");
        }
        self.publish();
    }

    /// Tries again to write down what could not be: there may be room now.
    fn save_at_last(&mut self) {
        self.unsaved = self.record.save(&self.directory.record()).is_err();
        if !self.unsaved {
            info!(pod = self.id().short(), "the pod's record is complete again");
        }
    }

    fn publish(&self) {
        if self.record.phase == PodPhase::Creating {
            return;
        }
        let live = Live {
            monitor: self.monitor.clone(),
            containers: self.containers.clone(),
            meter: self.meter.clone(),
            ends: Arc::clone(&self.ends),
        };
        self.shared.index.publish(Entry { view: Arc::new(self.view()), live: Arc::new(live), owner: self.handle.clone() });
    }

    fn view(&self) -> PodView {
        let record = &self.record;
        let PodResources { resources, overhead } = record.resources();
        PodView {
            id: record.id.clone(),
            request: Arc::clone(&record.request),
            phase: record.phase,
            created_at: record.created_at,
            addresses: record.lease.iter().map(|lease| lease.address.into()).collect(),
            resources,
            overhead,
            containers: record.containers.iter().map(|container| Arc::new(container.view(&record.id))).collect(),
            monitor_pid: record.monitor.as_ref().map(|monitor| monitor.pid),
            network_namespace: record.lease.is_some().then(|| self.directory.pin("net")),
        }
    }

    fn id(&self) -> &PodId {
        &self.record.id
    }

    fn monitor(&self) -> Result<&Monitor> {
        self.monitor.as_ref().ok_or_else(|| {
            Error::from(Failure::new("calling the monitor of pod", self.id(), "it is gone").kind(coracle_domain::FailureKind::Unavailable))
        })
    }
}

/// Drops what is in an inbox that nobody will read, and what is about to be. With the inbox alone dropped, the command of a
/// caller who already had room for it would lie there, its answer awaited for ever.
async fn refuse_all(mut inbox: mpsc::Receiver<Box<Command>>) {
    inbox.close();
    while inbox.recv().await.is_some() {}
}

/// Answers a caller, who may have gone away.
fn reply<T>(answer: Answer<T>, result: Result<T>) {
    let _ = answer.send(result);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_its_pods_end_overtakes_is_refused() {
        let (sender, inbox) = mpsc::channel(2);
        let (answer, waiting) = oneshot::channel();
        sender.send(Box::new(Command::Stop(answer))).await.unwrap();
        let (answer, about_to_wait) = oneshot::channel();
        let room = sender.reserve().await.unwrap();
        let end = tokio::spawn(refuse_all(inbox));
        assert!(waiting.await.is_err());
        room.send(Box::new(Command::Remove(answer)));
        assert!(about_to_wait.await.is_err());
        end.await.unwrap();
        assert!(Handle(sender).ask(Command::Stop).await.is_none());
    }
}
