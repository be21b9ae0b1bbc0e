//! What a node may leave behind: nothing.
//!
//! A [`Footprint`] says by which names a node's objects are known, lists those that are there, and can remove
//! them by force when a test has failed. It looks at the kernel and at directories, never at what the daemon says.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{DEADLINE, host};

/// The names of a node's objects.
#[derive(Debug, Clone)]
pub struct Footprint {
    /// The scratch directory: everything the node writes is below.
    pub scratch: PathBuf,
    /// The daemon's `state`.
    pub state: PathBuf,
    /// The daemon's `root`.
    pub storage: PathBuf,
    /// The bridge's name.
    pub bridge: String,
    /// The root of its cgroups, a single path component.
    pub cgroup_root: String,
}

/// What is expected to be there while a leak check runs.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Processes that belong there: the daemon and the registry.
    pub processes: Vec<i32>,
    /// What was in the state directory before the first pod.
    pub state: BTreeSet<PathBuf>,
    /// Ids of the pods that were run.
    pub pods: Vec<String>,
    /// Addresses of the pods that were run.
    pub addresses: Vec<String>,
}

impl Footprint {
    /// Waits for what the kernel removes in its own time; what is still there when no time is left.
    pub fn remains(&self, expected: &Expected) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let found = self.look(expected);
            if found.is_empty() || begin.elapsed() > DEADLINE {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is there now, kind and name.
    pub fn look(&self, expected: &Expected) -> Vec<String> {
        let mut found = Vec::new();
        for pid in self.processes().into_iter().filter(|pid| !expected.processes.contains(pid)) {
            found.push(format!("process {pid}: {}", host::command_line(pid)));
        }
        found.extend(self.mounts().iter().map(|mount| format!("mount {}", mount.display())));
        found.extend(self.pod_links(&expected.pods).iter().map(|link| format!("link {link}")));
        found.extend(self.pod_cgroups().iter().map(|group| format!("cgroup {}", group.display())));
        found.extend(self.rules_about(&expected.addresses).iter().map(|rule| format!("nft rule {rule}")));
        found.extend(self.host_ports().iter().map(|port| format!("host port {port}")));
        found.extend(self.pod_files(&expected.state).iter().map(|path| format!("file {}", path.display())));
        found
    }

    /// Processes whose program, working directory or root lies in the scratch directory, or which are in one of the
    /// node's cgroups.
    pub fn processes(&self) -> Vec<i32> {
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        host::processes().into_iter().filter(|&pid| pid != own && host::is_alive(pid) && self.owns(pid)).collect()
    }

    fn owns(&self, pid: i32) -> bool {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).is_ok_and(|path| path.starts_with(&self.scratch));
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let in_cgroup = || paths.into_iter().any(|path| path.split('/').any(|part| part == self.cgroup_root));
        self.runs_monitor(pid) || link("exe") || link("cwd") || link("root") || in_cgroup()
    }

    /// Whether the process runs one of the node's own copies of the monitor. The text of its `exe` link tells nothing, since a
    /// monitor has left the host's mounts behind; the file it leads to does.
    fn runs_monitor(&self, pid: i32) -> bool {
        let file = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let programs = fs::read_dir(self.scratch.join("bin")).into_iter().flatten().flatten();
        let mut monitors = programs.filter(|program| program.file_name().to_string_lossy().starts_with("coracle-monitor"));
        let runs = file(Path::new(&format!("/proc/{pid}/exe")));
        runs.is_some() && monitors.any(|monitor| file(&monitor.path()) == runs)
    }

    /// The processes that run the node's monitor.
    pub fn all_monitors(&self) -> Vec<i32> {
        self.processes().into_iter().filter(|pid| self.runs_monitor(*pid)).collect()
    }

    /// The node's monitors that hold open what is named for a pod: the pod's own.
    pub fn monitors(&self, pod: &str) -> Vec<i32> {
        let holds = |pid: &i32| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|path| path.to_string_lossy().contains(pod))
        };
        self.all_monitors().into_iter().filter(holds).collect()
    }

    /// A pod's one monitor.
    pub fn monitor(&self, pod: &str) -> i32 {
        let monitors = self.monitors(pod);
        assert_eq!(monitors.len(), 1, "a pod has one monitor: {monitors:?}");
        monitors[0]
    }

    /// Mount points below the scratch directory, innermost last.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|path| path.starts_with(&self.scratch) && !self.lent().contains(path)).collect()
    }

    /// Where tests may mount small file systems for the daemon before it starts: its root, its state, the logs.
    fn lent(&self) -> [PathBuf; 3] {
        [self.storage.clone(), self.state.clone(), self.scratch.join("logs")]
    }

    /// Links on the bridge, and links named for the pods.
    fn pod_links(&self, pods: &[String]) -> Vec<String> {
        let mut links: BTreeSet<String> = BTreeSet::new();
        let ports = fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge)).into_iter().flatten().flatten();
        links.extend(ports.map(|port| port.file_name().to_string_lossy().into_owned()));
        let named = pods.iter().filter_map(|pod| pod.get(..12)).map(|digits| format!("cor{digits}"));
        links.extend(named.filter(|name| Path::new("/sys/class/net").join(name).exists()));
        links.into_iter().collect()
    }

    /// The cgroups below the node's root, in every hierarchy.
    fn pod_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for root in host::cgroups(Path::new(&self.cgroup_root)) {
            directories_below(&root, &mut found);
        }
        found
    }

    /// Lines of the node's nft table that speak of one of the addresses.
    fn rules_about(&self, addresses: &[String]) -> Vec<String> {
        let listing = host::run("nft", &["list", "table", "ip", &self.table()]).unwrap_or_default();
        let is_word = |line: &str, address: &String| line.split(|c: char| !(c.is_ascii_digit() || c == '.')).any(|word| word == address);
        listing.lines().filter(|line| addresses.iter().any(|address| is_word(line, address))).map(|line| line.trim().to_owned()).collect()
    }

    /// The elements of the maps in the node's nft table, keys and values: `tcp 8080 10.128.0.2 80`. Every one
    /// belongs to a pod.
    pub fn host_ports(&self) -> BTreeSet<String> {
        let listing = host::run("nft", &["-j", "list", "table", "ip", &self.table()]).unwrap_or_default();
        let listing: Value = serde_json::from_str(&listing).unwrap_or_default();
        let objects = listing["nftables"].as_array().into_iter().flatten();
        objects.filter_map(|object| object["map"]["elem"].as_array()).flatten().map(words).collect()
    }

    /// The file that holds the subnet that a kubelet gave.
    pub fn subnet(&self) -> PathBuf {
        self.state.join("subnet.json")
    }

    /// What has come into the state directory since the first pod (files, sockets, and directories named for
    /// an id), and directories of pods and containers. The subnet is the node's.
    fn pod_files(&self, before: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
        let is_pods = |path: &&PathBuf| **path != self.subnet() && (!path.is_dir() || has_id(path));
        let mut found: BTreeSet<PathBuf> = tree(&self.state).difference(before).filter(is_pods).cloned().collect();
        for directory in [self.state.join("pods"), self.storage.join("containers")] {
            found.extend(fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        found.into_iter().collect()
    }

    /// The name of the node's nft table.
    pub fn table(&self) -> String {
        format!("coracle_{}", self.bridge)
    }

    /// What belongs to the node rather than to a pod and outlives the daemon by design: the bridge, the table,
    /// the root cgroup, and the file systems that a test mounted for the daemon. Removes them and returns what could not be removed.
    pub fn remove_node(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for point in self.lent().iter().filter(|point| is_mount_point(point)) {
            faults.extend(host::unmount(&[], point).err());
        }
        if Path::new("/sys/class/net").join(&self.bridge).exists() {
            faults.extend(host::run("ip", &["link", "delete", &self.bridge]).err());
        }
        if host::run("nft", &["list", "table", "ip", &self.table()]).is_ok() {
            faults.extend(host::run("nft", &["delete", "table", "ip", &self.table()]).err());
        }
        for group in host::cgroups(Path::new(&self.cgroup_root)) {
            faults.extend(fs::remove_dir(&group).err().map(|error| format!("{}: {error}", group.display())));
        }
        faults
    }

    /// Kills all its processes but these, and waits until they are gone.
    pub fn kill_all(&self, spared: &[i32]) {
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            let processes: Vec<i32> = self.processes().into_iter().filter(|pid| !spared.contains(pid)).collect();
            for pid in processes.iter().filter_map(|&pid| Pid::from_raw(pid)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            if processes.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes everything by force, as far as that goes: for tests that have failed.
    pub fn wreck(&self, spared: &[i32], pods: &[String]) {
        self.kill_all(spared);
        for mount in self.mounts().iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        for link in self.pod_links(pods) {
            let _ = host::run("ip", &["link", "delete", &link]);
        }
        let mut groups = self.pod_cgroups();
        groups.sort_by_key(|group| std::cmp::Reverse(group.components().count()));
        for group in groups {
            let _ = fs::remove_dir(group);
        }
        self.remove_node();
    }
}

/// The words and numbers in a JSON value, in their order.
fn words(value: &Value) -> String {
    match value {
        Value::Array(parts) => parts.iter().map(words).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => fields.values().map(words).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn mount_points() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

fn is_mount_point(path: &Path) -> bool {
    mount_points().iter().any(|point| point == path)
}

/// All paths below a directory, links not followed.
pub fn tree(directory: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
            paths.insert(entry.path());
        }
    }
    paths
}

fn directories_below(root: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directories_below(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

/// Whether the path holds twelve or more hexadecimal digits in a row, as everything does that is named for an id.
fn has_id(path: &Path) -> bool {
    path.to_string_lossy().split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= 12)
}
