//! Making, starting and changing the containers of a pod.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_domain::{
    ContainerId, ContainerPhase, ContainerRequest, During, Error, Exit, ExitCode, Failure, FailureKind, PidMode, PodPhase, Refusal,
    Resources, Result,
};
use coracle_failpoint::{Point, reach};
use coracle_image::Image;
use coracle_monitor::client::Started;
use coracle_monitor::protocol::{OomSource, Start};
use coracle_spec::{ImageDefaults, signal_number};
use rustix::fs::OFlags;

use super::Owner;
use super::connection::is_unavailable;
use crate::deadline::{ANSWER, SET_UP, within};
use crate::layout::ContainerDirectory;
use crate::live::LiveContainer;
use crate::record::ContainerRecord;
use crate::{cgroups, clock, retry};

impl Owner {
    /// Makes a container. If any stage fails nothing is left of it.
    pub(super) async fn create_container(&mut self, request: ContainerRequest) -> Result<ContainerId> {
        self.must_be_ready("take containers")?;
        if let Some(container) = self.record.containers.iter().find(|container| container.request.metadata == request.metadata) {
            return retry::same_container(container, &request);
        }
        self.must_have_target(&request.pid)?;
        let id: ContainerId = self.shared.new_id()?;
        match self.make_container(&id, request).await {
            Ok(()) => Ok(id),
            Err(error) => {
                self.record.containers.retain(|container| container.id != id);
                if let Err(left) = self.discard_container(&id).await {
                    tracing::warn!(container = id.short(), error = %left, "a container that failed to be made was not removed");
                }
                Err(error)
            }
        }
    }

    async fn make_container(&mut self, id: &ContainerId, request: ContainerRequest) -> Result<()> {
        let image = self.image_of(&request)?;
        let directory = self.directory.container(id);
        make_directory(&directory)?;
        let parts = self.gather(id, &request, &image).await?;
        let (cgroup, model) = self.plan_container(id, &request, &parts).await?;
        let log_path = log_path(self.record.request.log_directory.as_deref(), &request);
        if let Some(path) = &log_path {
            // Its disk may be dead.
            let place = path.clone();
            self.shared.looks.look("making the log", path, move || make_log(&place)).await?;
            // Here, because it needs descriptors.
            reach(Point::ContainerLog);
        }
        self.record.containers.push(ContainerRecord {
            id: id.clone(),
            image: image.id.clone(),
            volume_images: parts.volumes.images,
            phase: ContainerPhase::Created,
            created_at: clock::now(),
            resources: request.resources.clone(),
            user: (parts.user.uid, parts.user.gid, parts.user.groups),
            stop_signal: stop_signal(&request, &parts.image)?,
            log_path,
            lost_output: Default::default(),
            request: Arc::new(request),
        });
        self.containers.insert(id.clone(), Arc::new(LiveContainer::made(Arc::new(cgroup), model)));
        self.commit()
    }

    fn image_of(&self, request: &ContainerRequest) -> Result<Arc<Image>> {
        let asked = &request.image.asked;
        self.shared.images.find(asked).ok_or_else(|| Refusal::not_found("image", asked.as_str()).into())
    }

    pub(super) async fn start_container(&mut self, id: &ContainerId) -> Result<()> {
        self.must_be_ready("start containers")?;
        let container = self.container(id)?;
        if container.phase != ContainerPhase::Created {
            return Err(Refusal::wrong_state(format!("container {id} was started before")).into());
        }
        if self.may_have_been_started(id) {
            return Err(self.unheard("starting container", id));
        }
        let work = async {
            match self.starting.contains(id) {
                true => self.monitor()?.await_start(id.as_str()).await,
                false => self.monitor()?.start(self.start_of(id, container)).await,
            }
        };
        let outcome = within(SET_UP, "starting container", id.as_str(), work).await;
        self.starting.remove(id);
        match outcome {
            // What became of the start, the monitor has told now, or will.
            Err(error) if is_unavailable(&error) && self.reconnect().await.is_ok() => {
                self.publish();
                Err(error)
            }
            outcome => self.note_start(id, outcome).await,
        }
    }

    /// Whether a start that is not on record is known to nobody but a monitor that has not been heard.
    pub(super) fn may_have_been_started(&self, id: &ContainerId) -> bool {
        let is_unheard = self.is_unheard && self.monitor.is_some();
        is_unheard && self.record.container(id).is_some_and(|container| container.phase == ContainerPhase::Created)
    }

    /// Why nothing can be done that depends on what only the monitor knows.
    pub(super) fn unheard(&self, stage: &'static str, id: &ContainerId) -> Error {
        Failure::new(stage, id, "the pod's monitor does not answer").kind(FailureKind::TimedOut).into()
    }

    fn start_of(&self, id: &ContainerId, container: &ContainerRecord) -> Start {
        let directory = self.directory.container(id);
        Start {
            container: id.to_string(),
            plan: directory.plan(),
            exit: directory.exit(),
            log: container.log_path.clone(),
            stdin: container.request.stdin,
            oom: self.oom_source(id),
        }
    }

    /// Takes note of how a start ended, and passes that on.
    pub(super) async fn note_start(&mut self, id: &ContainerId, outcome: Result<Started>) -> Result<()> {
        match outcome {
            Ok(started) => {
                let container = self.container_mut(id)?;
                container.phase = ContainerPhase::Running { pid: started.pid, started_at: started.at };
                self.note();
                Ok(())
            }
            Err(error) => {
                self.note_failed_start(id, &error).await;
                Err(error)
            }
        }
    }

    /// A container that could not start has ended, and there is no exit status to tell of.
    pub(super) async fn note_failed_start(&mut self, id: &ContainerId, error: &Error) {
        let exit = Exit { code: ExitCode::Unknown, at: clock::now(), oom_killed: false };
        self.note_end(id, None, exit, error.to_string()).await;
    }

    fn oom_source(&self, id: &ContainerId) -> Option<OomSource> {
        let source = self.containers.get(id)?.cgroup.oom_source()?;
        Some(OomSource { path: source.path, key: source.key.to_owned() })
    }

    pub(super) async fn update_container(&mut self, id: &ContainerId, change: &Resources) -> Result<()> {
        let container = self.container(id)?;
        let resources = container.resources.updated_by(change);
        let Some(live) = self.containers.get(id) else {
            return Err(Refusal::wrong_state(format!("container {id} has ended")).into());
        };
        let (live, wanted) = (Arc::clone(live), resources.clone());
        let update = cgroups::blocking(move || {
            let updated = live.cgroup.update(&wanted);
            live.leaves.forget();
            updated
        });
        // Less memory on v1 may have to be written back first, to a disk that is dead.
        within(SET_UP, "changing the limits of container", id.as_str(), update).await?;
        self.container_mut(id)?.resources = resources;
        self.note();
        Ok(())
    }

    pub(super) async fn reopen_log(&mut self, id: &ContainerId) -> Result<()> {
        if !self.container(id)?.is_running() {
            return Err(Refusal::wrong_state(format!("container {id} is not running")).into());
        }
        within(ANSWER, "opening the log of container", id.as_str(), self.monitor()?.reopen_log(id.as_str())).await
    }

    fn must_be_ready(&self, what: &str) -> Result<()> {
        match self.record.phase {
            PodPhase::Ready => Ok(()),
            _ => Err(Refusal::wrong_state(format!("pod sandbox {} is stopped and cannot {what}", self.record.id)).into()),
        }
    }

    /// A container that is to share another's process ids needs that one to run, in this pod.
    fn must_have_target(&self, pid: &PidMode) -> Result<()> {
        let PidMode::Target(target) = pid else { return Ok(()) };
        match self.record.container(target) {
            Some(container) if container.is_running() => Ok(()),
            Some(_) => Err(Refusal::wrong_state(format!("container {target}, whose process ids are to be shared, is not running")).into()),
            None => {
                let problem = format!("there is no container {target} in pod sandbox {}", self.record.id);
                Err(Refusal::invalid("config.linux.security_context.namespace_options.target_id", problem).into())
            }
        }
    }

    fn container(&self, id: &ContainerId) -> Result<&ContainerRecord> {
        self.record.container(id).ok_or_else(|| Refusal::not_found("container", id.as_str()).into())
    }

    fn container_mut(&mut self, id: &ContainerId) -> Result<&mut ContainerRecord> {
        self.record.container_mut(id).ok_or_else(|| Refusal::not_found("container", id.as_str()).into())
    }
}

fn make_directory(directory: &ContainerDirectory) -> Result<()> {
    let path = directory.rootfs();
    DirBuilder::new().recursive(true).mode(0o711).create(&path).during("making the container's directory", path.display())?;
    reach(Point::ContainerDirectory);
    Ok(())
}

/// The log is there from the start, so that readers need not wait for it. A pipe or a link in its place is refused, and a pipe
/// not waited for, as by the monitor.
fn make_log(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).during("making the log's directory", parent.display())?;
    }
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(flags.bits().cast_signed()).open(path);
    file.during("making the container's log", path.display()).map(drop)
}

fn log_path(directory: Option<&Path>, request: &ContainerRequest) -> Option<PathBuf> {
    request.log_path.as_ref().and_then(|path| Some(directory?.join(path)))
}

fn stop_signal(request: &ContainerRequest, image: &ImageDefaults) -> Result<i32> {
    match request.stop_signal {
        Some(signal) => signal.number().ok_or_else(|| Refusal::invalid("stop_signal", format!("{} is no signal", signal.0)).into()),
        None if image.stop_signal.is_empty() => Ok(coracle_spec::SIGTERM),
        None => signal_number(&image.stop_signal).ok_or_else(|| {
            let problem = format!("the image's StopSignal {:?} is no signal", image.stop_signal);
            Refusal::invalid("image", problem).into()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_made_in_its_own_place_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        make_log(&path("pod/app/0.log")).unwrap();
        assert!(path("pod/app/0.log").is_file());
        std::os::unix::fs::symlink(path("elsewhere"), path("link")).unwrap();
        let error = make_log(&path("link")).unwrap_err().to_string();
        assert!(error.contains("link") && !path("elsewhere").exists(), "{error}");
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        // It is refused, and at once: nobody reads from it.
        make_log(&path("pipe")).unwrap_err();
    }
}
