//! What the kernel counts: memory kills, use, throttling.

use coracle_domain::{Resources, TasksLimit};

use super::{Machine, eventually, some_limits, spawn};
use crate::Shape;

#[test]
fn an_oom_kill_is_counted() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&Resources { memory_limit: Some(8 << 20), memory_swap_limit: Some(8 << 20), ..Resources::default() });
    let source = cgroup.oom_source().unwrap();
    let count = || {
        let text = std::fs::read_to_string(&source.path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(source.key)?.strip_prefix(' '));
        line.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(count(), 0);
    let mut process = spawn(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    let status = process.0.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    assert_eq!(count(), 1);
}

#[test]
fn stats_say_what_was_used_and_nothing_once_the_cgroup_is_gone() {
    let Some(machine) = Machine::as_it_is() else { return };
    let cgroup = machine.cgroup(&some_limits());
    let process = spawn(&cgroup, "text=$(head -c 4000000 /dev/zero | tr '\\0' a); kill -STOP $$; echo $text");
    eventually("the memory is used", || process.stands_still() && cgroup.stats().rss.is_some_and(|rss| rss >= 4_000_000));
    assert_eq!(cgroup.stats().tasks, Some(1));
    let stats = cgroup.stats();
    assert!(stats.cpu_usage.is_some_and(|usage| (100_000..60_000_000_000).contains(&usage)), "{stats:?}");
    assert!(stats.memory_usage >= stats.working_set && stats.working_set >= Some(4_000_000), "{stats:?}");
    assert!(stats.page_faults > Some(500) && stats.major_page_faults.is_some(), "{stats:?}");
    assert_eq!((stats.memory_limit, stats.available()), (Some(64 << 20), Some((64 << 20) - stats.working_set.unwrap())));
    cgroup.remove().unwrap();
    assert_eq!(cgroup.stats(), crate::Stats::default());
}

#[test]
fn counts_tell_what_stats_do_not_and_nothing_once_the_cgroup_is_gone() {
    let Some(machine) = Machine::as_it_is() else { return };
    let limits = Resources { cpu_quota: Some(20_000), cpu_period: Some(100_000), ..some_limits() };
    let cgroup = machine.cgroup(&limits);
    let _process = spawn(&cgroup, "head -c 4000000 /dev/urandom | tr a b >/dev/null; while :; do :; done");
    eventually("its quota is used up", || cgroup.counts().throttling.is_some_and(|throttling| throttling.throttled_periods > 1));
    eventually("only the loop is left", || cgroup.counts().tasks == Some(1));
    let counts = cgroup.counts();
    let throttling = counts.throttling.unwrap();
    assert!(throttling.periods >= throttling.throttled_periods && throttling.throttled_time > 1_000_000, "{counts:?}");
    assert!(counts.cpu_user.zip(counts.cpu_system).is_some_and(|(user, system)| user + system > 1_000_000), "{counts:?}");
    assert!(counts.memory_peak >= cgroup.stats().memory_usage && counts.memory_limit_hits.is_some(), "{counts:?}");
    assert!(counts.cache.is_some() && counts.mapped_file.is_some() && counts.kernel_memory.is_some(), "{counts:?}");
    assert_eq!((counts.oom_kills, counts.tasks, counts.tasks_limit), (Some(0), Some(1), Some(TasksLimit::Unlimited)));
    if machine.hierarchy.shape() != Shape::Legacy {
        let pressures = cgroup.stats().pressures;
        assert!(pressures.cpu.is_none_or(|cpu| cpu.some.total > 0), "it waited for its quota: {pressures:?}");
    }
    cgroup.remove().unwrap();
    assert_eq!((cgroup.counts(), cgroup.stats()), Default::default());
}
