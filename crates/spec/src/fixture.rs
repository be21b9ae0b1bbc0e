//! What the tests of this crate describe: an ordinary container in an ordinary pod, to be changed to taste.

use std::path::{Path, PathBuf};

use coracle_domain::{
    ContainerId, ContainerMetadata, ContainerRequest, DeviceAccess, DeviceKind, ImageIdentity, IpcMode, Mount, MountSource, NetworkMode,
    PidMode, PodId, PodMetadata, PodRequest, Profile, Propagation, Resources, SecurityContext,
};

use crate::{AppArmor, CgroupView, ContainerSpec, DeviceNode, ImageDefaults, NamespacePaths, Node, PodFiles, ResolvedUser};

/// Everything a [`ContainerSpec`] borrows.
pub(crate) struct Fixture {
    pub(crate) id: ContainerId,
    pub(crate) request: ContainerRequest,
    pub(crate) pod_id: PodId,
    pub(crate) pod: PodRequest,
    pub(crate) image: ImageDefaults,
    pub(crate) user: ResolvedUser,
    pub(crate) node: Node,
    pub(crate) image_volumes: Vec<Vec<PathBuf>>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) files: PodFiles,
    pub(crate) namespaces: NamespacePaths,
    pub(crate) cgroup: CgroupView,
    pub(crate) seccomp_profile: Option<Vec<u8>>,
}

impl Fixture {
    pub(crate) fn spec(&self) -> ContainerSpec<'_> {
        ContainerSpec {
            id: &self.id,
            request: &self.request,
            pod_id: &self.pod_id,
            pod: &self.pod,
            image: &self.image,
            user: &self.user,
            node: &self.node,
            image_volumes: &self.image_volumes,
            devices: &self.devices,
            files: &self.files,
            namespaces: &self.namespaces,
            cgroup: &self.cgroup,
            cgroups_path: Path::new("/kubepods/pod1/c1"),
            seccomp_profile: self.seccomp_profile.as_deref(),
        }
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            id: "c0".repeat(32).parse().unwrap(),
            request: request(),
            pod_id: "b0".repeat(32).parse().unwrap(),
            pod: pod(),
            image: ImageDefaults {
                environment: vec!["PATH=/bin".into(), "LANG=C".into()],
                entrypoint: vec!["/entry".into()],
                ..ImageDefaults::default()
            },
            user: ResolvedUser { uid: 0, gid: 0, groups: vec![0], home: "/root".into() },
            node: Node {
                hostname: "node-1".into(),
                capabilities: (1 << 41) - 1,
                devices: vec![device("/dev/sda", 8, 0)],
                apparmor: Some(AppArmor { default_profile: Some("coracle-default".into()) }),
                selinux: None,
                kernel: (6, 12),
                open_files: None,
            },
            image_volumes: Vec::new(),
            devices: Vec::new(),
            files: PodFiles {
                resolv_conf: Some("/run/pod/resolv.conf".into()),
                hostname: Some("/run/pod/hostname".into()),
                hosts: Some("/run/pod/hosts".into()),
                shm: Some("/run/pod/shm".into()),
            },
            namespaces: NamespacePaths {
                network: Some("/run/pod/net".into()),
                ipc: Some("/run/pod/ipc".into()),
                uts: Some("/run/pod/uts".into()),
                pid: None,
                user: None,
                time: None,
            },
            cgroup: CgroupView::Unified,
            seccomp_profile: None,
        }
    }
}

pub(crate) fn request() -> ContainerRequest {
    ContainerRequest {
        metadata: ContainerMetadata { name: "app".into(), attempt: 0 },
        image: ImageIdentity {
            asked: "registry.test/app:1".into(),
            user_specified: String::new(),
            annotations: Default::default(),
            handler: None,
        },
        command: vec!["/bin/app".into()],
        args: vec!["--serve".into()],
        working_directory: None,
        environment: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: None,
        stdin: false,
        stdin_once: false,
        terminal: false,
        pid: PidMode::Container,
        resources: Resources { cpu_shares: Some(512), memory_limit: Some(64 << 20), oom_score_adj: 900, ..Resources::default() },
        security: SecurityContext {
            masked_paths: vec!["/proc/kcore".into(), "/sys/firmware".into()],
            read_only_paths: vec!["/proc/sys".into()],
            seccomp: Profile::RuntimeDefault,
            apparmor: Some(Profile::RuntimeDefault),
            ..SecurityContext::default()
        },
        stop_signal: None,
    }
}

fn pod() -> PodRequest {
    PodRequest {
        metadata: PodMetadata { name: "web".into(), uid: "u-1".into(), namespace: "default".into(), attempt: 0 },
        handler: None,
        hostname: Some("web-0".into()),
        log_directory: None,
        dns: None,
        ports: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: Some("/kubepods/pod1".into()),
        network: NetworkMode::Pod,
        pid: PidMode::Container,
        ipc: IpcMode::Pod,
        sysctls: Default::default(),
        security: SecurityContext::default(),
        resources: None,
        overhead: None,
        user_namespace: None,
        time_offsets: Default::default(),
    }
}

/// A block device that may be read and written.
pub(crate) fn device(path: &str, major: u32, minor: u32) -> DeviceNode {
    let access = DeviceAccess { read: true, write: true, mknod: false };
    DeviceNode { path: path.into(), kind: DeviceKind::Block, major, minor, mode: 0o660, uid: 0, gid: 6, access }
}

/// A writable volume.
pub(crate) fn volume(target: &str) -> Mount {
    Mount {
        target: target.into(),
        source: MountSource::Host(format!("/volumes{target}").into()),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        relabel: false,
        options: Vec::new(),
        mapping: None,
    }
}

/// An image as a volume.
pub(crate) fn image_volume(target: &str, sub_path: Option<&str>) -> Mount {
    let source =
        MountSource::Image { reference: "model".into(), id: None, sub_path: sub_path.map(PathBuf::from), user_specified: String::new() };
    Mount { source, read_only: true, ..volume(target) }
}
