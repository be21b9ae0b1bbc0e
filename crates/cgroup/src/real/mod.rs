//! Tests against this machine's own hierarchies, as root, in directories of a random name that each test
//! removes. They run on whatever shape the machine has; a hybrid one also plays pure v1 and pure v2.

mod accounting;
mod devices;
mod ends;
mod limits;
mod measures;
mod parents;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_domain::{ContainerId, PodId, Resources};

use crate::detect::{Controller, Layout};
use crate::{Cgroup, ExecLeaf, Hierarchy, Location};

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
        let sweep = self.hierarchy.sweep(|_| false);
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

impl Process {
    /// Whether it runs this program by now: it has joined all its cgroups before.
    fn runs(&self, program: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{}/comm", self.0.id())).is_ok_and(|name| name.trim_end() == program)
    }

    /// Whether it has stopped itself.
    fn stands_still(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
    }
}

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
