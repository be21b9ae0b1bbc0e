//! A monitor that has no descriptors left, against the real kernel.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use rustix::process::{Pid, Resource, getrlimit, prlimit};

mod common;
use common::*;

/// A monitor that can open nothing more, until this is dropped.
struct Full {
    monitor: Pid,
    before: rustix::process::Rlimit,
}

impl Full {
    fn new(pod: &Pod) -> Self {
        let monitor = Pid::from_raw(pod.pid() as i32).unwrap();
        let first_free = (0..).find(|number| !Path::new(&format!("/proc/{}/fd/{number}", pod.pid())).is_symlink());
        let own = getrlimit(Resource::Nofile);
        let limit = rustix::process::Rlimit { current: first_free, ..own };
        Self { monitor, before: prlimit(Some(monitor), Resource::Nofile, limit).unwrap() }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        prlimit(Some(self.monitor), Resource::Nofile, self.before).unwrap();
    }
}

#[test]
fn a_monitor_that_had_no_descriptors_left_hears_newcomers_again_whatever_its_containers_say() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("while true; do echo; /bin/busybox usleep 100000; done");
    pod.start("one", &plan);
    let full = Full::new(&pod);
    let mut newcomer = Client::connect(pod.directory.path());
    pod.await_log("one", "F \nstdout F \nstdout F ");
    drop(full);
    assert_eq!(newcomer.states().len(), 1);
}
