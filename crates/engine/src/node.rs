//! Facts of the node: what does not change while the daemon runs, and the devices it has just now.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_domain::{Device, DeviceAccess, DeviceKind, During, Refusal, Result};
use coracle_spec::{DeviceNode, Node};

use crate::selinux;

/// Directories in /dev are not nested deeper than this; it ends a walk through a strange one.
const DEEPEST: usize = 8;

/// What does not change while the daemon runs, but for AppArmor, which is to be prepared.
pub(crate) fn look() -> Node {
    Node {
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        capabilities: bounding_set().unwrap_or(0),
        devices: Vec::new(),
        apparmor: None,
        selinux: selinux::policy(),
        kernel: kernel_version(),
        open_files: None,
    }
}

/// The same with the devices the node has now, for a privileged container.
pub(crate) fn with_devices(node: &Node) -> Node {
    let mut devices = Vec::new();
    walk(Path::new("/dev"), Path::new("/dev"), access("rwm"), DEEPEST, &mut devices);
    Node { devices, ..node.clone() }
}

/// The device nodes that a request means: one, or all beneath a directory.
pub(crate) fn requested(device: &Device) -> Result<Vec<DeviceNode>> {
    let access = access(&device.permissions);
    let host =
        fs::canonicalize(&device.host).map_err(|error| Refusal::invalid("devices.host_path", format!("{:?}: {error}", device.host)))?;
    let metadata = fs::metadata(&host).during("looking at device", host.display())?;
    if metadata.is_dir() {
        let mut found = Vec::new();
        walk(&host, &device.target, access, DEEPEST, &mut found);
        return Ok(found);
    }
    match node(&metadata, device.target.clone(), access) {
        Some(node) => Ok(vec![node]),
        None => Err(Refusal::invalid("devices.host_path", format!("{:?} is neither a device nor a directory", device.host)).into()),
    }
}

fn walk(directory: &Path, target: &Path, access: DeviceAccess, depth: usize, found: &mut Vec<DeviceNode>) {
    // What vanishes during the walk is not there.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (Ok(metadata), target) = (entry.path().symlink_metadata(), target.join(entry.file_name())) else { continue };
        if metadata.is_dir() && depth > 0 {
            walk(&entry.path(), &target, access, depth - 1, found);
        } else {
            found.extend(node(&metadata, target, access));
        }
    }
}

fn node(metadata: &fs::Metadata, path: PathBuf, access: DeviceAccess) -> Option<DeviceNode> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    Some(DeviceNode { path, kind, major, minor, mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid(), access })
}

/// From CRI's letters.
fn access(letters: &str) -> DeviceAccess {
    DeviceAccess { read: letters.contains('r'), write: letters.contains('w'), mknod: letters.contains('m') }
}

/// The capabilities this process can pass on.
fn bounding_set() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn kernel_version() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_through_links_and_a_directory_is_walked() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("link")).unwrap();
        let device = |host: &Path| Device { host: host.to_owned(), target: "/dev/x".into(), permissions: "rw".into() };
        let found = requested(&device(&directory.path().join("link"))).unwrap();
        assert_eq!((found[0].major, found[0].minor, found[0].kind), (1, 3, DeviceKind::Character));
        assert_eq!(found[0].access, DeviceAccess { read: true, write: true, mknod: false });
        assert!(requested(&device(Path::new("/dev"))).unwrap().iter().any(|node| node.path == Path::new("/dev/x/null")));
        assert!(requested(&device(Path::new("/etc/passwd"))).is_err());
        assert!(requested(&device(Path::new("/dev/absent"))).is_err());
    }

    #[test]
    fn the_node_is_as_the_kernel_says() {
        let node = look();
        assert!(node.kernel >= (4, 0) && node.capabilities != 0 && !node.hostname.is_empty());
    }
}
