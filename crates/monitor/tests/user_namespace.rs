//! Pods with a user namespace and with a time namespace, against the real kernel.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use coracle_monitor::protocol::*;
use coracle_plan::*;

mod common;
use common::*;

const ROOT: u32 = 200_000;

fn user_namespace(pod: &Pod) -> UserNamespace {
    let mapping = IdMapping { host: ROOT, length: 65_536 };
    UserNamespace { path: pod.path("pins/user"), uids: mapping, gids: IdMapping { host: ROOT + 100_000, ..mapping } }
}

/// A pod with a user namespace, and the usual plan in it.
fn pod_of_users(change: impl FnOnce(&mut Prepare), script: &str) -> (Pod, Plan) {
    let mut pod = Pod::new();
    let user = user_namespace(&pod);
    let prepared = pod.prepare(|prepare| {
        prepare.user = Some(user);
        change(prepare);
    });
    assert_eq!(prepared, Reply::Done);
    let plan = plan_in(&mut pod, script);
    (pod, plan)
}

fn plan_in(pod: &mut Pod, script: &str) -> Plan {
    let mut plan = pod.plan(script);
    plan.namespaces.user = Some(user_namespace(pod));
    chown(plan.root.with_file_name("upper"), Some(ROOT), Some(ROOT + 100_000)).unwrap();
    plan
}

fn upper(plan: &Plan) -> PathBuf {
    plan.root.with_file_name("upper")
}

#[test]
fn root_inside_is_somebody_outside() {
    if !possible() {
        return;
    }
    let script = "cat /proc/self/uid_map; id; ls -ln /bin/busybox | tr -s ' '; echo x > /made; echo $$; cat /dev/null; echo hi > /dev/stdout; sleep 1000";
    let (mut pod, plan) = pod_of_users(|_| (), script);
    let pid = pod.start("one", &plan);
    pod.await_log("one", "hi");
    let log = pod.log("one");
    for wanted in ["0     200000      65536", "uid=0", "-rwxr-xr-x 1 0 0", "F 1\n"] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{ROOT}\t{ROOT}")), "{status}");
    assert!(status.contains(&format!("Gid:\t{}\t", ROOT + 100_000)), "{status}");
    let made = fs::metadata(upper(&plan).join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (ROOT, ROOT + 100_000));
    let pin = fs::metadata(pod.path("pins/user")).unwrap().ino();
    assert_eq!(fs::metadata(format!("/proc/{pid}/ns/user")).unwrap().ino(), pin);
    let (reply, mut streams) =
        pod.exec("x", "one", process(&["sh", "-c", "cat /proc/self/uid_map; id -u; echo > /by-exec; echo again > /dev/stdout"]));
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    assert_eq!(pod.client.exec_exit("x"), 0);
    let mut text = String::new();
    streams.output.read_to_string(&mut text).unwrap();
    assert!(text.contains("200000") && text.ends_with("0\nagain\n"), "{text}");
    assert_eq!(fs::metadata(upper(&plan).join("by-exec")).unwrap().uid(), ROOT);
}

#[test]
fn the_user_namespace_owns_the_others() {
    if !possible() {
        return;
    }
    let script = "busybox ip link set lo up && busybox ip addr | grep -c 127.0.0.1; mount -t tmpfs x /tmp && echo mounted; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; hostname";
    let (mut pod, mut plan) = pod_of_users(|_| (), script);
    let all = u64::MAX;
    plan.process.capabilities = Capabilities { bounding: all, effective: all, permitted: all, inheritable: 0, ambient: 0 };
    assert_eq!(pod.run("one", &plan).1, "stdout F 1\nstdout F mounted\nstdout F 79\nstdout F 1\nstdout F pod-one\n");
}

#[test]
fn ends_and_failures_are_told_on_either_side_of_the_crossing() {
    if !possible() {
        return;
    }
    let (mut pod, _) = pod_of_users(|_| (), "");
    for round in 0..20 {
        let plan = plan_in(&mut pod, "exit 3");
        assert_eq!(pod.run(&format!("c{round}"), &plan).0.code, 3);
    }
    let mut before = plan_in(&mut pod, "true");
    before.steps.insert(3, bind(std::path::Path::new("/no/such/source"), "/x"));
    let mut after = plan_in(&mut pod, "true");
    after.steps.push(Step::Filesystem {
        kind: "ext4".to_owned(),
        source: "/dev/null".to_owned(),
        target: "/x".into(),
        flags: MountFlags::default(),
        options: Vec::new(),
    });
    let mut unmapped = plan_in(&mut pod, "true");
    unmapped.process.user.uid = 70_000;
    for (name, plan, stage, errno) in
        [("before", before, "opening the source", 2), ("after", after, "mounting", 1), ("unmapped", unmapped, "finding, in the", 22)]
    {
        let Reply::Failed(fault) = pod.try_start(name, &plan) else { panic!("{name}") };
        assert!(fault.stage.contains(stage) && fault.errno == errno, "{name}: {fault:?}");
    }
    assert!(pod.client.states().iter().all(|state| state.container.starts_with('c')), "{:?}", pod.client.states());
}

#[test]
fn a_shared_pid_namespace_is_the_user_namespaces_too() {
    if !possible() {
        return;
    }
    let (mut pod, mut plan) = pod_of_users(|prepare| prepare.share_pid = true, "sleep 1000");
    plan.namespaces.pid = PidNamespace::Pod;
    pod.start("one", &plan);
    let mut other = plan_in(&mut pod, "ps; busybox setsid sleep 0.01 & echo $$");
    other.namespaces.pid = PidNamespace::Pod;
    let log = pod.run("two", &other).1;
    assert!(log.contains("coracle-init") && log.contains("sleep 1000"), "{log}");
    let mut target = plan_in(&mut pod, "ps");
    target.namespaces.pid = PidNamespace::Container("one".to_owned());
    assert!(pod.run("three", &target).1.contains("sleep 1000"));
}

#[test]
fn volumes_show_their_owners_as_mapped_or_nobody() {
    if !possible() {
        return;
    }
    let (mut pod, mut plan) =
        pod_of_users(|_| (), "busybox stat -c %u /mapped/f /plain/f; echo > /mapped/new; echo > /plain/new || echo refused");
    for (name, mapped) in [("mapped", true), ("plain", false)] {
        let source = pod.path(name);
        fs::create_dir(&source).unwrap();
        fs::write(source.join("f"), "").unwrap();
        let mut step = bind(&source, &format!("/{name}"));
        if let Step::Bind { mapped: flag, .. } = &mut step {
            *flag = mapped;
        }
        plan.steps.insert(3, step);
    }
    let log = pod.run("one", &plan).1;
    assert!(log.contains("stdout F 0\nstdout F 65534\n") && log.contains("stdout F refused"), "{log}");
    assert_eq!(fs::metadata(pod.path("mapped/new")).unwrap().uid(), 0);
}

#[test]
fn a_pods_clocks_are_as_far_ahead_as_asked() {
    if !possible() {
        return;
    }
    let offset = |clock, seconds| TimeOffset { clock, seconds, nanoseconds: 500_000_000 };
    let mut pod = Pod::new();
    let prepared = pod.prepare(|prepare| prepare.time_offsets = vec![offset(Clock::BootTime, 1_000_000), offset(Clock::Monotonic, 5)]);
    assert_eq!(prepared, Reply::Done);
    let plan = pod.plan("cat /proc/uptime; cat /proc/self/timens_offsets; sleep 1000");
    let pid = pod.start("one", &plan);
    pod.await_log("one", "boottime");
    let uptime = |text: &str| text.split_whitespace().next().unwrap().parse::<f64>().unwrap();
    let host = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let log = pod.log("one");
    let inside = uptime(log.strip_prefix("stdout F ").unwrap());
    assert!((inside - host - 1_000_000.5).abs() < 60.0, "{inside} {host}");
    let pin = fs::metadata(pod.path("pins/time")).unwrap().ino();
    assert_eq!(fs::metadata(format!("/proc/{pid}/ns/time")).unwrap().ino(), pin);
    let (_, mut streams) = pod.exec("x", "one", process(&["cat", "/proc/uptime"]));
    assert_eq!(pod.client.exec_exit("x"), 0);
    let mut text = String::new();
    streams.output.read_to_string(&mut text).unwrap();
    assert!(uptime(&text) >= inside);
    let mut impossible = Pod::new();
    let Reply::Failed(fault) = impossible.prepare(|prepare| prepare.time_offsets = vec![offset(Clock::BootTime, -1_000_000_000)]) else {
        panic!("a clock before the beginning of time");
    };
    assert!(fault.subject.contains("boottime -1000000000") && fault.errno == 34, "{fault:?}");
}
