//! Devices, by v1's controller and by a program on v2.

use coracle_domain::{DeviceKind, Resources};

use super::{Machine, spawn};
use crate::device::tests::rule;
use crate::{Cgroup, Shape};

/// /dev/null alone may be opened; any character device may be made.
fn devices_are_guarded(machine: Option<Machine>) {
    let Some(machine) = machine else { return };
    let rules = [
        rule(false, None, None, None, "rwm"),
        rule(true, Some(DeviceKind::Character), Some(1), Some(3), "rw"),
        rule(true, Some(DeviceKind::Character), None, None, "m"),
    ];
    let location = machine.location();
    // Twice: a second creation changes nothing.
    Cgroup::create(&machine.hierarchy, location.clone(), &Resources::default(), &rules).unwrap();
    let cgroup = Cgroup::create(&machine.hierarchy, location, &Resources::default(), &rules).unwrap();
    let code = |script: &str| spawn(&cgroup, script).0.wait().unwrap().code();
    assert_eq!(code("exec head -c1 /dev/null"), Some(0));
    assert_eq!(code("exec head -c1 /dev/zero"), Some(1));
    assert_eq!((code("true > /dev/null || exit 7"), code("true > /dev/zero || exit 7")), (Some(0), Some(7)));
    assert_eq!(spawn(&machine.cgroup(&Resources::default()), "exec head -c1 /dev/zero").0.wait().unwrap().code(), Some(0), "without rules");
    let node = format!("/tmp/{}", machine.pod.short());
    assert_eq!(code(&format!("mknod {node} c 1 5; code=$?; rm -f {node}; exit $code")), Some(0));
    assert_eq!(code(&format!("mknod {node} b 8 0; code=$?; rm -f {node}; exit $code")), Some(1));
}

#[test]
fn devices_are_guarded_where_the_machine_does_it() {
    devices_are_guarded(Machine::as_it_is());
}

#[test]
fn devices_are_guarded_by_a_program_on_v2() {
    let machine = Machine::unified();
    if let Some(machine) = &machine {
        assert_eq!(machine.hierarchy.shape(), Shape::Unified);
    }
    devices_are_guarded(machine);
}
