//! Mounts of a container: the kernel's file systems, the pod's files, the request's volumes, in the order in which they
//! are to be made.
//!
//! What the request supplies takes the place of a default; nothing of ours is put under a directory it supplies in the
//! place of a kernel file system. Parents come before children.

use std::path::{Component, Path, PathBuf};

use coracle_domain::{Mount as Asked, MountSource, Propagation, Refusal, Result};
use oci_spec::runtime::Mount;

use crate::ContainerSpec;

/// Options of CRI's `mount_options` (KEP-5855).
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

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

/// All mounts, in order.
pub(crate) fn mounts(spec: &ContainerSpec<'_>) -> Result<Vec<Mount>> {
    let asked: Vec<(PathBuf, &Asked)> = spec.request.mounts.iter().map(|asked| Ok((target(asked)?, asked))).collect::<Result<_>>()?;
    let supplied: Vec<&Path> = asked.iter().map(|(target, _)| target.as_path()).collect();
    let mut mounts = kernel_filesystems(spec);
    mounts.retain(|mount| !supplied.iter().any(|supplied| mount.destination().starts_with(supplied)));

    let mut binds = asked.iter().map(|(target, asked)| bind(target, asked)).collect::<Result<Vec<_>>>()?;
    let dev_supplied = supplied.contains(&Path::new("/dev"));
    binds.extend(pod_files(spec).into_iter().filter(|mount| {
        let target = mount.destination().as_path();
        let beneath_dev = dev_supplied && target.starts_with("/dev");
        !beneath_dev && !supplied.contains(&target)
    }));
    binds.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(binds);
    Ok(mounts)
}

fn kernel_filesystems(spec: &ContainerSpec<'_>) -> Vec<Mount> {
    let access = if spec.request.security.privileged { "rw" } else { "ro" };
    let mut mounts: Vec<Mount> =
        DEFAULTS.iter().map(|(target, kind, source, options)| mount(target, kind, source, options.iter())).collect();
    if spec.files.shm.is_none() {
        mounts.push(mount("/dev/shm", "tmpfs", "shm", SHM_OPTIONS));
    }
    mounts.push(mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", access]));
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", access]));
    mounts
}

fn pod_files(spec: &ContainerSpec<'_>) -> Vec<Mount> {
    let access = if spec.request.security.read_only_rootfs { "ro" } else { "rw" };
    let files = [("/etc/resolv.conf", &spec.files.resolv_conf), ("/etc/hostname", &spec.files.hostname), ("/etc/hosts", &spec.files.hosts)];
    let mut mounts: Vec<Mount> = files
        .into_iter()
        .filter_map(|(target, source)| Some(mount(target, "bind", source.as_ref()?, ["bind", "rprivate", access])))
        .collect();
    if let Some(shm) = &spec.files.shm {
        mounts.push(mount("/dev/shm", "bind", shm, ["bind", "rprivate", "nosuid", "noexec", "nodev"]));
    }
    mounts
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

fn bind(target: &Path, asked: &Asked) -> Result<Mount> {
    let problem = |problem: &str| Refusal::invalid("config.mounts", format!("{}: {problem}", target.display()));
    let MountSource::Host(source) = &asked.source else {
        return Err(Refusal::unsupported(format!("config.mounts: {}: mounting an image", target.display())).into());
    };
    if !source.is_absolute() {
        return Err(problem("its host path is not absolute").into());
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
    let words = ["rbind", travel, access].into_iter().chain(asked.options.iter().map(String::as_str));
    Ok(mount(target, "bind", source, words))
}

/// How the container's mounts are tied to the node's, for the whole tree, if a volume needs it.
pub(crate) fn rootfs_propagation(mounts: &[Asked]) -> Option<&'static str> {
    let any = |wanted| mounts.iter().any(|mount| mount.propagation == wanted);
    if any(Propagation::Bidirectional) { Some("rshared") } else { any(Propagation::HostToContainer).then_some("rslave") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, volume};

    fn targets(fixture: &Fixture) -> Vec<String> {
        mounts(&fixture.spec()).unwrap().iter().map(|mount| mount.destination().display().to_string()).collect()
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
    fn what_contradicts_itself_is_refused() {
        type Spoil = fn(&mut Asked);
        let spoilers: [Spoil; 7] = [
            |mount| mount.target = "data".into(),
            |mount| mount.target = "/data/..".into(),
            |mount| mount.source = MountSource::Host("relative".into()),
            |mount| mount.recursive_read_only = true,
            |mount| (mount.read_only, mount.recursive_read_only, mount.propagation) = (true, true, Propagation::HostToContainer),
            |mount| mount.options = vec!["suid".into()],
            |mount| mount.source = MountSource::Image { reference: "x".into(), id: None, sub_path: None },
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
