//! What a pod's monitor reports, and what follows from it.

use coracle_domain::{ContainerId, ContainerPhase, Exit, ExitCode, LostOutput};
use coracle_monitor::protocol::{Event, ExitRecord, LogLoss, Lost};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Owner;
use super::teardown::Subject;
use crate::cgroups;

/// The next event; `None` once the monitor is gone. Never comes while there is no monitor to wait for.
pub(super) async fn next(events: &mut Option<mpsc::UnboundedReceiver<Box<Event>>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await.map(|event| *event),
        None => std::future::pending().await,
    }
}

/// A monitor's count, in the daemon's words.
pub(super) fn lost_output(lost: Lost) -> LostOutput {
    LostOutput { entries: lost.entries, bytes: lost.bytes }
}

impl Owner {
    pub(super) async fn on_event(&mut self, event: Option<Event>) {
        match event {
            Some(event) => self.note_event(event).await,
            None => self.connect_again().await,
        }
    }

    /// Takes note of what the monitor reports, also while an end is waited for.
    pub(super) async fn note_event(&mut self, event: Event) {
        match event {
            Event::Exited { container, exit } => {
                if let Ok(id) = container.parse() {
                    self.note_exit(&id, &exit).await;
                }
            }
            Event::LogLost { container, loss } => {
                if let Ok(id) = container.parse() {
                    self.note_loss(&id, &loss);
                }
            }
            // The monitor's client hands these to whoever waits for the exec.
            Event::ExecExited { .. } => {}
        }
    }

    /// A container's log did not take all of its output.
    fn note_loss(&mut self, id: &ContainerId, loss: &LogLoss) {
        let pod = self.record.id.clone();
        let Some(container) = self.record.container_mut(id) else { return };
        let error = std::io::Error::from_raw_os_error(loss.errno);
        let (log, Lost { entries, bytes }) = (loss.path.display(), loss.lost);
        warn!(pod = pod.short(), container = id.short(), %log, entries, bytes, %error, "output of a container is missing in its log");
        container.lost_output = lost_output(loss.lost);
        self.note();
    }

    /// A container's first process has ended, as its monitor saw.
    pub(super) async fn note_exit(&mut self, id: &ContainerId, exit: &ExitRecord) {
        let seen = Exit { code: ExitCode::Known(exit.code), at: exit.at, oom_killed: exit.oom_killed };
        self.note_end(id, Some(exit.started_at), seen, String::new()).await;
    }

    /// A container has ended: that is put on record and published, then whatever is left of it in the kernel goes. If its daemon
    /// does not live to see to that, the next one does.
    pub(super) async fn note_end(&mut self, id: &ContainerId, started_at: Option<i64>, exit: Exit, message: String) {
        let pod = self.record.id.clone();
        let Some(container) = self.record.container_mut(id) else { return };
        if container.has_ended() {
            return;
        }
        info!(pod = pod.short(), container = id.short(), ?exit, message, "container ended");
        container.phase = ContainerPhase::Exited { started_at, exit, message };
        self.asked_to_end.remove(id);
        let live = self.containers.remove(id);
        self.note();
        if let Some(live) = live {
            live.ended.send_replace(true);
            self.end_remains(id).await;
        }
    }

    /// Makes sure that nothing is left in the kernel of a container that has ended. What shares a pid namespace outlives its
    /// first process; its cgroup says who that is.
    pub(super) async fn end_remains(&self, id: &ContainerId) {
        let hierarchy = &self.shared.hierarchy;
        let removed = cgroups::remove_container(hierarchy, &Subject::of(&self.record).location(hierarchy, id)).await;
        if let Err(error) = removed {
            warn!(container = id.short(), %error, "the cgroup of an ended container is left for its removal");
        }
    }
}
