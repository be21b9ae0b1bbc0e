//! From the OCI spec to the Plan: every line of the spec becomes kernel operations, in the order that works.
//!
//! ```text
//! Propagate ─ Overlay ─ the image's directories ─ file systems, with nodes and links in /dev ─ volumes ─ other nodes
//!           ─ working directory ─ ReadOnly ─ Mask ─ PivotRoot ─ ReadOnlyRoot
//! ```
//!
//! Masks come after read-only paths: making a path read-only mounts it on itself, which would uncover what is masked
//! beneath it. /dev is filled before volumes are mounted: an image that has a link there cannot have nodes made in one.

use std::path::{Path, PathBuf};

use coracle_domain::{Refusal, Result};
use coracle_plan::{Bytes, Cgroups, DeviceKind, Namespaces, Plan, Process, Propagation, Rlimit, Step, User};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Mount, PosixRlimit, PosixRlimitType, Spec};

use crate::mounts::ImageVolume;
use crate::options::MountOptions;
use crate::{Description, args, capabilities, cgroup, environment, user_namespace};

/// RLIMIT_NOFILE (asm-generic/resource.h).
const OPEN_FILES: u32 = 7;

/// Links in a /dev of our own.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What a root file system is made of; paths of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// Read-only layers, the top one first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs' own directory, beside `upper`.
    pub work: PathBuf,
}

/// Where a container is put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// An empty directory to put the root file system together on.
    pub root: PathBuf,
    /// What that is made of.
    pub layers: Layers,
    /// The cgroups to be born in.
    pub cgroups: Cgroups,
}

/// Plans a described container. Refused or failed: its system call filter could not be compiled.
pub fn plan(description: &Description, placement: Placement) -> Result<Plan> {
    let spec = &description.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| incomplete("linux"))?;
    let process = process(description)?;
    let cgroup_namespace = linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    Ok(Plan {
        cgroups: placement.cgroups,
        namespaces: Namespaces { pid: description.pid.clone(), cgroup: cgroup_namespace, user: user_namespace::of_oci(linux) },
        root: placement.root,
        steps: steps(description, linux, placement.layers, &process.working_directory),
        process,
    })
}

/// A program to run in a container beside its first process, as the same user with the same rights.
pub fn exec_process(container: &Process, command: &[String], terminal: bool) -> Result<Process> {
    if command.is_empty() {
        return Err(Refusal::invalid("cmd", "no command is given").into());
    }
    let arguments = args::checked(command.to_vec())?.into_iter().map(Bytes::from).collect();
    let environment = container.environment.clone();
    let environment = if terminal { environment::with_terminal(environment) } else { environment };
    Ok(Process { arguments, environment, terminal, ..container.clone() })
}

fn incomplete(part: &str) -> Refusal {
    Refusal::invalid("spec", format!("the OCI spec has no {part}"))
}

fn process(description: &Description) -> Result<Process> {
    let oci = description.spec.process().as_ref().ok_or_else(|| incomplete("process"))?;
    let user = oci.user();
    Ok(Process {
        arguments: oci.args().iter().flatten().cloned().map(Bytes::from).collect(),
        environment: description.environment.entries(),
        working_directory: Bytes(oci.cwd().as_os_str().as_encoded_bytes().to_vec()),
        user: User { uid: user.uid(), gid: user.gid(), groups: user.additional_gids().clone().unwrap_or_default() },
        capabilities: oci.capabilities().as_ref().map(capabilities::of_oci).unwrap_or_default(),
        no_new_privileges: oci.no_new_privileges().unwrap_or_default(),
        seccomp: description.seccomp.filter()?,
        apparmor: oci.apparmor_profile().clone(),
        selinux: oci.selinux_label().clone(),
        rlimits: oci.rlimits().iter().flatten().filter_map(rlimit).collect(),
        oom_score_adj: oci.oom_score_adj(),
        terminal: oci.terminal().unwrap_or_default(),
    })
}

fn rlimit(limit: &PosixRlimit) -> Option<Rlimit> {
    // Nothing else is ever asked for.
    let resource = (limit.typ() == PosixRlimitType::RlimitNofile).then_some(OPEN_FILES)?;
    Some(Rlimit { resource, soft: limit.soft(), hard: limit.hard() })
}

fn steps(description: &Description, linux: &Linux, layers: Layers, working_directory: &Bytes) -> Vec<Step> {
    let spec = &description.spec;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut steps = vec![
        Step::Propagate(if linux.rootfs_propagation().as_deref() == Some("rshared") { Propagation::Shared } else { Propagation::Slave }),
        Step::Overlay { lower: layers.lower, upper: layers.upper, work: layers.work, label: linux.mount_label().clone() },
    ];
    // Before all mounts: an image's wish must not make directories in the node's.
    steps.extend(description.volumes.iter().map(|volume| directory(volume)));
    let own_dev = mounts.iter().any(is_own_dev);
    let (in_dev, elsewhere): (Vec<_>, Vec<_>) =
        linux.devices().iter().flatten().filter(|_| own_dev).partition(|device| device.path().starts_with("/dev"));
    let mut images = description.image_volumes.iter();
    for mount in mounts {
        steps.extend(mount_steps(mount, description, &mut images));
        if is_own_dev(mount) {
            steps.extend(in_dev.iter().filter_map(|node| device(node)));
            steps.extend(LINKS.map(|(target, content)| Step::Symlink { target: target.into(), content: content.into() }));
        }
    }
    steps.extend(elsewhere.into_iter().filter_map(device));
    if working_directory.as_path() != Path::new("/") {
        steps.push(directory(working_directory.as_path()));
    }
    steps.extend(linux.readonly_paths().iter().flatten().map(|path| Step::ReadOnly { target: path.into() }));
    steps.extend(linux.masked_paths().iter().flatten().map(|path| Step::Mask { target: path.into() }));
    steps.push(Step::PivotRoot);
    if read_only_root(spec) {
        steps.push(Step::ReadOnlyRoot);
    }
    steps
}

fn read_only_root(spec: &Spec) -> bool {
    spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default()
}

/// Whether it is a /dev for the container alone, and not one that the request supplies.
fn is_own_dev(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs")
}

fn directory(target: &Path) -> Step {
    Step::Directory { target: target.to_owned(), mode: 0o755 }
}

fn mount_steps<'a>(mount: &Mount, description: &Description, images: &mut impl Iterator<Item = &'a ImageVolume>) -> Vec<Step> {
    let options = MountOptions::of(mount.options().as_deref().unwrap_or_default());
    let (source, target) = (mount.source().clone().unwrap_or_default(), mount.destination().clone());
    match mount.typ().as_deref().unwrap_or_default() {
        "bind" => vec![Step::Bind {
            source,
            target,
            recursive: options.recursive,
            flags: options.flags,
            flags_beneath: options.flags_beneath,
            propagation: options.propagation,
            mapped: mount.uid_mappings().is_some(),
        }],
        "overlay" => {
            let step = |image: &ImageVolume| Step::Image {
                lower: image.layers.clone(),
                sub_path: image.sub_path.clone(),
                target,
                flags: options.flags,
            };
            images.next().map(step).into_iter().collect()
        }
        "cgroup" => {
            let linux = description.spec.linux().as_ref();
            let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
            let own = namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
            cgroup::steps(&description.cgroup, &target, options.flags, own)
        }
        kind => {
            let label = description.spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
            let (labelled, after) = label.map_or((None, None), |label| labelling(kind, &target, label));
            let source = source.to_string_lossy().into_owned();
            let data = options.data.into_iter().chain(labelled).collect();
            let mounted = Step::Filesystem { kind: kind.to_owned(), source, target, flags: options.flags, options: data };
            std::iter::once(mounted).chain(after).collect()
        }
    }
}

/// How a new file system gets an SELinux label: by an option, or after it was mounted. proc and sysfs have their own.
fn labelling(kind: &str, target: &Path, label: &str) -> (Option<(String, Option<String>)>, Option<Step>) {
    match kind {
        "tmpfs" | "devpts" => (Some(("context".to_owned(), Some(label.to_owned()))), None),
        // The pod's namespace has mounted it before, without a label, and the two must not differ.
        "mqueue" => (None, Some(Step::Label { target: target.to_owned(), label: label.to_owned() })),
        _ => (None, None),
    }
}

/// A device's step; `None` for what has no node of that sort.
fn device(device: &LinuxDevice) -> Option<Step> {
    let kind = match device.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return None,
    };
    Some(Step::Device {
        target: device.path().clone(),
        kind,
        major: device.major().try_into().ok()?,
        minor: device.minor().try_into().ok()?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or_default(),
        gid: device.gid().unwrap_or_default(),
    })
}
