//! Mounts of a container: the kernel's file systems, the pod's files, the request's volumes, in the order in which they
//! are to be made.
//!
//! What the request supplies takes the place of a default; nothing of ours is put under a directory it supplies in the
//! place of a kernel file system. Parents come before children.

use std::path::{Component, Path, PathBuf};

use coracle_domain::{Failure, FailureKind, Mount as Asked, MountSource, NetworkMode, Propagation, Refusal, Result};
use oci_spec::runtime::Mount;

use crate::{ContainerSpec, user_namespace};

/// Options of CRI's `mount_options` (KEP-5855).
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The first kernel with mount_setattr(2), without which mounts beneath a mount cannot be changed.
const RECURSIVE_CHANGES: (u32, u32) = (5, 12);

const SHM_OPTIONS: &[&str] = &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];

/// A file system of the kernel: target, type, source, options.
type Default = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// What every container has unless it is replaced.
const DEFAULTS: [Default; 4] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
];

/// An image, or a part of it, as a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Its layers, the top one first; paths of the node.
    pub layers: Vec<PathBuf>,
    /// The directory or file in it; `None`: all of it.
    pub sub_path: Option<PathBuf>,
}

/// All mounts, in order, and what is behind those of type `overlay`.
pub(crate) fn mounts(spec: &ContainerSpec<'_>) -> Result<(Vec<Mount>, Vec<ImageVolume>)> {
    let asked: Vec<(PathBuf, &Asked)> = spec.request.mounts.iter().map(|asked| Ok((target(asked)?, asked))).collect::<Result<_>>()?;
    let supplied: Vec<&Path> = asked.iter().map(|(target, _)| target.as_path()).collect();
    let mut mounts = kernel_filesystems(spec);
    mounts.retain(|mount| !supplied.iter().any(|supplied| mount.destination().starts_with(supplied)));

    let mut images = spec.image_volumes.iter();
    let volume = |(target, asked): &(PathBuf, &Asked)| volume(target, asked, &mut images, spec.node.kernel);
    let mut volumes = asked.iter().map(volume).collect::<Result<Vec<_>>>()?;
    let files = pod_files(spec).into_iter().filter(|mount| !supplied.contains(&mount.destination().as_path()));
    volumes.extend(files.map(|mount| (mount, None)));
    volumes.sort_by_key(|(mount, _)| mount.destination().components().count());
    let (volumes, images): (Vec<_>, Vec<_>) = volumes.into_iter().unzip();
    mounts.extend(volumes);
    Ok((mounts, images.into_iter().flatten().collect()))
}

fn kernel_filesystems(spec: &ContainerSpec<'_>) -> Vec<Mount> {
    let access = if spec.request.security.privileged { "rw" } else { "ro" };
    // The group that terminals belong to, where the pod has it.
    let no_terminals = spec.pod.user_namespace.is_some_and(|users| users.gids.to_host(5).is_none());
    let options = |options: &'static [&str]| options.iter().filter(move |option| !(no_terminals && **option == "gid=5"));
    let mut mounts: Vec<Mount> = DEFAULTS.iter().map(|(target, kind, source, words)| mount(target, kind, source, options(words))).collect();
    mounts.push(match &spec.files.shm {
        Some(shm) => mount("/dev/shm", "bind", shm, ["bind", "rprivate", "nosuid", "noexec", "nodev"]),
        None => mount("/dev/shm", "tmpfs", "shm", SHM_OPTIONS),
    });
    mounts.push(sysfs(spec, access));
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", access]));
    mounts
}

/// A user namespace that does not own the network namespace cannot mount the file system that shows it; it can be shown
/// the node's, in which none of its users may change anything.
fn sysfs(spec: &ContainerSpec<'_>, access: &str) -> Mount {
    let options = ["nosuid", "noexec", "nodev"];
    if spec.pod.user_namespace.is_some() && spec.pod.network == NetworkMode::Node {
        return mount("/sys", "bind", "/sys", options.into_iter().chain(["bind", "rprivate", "ro"]));
    }
    mount("/sys", "sysfs", "sysfs", options.into_iter().chain([access]))
}

fn pod_files(spec: &ContainerSpec<'_>) -> Vec<Mount> {
    let access = if spec.request.security.read_only_rootfs { "ro" } else { "rw" };
    let files = [("/etc/resolv.conf", &spec.files.resolv_conf), ("/etc/hostname", &spec.files.hostname), ("/etc/hosts", &spec.files.hosts)];
    let mounts =
        files.into_iter().filter_map(|(target, source)| Some(mount(target, "bind", source.as_ref()?, ["bind", "rprivate", access])));
    mounts.collect()
}

fn mount(target: impl Into<PathBuf>, kind: &str, source: impl Into<PathBuf>, options: impl IntoIterator<Item = impl ToString>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.into_iter().map(|option| option.to_string()).collect()));
    mount
}

/// A target without `.`, `..` and doubled slashes, so that equal targets compare equal.
fn target(asked: &Asked) -> Result<PathBuf> {
    let mut clean = PathBuf::from("/");
    for component in asked.target.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => _ = clean.pop(),
            _ => {}
        }
    }
    if !asked.target.is_absolute() || clean == Path::new("/") {
        return Err(Refusal::invalid("config.mounts", format!("{:?} is no place to mount on", asked.target)).into());
    }
    Ok(clean)
}

/// A volume that was asked for; `images` has the layers of the next image.
fn volume<'a>(
    target: &Path,
    asked: &Asked,
    images: &mut impl Iterator<Item = &'a Vec<PathBuf>>,
    kernel: (u32, u32),
) -> Result<(Mount, Option<ImageVolume>)> {
    check(target, asked, kernel)?;
    match &asked.source {
        MountSource::Host(source) => Ok((bind(target, source, asked), None)),
        MountSource::Image { reference, sub_path, .. } => {
            let unknown = || Failure::new("mounting an image on", target.display(), format!("the layers of {reference:?} are not known"));
            let layers = images.next().ok_or_else(unknown)?.clone();
            let words = ["ro"].into_iter().chain(asked.options.iter().map(String::as_str));
            Ok((mount(target, "overlay", "overlay", words), Some(ImageVolume { layers, sub_path: sub_path.clone() })))
        }
    }
}

fn check(target: &Path, asked: &Asked, kernel: (u32, u32)) -> Result<()> {
    let problem = |problem: &str| Refusal::invalid("config.mounts", format!("{}: {problem}", target.display()));
    match &asked.source {
        MountSource::Host(source) if !source.is_absolute() => return Err(problem("its host path is not absolute").into()),
        MountSource::Image { .. } if !asked.read_only => return Err(problem("an image can only be mounted read-only").into()),
        _ => {}
    }
    if asked.recursive_read_only && !asked.read_only {
        return Err(problem("recursive read-only contradicts a mount that is not read-only").into());
    }
    if asked.recursive_read_only && asked.propagation != Propagation::Private {
        return Err(problem("recursive read-only needs private propagation").into());
    }
    if let Some(option) = asked.options.iter().find(|option| !MOUNT_OPTIONS.contains(&option.as_str())) {
        return Err(problem(&format!("there is no mount option {option:?}")).into());
    }
    if asked.recursive_read_only && !has_recursive_read_only(kernel) {
        let failure = Failure::new("making read-only with all beneath it", target.display(), "the kernel cannot do that");
        return Err(failure.kind(FailureKind::RecursiveReadOnly).hint("Linux 5.12 can").into());
    }
    Ok(())
}

fn bind(target: &Path, source: &Path, asked: &Asked) -> Mount {
    let travel = match asked.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (asked.read_only, asked.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    // What must not be executed must not be executed from a mount beneath either.
    let options = asked.options.iter().map(|option| format!("r{option}")).chain(asked.mapping.map(|_| "idmap".to_owned()));
    let mut mount = mount(target, "bind", source, ["rbind", travel, access].map(str::to_owned).into_iter().chain(options));
    mount.set_uid_mappings(asked.mapping.map(|users| user_namespace::to_oci(users.uids)));
    mount.set_gid_mappings(asked.mapping.map(|users| user_namespace::to_oci(users.gids)));
    mount
}

/// Whether mounts beneath a mount can be made read-only with it (KEP-3857).
pub fn has_recursive_read_only(kernel: (u32, u32)) -> bool {
    kernel >= RECURSIVE_CHANGES
}

/// How the container's mounts are tied to the node's, for the whole tree, if a volume needs it.
pub(crate) fn rootfs_propagation(mounts: &[Asked]) -> Option<&'static str> {
    let volumes = || mounts.iter().filter(|mount| matches!(mount.source, MountSource::Host(_)));
    let any = |wanted| volumes().any(|mount| mount.propagation == wanted);
    if any(Propagation::Bidirectional) { Some("rshared") } else { any(Propagation::HostToContainer).then_some("rslave") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, image_volume, volume};

    fn targets(fixture: &Fixture) -> Vec<String> {
        mounts(&fixture.spec()).unwrap().0.iter().map(|mount| mount.destination().display().to_string()).collect()
    }

    fn with(volumes: &[&str]) -> Fixture {
        let mut fixture = Fixture::default();
        fixture.request.mounts = volumes.iter().map(|target| volume(target)).collect();
        fixture
    }

    #[test]
    fn parents_come_before_children_and_equals_keep_their_order() {
        let listed = targets(&with(&["/data/a/b", "/z", "/data", "/a", "/data/a"]));
        let volumes: Vec<_> = listed.iter().filter(|target| target.starts_with("/data") || target.len() == 2).collect();
        assert_eq!(volumes, ["/z", "/data", "/a", "/data/a", "/data/a/b"]);
    }

    #[test]
    fn a_supplied_mount_replaces_the_default_of_its_place() {
        let listed = targets(&with(&["/etc/hosts", "/dev/shm/", "/etc/../sys"]));
        for target in ["/etc/hosts", "/dev/shm", "/sys"] {
            assert_eq!(listed.iter().filter(|listed| *listed == target).count(), 1, "{target} in {listed:?}");
        }
        assert!(!listed.contains(&"/sys/fs/cgroup".to_owned()) && listed.contains(&"/etc/resolv.conf".to_owned()));
    }

    #[test]
    fn a_supplied_dev_drops_all_defaults_beneath_it() {
        let listed = targets(&with(&["/dev"]));
        assert_eq!(listed.iter().filter(|target| target.starts_with("/dev")).collect::<Vec<_>>(), ["/dev"]);
    }

    #[test]
    fn images_keep_their_layers_whatever_order_they_are_mounted_in() {
        let mut fixture = with(&["/a/b/c"]);
        fixture.request.mounts.extend([image_volume("/a/b", Some("x")), image_volume("/a", None)]);
        fixture.image_volumes = vec![vec!["/l/1".into(), "/l/empty".into()], vec!["/l/2".into()]];
        let (mounts, images) = mounts(&fixture.spec()).unwrap();
        let targets: Vec<_> =
            mounts.iter().filter(|mount| mount.destination().starts_with("/a")).map(|mount| mount.destination().clone()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/a/b/c"].map(PathBuf::from));
        let told: Vec<_> = images.iter().map(|image| (image.layers.len(), image.sub_path.clone())).collect();
        assert_eq!(told, [(1, None), (2, Some("x".into()))]);
        fixture.image_volumes.pop();
        assert!(super::mounts(&fixture.spec()).is_err(), "layers are missing");
    }

    #[test]
    fn recursive_read_only_needs_a_kernel_that_has_it() {
        let mut fixture = with(&["/data"]);
        (fixture.request.mounts[0].read_only, fixture.request.mounts[0].recursive_read_only) = (true, true);
        assert!(mounts(&fixture.spec()).is_ok());
        fixture.node.kernel = (5, 11);
        let refused = mounts(&fixture.spec());
        assert!(
            matches!(&refused, Err(coracle_domain::Error::Failed(failure)) if failure.kind == FailureKind::RecursiveReadOnly),
            "{refused:?}"
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        type Spoil = fn(&mut Asked);
        let spoilers: [Spoil; 7] = [
            |mount| mount.target = "data".into(),
            |mount| mount.target = "/data/..".into(),
            |mount| mount.source = MountSource::Host("relative".into()),
            |mount| mount.recursive_read_only = true,
            |mount| (mount.read_only, mount.recursive_read_only, mount.propagation) = (true, true, Propagation::HostToContainer),
            |mount| mount.options = vec!["suid".into()],
            |mount| mount.source = image_volume("/x", None).source,
        ];
        for (index, spoil) in spoilers.iter().enumerate() {
            let mut fixture = with(&["/data"]);
            spoil(&mut fixture.request.mounts[0]);
            assert!(mounts(&fixture.spec()).is_err(), "spoiler {index}");
        }
    }

    #[test]
    fn the_widest_propagation_of_all_volumes_decides_the_roots() {
        let mut mounts = vec![volume("/a"), volume("/b")];
        assert_eq!(rootfs_propagation(&mounts), None);
        mounts[1].propagation = Propagation::HostToContainer;
        assert_eq!(rootfs_propagation(&mounts), Some("rslave"));
        mounts[0].propagation = Propagation::Bidirectional;
        assert_eq!(rootfs_propagation(&mounts), Some("rshared"));
    }
}
