//! Looking at the node from outside: processes, cgroups, HTTP, tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a program of the host and returns what it printed, or what it complained of.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The body of an HTTP answer, if there is a good one.
pub fn http_get(url: &str) -> Option<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).proxy(None).build().into();
    agent.get(url).call().ok()?.body_mut().read_to_string().ok()
}

/// The ids of all processes.
pub fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The arguments a process was started with, joined by blanks; empty for kernel threads and zombies.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// Whether the process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// The mount points of the cgroup hierarchies, v1 and v2.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    mounts.dedup();
    mounts
}

/// Every cgroup, in every hierarchy, whose path ends with `suffix`; `suffix` is relative.
pub fn cgroups(suffix: &Path) -> Vec<PathBuf> {
    cgroup_mounts().into_iter().map(|mount| mount.join(suffix)).filter(|path| path.is_dir()).collect()
}

/// The cgroup directory of a process that has the file `name`, for instance `memory.max`.
pub fn cgroup_file(pid: i32, name: &str) -> Option<String> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let relative = membership.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(|path| path.trim_start_matches('/').to_owned());
    let paths: Vec<String> = relative.filter(|path| !path.is_empty()).collect();
    cgroup_mounts()
        .iter()
        .flat_map(|mount| paths.iter().map(move |path| mount.join(path).join(name)))
        .find_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
}

/// A namespace of a process: `net`, `user`…, by its inode.
pub fn namespace(pid: i32, kind: &str) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/proc/{pid}/ns/{kind}");
    fs::metadata(&path).unwrap_or_else(|error| panic!("{path}: {error}")).ino()
}

/// A field of a process's status: `Uid`, `CapEff`…
pub fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Whether a command of the host's is present in the usual places.
pub fn has_program(name: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].iter().any(|directory| Path::new(directory).join(name).exists())
}
