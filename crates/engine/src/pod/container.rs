//! Making, starting and changing the containers of a pod.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cgroup::Cgroup;
use coracle_domain::{
    ContainerId, ContainerPhase, ContainerRequest, During, Error, Exit, ExitCode, IpcMode, NetworkMode, PidMode, PodPhase, Profile,
    Refusal, Resources, Result,
};
use coracle_image::{Image, Rootfs};
use coracle_monitor::protocol::{OomSource, Start};
use coracle_plan::{Cgroups, Plan};
use coracle_spec::{
    CgroupHierarchy, CgroupView, ContainerSpec, DeviceNode, ImageDefaults, Layers, NamespacePaths, Node, Placement, PodFiles, ResolvedUser,
    SelinuxLabels, UserDatabase, signal_number,
};

use super::Owner;
use super::teardown::Subject;
use crate::deadline::{ANSWER, SET_UP, within};
use crate::layout::ContainerDirectory;
use crate::live::LiveContainer;
use crate::record::{self, ContainerRecord};
use crate::{apparmor, cgroups, clock, node, retry, selinux, volumes};

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
        let rootfs = self.shared.images.prepare_rootfs(&image.id, id, self.record.request.user_namespace).await?;
        let image_defaults = image_defaults(&image);
        let user = self.resolve_user(&request, &image, &rootfs).await?;
        volumes::sources(&request).await?;
        let volumes = volumes::images(&self.shared.images, &request, id).await?;
        let (cgroup, process) = self.plan_container(id, &request, &image_defaults, &user, rootfs, &volumes.layers).await?;
        let log_path = log_path(self.record.request.log_directory.as_deref(), &request);
        if let Some(path) = &log_path {
            make_log(path)?;
        }
        self.record.containers.push(ContainerRecord {
            id: id.clone(),
            image: image.id.clone(),
            volume_images: volumes.images,
            phase: ContainerPhase::Created,
            created_at: clock::now(),
            resources: request.resources.clone(),
            user: (user.uid, user.gid, user.groups.clone()),
            stop_signal: stop_signal(&request, &image_defaults)?,
            log_path,
            request: Arc::new(request),
        });
        self.containers.insert(id.clone(), Arc::new(LiveContainer::new(Arc::new(cgroup), Arc::new(process))));
        self.commit()
    }

    fn image_of(&self, request: &ContainerRequest) -> Result<Arc<Image>> {
        let asked = &request.image.asked;
        self.shared.images.find(asked).ok_or_else(|| Refusal::not_found("image", asked.as_str()).into())
    }

    /// Who the container runs as, by the databases in its image.
    async fn resolve_user(&self, request: &ContainerRequest, image: &Image, rootfs: &Rootfs) -> Result<ResolvedUser> {
        let rootfs = rootfs.clone();
        let (passwd, group) = cgroups::blocking(move || {
            let read = |path| coracle_image::read_file(&rootfs, Path::new(path), coracle_spec::LARGEST_DATABASE as u64);
            Ok((read("/etc/passwd")?.unwrap_or_default(), read("/etc/group")?.unwrap_or_default()))
        })
        .await?;
        UserDatabase::new(&passwd, &group)?.resolve(&request.security, image.user().unwrap_or_default(), &request.image.asked)
    }

    /// Decides how the container is run, and makes the cgroup it is run in.
    async fn plan_container(
        &self,
        id: &ContainerId,
        request: &ContainerRequest,
        image: &ImageDefaults,
        user: &ResolvedUser,
        rootfs: Rootfs,
        image_volumes: &[Vec<PathBuf>],
    ) -> Result<(Cgroup, coracle_plan::Process)> {
        let hierarchy = Arc::clone(&self.shared.hierarchy);
        let location = Subject::of(&self.record).location(&hierarchy, id)?;
        let node = self.node_for(request);
        let devices = devices(request)?;
        let profile = seccomp_profile(request).await?;
        apparmor::check(&request.security, node.apparmor.as_ref())?;
        let cgroups_path = location.absolute();
        let rules = coracle_spec::device_rules(request.security.privileged, &devices);
        let resources = request.resources.clone();
        let cgroup = cgroups::blocking(move || Cgroup::create(&hierarchy, location, &resources, &rules)).await?;
        let spec = ContainerSpec {
            id,
            request,
            pod_id: &self.record.id,
            pod: &self.record.request,
            image,
            user,
            node: &node,
            image_volumes,
            devices: &devices,
            files: &self.files(),
            namespaces: &self.namespaces(request),
            cgroup: &cgroup_view(&cgroup),
            cgroups_path: &cgroups_path,
            seccomp_profile: profile.as_deref(),
        };
        let handler = self.shared.handlers.resolve(self.record.request.handler.as_ref())?;
        if let Some(labels) = spec.selinux_labels() {
            give_labels(request, labels).await?;
        }
        let description = coracle_spec::oci_spec_for(&spec)?;
        let placement = Placement {
            root: self.directory.container(id).rootfs(),
            layers: Layers { lower: rootfs.lower, upper: rootfs.upper, work: rootfs.work },
            cgroups: Cgroups { unified: cgroup.unified_dir(), join: cgroup.join_paths() },
        };
        let plan: Plan = handler.plan(&description, placement)?;
        let directory = self.directory.container(id);
        record::replace(&directory.plan(), &plan).during("writing the container's plan", directory.plan().display())?;
        record::replace(&directory.spec(), &description.spec).during("writing the container's spec", directory.spec().display())?;
        Ok((cgroup, plan.process))
    }

    fn node_for(&self, request: &ContainerRequest) -> Node {
        if request.security.privileged { node::with_devices(&self.shared.node) } else { self.shared.node.clone() }
    }

    fn files(&self) -> PodFiles {
        let shm = match self.record.request.ipc {
            IpcMode::Pod => self.directory.shm(),
            IpcMode::Node => PathBuf::from("/dev/shm"),
        };
        PodFiles {
            resolv_conf: Some(self.directory.etc("resolv.conf")),
            hostname: Some(self.directory.etc("hostname")),
            hosts: Some(self.directory.etc("hosts")),
            shm: Some(shm),
        }
    }

    fn namespaces(&self, request: &ContainerRequest) -> NamespacePaths {
        let pod = &self.record.request;
        let own_network = pod.network == NetworkMode::Pod;
        NamespacePaths {
            network: own_network.then(|| self.directory.pin("net")),
            ipc: (pod.ipc == IpcMode::Pod).then(|| self.directory.pin("ipc")),
            uts: own_network.then(|| self.directory.pin("uts")),
            pid: (request.pid == PidMode::Pod).then(|| self.directory.pin("pid")),
            user: pod.user_namespace.map(|_| self.directory.pin("user")),
            time: (!pod.time_offsets.is_empty()).then(|| self.directory.pin("time")),
        }
    }

    pub(super) async fn start_container(&mut self, id: &ContainerId) -> Result<()> {
        self.must_be_ready("start containers")?;
        let container = self.container(id)?;
        if container.phase != ContainerPhase::Created {
            return Err(Refusal::wrong_state(format!("container {id} was started before")).into());
        }
        let directory = self.directory.container(id);
        let start = Start {
            container: id.to_string(),
            plan: directory.plan(),
            exit: directory.exit(),
            log: container.log_path.clone(),
            stdin: container.request.stdin,
            oom: self.oom_source(id),
        };
        match within(SET_UP, "starting container", id.as_str(), self.monitor()?.start(start)).await {
            Ok(started) => {
                let container = self.container_mut(id)?;
                container.phase = ContainerPhase::Running { pid: started.pid, started_at: started.at };
                self.commit()
            }
            Err(error) => {
                self.note_failed_start(id, &error).await;
                Err(error)
            }
        }
    }

    /// A container that could not start has ended, and there is no exit status to tell of.
    async fn note_failed_start(&mut self, id: &ContainerId, error: &Error) {
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
        let (cgroup, wanted) = (Arc::clone(&live.cgroup), resources.clone());
        cgroups::blocking(move || cgroup.update(&wanted)).await?;
        self.container_mut(id)?.resources = resources;
        self.commit()
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
    DirBuilder::new().recursive(true).mode(0o711).create(&path).during("making the container's directory", path.display())
}

/// The log is there from the start, so that readers need not wait for it.
fn make_log(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).during("making the log's directory", parent.display())?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    file.map(drop).during("making the container's log", path.display())
}

fn log_path(directory: Option<&Path>, request: &ContainerRequest) -> Option<PathBuf> {
    request.log_path.as_ref().and_then(|path| Some(directory?.join(path)))
}

fn image_defaults(image: &Image) -> ImageDefaults {
    let Some(config) = image.config.config() else { return ImageDefaults::default() };
    ImageDefaults {
        user: config.user().clone().unwrap_or_default(),
        environment: config.env().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        working_directory: config.working_dir().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
        volumes: config.volumes().clone().unwrap_or_default(),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
    }
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

/// What a container sees under /sys/fs/cgroup: on v1 the directories of its own cgroup, one per hierarchy.
fn cgroup_view(cgroup: &Cgroup) -> CgroupView {
    let own = cgroup.visible().into_iter();
    let hierarchies: Vec<_> = own.map(|own| CgroupHierarchy { name: own.name, source: own.directory, aliases: Vec::new() }).collect();
    if hierarchies.is_empty() { CgroupView::Unified } else { CgroupView::Hierarchies(hierarchies) }
}

/// Finds out whether the policy has a container's labels, and gives them to its volumes.
async fn give_labels(request: &ContainerRequest, labels: SelinuxLabels) -> Result<()> {
    let request = request.clone();
    cgroups::blocking(move || {
        selinux::check(&labels)?;
        selinux::relabel_volumes(&request, &labels)
    })
    .await
}

fn devices(request: &ContainerRequest) -> Result<Vec<DeviceNode>> {
    let mut devices = Vec::new();
    for device in &request.devices {
        devices.extend(node::requested(device)?);
    }
    Ok(devices)
}

/// The profile that a request names; a privileged container has none, whatever it names.
async fn seccomp_profile(request: &ContainerRequest) -> Result<Option<Vec<u8>>> {
    let security = &request.security;
    match &security.seccomp {
        Profile::Localhost(path) if !security.privileged => {
            let path = PathBuf::from(path);
            cgroups::blocking(move || read_profile(&path)).await.map(Some)
        }
        _ => Ok(None),
    }
}

fn read_profile(path: &Path) -> Result<Vec<u8>> {
    let refused = |problem: String| Refusal::invalid("linux.security_context.seccomp", format!("profile {path:?}: {problem}"));
    let metadata = fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    // A pipe could be waited for, and a device read, for ever.
    if !metadata.is_file() {
        return Err(refused("it is no regular file".to_owned()).into());
    }
    if metadata.len() > coracle_spec::seccomp::LARGEST_PROFILE as u64 {
        return Err(refused(format!("{} bytes are too many", metadata.len())).into());
    }
    fs::read(path).during("reading the seccomp profile", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_a_regular_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("profile.json");
        fs::write(&file, "{}").unwrap();
        assert_eq!(read_profile(&file).unwrap(), b"{}");
        for path in [directory.path(), Path::new("/dev/zero"), Path::new("/no/such/profile")] {
            let error = read_profile(path).unwrap_err();
            assert!(matches!(error, Error::Refused(_)) && error.to_string().contains(&*path.to_string_lossy()), "{error}");
        }
    }
}
