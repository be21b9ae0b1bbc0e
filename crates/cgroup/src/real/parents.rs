//! Parents that several pods share, and those that a kubelet made.

use std::path::Path;

use coracle_domain::ContainerId;

use super::{Machine, entropy, some_limits};
use crate::Cgroup;
use crate::detect::Controller;

#[test]
fn pods_that_share_an_unmade_parent_come_and_go_at_once() {
    let Some(machine) = Machine::as_it_is() else { return };
    let top = format!("coracle-test-shared-{}", machine.pod.short());
    std::thread::scope(|scope| {
        for pod in 0..4 {
            let (parent, machine) = (format!("/{top}/burstable/pod{pod}"), &machine);
            scope.spawn(move || {
                for _ in 0..50 {
                    let container = ContainerId::from_entropy(entropy());
                    let location = machine.hierarchy.container(Some(&parent), &machine.pod, &container).unwrap();
                    Cgroup::create(&machine.hierarchy, location, &some_limits(), &[]).unwrap().remove().unwrap();
                }
            });
        }
    });
    assert!(machine.hierarchy.layout.tops().all(|directory| !directory.join(&top).exists()));
}

#[test]
fn what_a_kubelet_made_stays_and_what_we_made_in_its_place_goes() {
    let Some(machine) = Machine::as_it_is() else { return };
    let top = format!("coracle-test-kubepods-{}", machine.pod.short());
    let parent = format!("/{top}/burstable/poda");
    let memory = machine.hierarchy.layout.legacy(Controller::Memory).map(|legacy| legacy.top.clone());
    let kubelets = memory.unwrap_or_else(|| machine.hierarchy.layout.unified.as_ref().unwrap().top.clone());
    std::fs::create_dir_all(kubelets.join(&parent[1..])).unwrap();
    let container = machine.hierarchy.container(Some(&parent), &machine.pod, &ContainerId::from_entropy(entropy())).unwrap();
    let cgroup = Cgroup::create(&machine.hierarchy, container.clone(), &some_limits(), &[]).unwrap();
    assert!(container.to_string().starts_with(&parent));
    let result = cgroup.remove();
    let left: Vec<_> =
        machine.hierarchy.layout.tops().filter(|top_directory| top_directory.join(&top).exists()).map(Path::to_path_buf).collect();
    let of_pod = Cgroup::open(&machine.hierarchy, machine.hierarchy.pod(Some(&parent), &machine.pod).unwrap());
    let refused = of_pod.remove().is_err() && of_pod.kill().is_err();
    let still_there = kubelets.join(&parent[1..]).exists();
    for directory in [parent.as_str(), &format!("/{top}/burstable"), &format!("/{top}")] {
        std::fs::remove_dir(kubelets.join(&directory[1..])).unwrap();
    }
    result.unwrap();
    assert_eq!(left, [kubelets]);
    assert!(refused && still_there);
}

#[test]
fn a_removal_that_was_broken_off_between_two_parents_is_finished_by_the_next() {
    let Some(machine) = Machine::as_it_is() else { return };
    let top = format!("coracle-test-broken-{}", machine.pod.short());
    let parent = format!("/{top}/burstable/poda");
    let location = machine.hierarchy.container(Some(&parent), &machine.pod, &ContainerId::from_entropy(entropy())).unwrap();
    let cgroup = Cgroup::create(&machine.hierarchy, location.clone(), &some_limits(), &[]).unwrap();
    for directory in machine.hierarchy.layout.tops().map(|top| top.join(location.relative())) {
        for gone in directory.ancestors().take(2) {
            let _ = std::fs::remove_dir(gone);
        }
    }
    cgroup.remove().unwrap();
    assert!(machine.hierarchy.layout.tops().all(|directory| !directory.join(&top).exists()));
}
