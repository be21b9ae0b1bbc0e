//! Containers from start to end, against the real kernel.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;

use coracle_monitor::protocol::*;
use coracle_plan::*;

mod common;
use common::*;

/// The device /dev/full: 1, 7.
const FULL: u64 = 0x107;

#[test]
fn a_container_runs_and_its_exit_is_on_file_before_it_is_told() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("echo out; echo err >&2; exit 7");
    let (exit, log) = pod.run("one", &plan);
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    assert!(exit.at > exit.started_at && exit.started_at > 0);
    assert_eq!(serde_json::from_slice::<ExitRecord>(&fs::read(pod.path("one.exit")).unwrap()).unwrap(), exit);
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F out"]);
    assert_eq!(pod.client.states(), []);
}

#[test]
fn a_killed_container_has_128_and_the_signal() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("sleep 1000");
    let pid = pod.start("one", &plan);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let target = Target::Container("one".to_owned());
    assert_eq!(pod.client.call(Request::Signal { target: target.clone(), signal: 9 }), Reply::Done);
    assert_eq!(pod.client.exit_of("one").code, 137);
    assert_eq!(pod.client.call(Request::Signal { target, signal: 9 }), Reply::Done);
}

#[test]
fn a_signal_that_does_not_exist_is_an_error() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("sleep 1000");
    pod.start("one", &plan);
    let target = Target::Container("one".to_owned());
    assert!(matches!(pod.client.call(Request::Signal { target, signal: 900 }), Reply::Failed(Fault { errno: 22, .. })));
}

#[test]
fn lines_are_split_and_tails_are_partial() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("head -c 40000 /dev/zero | tr '\\0' x; echo; echo; printf tail");
    let (_, log) = pod.run("one", &plan);
    let entries: Vec<(&str, usize)> = log.lines().map(|line| line.split_at(9)).map(|(tag, rest)| (tag, rest.len())).collect();
    assert_eq!(entries, [("stdout P ", 16384), ("stdout P ", 16384), ("stdout F ", 7232), ("stdout F ", 0), ("stdout P ", 4)]);
}

#[test]
fn a_missing_program_is_named() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    for (arguments, errno, stage) in [
        (&["nope"][..], 2, "finding the program"),
        (&["/no/such/thing"], 2, "finding the program"),
        (&["/etc/group"], 13, "executing the program"),
        (&["/etc/script"], 2, "executing the program, whose interpreter is missing,"),
        (&["/etc"], 13, "executing the program"),
    ] {
        let mut plan = pod.plan("");
        plan.process.arguments = arguments.iter().map(|argument| Bytes::from(*argument)).collect();
        let fault = Fault { stage: stage.to_owned(), subject: arguments[0].to_owned(), errno };
        assert_eq!(pod.try_start("one", &plan), Reply::Failed(fault));
        assert_eq!(pod.client.states(), []);
        assert!(!pod.path("one.exit").exists());
    }
}

#[test]
fn a_name_that_is_too_long_for_any_program_is_an_error() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let running = pod.plan("sleep 1000");
    pod.start("running", &running);
    for name in ["a".repeat(20_000), "a".repeat(300_000), "\u{1}".repeat(3_000)] {
        let mut plan = pod.plan("");
        plan.process.arguments = vec![Bytes::from(name.as_str())];
        let reply = pod.try_start("one", &plan);
        assert!(matches!(&reply, Reply::Failed(Fault { stage, errno: 36, .. }) if stage.ends_with("the program")), "{reply:?}");
        let (reply, _streams) = pod.exec("x", "running", process(&[&name]));
        assert!(matches!(&reply, Reply::Failed(Fault { stage, errno: 36, .. }) if stage.ends_with("the program")), "{reply:?}");
    }
}

#[test]
fn a_step_that_fails_names_its_object() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("true");
    plan.steps.insert(3, filesystem("tmpfs", "/mnt", SAFE, &[("mode", "755"), ("nonsense", "1")]));
    let Reply::Failed(fault) = pod.try_start("one", &plan) else { panic!() };
    assert_eq!((fault.stage.as_str(), fault.errno), ("mounting", 22));
    assert!(fault.subject.contains("tmpfs on /mnt, option nonsense"), "{fault:?}");
    let mut plan = pod.plan("true");
    plan.steps.insert(3, bind(Path::new("/no/such/volume"), "/mnt"));
    let Reply::Failed(fault) = pod.try_start("one", &plan) else { panic!() };
    assert_eq!((fault.subject.as_str(), fault.errno), ("/no/such/volume on /mnt", 2));
}

#[test]
fn a_process_killed_during_its_setup_is_reported_with_its_status() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("true");
    // A pipe that nobody writes to: opening it as a layer does not hang, but joining it as a cgroup does.
    let pipe = pod.path("hangs");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    plan.cgroups.join.push(pipe);
    let file = pod.path("one.plan");
    fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
    let start = Start { container: "one".to_owned(), plan: file, exit: pod.path("one.exit"), log: None, stdin: false, oom: None };
    let call = pod.client.send(Request::Start(start), &[]);
    // Meanwhile the pod's other calls go on.
    let other = pod.plan("exit 3");
    assert_eq!(pod.run("two", &other).0.code, 3);
    let states = pod.client.states();
    assert_eq!((states.len(), states[0].started_at), (1, 0));
    assert_eq!(pod.client.call(Request::Signal { target: Target::Container("one".to_owned()), signal: 9 }), Reply::Done);
    let Reply::Failed(fault) = pod.client.reply_to(call) else { panic!() };
    assert!(fault.subject.contains("ended with 137"), "{fault:?}");
    assert_eq!(pod.client.states(), []);
}

#[test]
fn a_container_inherits_three_descriptors_and_nothing_else() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("");
    plan.process = process(&["ls", "-l", "/proc/self/fd"]);
    let (_, log) = pod.run("descriptors", &plan);
    let descriptors: Vec<&str> =
        log.lines().filter(|line| line.contains("x------")).filter_map(|line| line.split_whitespace().nth(10)).collect();
    // The last one is ls' own, of the directory it lists.
    assert_eq!(descriptors, ["0", "1", "2", "3"], "{log}");
    // The node's /dev/null, by way of a mount of it alone.
    assert!(log.contains(" 0 -> /\n"), "{log}");
    let mut plan = pod.plan("");
    plan.process = process(&["grep", "-E", "^(Sig|Shd)", "/proc/self/status"]);
    let (_, log) = pod.run("signals", &plan);
    for set in ["SigIgn", "SigBlk", "SigCgt", "SigPnd", "ShdPnd"] {
        assert!(log.contains(&format!("{set}:\t0000000000000000")), "{log}");
    }
}

#[test]
fn the_program_has_the_identity_it_was_given() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let script = "id; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; echo hi > /dev/stderr; cat /proc/self/oom_score_adj; pwd; umask";
    let mut plan = pod.plan(script);
    plan.process.user = User { uid: 1000, gid: 1001, groups: vec![5000, 6000] };
    plan.process.working_directory = Bytes::from("/made/for/it");
    let bit = 1 << 10;
    plan.process.capabilities = Capabilities { bounding: bit | 1, effective: bit, permitted: bit, inheritable: bit, ambient: bit };
    let (exit, log) = pod.run("one", &plan);
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("uid=1000 gid=1001 groups=5000,6000"), "{log}");
    for (set, bits) in [("Inh", bit), ("Prm", bit), ("Eff", bit), ("Bnd", bit | 1), ("Amb", bit)] {
        assert!(log.contains(&format!("Cap{set}:\t{bits:016x}")), "{set} {log}");
    }
    assert!(log.contains("NoNewPrivs:\t1") && log.contains("stderr F hi") && log.contains("stdout F 500"), "{log}");
    assert!(log.contains("stdout F /made/for/it\nstdout F 0022\n"), "{log}");
}

#[test]
fn all_capabilities_are_those_that_there_are() {
    if !possible() {
        return;
    }
    let own = |name: &str| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    let mut pod = Pod::new();
    let mut plan = pod.plan("grep -E '^Cap(Prm|Bnd)' /proc/self/status");
    let all = u64::MAX;
    plan.process.capabilities = Capabilities { bounding: all, effective: all, permitted: all, inheritable: 0, ambient: 0 };
    let (_, log) = pod.run("one", &plan);
    assert_eq!(log, format!("stdout F CapPrm:\t{}\nstdout F CapBnd:\t{}\n", own("CapPrm:"), own("CapBnd:")));
}

#[test]
fn a_filter_holds_with_and_without_no_new_privileges() {
    if !possible() {
        return;
    }
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| [&code.to_ne_bytes()[..], &[jt, jf], &k.to_ne_bytes()].concat();
    // mkdir(2) is 83, capset(2) 126, which set-up must not need any more, on x86-64.
    let program = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 1, 0, 83),
        instruction(0x15, 0, 1, 126),
        instruction(0x06, 0, 0, 0x0005_0000 | 99),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat();
    let mut pod = Pod::new();
    for (index, (no_new_privileges, uid)) in [(true, 0), (false, 0), (true, 1000), (false, 1000)].into_iter().enumerate() {
        let mut plan = pod.plan("/bin/busybox mkdir /tmp/x; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status");
        plan.process.no_new_privileges = no_new_privileges;
        plan.process.user.uid = uid;
        plan.process.seccomp = Some(Filter { program: program.clone(), flags: 0 });
        let (_, log) = pod.run(&format!("c{index}"), &plan);
        assert!(log.contains("can't create directory '/tmp/x'"), "{log}");
        assert!(log.contains("Seccomp:\t2") && log.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))), "{log}");
        let effective = if uid == 0 { "CapEff:\t00000000a80425fb" } else { "CapEff:\t0000000000000000" };
        assert!(log.contains(effective), "{log}");
    }
}

#[test]
fn an_exec_runs_in_the_container_and_is_its_own() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    pod.prepare(|_| ());
    let plan = pod.plan("echo mark > /tmp/mark; sleep 1000");
    pod.start("one", &plan);
    let script = "cat /tmp/mark; hostname; ls /proc/self/fd; ls -l /proc/1/exe; readlink /proc/self/ns/pid; exit 9";
    let (reply, mut streams) = pod.exec("x1", "one", process(&["sh", "-c", script]));
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    assert_eq!(pod.client.exec_exit("x1"), 9);
    let (mut output, mut error) = (String::new(), String::new());
    streams.output.read_to_string(&mut output).unwrap();
    streams.error.read_to_string(&mut error).unwrap();
    assert!(output.starts_with("mark\npod-one\n0\n1\n2\n3\n") && output.contains("/bin/busybox"), "{output} {error}");
    assert!(!output.contains(&fs::read_link("/proc/self/ns/pid").unwrap().display().to_string()));
}

#[test]
fn an_exec_without_program_directory_container_or_streams_fails() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("sleep 1000");
    pod.start("one", &plan);
    let failed = |reply| match reply {
        Reply::Failed(fault) => (fault.stage, fault.errno),
        other => panic!("{other:?}"),
    };
    let mut lost = process(&["true"]);
    lost.working_directory = Bytes::from("/no/such");
    assert_eq!(failed(pod.exec("a", "one", lost).0), ("entering the working directory".to_owned(), 2));
    assert_eq!(failed(pod.exec("b", "one", process(&["nope"])).0), ("finding the program".to_owned(), 2));
    assert_eq!(failed(pod.exec("c", "two", process(&["true"])).0), ("finding the running container".to_owned(), 3));
    let bare = exec("d", "one", process(&["true"]));
    assert_eq!(failed(pod.client.call(Request::Exec(Box::new(bare)))).1, 9);
    let mut terminal = process(&["true"]);
    terminal.terminal = true;
    let no_socket = ("sending the terminal over".to_owned(), 88);
    assert_eq!(failed(pod.exec("e", "one", terminal).0), no_socket);
}

#[test]
fn an_execs_directory_cannot_be_a_way_out() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("for n in 3 4 5 6 7 8 9; do /bin/busybox ln -s /proc/self/fd/$n /tmp/$n; done; echo ready; sleep 1000");
    pod.start("one", &plan);
    pod.await_log("one", "ready");
    for number in 3..10 {
        for path in [format!("/tmp/{number}"), format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../..")] {
            let mut process = process(&["true"]);
            process.working_directory = Bytes::from(path);
            assert!(matches!(pod.exec("x", "one", process).0, Reply::Failed(_)));
        }
    }
}

#[test]
fn a_log_is_reopened_while_the_container_runs() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("i=0; while true; do echo $i; i=$((i+1)); /bin/busybox usleep 2000; done");
    pod.start("one", &plan);
    pod.await_log("one", "F 3");
    let (log, old) = (pod.path("logs/one/0.log"), pod.path("logs/one/0.log.1"));
    fs::rename(&log, &old).unwrap();
    let reopen = Request::ReopenLog { container: "one".to_owned() };
    assert_eq!(pod.client.call(reopen.clone()), Reply::Done);
    let cut = fs::read_to_string(&old).unwrap().lines().count();
    pod.await_log("one", &format!("F {}\n", cut + 20));
    assert_eq!(fs::read_to_string(&old).unwrap().lines().count(), cut);
    assert!(pod.log("one").starts_with(&format!("stdout F {cut}\n")));
    pod.client.call(Request::Signal { target: Target::Container("one".to_owned()), signal: 9 });
    pod.client.exit_of("one");
    fs::remove_file(&log).unwrap();
    assert!(matches!(pod.client.call(reopen), Reply::Failed(Fault { errno: 3, .. })));
    assert!(!log.exists());
}

#[test]
fn another_daemon_finds_everything() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let (short, long) = (pod.plan("exit 4"), pod.plan("sleep 1000"));
    pod.start("short", &short);
    pod.start("long", &long);
    pod.client.exit_of("short");
    let mut second = Client::connect(pod.directory.path());
    let states = second.states();
    assert_eq!(states.iter().map(|state| state.container.as_str()).collect::<Vec<_>>(), ["long", "short"]);
    assert_eq!(states[1].exit.as_ref().unwrap().code, 4);
    assert!(states[0].exit.is_none() && states[0].started_at > 0);
    // The first one goes away; the second one is told what happens next.
    pod.client = second;
    let forget = |container: &str| Request::Forget { container: container.to_owned() };
    assert!(matches!(pod.client.call(forget("long")), Reply::Failed(Fault { errno: 16, .. })));
    assert_eq!(pod.client.call(forget("short")), Reply::Done);
    pod.client.call(Request::Signal { target: Target::Container("long".to_owned()), signal: 15 });
    pod.client.call(Request::Signal { target: Target::Container("long".to_owned()), signal: 9 });
    assert_eq!(pod.client.exit_of("long").code, 137);
}

#[test]
fn what_a_daemon_left_to_do_is_begun_before_the_next_is_told_of_it() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let (early, late) = (pod.plan("sleep 1000"), pod.plan("sleep 1000"));
    pod.start("early", &early);
    let monitor = rustix::process::Pid::from_raw(pod.pid() as i32).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::STOP).unwrap();
    // An exec that is answered when it ends: descriptors part what comes with them from what follows.
    let exec = Exec { answer: Answer::AtEnd, ..exec("x", "early", process(&["sleep", "1000"])) };
    let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into();
    pod.client.send(Request::Exec(Box::new(exec)), &[null(), null(), null()]);
    let start = pod.start_of("late", &late);
    pod.client.send(start, &[]);
    pod.client = Client::connect(pod.directory.path());
    pod.client.send(Request::State, &[]);
    rustix::process::kill_process(monitor, rustix::process::Signal::CONT).unwrap();
    let Reply::State { containers, .. } = pod.client.reply() else { panic!("no state") };
    assert_eq!(containers.iter().map(|state| state.container.as_str()).collect::<Vec<_>>(), ["early", "late"]);
}

#[test]
fn output_of_processes_left_behind_still_reaches_the_log() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let mut plan = pod.plan("(until [ -e /told/go ]; do /bin/busybox usleep 5000; done; echo late) & echo early");
    plan.namespaces.pid = PidNamespace::Node;
    let told = pod.path("told");
    fs::create_dir(&told).unwrap();
    plan.steps.insert(3, bind(&told, "/told"));
    pod.start("one", &plan);
    pod.client.exit_of("one");
    assert_eq!(pod.log("one"), "stdout F early\n");
    fs::write(told.join("go"), "").unwrap();
    pod.await_log("one", "late");
}

#[test]
fn garbage_costs_its_own_connection_only() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let path = pod.directory.path().to_owned();
    for garbage in [&[0xff; 64][..], b"\x05\0\0\0hello", b"\x02\0\0\0{}", b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(Client::connect(&path).closes_after(garbage));
    }
    let unknown = br#"{"id":5,"request":{"Dance":{}}}"#;
    let mut stream = UnixStream::connect(path.join("monitor.sock")).unwrap();
    std::io::Write::write_all(&mut stream, &[&(unknown.len() as u32).to_le_bytes()[..], unknown].concat()).unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[4..length]).contains(r#""id":5,"reply":{"Failed""#));
    assert_eq!(pod.client.states(), []);
}

#[test]
fn terminate_waits_for_what_runs() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("/bin/busybox usleep 300000; exit 5");
    pod.start("one", &plan);
    let monitor = rustix::process::Pid::from_raw(pod.pid() as i32).unwrap();
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::PIPE, rustix::process::Signal::INT, rustix::process::Signal::TERM]
    {
        rustix::process::kill_process(monitor, signal).unwrap();
    }
    assert_eq!(pod.client.exit_of("one").code, 5);
    assert!(matches!(pod.client.stream.read(&mut [0; 1]), Ok(0)));
}

#[test]
fn a_flood_keeps_neither_logs_nor_execs_nor_signals_of_others_waiting() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let calm = pod.plan("n=0; trap 'n=$((n+1)); echo caught $n' USR1; echo ready; while true; do /bin/busybox usleep 5000; done");
    pod.start("calm", &calm);
    pod.await_log("calm", "ready");
    let flood = pod.plan("yes >&2 & yes");
    pod.start("flood", &flood);
    for number in 1..=5 {
        let name = format!("x{number}");
        let (reply, _streams) = pod.exec(&name, "calm", process(&["/bin/true"]));
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
        assert_eq!(pod.client.exec_exit(&name), 0);
        let signal = Request::Signal { target: Target::Container("calm".to_owned()), signal: 10 };
        assert_eq!(pod.client.call(signal), Reply::Done);
        pod.await_log("calm", &format!("caught {number}\n"));
    }
}

#[test]
fn a_client_that_reads_nothing_costs_the_log_nothing() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let plan = pod.plan("while [ ! -e /tmp/go ]; do /bin/busybox usleep 5000; done; /bin/busybox seq 1 200000");
    pod.start("one", &plan);
    let (_unread, output) = std::io::pipe().unwrap();
    let attach = Attach { container: "one".to_owned(), stdin: false, stdout: true, stderr: true, stdin_once: false };
    let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    pod.client.send(Request::Attach(attach), &[null().into(), output.into(), null().into()]);
    assert_eq!(pod.client.reply(), Reply::Done);
    let (reply, _streams) = pod.exec("go", "one", process(&["sh", "-c", ": > /tmp/go"]));
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    pod.client.exit_of("one");
    let log = pod.log("one");
    let numbers = log.lines().map(|line| line.strip_prefix("stdout F ").unwrap().parse::<u32>().unwrap());
    assert!(numbers.eq(1..=200_000));
}

#[test]
fn what_a_full_disk_costs_is_told_before_the_containers_end() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    fs::create_dir_all(pod.path("logs/one")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, pod.path("logs/one/0.log"), rustix::fs::FileType::CharacterDevice, 0o600.into(), FULL).unwrap();
    let plan = pod.plan("echo one; echo two; printf three");
    pod.start("one", &plan);
    pod.client.exit_of("one");
    let told = Vec::from(std::mem::take(&mut pod.client.events));
    let Some(Event::LogLost { container, loss }) = told.last() else { panic!("{told:?}") };
    assert_eq!((container.as_str(), loss.errno, loss.lost), ("one", 28, Lost { entries: 3, bytes: 11 }));
    assert_eq!(loss.path, pod.path("logs/one/0.log"));
    assert_eq!(pod.client.states()[0].lost, loss.lost);
}

#[test]
fn a_flood_in_one_container_does_not_stop_the_others() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    let flood = pod.plan("yes");
    pod.start("flood", &flood);
    for index in 0..5 {
        let calm = pod.plan("exit 0");
        pod.start(&format!("calm{index}"), &calm);
        pod.client.exit_of(&format!("calm{index}"));
    }
}
