//! Measures, and asserts nothing: `cargo test --release -p coracle-monitor --test speed -- --ignored --nocapture`.
//! `CORACLE_MONITOR` names the binary to measure, which should be the static one.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use coracle_monitor::protocol::*;

mod common;
use common::*;

fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("median {:?}, least {:?}", times[times.len() / 2], times[0])
}

fn private(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok()).unwrap();
    format!("{} KiB private ({} dirty), {} KiB PSS", of("Private_Clean:") + of("Private_Dirty:"), of("Private_Dirty:"), of("Pss:"))
}

#[test]
#[ignore = "measures"]
fn how_long_and_how_large() {
    if !possible() {
        return;
    }
    let mut prepares = Vec::new();
    for share_pid in [false, true] {
        for _ in 0..20 {
            let mut pod = Pod::new();
            let begun = Instant::now();
            assert_eq!(pod.prepare(|prepare| prepare.share_pid = share_pid), Reply::Done);
            prepares.push(begun.elapsed());
        }
        eprintln!("prepare (shared pid namespace: {share_pid}): {}", median(std::mem::take(&mut prepares)));
    }
    // A second one, so that the program's own pages are shared, as on a node.
    let _other = Pod::new();
    let mut pod = Pod::new();
    pod.prepare(|prepare| prepare.share_pid = true);
    std::thread::sleep(Duration::from_millis(1500));
    eprintln!("idle, with an init process: {}", private(pod.pid()));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid())).unwrap();
    eprintln!("init: {}", private(children.trim().parse().unwrap()));
    let mut pod = Pod::new();
    pod.prepare(|_| ());
    std::thread::sleep(Duration::from_millis(1500));
    eprintln!("idle, prepared: {}", private(pod.pid()));
    let mut starts = Vec::new();
    for number in 0..50 {
        let plan = pod.plan("sleep 1000");
        let id = format!("c{number}");
        // What the one before leaves to the kernel is not part of it.
        std::thread::sleep(Duration::from_millis(30));
        let begun = Instant::now();
        pod.start(&id, &plan);
        starts.push(begun.elapsed());
        if number == 0 {
            std::thread::sleep(Duration::from_millis(1500));
            eprintln!("idle, one container: {}", private(pod.pid()));
        } else {
            pod.client.call(Request::Signal { target: Target::Container(id.clone()), signal: 9 });
            pod.client.exit_of(&id);
            pod.client.call(Request::Forget { container: id });
        }
    }
    eprintln!("start: {}", median(starts));
    let mut bare = Vec::new();
    for number in 0..30 {
        let mut plan = pod.plan("sleep 1000");
        plan.root = pod.path("image");
        plan.steps = vec![
            coracle_plan::Step::Propagate(coracle_plan::Propagation::Slave),
            bind(&pod.path("image"), "/"),
            coracle_plan::Step::PivotRoot,
        ];
        let id = format!("b{number}");
        // What the one before leaves to the kernel is not part of it.
        std::thread::sleep(Duration::from_millis(30));
        let begun = Instant::now();
        pod.start(&id, &plan);
        bare.push(begun.elapsed());
        pod.client.call(Request::Signal { target: Target::Container(id.clone()), signal: 9 });
        pod.client.exit_of(&id);
    }
    eprintln!("start of a plan of three steps: {}", median(bare));
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    for number in 0..100 {
        std::thread::sleep(Duration::from_millis(5));
        let begun = Instant::now();
        let name = format!("x{number}");
        let (reply, _streams) = pod.exec(&name, "c0", process(&["/bin/true"]));
        assert!(matches!(reply, Reply::Started { .. }));
        begins.push(begun.elapsed());
        pod.client.exec_exit(&name);
        ends.push(begun.elapsed());
    }
    eprintln!("exec until executed: {}", median(begins));
    eprintln!("exec until ended: {}", median(ends));
    std::thread::sleep(Duration::from_millis(1500));
    eprintln!("idle, after all that: {}", private(pod.pid()));
}

/// Processor time that a process has used, in the kernel's ticks of 10 ms: of its own, and in the kernel.
fn processor_time(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let mut fields = text.rsplit_once(") ").unwrap().1.split(' ').skip(11).map(|field| field.parse::<u64>().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

#[test]
#[ignore = "measures"]
fn how_fast_logs_are_copied() {
    if !possible() {
        return;
    }
    let mut pod = Pod::new();
    pod.prepare(|_| ());
    for length in [100, 20, 1000] {
        let line = format!("{}\n", "x".repeat(length - 1));
        fs::write(pod.path("image/lines"), line.repeat(100_000_000 / length)).unwrap();
        let plan = pod.plan("for i in 1 2 3 4 5 6 7 8 9 10; do dd if=/lines bs=64k 2>/dev/null; done");
        let (before, begun) = (processor_time(pod.pid()), Instant::now());
        let id = format!("flood{length}");
        pod.start(&id, &plan);
        pod.client.exit_of(&id);
        let (elapsed, after) = (begun.elapsed().as_secs_f64(), processor_time(pod.pid()));
        let (own, kernel) = (10 * (after.0 - before.0), 10 * (after.1 - before.1));
        let rate = 1000.0 / elapsed;
        let alone = 1_000_000.0 / (own + kernel) as f64;
        eprintln!(
            "1 GB in lines of {length} bytes: {rate:.0} MB/s, by the monitor's time ({own} ms own, {kernel} ms kernel) {alone:.0} MB/s"
        );
        fs::remove_dir_all(pod.path("logs")).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1500));
    eprintln!("idle, after the floods: {}", private(pod.pid()));
}
