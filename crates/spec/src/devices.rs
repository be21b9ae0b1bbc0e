//! Devices: which nodes a container gets, and what its device cgroup allows (`Documentation/admin-guide/cgroup-v1/
//! devices.rst`; numbers from `Documentation/admin-guide/devices.txt`).

use std::path::Path;

use coracle_domain::{DeviceAccess, DeviceKind, DeviceRule};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::{ContainerSpec, DeviceNode};

const ANYTHING: DeviceAccess = DeviceAccess { read: true, write: true, mknod: true };
const MKNOD: DeviceAccess = DeviceAccess { read: false, write: false, mknod: true };

/// Character devices that every container has: path and minor number; tty alone has another major number.
const DEFAULTS: [(&str, u32, u32); 6] =
    [("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0)];

/// Character devices without a node of ours that may be used: ptmx, every pseudo-terminal, which a container's console is
/// too; and tun, which runtimes allow since their beginnings and VPNs in containers rely on.
const ALLOWED: [(u32, Option<u32>); 3] = [(5, Some(2)), (136, None), (10, Some(200))];

/// What a privileged container must not get of the node's: mounts and links of its own take these places.
const NOT_OF_THE_NODE: [&str; 8] =
    ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx", "/dev/.udev", "/dev/core"];

/// The nodes to make: the defaults, the node's if privileged, the request's; of one path the last.
pub(crate) fn nodes(spec: &ContainerSpec<'_>) -> Vec<DeviceNode> {
    let mut nodes: Vec<DeviceNode> = DEFAULTS.iter().map(default_node).collect();
    if spec.request.security.privileged {
        nodes.extend(spec.node.devices.iter().filter(|device| is_for_containers(&device.path)).cloned());
    }
    nodes.extend(spec.devices.iter().cloned());
    let mut seen = std::collections::HashSet::new();
    let mut last_ones: Vec<DeviceNode> = nodes.into_iter().rev().filter(|node| seen.insert(node.path.clone())).collect();
    last_ones.reverse();
    last_ones
}

fn default_node((path, major, minor): &(&str, u32, u32)) -> DeviceNode {
    DeviceNode {
        path: path.into(),
        kind: DeviceKind::Character,
        major: *major,
        minor: *minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: ANYTHING,
    }
}

fn is_for_containers(path: &Path) -> bool {
    path.starts_with("/dev") && !NOT_OF_THE_NODE.iter().any(|taken| path.starts_with(taken))
}

/// The rules of a container's device cgroup, in order: nothing but the making of nodes, the usual devices and the
/// request's; everything if it is privileged.
pub fn device_rules(privileged: bool, requested: &[DeviceNode]) -> Vec<DeviceRule> {
    if privileged {
        return vec![DeviceRule { allow: true, kind: None, major: None, minor: None, access: ANYTHING }];
    }
    let character = |major, minor| allow(DeviceKind::Character, Some(major), minor, ANYTHING);
    let mut rules = vec![
        DeviceRule { allow: false, kind: None, major: None, minor: None, access: ANYTHING },
        // A node alone opens nothing, and tools that unpack archives expect to make them.
        allow(DeviceKind::Character, None, None, MKNOD),
        allow(DeviceKind::Block, None, None, MKNOD),
    ];
    rules.extend(DEFAULTS.iter().map(|(_, major, minor)| character(*major, Some(*minor))));
    rules.extend(ALLOWED.iter().map(|(major, minor)| character(*major, *minor)));
    rules.extend(requested.iter().map(|device| allow(device.kind, Some(device.major), Some(device.minor), device.access)));
    rules
}

fn allow(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: DeviceAccess) -> DeviceRule {
    DeviceRule { allow: true, kind: Some(kind), major, minor, access }
}

/// A node as the OCI spec writes it.
pub(crate) fn to_oci(node: &DeviceNode) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(oci_kind(Some(node.kind)))
        .set_major(node.major.into())
        .set_minor(node.minor.into())
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

/// A rule as the OCI spec writes it.
pub(crate) fn rule_to_oci(rule: &DeviceRule) -> LinuxDeviceCgroup {
    let letters = [(rule.access.read, 'r'), (rule.access.write, 'w'), (rule.access.mknod, 'm')];
    let access = letters.into_iter().filter(|(on, _)| *on).map(|(_, letter)| letter).collect();
    let mut oci = LinuxDeviceCgroup::default();
    oci.set_allow(rule.allow)
        .set_typ(rule.kind.map(|kind| oci_kind(Some(kind))))
        .set_major(rule.major.map(i64::from))
        .set_minor(rule.minor.map(i64::from))
        .set_access(Some(access));
    oci
}

fn oci_kind(kind: Option<DeviceKind>) -> LinuxDeviceType {
    match kind {
        Some(DeviceKind::Character) => LinuxDeviceType::C,
        Some(DeviceKind::Block) => LinuxDeviceType::B,
        None => LinuxDeviceType::A,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, device};

    #[test]
    fn a_plain_container_gets_the_six_usual_nodes_and_its_own() {
        let mut fixture = Fixture { devices: vec![device("/dev/sdx", 8, 16)], ..Fixture::default() };
        fixture.node.devices = vec![device("/dev/sda", 8, 0)];
        let paths: Vec<_> = nodes(&fixture.spec()).into_iter().map(|node| node.path).collect();
        let expected = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/sdx"];
        assert_eq!(paths, expected.map(std::path::PathBuf::from));
    }

    #[test]
    fn a_privileged_one_gets_the_nodes_but_for_what_it_has_of_its_own() {
        let mut fixture = Fixture::default();
        fixture.request.security.privileged = true;
        fixture.node.devices = ["/dev/sda", "/dev/null", "/dev/pts/3", "/dev/console", "/dev/ptmx", "/dev/mapper/x", "/etc/x"]
            .map(|path| device(path, 8, 0))
            .to_vec();
        let all = nodes(&fixture.spec());
        assert_eq!(all.iter().filter(|node| node.path == Path::new("/dev/null")).count(), 1);
        for (path, there) in
            [("/dev/sda", true), ("/dev/mapper/x", true), ("/dev/pts/3", false), ("/dev/console", false), ("/etc/x", false)]
        {
            assert_eq!(all.iter().any(|node| node.path == Path::new(path)), there, "{path}");
        }
    }

    #[test]
    fn rules_deny_all_then_allow_the_usual_and_the_requested() {
        let rules = device_rules(false, &[device("/dev/sdx", 8, 16)]);
        assert!(!rules[0].allow && rules[0].kind.is_none());
        assert!(rules[1..].iter().all(|rule| rule.allow));
        let last = rules.last().unwrap();
        assert_eq!((last.kind, last.major, last.minor), (Some(DeviceKind::Block), Some(8), Some(16)));
        assert!(device_rules(true, &[])[0].allow);
    }
}
