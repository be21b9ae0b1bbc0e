//! What it costs. `cargo test --release -p coracle-cgroup -- --ignored --nocapture measure`

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Machine, some_limits};
use crate::Cgroup;

#[test]
#[ignore = "a measurement"]
fn measure_create_join_stats_remove() {
    let Some(machine) = Machine::as_it_is() else { return };
    let rules = crate::device::tests::usual();
    let mut samples: [Vec<Duration>; 5] = Default::default();
    for _ in 0..200 {
        let location = machine.location();
        let mut clock = Instant::now();
        let mut lap = |samples: &mut Vec<Duration>| samples.push(std::mem::replace(&mut clock, Instant::now()).elapsed());
        let cgroup = Cgroup::create(&machine.hierarchy, location, &some_limits(), &rules).unwrap();
        lap(&mut samples[0]);
        cgroup.stats();
        lap(&mut samples[1]);
        cgroup.stats();
        lap(&mut samples[2]);
        cgroup.remove().unwrap();
        lap(&mut samples[3]);
        machine.hierarchy.remove_pod(&machine.pod).unwrap();
        lap(&mut samples[4]);
    }
    for (name, mut sample) in ["create", "first stats", "stats", "remove", "remove pod"].into_iter().zip(samples) {
        sample.sort();
        println!("{name}: median {:?}, least {:?}", sample[sample.len() / 2], sample[0]);
    }
}

/// What a new process pays to be in the cgroup, after a rest as between two pods.
#[test]
#[ignore = "a measurement"]
fn measure_join_after_a_rest() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = Cgroup::create(&machine.hierarchy, machine.location(), &some_limits(), &crate::device::tests::usual()).unwrap();
    let everything = "for file; do echo 0 > \"$file\"; done";
    let time = |files: Vec<PathBuf>| {
        let mut times: Vec<u64> = (0..9)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(300));
                let mut shell = Command::new("bash");
                let script = format!("start=$EPOCHREALTIME; {everything}; echo $((${{EPOCHREALTIME/./}} - ${{start/./}}))");
                let output = shell.args(["-c", &script, "bash"]).args(&files).output().unwrap();
                String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let procs = cgroup.join_paths().iter().map(|path| path.with_file_name("cgroup.procs")).collect();
    println!("join {} hierarchies by tasks: {} µs", cgroup.join_paths().len(), time(cgroup.join_paths()));
    println!("the same by cgroup.procs: {} µs", time(procs));
}
