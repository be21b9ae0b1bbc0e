//! The systemd unit that an administrator installs: the few settings on which pods depend, and what systemd thinks of it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

const UNIT: &str = include_str!("../../../packaging/coracle.service");

fn values(key: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn stopping_the_unit_ends_the_daemon_and_no_pod() {
    assert_eq!(values("KillMode"), ["process"]);
    assert_eq!(values("Delegate"), ["yes"]);
    assert_eq!(values("TasksMax"), ["infinity"]);
    assert!(values("ExecStop").is_empty() && values("RuntimeDirectory").is_empty(), "neither is to take anything away from pods");
}

#[test]
fn the_unit_is_told_and_watched() {
    assert_eq!(values("Type"), ["notify"]);
    assert_eq!(values("Restart"), ["always"]);
    assert_eq!(values("StartLimitIntervalSec"), ["0"], "it is started again however often that fails");
    let seconds: Vec<u64> =
        ["WatchdogSec", "TimeoutStopSec"].iter().flat_map(|key| values(key)).map(|text| text.parse().unwrap()).collect();
    assert!(seconds.len() == 2 && seconds.iter().all(|&seconds| seconds >= 15), "longer than the daemon takes to end: {seconds:?}");
}

#[test]
fn systemd_takes_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coracle.service");
    // The program need not be installed here.
    std::fs::write(&path, UNIT.replace("/usr/local/bin/coracle serve", "/bin/true")).unwrap();
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(Path::new(&path)).output() else {
        return eprintln!("skipped: there is no systemd-analyze");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // Units of this machine that it looks at on the way are not ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("coracle.service")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}
