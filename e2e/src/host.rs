//! Looking at the node from outside: processes, cgroups, HTTP, tools.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use rustix::process::{Pid, Signal, kill_process};

use crate::{DEADLINE, eventually};

/// Runs a program of the host and returns what it printed, or what it complained of.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Unmounts what is mounted at a path, with these options of umount(8). What was in there, or is a copy of who
/// was, may be on its way out: as long as it is busy this is tried again.
pub fn unmount(options: &[&str], path: &Path) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        match run("umount", &[options, &[&text(path)]].concat()) {
            Err(error) if error.contains("busy") && begin.elapsed() < DEADLINE => std::thread::sleep(Duration::from_millis(20)),
            done => return done.map(drop),
        }
    }
}

/// The body of an HTTP answer, if there is a good one.
pub fn http_get(url: &str) -> Option<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(DEADLINE)).proxy(None).build().into();
    agent.get(url).call().ok()?.body_mut().read_to_string().ok()
}

/// A TCP port at an address of the node's (all of them: `UNSPECIFIED`) that nobody has, nor is given by chance until this
/// program ends: a socket is bound to it and does not listen, so that who asks for any port is given another one, and a
/// server that asks for this one (with SO_REUSEADDR, as servers do) has it.
pub fn free_port(address: Ipv4Addr) -> u16 {
    let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    sockopt::set_socket_reuseaddr(&held, true).expect("setting SO_REUSEADDR");
    bind(&held, &SocketAddrV4::new(address, 0)).expect("binding to any port");
    let address: SocketAddr = getsockname(&held).expect("its address").try_into().expect("an address of TCP");
    let _for_good = held.into_raw_fd();
    address.port()
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

/// The fields of `/proc/PID/stat` (proc(5)) from the third, the state, on; none of a process that is gone.
fn stat(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What comes before is the program's name, in which there may be anything.
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

/// Whether the process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    !matches!(stat(pid).first().map(String::as_str), None | Some("Z" | "X"))
}

/// Puts those first whose parent is not among them, of several the one that was started first. Numbers tell nothing of
/// age: they begin anew when they have run out, on some machines after 32,768 processes.
pub fn eldest_first(pids: &mut [i32]) {
    let all = pids.to_vec();
    pids.sort_by_cached_key(|&pid| {
        let number = |field: usize| stat(pid).get(field)?.parse::<u64>().ok();
        let parent = number(1).and_then(|parent| i32::try_from(parent).ok());
        (parent.is_some_and(|parent| all.contains(&parent)), number(19).unwrap_or(u64::MAX), pid)
    });
}

/// Kills a process (SIGKILL) and waits until it is dead: who is told to die may take a while on a busy machine.
pub async fn kill(pid: i32) {
    let process = Pid::from_raw(pid).expect("a process id");
    // It may be dead already.
    let _ = kill_process(process, Signal::KILL);
    eventually("a killed process to be dead", || async { (!is_alive(pid)).then_some(()) }).await;
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

/// A path as requests have it.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The value of a line of a file like `/proc/self/status`: of `Uid`, `CapEff`…
pub fn field<'a>(text: &'a str, name: &str) -> &'a str {
    line(text, name).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The same of a process of the host; empty if it has none, or has ended.
pub fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    line(&status, name).unwrap_or_default().to_owned()
}

fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Whether a command of the host's is present in the usual places.
pub fn has_program(name: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"].iter().any(|directory| Path::new(directory).join(name).exists())
}
