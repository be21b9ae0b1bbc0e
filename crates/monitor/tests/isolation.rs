//! What a container sees and what it cannot reach, against the real kernel.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use coracle_monitor::protocol::*;
use coracle_plan::*;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

mod common;
use common::*;

fn namespace(pid: u32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap()
}

/// The node's mounts in the pod's directory, or of something in it; elsewhere are those of other tests.
fn mounts(pod: &Pod) -> Vec<String> {
    let own = pod.path("").display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
}

#[test]
fn namespaces_are_made_pinned_and_named_once() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    assert_eq!(pod.prepare(|_| ()), Reply::Done);
    assert_eq!(pod.prepare(|_| ()), Reply::Done);
    assert!(matches!(pod.prepare(|prepare| prepare.ipc = false), Reply::Failed(Fault { errno: 114, .. })));
    for name in ["net", "ipc", "uts"] {
        let own = namespace(pod.pid(), name);
        assert_ne!(own, namespace(std::process::id(), name));
        let pin = fs::metadata(pod.path("pins").join(name)).unwrap().ino();
        assert!(own.display().to_string().contains(&format!("[{pin}]")), "{name}");
    }
    assert!(!pod.path("pins/pid").exists());
    let plan = pod.plan("hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced");
    assert_eq!(pod.run("one", &plan).1, "stdout F pod-one\nstdout F 79\nstdout F 1\n");
}

#[test]
fn a_pod_of_the_nodes_namespaces_has_none_of_its_own() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plain = |prepare: &mut Prepare| {
        (prepare.network, prepare.ipc, prepare.hostname) = (false, false, None);
        prepare.sysctls.clear();
    };
    assert_eq!(pod.prepare(plain), Reply::Done);
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pod.pid(), name), namespace(std::process::id(), name));
    }
}

#[test]
fn a_sysctl_that_is_refused_is_named() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let wrong = |prepare: &mut Prepare| prepare.sysctls = vec![("net.ipv4.no_such_thing".to_owned(), "1".to_owned())];
    let Reply::Failed(fault) = pod.prepare(wrong) else { panic!() };
    assert_eq!((fault.stage.as_str(), fault.subject.as_str(), fault.errno), ("setting the kernel parameter", "net.ipv4.no_such_thing", 2));
}

#[test]
fn containers_that_share_a_pid_namespace_have_an_init_that_reaps_and_tells_nothing() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    assert_eq!(pod.prepare(|prepare| prepare.share_pid = true), Reply::Done);
    let mut first = pod.plan("(/bin/busybox sh -c 'sleep 0.2 & echo orphan $!' &) ; sleep 1000");
    first.namespaces.pid = PidNamespace::Pod;
    pod.start("first", &first);
    pod.await_log("first", "orphan");
    let orphan = pod.log("first").split_whitespace().last().unwrap().to_owned();
    // It waits for the orphan's end, of which nothing is left then.
    let mut second = pod.plan(&format!(
        "cat /proc/1/comm; ls /proc/1/root/ 2>&1; ls -l /proc/1/exe 2>&1; ls /proc/1/fd 2>&1; grep -E '^(Uid|CapBnd)' /proc/1/status; \
         kill -9 1; while [ -e /proc/{orphan} ]; do /bin/busybox usleep 5000; done; echo done",
    ));
    second.namespaces.pid = PidNamespace::Pod;
    second.process.capabilities.bounding |= 1 << 19;
    second.process.capabilities.effective |= 1 << 19;
    second.process.capabilities.permitted |= 1 << 19;
    let (exit, log) = pod.run("second", &second);
    assert_eq!(exit.code, 0);
    let text: Vec<&str> = log.lines().map(|line| line.get(9..).unwrap()).collect();
    assert_eq!(text[0], "coracle-init");
    // CAP_SYS_PTRACE is enough to look, and there is nothing to see.
    assert!(!log.contains("etc") && !log.contains("home"), "{log}");
    assert!(log.contains("Uid:\t65534\t65534\t65534\t65534") && log.contains("CapBnd:\t0000000000000000"), "{log}");
    assert!(log.ends_with("stdout F done\n"), "{log}");
}

#[test]
fn a_container_can_join_anothers_pid_namespace() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let target = pod.plan("exec sleep 4321");
    pod.start("target", &target);
    let mut guest = pod.plan("cat /proc/1/cmdline | tr '\\0' ' '");
    guest.namespaces.pid = PidNamespace::Container("target".to_owned());
    assert!(pod.run("guest", &guest).1.contains("sleep 4321"));
    guest.namespaces.pid = PidNamespace::Container("nobody".to_owned());
    assert!(matches!(pod.try_start("guest", &guest), Reply::Failed(Fault { errno: 3, .. })));
    guest.namespaces.pid = PidNamespace::Pod;
    assert!(matches!(pod.try_start("guest", &guest), Reply::Failed(Fault { errno: 3, .. })));
    // The monitor itself is where it was.
    assert_eq!(namespace(pod.pid(), "pid"), namespace(std::process::id(), "pid"));
    assert_eq!(namespace(pod.pid(), "pid_for_children"), namespace(std::process::id(), "pid_for_children"));
}

#[test]
fn a_hostile_image_leads_nothing_outside() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let outside = pod.path("outside");
    fs::create_dir(&outside).unwrap();
    let image = pod.path("image");
    for (link, content) in [("etc", "/../../../../../../../../.."), ("run", "../../../../../../../..")] {
        let _ = fs::remove_dir_all(image.join(link));
        symlink(content, image.join(link)).unwrap();
    }
    for name in ["proc", "dev/shm"] {
        let _ = fs::remove_dir(image.join(name));
        symlink(&outside, image.join(name)).unwrap();
    }
    let file = pod.path("image/tmp/file");
    fs::write(&file, "seen\n").unwrap();
    let mut plan = pod.plan("");
    let layers = plan.steps.remove(1);
    plan.steps = usual_steps(layers, &file);
    plan.process.arguments = process(&["sh", "-c", "cat /hosts /secrets/token; mount | grep -c ."]).arguments;
    let before = mounts(&pod);
    let (exit, log) = pod.run("one", &plan);
    assert!(log.starts_with("stdout F seen\nstdout F seen\n"), "{exit:?} {log}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/secrets").exists() && !Path::new("/hosts").exists());
    assert_eq!(mounts(&pod), before);
}

#[test]
fn the_nodes_mounts_are_out_of_sight_and_out_of_reach() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("cat /proc/self/mountinfo; readlink /proc/self/root; ls -a /");
    let (_, log) = pod.run("one", &plan);
    // overlay, proc, dev, pts, mqueue, shm, sys, 5 binds, and covers.
    let roots: Vec<&str> = log.lines().filter(|line| line.split(' ').nth(6) == Some("/")).collect();
    assert!(roots.len() == 1 && roots[0].contains(" - overlay overlay "), "{log}");
    let covers = log.lines().filter(|line| line.contains("devtmpfs")).count();
    assert!(log.matches(" - ").count() <= 24 + covers && log.contains("stdout F /\n"), "{log}");
    let places: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split(' ').nth(6))
        .filter(|place| place.starts_with("/tmp") || place.starts_with("/run/") && *place != "/run/secrets/token")
        .collect();
    assert!(places.is_empty(), "{places:?}");
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_refuse() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let script = "cat /proc/keys | /bin/busybox wc -c; ls -a /sys/firmware | /bin/busybox wc -l; ls /proc/sys | grep -c kernel; \
                  echo 1 > /proc/sys/kernel/pid_max; /bin/busybox touch /sys/x /sys/firmware/x; cat /dev/null && echo end";
    let plan = pod.plan(script);
    let (_, log) = pod.run("one", &plan);
    let output: String = log.lines().filter(|line| line.starts_with("stdout")).map(|line| format!("{line}\n")).collect();
    assert_eq!(output, "stdout F 0\nstdout F 2\nstdout F 1\nstdout F end\n", "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 3, "{log}");
}

#[test]
fn a_read_only_root_refuses_and_its_volumes_do_as_they_are_told() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    for name in ["rw", "ro", "tree"] {
        fs::create_dir(pod.path(name)).unwrap();
    }
    let mut plan = pod.plan(
        "for d in / /dev /rw /ro; do /bin/busybox touch $d/x && echo $d; done; cp /bin/busybox /rw/prog; /rw/prog true || echo noexec",
    );
    let read_only = MountFlags { access: Access::ReadOnly, ..MountFlags::default() };
    let safe = MountFlags { access: Access::ReadWrite, ..SAFE };
    for (name, flags) in [("ro", read_only), ("rw", safe)] {
        let step = Step::Bind {
            source: pod.path(name),
            target: Path::new("/").join(name),
            recursive: true,
            flags,
            flags_beneath: flags,
            propagation: Propagation::Slave,
            mapped: false,
        };
        plan.steps.insert(3, step);
    }
    plan.steps.push(Step::ReadOnlyRoot);
    let (_, log) = pod.run("one", &plan);
    let output: Vec<&str> = log.lines().filter(|line| line.starts_with("stdout")).collect();
    assert_eq!(output, ["stdout F /dev", "stdout F /rw", "stdout F noexec"], "{log}");
    assert!(pod.path("rw/x").exists());
    // The node's own mount of it is what it was.
    fs::write(pod.path("ro/y"), "").unwrap();
}

#[test]
fn an_image_or_a_part_of_it_is_shown_and_no_more() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let (top, bottom) = (pod.path("top"), pod.path("bottom"));
    for path in [&top, &bottom.join("data")] {
        fs::create_dir_all(path).unwrap();
    }
    for name in ["gone", "data/file"] {
        fs::write(bottom.join(name), "seen\n").unwrap();
    }
    let whiteout = rustix::fs::mknodat(rustix::fs::CWD, top.join("gone"), rustix::fs::FileType::CharacterDevice, 0o600.into(), 0);
    whiteout.unwrap();
    symlink("/data/file", top.join("inside")).unwrap();
    symlink(format!("../../../../../../../..{}", bottom.display()), top.join("outside")).unwrap();
    let step = |sub_path: Option<&str>, target: &str, flags: MountFlags| Step::Image {
        lower: vec![top.clone(), bottom.clone()],
        sub_path: sub_path.map(PathBuf::from),
        target: target.into(),
        flags,
    };
    let mut plan = pod.plan("ls /all; cat /part/file /etc/one; for p in /all /part /etc/one; do /bin/busybox touch $p/x $p; done; mount");
    plan.steps.insert(3, step(None, "/all", SAFE));
    plan.steps.insert(4, step(Some("data"), "/part", MountFlags::default()));
    plan.steps.insert(5, step(Some("inside"), "/etc/one", MountFlags::default()));
    let before = mounts(&pod);
    let (_, log) = pod.run("one", &plan);
    assert!(log.starts_with("stdout F data\nstdout F inside\nstdout F outside\nstdout F seen\nstdout F seen\n"), "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 5, "{log}");
    assert!(log.contains("overlay on /all type overlay (ro,nosuid,nodev,noexec"), "{log}");
    for (part, errno) in [("outside", 2), ("gone", 2), ("inside/x", 20)] {
        let mut plan = pod.plan("true");
        plan.steps.insert(3, step(Some(part), "/part", MountFlags::default()));
        let Reply::Failed(fault) = pod.try_start(part.split('/').next().unwrap(), &plan) else { panic!("{part} was found") };
        assert_eq!((fault.stage.as_str(), fault.subject.as_str(), fault.errno), ("finding in the image", part, errno));
    }
    assert_eq!(mounts(&pod), before);
}

#[test]
fn mounts_travel_as_told() {
    if !possible() {
        return;
    }
    // A tree of mounts of the test's own, in a mount namespace of its own: nothing reaches the machine.
    let script = |pod: &mut Pod, propagation: Propagation, script: &str| {
        let shared = pod.path("shared");
        let mut plan = pod.plan(script);
        if propagation == Propagation::Shared {
            plan.steps[0] = Step::Propagate(Propagation::Shared);
        }
        plan.process.capabilities =
            Capabilities { bounding: u64::MAX, effective: u64::MAX, permitted: u64::MAX, inheritable: 0, ambient: 0 };
        let step = Step::Bind {
            source: shared,
            target: "/vol".into(),
            recursive: true,
            flags: MountFlags::default(),
            flags_beneath: MountFlags::default(),
            propagation,
            mapped: false,
        };
        plan.steps.insert(3, step);
        plan
    };
    std::thread::spawn(move || {
        coracle_sys::namespace::unshare(&[coracle_sys::namespace::Namespace::Mount]).unwrap();
        let all = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", all).unwrap();
        let mut pod = Pod::new();
        let shared = pod.path("shared");
        fs::create_dir(&shared).unwrap();
        rustix::mount::mount("tmpfs", &shared, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        rustix::mount::mount_change(&shared, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        let beneath = format!(" {}/", shared.display());
        let count = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap().matches(&beneath).count();
        let inside = "/bin/busybox mkdir -p /vol/in && mount -t tmpfs x /vol/in && echo mounted";
        for (name, propagation, seen) in
            [("private", Propagation::Private, 0), ("slave", Propagation::Slave, 0), ("shared", Propagation::Shared, 1)]
        {
            let plan = script(&mut pod, propagation, inside);
            assert_eq!(pod.run(name, &plan).1, "stdout F mounted\n");
            assert_eq!(count(), seen, "{name}");
        }
        rustix::mount::unmount(shared.join("in"), rustix::mount::UnmountFlags::DETACH).unwrap();
        let wait = "while ! grep -q ' /vol/out ' /proc/self/mountinfo; do /bin/busybox usleep 1000; done; echo came";
        let plan = script(&mut pod, Propagation::Slave, wait);
        pod.start("listens", &plan);
        fs::create_dir(shared.join("out")).unwrap();
        rustix::mount::mount("tmpfs", shared.join("out"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        assert_eq!(pod.client.exit_of("listens").code, 0);
        rustix::mount::unmount(shared.join("out"), rustix::mount::UnmountFlags::DETACH).unwrap();
        rustix::mount::unmount(&shared, rustix::mount::UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn nothing_that_a_container_sees_is_shared_with_a_node_that_shares_its_mounts() {
    if !possible() {
        return;
    }
    // Such a node, as systemd makes it, in a mount namespace of the test's own.
    std::thread::spawn(|| {
        coracle_sys::namespace::unshare(&[coracle_sys::namespace::Namespace::Mount]).unwrap();
        for change in [rustix::mount::MountPropagationFlags::PRIVATE, rustix::mount::MountPropagationFlags::SHARED] {
            rustix::mount::mount_change("/", change | rustix::mount::MountPropagationFlags::REC).unwrap();
        }
        let mut pod = Pod::new();
        let plan = pod.plan("cat /proc/self/mountinfo");
        let (_, log) = pod.run("one", &plan);
        assert!(log.contains(" /null /proc/"), "{log}");
        assert!(!log.contains("shared:"), "{log}");
    })
    .join()
    .unwrap();
}

#[test]
fn a_container_and_its_execs_may_use_processors_that_their_monitor_may_not() {
    if !possible() {
        return;
    }
    // On a thread of the test's own, whose processors the monitor inherits.
    std::thread::spawn(|| {
        let confine = |processors: std::ops::Range<usize>| {
            let mut set = CpuSet::new();
            processors.for_each(|number| set.set(number));
            sched_setaffinity(None, &set).unwrap();
            sched_getaffinity(None).unwrap()
        };
        let all = confine(0..CpuSet::MAX_CPU);
        let first = (0..CpuSet::MAX_CPU).find(|number| all.is_set(*number)).unwrap();
        if confine(first..first + 1) == all {
            return eprintln!("skipped: one processor only");
        }
        let mut pod = Pod::new();
        let look = "grep Cpus_allowed: /proc/self/status";
        let plan = pod.plan(&format!("{look}; sleep 1000"));
        pod.start("one", &plan);
        pod.await_log("one", "Cpus");
        let (_, mut streams) = pod.exec("look", "one", process(&["sh", "-c", look]));
        let mut said = String::new();
        streams.output.read_to_string(&mut said).unwrap();
        confine(0..CpuSet::MAX_CPU);
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let wanted = status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap();
        assert_eq!((pod.log("one").trim_end(), said.trim_end()), (&*format!("stdout F {wanted}"), wanted));
    })
    .join()
    .unwrap();
}

#[test]
fn two_hundred_layers_make_one_root() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut layers = Vec::new();
    for number in 0..200 {
        let layer = pod.path(&format!("layers/{}-{number}", "long".repeat(40)));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("file{number}")), "").unwrap();
        fs::write(layer.join("top"), format!("{number}\n")).unwrap();
        layers.push(layer);
    }
    layers.push(pod.path("image"));
    let mut plan = pod.plan("ls / | grep -c file; cat /top; echo x > /top; cat /top");
    if let Step::Overlay { lower, .. } = &mut plan.steps[1] {
        *lower = layers;
    }
    assert_eq!(pod.run("one", &plan).1, "stdout F 200\nstdout F 0\nstdout F x\n");
}

#[test]
fn an_image_without_layers_is_its_writable_one() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("echo hi");
    make_image(&pod.path("c1/upper"));
    if let Step::Overlay { lower, .. } = &mut plan.steps[1] {
        lower.clear();
    }
    assert_eq!(pod.run("one", &plan).1, "stdout F hi\n");
}

#[test]
fn a_terminal_is_the_containers_own() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("tty; ls -l /proc/self/fd/0 | grep -c pts; echo err >&2; test -c /dev/console && echo console > /dev/console; id -u; echo x > /dev/tty");
    plan.process.terminal = true;
    plan.process.user = User { uid: 1000, gid: 1000, groups: vec![] };
    let (exit, log) = pod.run("one", &plan);
    assert_eq!(exit.code, 0, "{log}");
    assert_eq!(log.replace('\r', ""), "stdout F /dev/pts/0\nstdout F 1\nstdout F err\nstdout F console\nstdout F 1000\nstdout F x\n");
}

/// How often a process went to sleep of itself.
fn sleeps(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_while_is_not_given_up() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan(
        "/bin/busybox stty -echo; echo before; printf begun; exec >/dev/null 2>&1 </dev/null; until [ -e /tmp/go ]; do /bin/busybox usleep 10000; done; \
         echo x >/dev/console; read line </dev/console; echo got $line >/dev/console; exit 3",
    );
    plan.process.terminal = true;
    pod.start("one", &plan);
    pod.await_log("one", "begun");
    let attach = Attach { container: "one".to_owned(), stdin: true, stdout: true, stderr: false, stdin_once: false };
    let ((input, mut sends), (mut takes, output)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    pod.client.send(Request::Attach(attach), &[input.into(), output.into(), null.into()]);
    assert_eq!(pod.client.reply(), Reply::Done);
    // More than a terminal takes that nobody reads.
    std::io::Write::write_all(&mut sends, &[&b"in\n"[..], &[b'y'; 20_000]].concat()).unwrap();
    let before = sleeps(pod.pid());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let looks = sleeps(pod.pid()) - before;
    assert!(looks < 30, "it is looked at {looks} times in a second");
    let (reply, _streams) = pod.exec("go", "one", process(&["sh", "-c", ": > /tmp/go"]));
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    assert_eq!(pod.client.exit_of("one").code, 3);
    let log = pod.log("one").replace('\r', "");
    assert_eq!(log, "stdout F before\nstdout P begun\nstdout F x\nstdout F got in\n");
    let mut seen = String::new();
    takes.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "x\r\ngot in\r\n");
}

#[test]
fn an_exec_has_a_terminal_that_belongs_to_its_user() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("sleep 1000");
    pod.start("one", &plan);
    let script =
        "tty; stat -c %u:%a $(tty); echo err >&2; echo x > /dev/tty; ls /proc/self/fd | wc -l; echo ready; read line; echo got $line";
    let mut process = process(&["/bin/sh", "-c", script]);
    (process.terminal, process.user) = (true, User { uid: 1000, gid: 1000, groups: vec![] });
    let (reply, mut master) = pod.exec_in_terminal("e", "one", process);
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    let mut said = read_until(&mut master, "ready\r\n");
    std::io::Write::write_all(&mut master, b"in\n").unwrap();
    assert_eq!(pod.client.exec_exit("e"), 0);
    said.push_str(&read_terminal(&mut master));
    let words: Vec<&str> = said.lines().collect();
    assert_eq!(words, ["/dev/pts/0", "1000:620", "err", "x", "4", "ready", "in", "got in"]);
}

#[test]
fn standard_input_stays_open_if_asked_for() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("cat; echo end");
    let file = pod.path("one.plan");
    fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
    let start = Start { container: "one".to_owned(), plan: file, exit: pod.path("one.exit"), log: None, stdin: true, oom: None };
    assert!(matches!(pod.client.call(Request::Start(start)), Reply::Started { .. }));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(pod.client.states()[0].exit.is_none());
}

/// Cgroups of the test's own, removed at its end.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn new(name: &str) -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = format!("coracle-monitor-{name}-{}", std::process::id());
        let points = table.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
        let made: Vec<PathBuf> = points.map(|point| Path::new(point).join(&name)).filter(|path| fs::create_dir(path).is_ok()).collect();
        for group in &made {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(group.join("..").join(file)) {
                    let _ = fs::write(group.join(file), all.trim());
                }
            }
        }
        Self(made)
    }

    fn find(&self, file: &str) -> Option<&PathBuf> {
        self.0.iter().find(|path| path.join(file).exists())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for path in &self.0 {
            let begun = std::time::Instant::now();
            let mut gone = fs::remove_dir(path).is_ok();
            while !gone && begun.elapsed() < PATIENCE {
                std::thread::sleep(std::time::Duration::from_millis(5));
                gone = fs::remove_dir(path).is_ok();
            }
            assert!(gone || std::thread::panicking(), "{} is in use", path.display());
        }
    }
}

#[test]
fn a_container_and_its_execs_are_in_their_cgroups() {
    if !possible() {
        return;
    }
    let groups = Groups::new("join");
    let mut pod = Pod::new();
    let mut plan = pod.plan("cat /proc/self/cgroup; sleep 1000");
    let unified = groups.find("cgroup.kill").cloned();
    let cgroups = Cgroups {
        join: groups.0.iter().filter(|path| Some(*path) != unified.as_ref()).map(|path| path.join("cgroup.procs")).collect(),
        unified: unified.clone(),
    };
    assert!(!groups.0.is_empty());
    plan.cgroups = cgroups.clone();
    let pid = pod.start("one", &plan);
    pod.await_log("one", ":/\n");
    for group in &groups.0 {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(members.lines().any(|line| line == pid.to_string()), "{}", group.display());
    }
    // Its cgroup namespace has its own cgroups as root.
    let log = pod.log("one");
    assert_eq!(log.lines().filter(|line| line.ends_with(":/")).count(), log.lines().count(), "{log}");
    let exec = Exec { cgroups, ..exec("x", "one", process(&["sh", "-c", "cat /proc/self/cgroup"])) };
    let (mut output, theirs) = std::io::pipe().unwrap();
    let null = || fs::File::open("/dev/null").unwrap().into();
    pod.client.send(Request::Exec(Box::new(exec)), &[null(), theirs.into(), null()]);
    assert!(matches!(pod.client.reply(), Reply::Started { .. }));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().filter(|line| line.ends_with(":/")).count(), text.lines().count(), "{text}");
    drop(pod);
}

#[test]
fn want_of_memory_is_told_from_other_deaths() {
    if !possible() {
        return;
    }
    let groups = Groups::new("oom");
    let v2 = groups.find("memory.max").filter(|group| fs::write(group.join("memory.max"), "16M").is_ok());
    let v1 = groups.find("memory.limit_in_bytes").filter(|group| fs::write(group.join("memory.limit_in_bytes"), "16M").is_ok());
    let (cgroups, path) = match (v2, v1) {
        (Some(group), _) => (Cgroups { unified: Some(group.clone()), join: vec![] }, group.join("memory.events")),
        (_, Some(group)) => (Cgroups { unified: None, join: vec![group.join("cgroup.procs")] }, group.join("memory.oom_control")),
        _ => return eprintln!("skipped: no memory controller"),
    };
    let mut pod = Pod::new();
    for (id, script, killed) in [("dies", "kill -9 $$", false), ("greedy", "exec dd if=/dev/zero of=/dev/null bs=200M count=1", true)] {
        let mut plan = pod.plan(script);
        plan.cgroups = cgroups.clone();
        plan.namespaces.pid = PidNamespace::Node;
        let file = pod.path("plan");
        fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
        let oom = Some(OomSource { path: path.clone(), key: "oom_kill".to_owned() });
        let start = Start { container: id.to_owned(), plan: file, exit: pod.path("exit"), log: None, stdin: false, oom };
        let reply = pod.client.call(Request::Start(start));
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
        let exit = pod.client.exit_of(id);
        assert_eq!((exit.code, exit.oom_killed), (137, killed), "{id}");
    }
    drop(pod);
}
