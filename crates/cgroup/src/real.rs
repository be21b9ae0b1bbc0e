//! Tests against this machine's own hierarchies, as root, in directories of a random name that each test
//! removes. They run on whatever shape the machine has; a hybrid one also plays pure v1 and pure v2.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_domain::{ContainerId, DeviceKind, Error, HugepageLimit, PodId, Refusal, Resources, TasksLimit};

use crate::detect::{Controller, Layout};
use crate::device::tests::rule;
use crate::{Cgroup, ExecLeaf, Hierarchy, Location, Shape};

/// A hierarchy with a root of the test's own, emptied and removed when the test ends.
struct Machine {
    hierarchy: Hierarchy,
    pod: PodId,
}

impl Machine {
    fn of(change: impl FnOnce(&mut Layout)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: skipped");
            return None;
        }
        let mut layout = Layout::detect().unwrap();
        change(&mut layout);
        let pod = PodId::from_entropy(entropy());
        let hierarchy = Hierarchy::of(layout).with_root(&format!("coracle-test-{}", pod.short())).unwrap();
        Some(Self { hierarchy, pod })
    }

    fn as_it_is() -> Option<Self> {
        Self::of(|_| {})
    }

    /// Without the unified hierarchy.
    fn legacy() -> Option<Self> {
        Self::of(|layout| layout.unified = None).filter(|machine| machine.hierarchy.layout.legacy(Controller::Freezer).is_some())
    }

    /// Without v1.
    fn unified() -> Option<Self> {
        Self::of(|layout| layout.legacy.clear()).filter(|machine| machine.hierarchy.layout.unified.is_some())
    }

    fn location(&self) -> Location {
        self.hierarchy.container(None, &self.pod, &ContainerId::from_entropy(entropy())).unwrap()
    }

    fn cgroup(&self, limits: &Resources) -> Cgroup {
        Cgroup::create(&self.hierarchy, self.location(), limits, &[]).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let sweep = self.hierarchy.sweep(&HashSet::new());
        self.hierarchy.remove_root().unwrap();
        assert!(sweep.failures.is_empty() || std::thread::panicking(), "{sweep:?}");
        for top in self.hierarchy.layout.tops() {
            assert!(!top.join(self.hierarchy.pod(None, &self.pod).unwrap().relative()).exists());
        }
    }
}

fn entropy() -> [u8; 32] {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).unwrap();
    bytes
}

/// A process that is killed and reaped when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell that puts itself into the cgroup, as a container's first process does, and runs `script`.
fn run_in(unified: Option<&Path>, join: &[PathBuf], script: &str) -> Process {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("for file; do echo 0 > \"$file\" || exit 99; done; {script}"), "sh"]);
    shell.args(unified.map(|directory| directory.join("cgroup.procs"))).args(join);
    Process(shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn spawn(cgroup: &Cgroup, script: &str) -> Process {
    run_in(cgroup.unified_dir().as_deref(), &cgroup.join_paths(), script)
}

fn spawn_in_leaf(leaf: &ExecLeaf, script: &str) -> Process {
    run_in(leaf.dir.as_deref(), &leaf.join, script)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn value(cgroup: &Cgroup, controller: Controller, legacy: &str, unified: &str) -> String {
    match cgroup.hierarchy.legacy(controller, &cgroup.location) {
        Some(directory) => crate::file::read(&directory, legacy).unwrap(),
        None => crate::file::read(&cgroup.unified_dir().unwrap(), unified).unwrap(),
    }
}

fn some_limits() -> Resources {
    Resources {
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        cpu_shares: Some(512),
        memory_limit: Some(64 << 20),
        memory_swap_limit: Some(64 << 20),
        ..Resources::default()
    }
}

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
fn an_oom_kill_is_counted() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&Resources { memory_limit: Some(8 << 20), memory_swap_limit: Some(8 << 20), ..Resources::default() });
    let source = cgroup.oom_source().unwrap();
    let count = || {
        let text = std::fs::read_to_string(&source.path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(source.key)?.strip_prefix(' '));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(count(), 0);
    let mut process = spawn(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    let status = process.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    assert_eq!(count(), 1);
}

#[test]
fn stats_say_what_was_used_and_nothing_once_the_cgroup_is_gone() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&some_limits());
    let _process = spawn(&cgroup, "text=$(head -c 4000000 /dev/zero | tr '\\0' a); kill -STOP $$; echo $text");
    eventually("the memory is used", || cgroup.stats().rss.is_some_and(|rss| rss >= 4_000_000) && cgroup.stats().tasks == Some(1));
    let stats = cgroup.stats();
    assert!(stats.cpu_usage.is_some_and(|usage| (100_000..60_000_000_000).contains(&usage)), "{stats:?}");
    assert!(stats.memory_usage >= stats.working_set && stats.working_set >= Some(4_000_000), "{stats:?}");
    assert!(stats.page_faults > Some(500) && stats.major_page_faults.is_some(), "{stats:?}");
    assert_eq!((stats.memory_limit, stats.available()), (Some(64 << 20), Some((64 << 20) - stats.working_set.unwrap())));
    cgroup.remove().unwrap();
    assert_eq!(cgroup.stats(), crate::Stats::default());
}

#[test]
fn counts_tell_what_stats_do_not_and_nothing_once_the_cgroup_is_gone() {
    let Some(machine) = Machine::as_it_is() else { return };
    let limits = Resources { cpu_quota: Some(20_000), cpu_period: Some(100_000), ..some_limits() };
    let cgroup = machine.cgroup(&limits);
    let _process = spawn(&cgroup, "head -c 4000000 /dev/urandom | tr a b >/dev/null; while :; do :; done");
    eventually("its quota is used up", || cgroup.counts().throttling.is_some_and(|throttling| throttling.throttled_periods > 1));
    eventually("only the loop is left", || cgroup.counts().tasks == Some(1));
    let counts = cgroup.counts();
    let throttling = counts.throttling.unwrap();
    assert!(throttling.periods >= throttling.throttled_periods && throttling.throttled_time > 1_000_000, "{counts:?}");
    assert!(counts.cpu_user.zip(counts.cpu_system).is_some_and(|(user, system)| user + system > 1_000_000), "{counts:?}");
    assert!(counts.memory_peak >= cgroup.stats().memory_usage && counts.memory_limit_hits.is_some(), "{counts:?}");
    assert!(counts.cache.is_some() && counts.mapped_file.is_some() && counts.kernel_memory.is_some(), "{counts:?}");
    assert_eq!((counts.oom_kills, counts.tasks, counts.tasks_limit), (Some(0), Some(1), Some(TasksLimit::Unlimited)));
    if machine.hierarchy.shape() != Shape::Legacy {
        let pressures = cgroup.pressures();
        assert!(pressures.cpu.is_none_or(|cpu| cpu.some.total > 0), "it waited for its quota: {pressures:?}");
    }
    cgroup.remove().unwrap();
    assert_eq!((cgroup.counts(), cgroup.pressures()), Default::default());
}

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
    assert!(!leaf.is_empty());
    leaf.kill().unwrap();
    exec.0.wait().unwrap();
    eventually("the exec is dead", || !leaf.populated().unwrap());
    assert_eq!(cgroup.processes().unwrap(), [container.0.id().cast_signed()]);
    assert_eq!(leaf.is_empty(), leaf.dir.is_some(), "on v1 nobody knows");
    leaf.remove().unwrap();
    leaf.remove().unwrap();
    assert!(!leaf.is_empty(), "it is gone");
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
    let _process = spawn(&cgroup, "text=$(head -c 8000000 /dev/zero | tr '\\0' a); kill -STOP $$; echo $text");
    eventually("the memory is used", || cgroup.stats().rss.is_some_and(|rss| rss >= 8_000_000) && cgroup.stats().tasks == Some(1));
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
    eventually("it runs", || cgroup.processes().unwrap().len() == 1);
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
fn a_sweep_removes_what_nobody_claims() {
    let Some(machine) = Machine::as_it_is() else { return };
    let claimed = machine.cgroup(&Resources::default());
    let stray_pod = PodId::from_entropy(entropy());
    let stray = machine.hierarchy.container(None, &stray_pod, &ContainerId::from_entropy(entropy())).unwrap();
    let stray = Cgroup::create(&machine.hierarchy, stray, &Resources::default(), &[]).unwrap();
    let _process = spawn(&stray, "exec sleep 1000");
    eventually("it runs", || stray.populated().unwrap());
    let sweep = machine.hierarchy.sweep(&HashSet::from([machine.pod.clone()]));
    assert_eq!((sweep.removed, sweep.failures.len()), (vec![stray_pod], 0));
    assert!(!stray.populated().unwrap() && stray.join_paths().is_empty());
    assert_eq!(claimed.join_paths().is_empty(), machine.hierarchy.shape() == Shape::Unified);
    assert!(claimed.update(&Resources::default()).is_ok());
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

/// `cargo test --release -p coracle-cgroup -- --ignored --nocapture measure`
#[test]
#[ignore = "a measurement"]
fn measure_create_join_stats_remove() {
    let Some(machine) = Machine::as_it_is() else { return };
    let rules = crate::device::tests::usual();
    let mut samples: [Vec<Duration>; 5] = Default::default();
    for _ in 0..200 {
        let location = machine.location();
        let mut clock = Instant::now();
        let mut lap = |samples: &mut Vec<Duration>| samples.push(std::mem::replace(&mut clock, Instant::now()).elapsed());
        let cgroup = Cgroup::create(&machine.hierarchy, location, &some_limits(), &rules).unwrap();
        lap(&mut samples[0]);
        cgroup.stats();
        lap(&mut samples[1]);
        cgroup.stats();
        lap(&mut samples[2]);
        cgroup.remove().unwrap();
        lap(&mut samples[3]);
        machine.hierarchy.remove_pod(&machine.pod).unwrap();
        lap(&mut samples[4]);
    }
    for (name, mut sample) in ["create", "first stats", "stats", "remove", "remove pod"].into_iter().zip(samples) {
        sample.sort();
        println!("{name}: median {:?}, least {:?}", sample[sample.len() / 2], sample[0]);
    }
}

/// What a new process pays to be in the cgroup, after a rest as between two pods.
#[test]
#[ignore = "a measurement"]
fn measure_join_after_a_rest() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = Cgroup::create(&machine.hierarchy, machine.location(), &some_limits(), &crate::device::tests::usual()).unwrap();
    let everything = "for file; do echo 0 > \"$file\"; done";
    let time = |files: Vec<PathBuf>| {
        let mut times: Vec<u64> = (0..9)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(300));
                let mut shell = Command::new("bash");
                let script = format!("start=$EPOCHREALTIME; {everything}; echo $((${{EPOCHREALTIME/./}} - ${{start/./}}))");
                let output = shell.args(["-c", &script, "bash"]).args(&files).output().unwrap();
                String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let procs = cgroup.join_paths().iter().map(|path| path.with_file_name("cgroup.procs")).collect();
    println!("join {} hierarchies by tasks: {} µs", cgroup.join_paths().len(), time(cgroup.join_paths()));
    println!("the same by cgroup.procs: {} µs", time(procs));
}
