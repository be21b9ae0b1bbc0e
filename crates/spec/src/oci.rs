//! The OCI runtime spec of a container, put together from the parts that the other modules decide.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use coracle_domain::{PidMode, Result};
use coracle_plan::PidNamespace;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Root, Spec};

use crate::mounts::ImageVolume;
use crate::seccomp::Seccomp;
use crate::{CgroupView, ContainerSpec, Environment, capabilities, devices, mounts, process, resources, user_namespace};

/// The version of the OCI runtime specification that is written.
const VERSION: &str = "1.2.0";

/// A container in the OCI's words, and what these have no place for.
#[derive(Clone, PartialEq)]
pub struct Description {
    /// The OCI runtime spec. Its root is `rootfs`, to be replaced by whoever makes one.
    pub spec: Spec,
    /// The environment with its true bytes; the spec has it as text.
    pub environment: Environment,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// What is behind the spec's mount of type `cgroup`.
    pub cgroup: CgroupView,
    /// Which processes it sees.
    pub pid: PidNamespace,
    /// What is behind the spec's mounts of type `overlay`, in their order.
    pub image_volumes: Vec<ImageVolume>,
    /// The image's volumes: directories that are to exist.
    pub volumes: Vec<PathBuf>,
}

impl fmt::Debug for Description {
    /// The spec is left out: it carries the environment's values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Description").field("environment", &self.environment).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// Describes a container. Refused: what the request, its image or the node rule out.
pub fn oci_spec_for(spec: &ContainerSpec<'_>) -> Result<Description> {
    let security = &spec.request.security;
    user_namespace::check(spec)?;
    let environment = process::environment(spec)?;
    let sets = capabilities::sets(security, spec.user.uid, spec.node.capabilities)?;
    let seccomp = Seccomp::chosen(security, sets.bounding, spec.seccomp_profile, spec.node.kernel)?;
    let (mounts, image_volumes) = mounts::mounts(spec)?;
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(security.read_only_rootfs));
    let mut oci = Spec::default();
    oci.set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts))
        .set_process(Some(process::process(spec, &environment, &sets)?))
        .set_annotations(Some(annotations(spec)))
        .set_linux(Some(linux(spec, &seccomp)));
    Ok(Description {
        spec: oci,
        environment,
        seccomp,
        cgroup: spec.cgroup.clone(),
        pid: pid_namespace(&spec.request.pid),
        image_volumes,
        volumes: spec.image.volumes.iter().map(PathBuf::from).filter(|path| path.is_absolute()).collect(),
    })
}

fn linux(spec: &ContainerSpec<'_>, seccomp: &Seccomp) -> Linux {
    let security = &spec.request.security;
    let rules = devices::device_rules(security.privileged, spec.devices);
    let paths = |paths: &[PathBuf]| {
        let shown = if security.privileged { &[] } else { paths };
        Some(shown.iter().map(|path| path.to_string_lossy().into_owned()).collect())
    };
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources::to_oci(&spec.request.resources, &rules)))
        .set_cgroups_path(Some(spec.cgroups_path.to_owned()))
        .set_namespaces(Some(namespaces(spec)))
        .set_uid_mappings(spec.pod.user_namespace.map(|users| user_namespace::to_oci(users.uids)))
        .set_gid_mappings(spec.pod.user_namespace.map(|users| user_namespace::to_oci(users.gids)))
        .set_time_offsets(user_namespace::time_offsets(&spec.pod.time_offsets))
        .set_devices(Some(devices::nodes(spec).iter().map(devices::to_oci).collect()))
        .set_seccomp(seccomp.to_oci())
        .set_rootfs_propagation(mounts::rootfs_propagation(&spec.request.mounts).map(str::to_owned))
        .set_mount_label(spec.selinux_labels().map(|labels| labels.file))
        .set_masked_paths(paths(&security.masked_paths))
        .set_readonly_paths(paths(&security.read_only_paths));
    linux
}

fn namespaces(spec: &ContainerSpec<'_>) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    let mut namespaces = vec![namespace(Mount, None)];
    let shared = [
        (Network, &spec.namespaces.network),
        (Ipc, &spec.namespaces.ipc),
        (Uts, &spec.namespaces.uts),
        (User, &spec.namespaces.user),
        (Time, &spec.namespaces.time),
    ];
    namespaces.extend(shared.into_iter().filter(|(_, path)| path.is_some()).map(|(kind, path)| namespace(kind, path.clone())));
    match spec.request.pid {
        PidMode::Node => {}
        PidMode::Container => namespaces.push(namespace(Pid, None)),
        PidMode::Pod | PidMode::Target(_) => namespaces.push(namespace(Pid, spec.namespaces.pid.clone())),
    }
    // With v1 /proc/self/cgroup must name the directories that are mounted, and the privileged see the node's tree.
    if *spec.cgroup == CgroupView::Unified && !spec.request.security.privileged {
        namespaces.push(namespace(Cgroup, None));
    }
    namespaces
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

fn pid_namespace(mode: &PidMode) -> PidNamespace {
    match mode {
        PidMode::Pod => PidNamespace::Pod,
        PidMode::Container => PidNamespace::New,
        PidMode::Node => PidNamespace::Node,
        PidMode::Target(container) => PidNamespace::Container(container.as_str().to_owned()),
    }
}

/// What OCI runtimes and tools look for to tell what they run, under the keys containerd made usual. The caller's own
/// annotations stay out: runtimes take configuration from them, which is not every caller's to give.
fn annotations(spec: &ContainerSpec<'_>) -> HashMap<String, String> {
    let pod = &spec.pod.metadata;
    let known = [
        ("container-type", "container"),
        ("container-name", &spec.request.metadata.name),
        ("image-name", &spec.request.image.asked),
        ("sandbox-id", spec.pod_id.as_str()),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
    ];
    known.into_iter().map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    #[test]
    fn each_pid_mode_becomes_its_namespace() {
        let mut fixture = Fixture::default();
        let target: coracle_domain::ContainerId = "ab".repeat(32).parse().unwrap();
        let modes = [
            (PidMode::Pod, PidNamespace::Pod, true),
            (PidMode::Container, PidNamespace::New, true),
            (PidMode::Node, PidNamespace::Node, false),
            (PidMode::Target(target.clone()), PidNamespace::Container(target.to_string()), true),
        ];
        for (mode, expected, listed) in modes {
            fixture.request.pid = mode;
            let description = oci_spec_for(&fixture.spec()).unwrap();
            assert_eq!(description.pid, expected);
            let namespaces = description.spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
            assert_eq!(namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid), listed);
        }
    }

    #[test]
    fn debug_output_holds_no_value_of_the_environment() {
        let mut fixture = Fixture::default();
        let secret = coracle_domain::EnvironmentVariable { name: "TOKEN".into(), value: b"hunter2".to_vec() };
        fixture.request.environment = vec![secret];
        let shown = format!("{:?}", oci_spec_for(&fixture.spec()).unwrap());
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
