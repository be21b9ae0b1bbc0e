//! A monitor that has no descriptors left, against the real kernel.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use coracle_monitor::protocol::*;
use coracle_plan::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
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

#[test]
fn a_start_whose_descriptors_find_no_room_fails() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    assert_eq!(pod.prepare(|prepare| prepare.share_pid = true), Reply::Done);
    for (id, stage) in [("moves", "receiving the handle of process"), ("terminal", "taking the terminal of container")] {
        let mut plan = pod.plan("sleep 1000");
        match id {
            "moves" => plan.namespaces.pid = PidNamespace::Pod,
            _ => plan.process.terminal = true,
        }
        // It waits in its set-up until somebody reads from this pipe.
        let pipe = pod.path(id);
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        plan.cgroups.join.push(pipe.clone());
        let file = pod.path(&format!("{id}.plan"));
        fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
        let start = Start { container: id.to_owned(), plan: file, exit: pod.path("exit"), log: None, stdin: false, oom: None };
        let call = pod.client.send(Request::Start(start), &[]);
        assert_eq!(pod.client.states().len(), 1);
        let full = Full::new(&pod);
        let _reader = fs::File::open(pipe).unwrap();
        let reply = pod.client.reply_to(call);
        drop(full);
        assert!(matches!(&reply, Reply::Failed(fault) if fault.stage == stage && fault.errno == 9), "{reply:?}");
        assert_eq!(pod.client.states(), []);
    }
}
