//! From a request to a Plan: what a container is made from is found or made, and then it is decided how it is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cgroup::{Cgroup, VisibleHierarchy};
use coracle_domain::{ContainerId, ContainerPhase, ContainerRequest, During, IpcMode, NetworkMode, PidMode, Profile, Refusal, Result};
use coracle_image::{Image, Rootfs};
use coracle_plan::Cgroups;
use coracle_spec::{
    CgroupHierarchy, CgroupView, ContainerSpec, DeviceNode, ImageDefaults, Layers, NamespacePaths, Node, Placement, PodFiles, ResolvedUser,
    SelinuxLabels, UserDatabase,
};

use super::Owner;
use super::teardown::Subject;
use crate::live::Model;
use crate::volumes::{self, ImageVolumes, Looks};
use crate::{apparmor, cgroups, node, record, selinux};

/// What a container is made from, beside what its request says itself.
#[derive(Debug)]
pub(super) struct Parts {
    /// What its image says of it.
    pub(super) image: ImageDefaults,
    /// Who it runs as.
    pub(super) user: ResolvedUser,
    /// The images among its volumes.
    pub(super) volumes: ImageVolumes,
    rootfs: Rootfs,
    devices: Vec<DeviceNode>,
    /// The system call profile of the node that it names.
    profile: Option<Vec<u8>>,
}

impl Owner {
    /// Finds or makes what the container is made from; what is made goes with its rootfs.
    pub(super) async fn gather(&self, id: &ContainerId, request: &ContainerRequest, image: &Image) -> Result<Parts> {
        let images = &self.shared.images;
        let rootfs = images.prepare_rootfs(&image.id, id, self.record.request.user_namespace).await?;
        let user = resolve_user(request, image, &rootfs).await?;
        volumes::sources(&self.shared.looks, request).await?;
        Ok(Parts {
            image: image_defaults(image),
            user,
            volumes: volumes::images(images, request, id).await?,
            rootfs,
            devices: volumes::devices(&self.shared.looks, request).await?,
            profile: seccomp_profile(&self.shared.looks, request).await?,
        })
    }

    /// Decides how the container is run, and makes the cgroup it is run in.
    pub(super) async fn plan_container(&self, id: &ContainerId, request: &ContainerRequest, parts: &Parts) -> Result<(Cgroup, Model)> {
        let node = self.node_for(request);
        apparmor::check(&request.security, node.apparmor.as_ref())?;
        let cgroup = self.make_cgroup(id, request, &parts.devices).await?;
        let spec = ContainerSpec {
            id,
            request,
            pod_id: &self.record.id,
            pod: &self.record.request,
            image: &parts.image,
            user: &parts.user,
            node: &node,
            image_volumes: &parts.volumes.layers,
            devices: &parts.devices,
            files: &self.files(),
            namespaces: &self.namespaces(request),
            cgroup: &cgroup_view(&cgroup),
            cgroups_path: &cgroup.location().absolute(),
            seccomp_profile: parts.profile.as_deref(),
        };
        if let Some(labels) = spec.selinux_labels() {
            self.give_labels(request, labels).await?;
        }
        let model = self.write_plan(&spec, &parts.rootfs, &cgroup)?;
        Ok((cgroup, model))
    }

    /// Finds out whether the policy has a container's labels, and gives them to its volumes.
    async fn give_labels(&self, request: &ContainerRequest, labels: SelinuxLabels) -> Result<()> {
        let file = labels.file.clone();
        cgroups::blocking(move || selinux::check(&labels)).await?;
        volumes::relabel(&self.shared.looks, request, &file).await
    }

    async fn make_cgroup(&self, id: &ContainerId, request: &ContainerRequest, devices: &[DeviceNode]) -> Result<Cgroup> {
        let hierarchy = Arc::clone(&self.shared.hierarchy);
        let location = Subject::of(&self.record).location(&hierarchy, id)?;
        let rules = coracle_spec::device_rules(request.security.privileged, devices);
        let resources = request.resources.clone();
        cgroups::blocking(move || Cgroup::create(&hierarchy, location, &resources, &rules)).await
    }

    /// Leaves the Plan, for the monitor, and the OCI spec that it follows from, for people, in the container's directory.
    fn write_plan(&self, spec: &ContainerSpec<'_>, rootfs: &Rootfs, cgroup: &Cgroup) -> Result<Model> {
        let directory = self.directory.container(spec.id);
        let handler = self.shared.handlers.resolve(self.record.request.handler.as_ref())?;
        let description = coracle_spec::oci_spec_for(spec)?;
        let Rootfs { lower, upper, work, .. } = rootfs.clone();
        let placement = Placement {
            root: directory.rootfs(),
            layers: Layers { lower, upper, work },
            cgroups: Cgroups { unified: cgroup.unified_dir(), join: cgroup.join_paths() },
        };
        let plan = handler.plan(&description, placement)?;
        record::replace(&directory.plan(), &plan).during("writing the container's plan", directory.plan().display())?;
        record::replace(&directory.spec(), &description.spec).during("writing the container's spec", directory.spec().display())?;
        Ok(Model::new(plan.process, plan.namespaces))
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
            pid: self.pid_namespace(&request.pid),
            user: pod.user_namespace.map(|_| self.directory.pin("user")),
            time: (!pod.time_offsets.is_empty()).then(|| self.directory.pin("time")),
        }
    }

    /// Where the process ids are that a container shares. Those of another one are not pinned, and end with its first process.
    fn pid_namespace(&self, mode: &PidMode) -> Option<PathBuf> {
        match mode {
            PidMode::Pod => Some(self.directory.pin("pid")),
            PidMode::Target(target) => match self.record.container(target)?.phase {
                ContainerPhase::Running { pid, .. } => Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
                ContainerPhase::Created | ContainerPhase::Exited { .. } => None,
            },
            PidMode::Container | PidMode::Node => None,
        }
    }
}

/// Who the container runs as, by the databases in its image.
async fn resolve_user(request: &ContainerRequest, image: &Image, rootfs: &Rootfs) -> Result<ResolvedUser> {
    let rootfs = rootfs.clone();
    let (passwd, group) = cgroups::blocking(move || {
        let read = |path| coracle_image::read_file(&rootfs, Path::new(path), coracle_spec::LARGEST_DATABASE as u64);
        Ok((read("/etc/passwd")?.unwrap_or_default(), read("/etc/group")?.unwrap_or_default()))
    })
    .await?;
    UserDatabase::new(&passwd, &group)?.resolve(&request.security, image.user().unwrap_or_default(), &request.image.asked)
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

/// What a container sees under /sys/fs/cgroup: on v1 the directories of its own cgroup, one per hierarchy.
fn cgroup_view(cgroup: &Cgroup) -> CgroupView {
    let hierarchies: Vec<_> = cgroup.visible().into_iter().map(hierarchy).collect();
    if hierarchies.is_empty() { CgroupView::Unified } else { CgroupView::Hierarchies(hierarchies) }
}

fn hierarchy(VisibleHierarchy { name, directory }: VisibleHierarchy) -> CgroupHierarchy {
    let aliases = if name.contains(',') { name.split(',').map(str::to_owned).collect() } else { Vec::new() };
    CgroupHierarchy { name, source: directory, aliases }
}

/// The profile that a request names; a privileged container has none, whatever it names.
async fn seccomp_profile(looks: &Looks, request: &ContainerRequest) -> Result<Option<Vec<u8>>> {
    let security = &request.security;
    match &security.seccomp {
        Profile::Localhost(path) if !security.privileged => {
            let (path, place) = (Path::new(path), PathBuf::from(path));
            looks.look("reading the seccomp profile", path, move || read_profile(&place)).await.map(Some)
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
    fn controllers_that_are_mounted_together_are_found_by_either_name() {
        let aliases = |name: &str| hierarchy(VisibleHierarchy { name: name.to_owned(), directory: PathBuf::from("/x") }).aliases;
        assert_eq!(aliases("cpu,cpuacct"), ["cpu", "cpuacct"]);
        assert!(aliases("memory").is_empty());
    }

    #[test]
    fn a_profile_is_read_from_a_regular_file_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("profile.json");
        fs::write(&file, "{}").unwrap();
        assert_eq!(read_profile(&file).unwrap(), b"{}");
        for path in [directory.path(), Path::new("/dev/zero"), Path::new("/no/such/profile")] {
            let error = read_profile(path).unwrap_err();
            assert!(matches!(error, coracle_domain::Error::Refused(_)) && error.to_string().contains(&*path.to_string_lossy()), "{error}");
        }
    }
}
