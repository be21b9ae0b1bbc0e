//! Limits: from the start, by an update, and when the kernel will not have them.

use std::path::Path;

use coracle_domain::{Error, HugepageLimit, Refusal, Resources};

use super::{Machine, eventually, some_limits, spawn, value};
use crate::detect::Controller;
use crate::{Cgroup, Shape};

#[test]
fn limits_hold_from_the_start() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&Resources { cpuset_cpus: Some("0".into()), ..some_limits() });
    let is_v1 = machine.hierarchy.layout.legacy(Controller::Cpu).is_some();
    assert_eq!(value(&cgroup, Controller::Cpu, "cpu.shares", "cpu.weight"), if is_v1 { "512" } else { "59" });
    assert_eq!(value(&cgroup, Controller::Cpu, "cpu.cfs_quota_us", "cpu.max"), if is_v1 { "25000" } else { "25000 50000" });
    assert_eq!(value(&cgroup, Controller::Memory, "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(value(&cgroup, Controller::Cpuset, "cpuset.cpus", "cpuset.cpus"), "0");
    let process = spawn(&cgroup, "exec sleep 1000");
    eventually("the process is in it", || cgroup.processes().unwrap() == [process.0.id().cast_signed()]);
    assert!(cgroup.populated().unwrap());
    let visible = cgroup.visible();
    assert_eq!(visible.is_empty(), machine.hierarchy.shape() == Shape::Unified);
    for hierarchy in visible {
        assert!(hierarchy.directory.join("cgroup.procs").exists(), "{hierarchy:?}");
    }
}

#[test]
fn a_second_creation_finds_the_first_and_corrects_it() {
    let Some(machine) = Machine::as_it_is() else { return };
    let location = machine.location();
    let create = |limits: &Resources| Cgroup::create(&machine.hierarchy, location.clone(), limits, &[]).unwrap();
    create(&some_limits());
    let cgroup =
        create(&Resources { cpu_shares: Some(1024), memory_limit: Some(32 << 20), memory_swap_limit: Some(32 << 20), ..some_limits() });
    let shares = value(&cgroup, Controller::Cpu, "cpu.shares", "cpu.weight");
    assert!(["1024", "100"].contains(&shares.as_str()), "{shares}");
    assert_eq!(value(&cgroup, Controller::Memory, "memory.limit_in_bytes", "memory.max"), "33554432");
}

#[test]
fn a_failed_update_leaves_every_limit_as_it_was() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&some_limits());
    let shape = |cgroup: &Cgroup| {
        [
            value(cgroup, Controller::Cpu, "cpu.shares", "cpu.weight"),
            value(cgroup, Controller::Cpu, "cpu.cfs_quota_us", "cpu.max"),
            value(cgroup, Controller::Memory, "memory.limit_in_bytes", "memory.max"),
        ]
    };
    let before = shape(&cgroup);
    let change = Resources {
        cpu_shares: Some(700),
        cpu_quota: Some(10_000),
        cpu_period: Some(20_000),
        memory_limit: Some(128 << 20),
        memory_swap_limit: Some(256 << 20),
        cpuset_cpus: Some("4000".into()),
        ..Resources::default()
    };
    let error = cgroup.update(&change).unwrap_err();
    assert!(error.to_string().contains("cpuset"), "{error}");
    assert_eq!(shape(&cgroup), before);
    cgroup.update(&Resources { cpuset_cpus: Some("0".into()), ..change }).unwrap();
    assert_ne!(shape(&cgroup), before);
}

#[test]
fn a_memory_limit_below_what_is_in_use_is_refused_and_harms_nobody() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&some_limits());
    let process = spawn(&cgroup, "text=$(head -c 8000000 /dev/zero | tr '\\0' a); kill -STOP $$; echo $text");
    eventually("the memory is used", || process.stands_still() && cgroup.stats().rss.is_some_and(|rss| rss >= 8_000_000));
    let lower =
        |bytes| Resources { cpu_shares: Some(100), memory_limit: Some(bytes), memory_swap_limit: Some(bytes), ..Resources::default() };
    let error = cgroup.update(&lower(1 << 20)).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::WrongState { .. })), "{error}");
    assert_eq!(cgroup.stats().memory_limit, Some(64 << 20));
    let shares = value(&cgroup, Controller::Cpu, "cpu.shares", "cpu.weight");
    assert!(["512", "59"].contains(&shares.as_str()), "{shares}");
    assert_eq!(cgroup.processes().unwrap().len(), 1);
    for bytes in [32 << 20, 512 << 20, 16 << 20] {
        cgroup.update(&lower(bytes)).unwrap();
        assert_eq!(cgroup.stats().memory_limit, Some(u64::try_from(bytes).unwrap()));
    }
    cgroup.update(&Resources { memory_limit: Some(-1), ..Resources::default() }).unwrap();
    assert_eq!(cgroup.stats().memory_limit, None);
}

#[test]
fn a_cpuset_that_comes_late_takes_the_processes_in() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&Resources::default());
    let process = spawn(&cgroup, "exec sleep 1000");
    // It joins one hierarchy after the other.
    eventually("it runs", || process.runs("sleep"));
    cgroup.update(&Resources { cpuset_cpus: Some("1".into()), ..Resources::default() }).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t1\n"), "{status}");
}

#[test]
fn an_update_of_what_is_gone_is_refused() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = Cgroup::open(&machine.hierarchy, machine.location());
    assert!(matches!(cgroup.update(&some_limits()), Err(Error::Refused(Refusal::WrongState { .. }))));
    assert!(cgroup.join_paths().is_empty());
}

#[test]
fn a_value_that_the_kernel_refuses_is_the_callers_fault() {
    let Some(machine) = Machine::as_it_is() else { return };
    let limits = Resources { cpu_quota: Some(1), ..Resources::default() };
    let error = Cgroup::create(&machine.hierarchy, machine.location(), &limits, &[]).unwrap_err();
    assert!(matches!(&error, Error::Refused(Refusal::Invalid { field, .. }) if field == "cpu_quota"), "{error}");
}

#[test]
fn a_v2_controller_is_enabled_on_the_way_down() {
    let Some(machine) = Machine::unified() else { return };
    let unified = machine.hierarchy.layout.unified.clone().unwrap();
    if !unified.controllers.contains("hugetlb") || !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        return;
    }
    let enabled_before = crate::file::read(&unified.top, "cgroup.subtree_control").unwrap();
    let limits = Resources { hugepages: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }], ..Resources::default() };
    let cgroup = machine.cgroup(&limits);
    let directory = cgroup.unified_dir().unwrap();
    let (max, reserved) = (crate::file::read(&directory, "hugetlb.2MB.max"), crate::file::read(&directory, "hugetlb.2MB.rsvd.max"));
    cgroup.update(&Resources { unified: [("hugetlb.2MB.max".into(), "2097152".into())].into(), ..Resources::default() }).unwrap();
    let after = crate::file::read(&directory, "hugetlb.2MB.max");
    drop(machine);
    if !enabled_before.contains("hugetlb") {
        crate::file::write(&unified.top, "cgroup.subtree_control", "-hugetlb").unwrap();
    }
    assert_eq!((max.unwrap().as_str(), reserved.unwrap().as_str(), after.unwrap().as_str()), ("4194304", "4194304", "2097152"));
}
