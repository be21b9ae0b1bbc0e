//! Killing and removing: everything in a cgroup, one exec's leaf, what nobody claims.

use std::sync::Arc;

use coracle_domain::{ContainerId, Error, PodId, Resources};

use super::{Machine, entropy, eventually, some_limits, spawn, spawn_in_leaf};
use crate::{Cgroup, Shape};

/// A child, a grandchild in a session of its own, and a cgroup below that the container made itself.
fn grandchildren_die(machine: Option<Machine>) {
    let Some(machine) = machine else { return };
    let cgroup = machine.cgroup(&Resources::default());
    let mut process = spawn(&cgroup, "setsid sh -c 'sleep 1000 & sleep 1000' & wait");
    eventually("all four run", || cgroup.processes().unwrap().len() == 4);
    cgroup.kill().unwrap();
    process.0.wait().unwrap();
    eventually("all are dead", || !cgroup.populated().unwrap());
}

#[test]
fn kill_ends_grandchildren() {
    grandchildren_die(Machine::as_it_is());
}

#[test]
fn kill_ends_grandchildren_on_v1_alone() {
    grandchildren_die(Machine::legacy());
}

#[test]
fn kill_ends_what_a_container_froze_itself_on_v1_alone() {
    let Some(machine) = Machine::legacy() else { return };
    let cgroup = machine.cgroup(&Resources::default());
    let mut process = spawn(&cgroup, "exec sleep 1000");
    let freezer = cgroup.legacy_directories().find(|directory| directory.join("freezer.state").exists()).unwrap();
    let own = freezer.join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    std::fs::write(own.join("freezer.state"), "FROZEN").unwrap();
    cgroup.kill().unwrap();
    eventually("it is dead", || process.0.try_wait().unwrap().is_some());
    cgroup.remove().unwrap();
}

#[test]
fn kill_ends_grandchildren_where_there_is_neither_cgroup_kill_nor_a_freezer() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&Resources::default());
    let mut process = spawn(&cgroup, "setsid sh -c 'while :; do sleep 0.01; done' & wait");
    eventually("it forks", || cgroup.processes().unwrap().len() >= 2);
    let directory = cgroup.legacy_directories().next().or(cgroup.unified_dir()).unwrap();
    let tree = crate::tree::Tree { unified: None, freezer: None, legacy: vec![directory] };
    tree.kill().unwrap();
    process.0.wait().unwrap();
    eventually("all are dead", || !cgroup.populated().unwrap());
}

/// Processes, a leaf and a cgroup of the container's own; removed twice, and once more by another value.
fn removal_is_total(machine: Option<Machine>) {
    let Some(machine) = machine else { return };
    let cgroup = machine.cgroup(&some_limits());
    let leaf = cgroup.exec_leaf("e1").unwrap();
    let _process = spawn(&cgroup, "setsid sleep 1000 & exec sleep 1000");
    let _exec = spawn_in_leaf(&leaf, "exec sleep 1000");
    eventually("all run", || cgroup.processes().unwrap().len() == 3);
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    leaf.remove().unwrap();
    assert_eq!((cgroup.join_paths(), cgroup.processes().unwrap(), cgroup.populated().unwrap()), (vec![], vec![], false));
    assert!(cgroup.unified_dir().is_none_or(|directory| !directory.exists()));
    Cgroup::open(&machine.hierarchy, cgroup.location().clone()).remove().unwrap();
    cgroup.kill().unwrap();
}

#[test]
fn removal_is_total_and_idempotent() {
    removal_is_total(Machine::as_it_is());
}

#[test]
fn removal_is_total_and_idempotent_on_v1_alone() {
    removal_is_total(Machine::legacy());
}

/// As by a daemon that did not make them.
fn leaves_are_found(cgroup: &Cgroup) {
    let found = || Cgroup::open(&cgroup.hierarchy, cgroup.location().clone()).exec_leaves().unwrap();
    assert!(found().is_empty());
    for name in ["one", "two"] {
        let leaf = cgroup.exec_leaf(name).unwrap();
        let _exec = spawn_in_leaf(&leaf, "setsid sleep 1000 & exec sleep 1000");
        eventually("it runs", || leaf.populated().unwrap());
    }
    assert_eq!(found().len(), 2);
    for leaf in found() {
        leaf.remove().unwrap();
    }
    assert!(found().is_empty());
}

fn a_leaf_dies_alone(machine: Option<Machine>) {
    let Some(machine) = machine else { return };
    let cgroup = machine.cgroup(&Resources::default());
    let container = spawn(&cgroup, "exec sleep 1000");
    let leaf = cgroup.exec_leaf("probe").unwrap();
    let mut exec = spawn_in_leaf(&leaf, "setsid sleep 1000 & wait");
    eventually("all run", || cgroup.processes().unwrap().len() == 3);
    assert!(!leaf.is_empty() && !leaf.holds_only(exec.0.id().cast_signed()), "its child is there as well");
    leaf.kill().unwrap();
    exec.0.wait().unwrap();
    eventually("the exec is dead", || !leaf.populated().unwrap());
    assert_eq!(cgroup.processes().unwrap(), [container.0.id().cast_signed()]);
    assert_eq!(leaf.is_empty(), leaf.dir.is_some(), "on v1 nobody knows");
    let mut alone = spawn_in_leaf(&leaf, "exec sleep 1000");
    let pid = alone.0.id().cast_signed();
    eventually("it alone is there", || leaf.holds_only(pid) == leaf.dir.is_some() && cgroup.processes().unwrap().len() == 2);
    assert!(!leaf.holds_only(pid + 1) && !leaf.holds_only(container.0.id().cast_signed()));
    leaf.kill().unwrap();
    alone.0.wait().unwrap();
    leaf.remove().unwrap();
    leaf.remove().unwrap();
    assert!(!leaf.is_empty() && !leaf.holds_only(pid), "it is gone");
    leaves_are_found(&cgroup);
    assert_eq!(cgroup.processes().unwrap(), [container.0.id().cast_signed()]);
    assert!(matches!(cgroup.exec_leaf("../probe"), Err(Error::Refused(_))));
}

#[test]
fn an_execs_leaf_dies_alone() {
    a_leaf_dies_alone(Machine::as_it_is());
}

#[test]
fn an_execs_leaf_dies_alone_on_v1_alone() {
    a_leaf_dies_alone(Machine::legacy());
}

#[test]
fn a_container_older_than_v2_is_in_v1_for_a_later_daemon_too() {
    let (Some(before), Some(now)) = (Machine::legacy(), Machine::as_it_is()) else { return };
    if now.hierarchy.shape() != Shape::Hybrid {
        return eprintln!("there is no v2 beside v1: skipped");
    }
    let made = before.cgroup(&some_limits());
    let mut process = spawn(&made, "exec sleep 1000");
    eventually("it runs", || process.runs("sleep"));
    let mut hierarchy = before.hierarchy.clone();
    hierarchy.layout = Arc::clone(&now.hierarchy.layout);
    let cgroup = Cgroup::open(&hierarchy, made.location().clone());
    let leaf = cgroup.exec_leaf("probe").unwrap();
    let mut exec = spawn_in_leaf(&leaf, "exec sleep 1000");
    eventually("it runs", || exec.runs("sleep"));
    assert_eq!((leaf.processes().unwrap(), cgroup.exec_leaves().unwrap().len()), (vec![exec.0.id().cast_signed()], 1));
    cgroup.update(&Resources { cpu_shares: Some(512), ..some_limits() }).unwrap();
    assert!(cgroup.unified_dir().is_some_and(|directory| !directory.exists()), "nobody would be in it");
    assert!(cgroup.populated().unwrap() && cgroup.processes().unwrap().len() == 2);
    cgroup.kill().unwrap();
    process.0.wait().unwrap();
    exec.0.wait().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn a_sweep_removes_what_nobody_claims() {
    let Some(machine) = Machine::as_it_is() else { return };
    let claimed = machine.cgroup(&Resources::default());
    let stray_pod = PodId::from_entropy(entropy());
    let stray = machine.hierarchy.container(None, &stray_pod, &ContainerId::from_entropy(entropy())).unwrap();
    let stray = Cgroup::create(&machine.hierarchy, stray, &Resources::default(), &[]).unwrap();
    let _process = spawn(&stray, "exec sleep 1000");
    eventually("it runs", || stray.populated().unwrap());
    let sweep = machine.hierarchy.sweep(|pod| *pod == machine.pod);
    assert_eq!((sweep.removed, sweep.failures.len()), (vec![stray_pod], 0));
    assert!(!stray.populated().unwrap() && stray.join_paths().is_empty());
    assert_eq!(claimed.join_paths().is_empty(), machine.hierarchy.shape() == Shape::Unified);
    assert!(claimed.update(&Resources::default()).is_ok());
}
