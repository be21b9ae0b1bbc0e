//! ExecSync: how long one takes, what processor time it costs, and what a node full of exec probes costs.
//!
//! Processor time is asked of the kernel's accounts of the runtime's processes, which include the children they have waited
//! for, and so the programs that were run. What the kernel does on its own behalf afterwards is only in the machine's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_e2e::{Cri, Status};
use tokio::task::JoinSet;

use crate::endpoint::{Endpoint, Network, Started};
use crate::machine;
use crate::report::Report;
use crate::series::{Series, timed};

/// A program that does nothing.
const COMMAND: [&str; 1] = ["/bin/true"];
/// Execs in a block of which the processor time is taken: the clock counts in steps of 10 ms.
const BLOCK: usize = 200;
/// After a block the kernel still has things to remove.
const SETTLE: Duration = Duration::from_millis(300);
/// Pods that are probed, each with one container.
const PROBED: usize = 20;
/// Connections that probes come from.
const CONNECTIONS: usize = 4;
/// The longest a probe may take, in seconds.
const LIMIT: i64 = 10;

/// One exec after the other: time and processor time.
pub(crate) async fn measure(endpoints: &[Endpoint], samples: usize, report: &mut Report) -> Result<(), String> {
    let mut pods = Vec::new();
    for endpoint in endpoints {
        pods.push(endpoint.start(Network::Host).await.map_err(|status| told(endpoint, &status))?);
    }
    let mut series = vec![Series::default(); endpoints.len()];
    for round in 0..=samples {
        for ((endpoint, pod), series) in endpoints.iter().zip(&pods).zip(&mut series) {
            let (_, time) = timed(exec(&endpoint.cri, pod)).await.map_err(|status| told(endpoint, &status))?;
            // The first one warms up.
            if round > 0 {
                series.add_time(time);
            }
        }
    }
    report.add("ExecSync /bin/true", "ms", series);
    processor_time(endpoints, &pods, samples, report).await?;
    for (endpoint, pod) in endpoints.iter().zip(&pods) {
        endpoint.remove(&pod.pod).await.map_err(|status| told(endpoint, &status))?;
    }
    Ok(())
}

async fn processor_time(endpoints: &[Endpoint], pods: &[Started], samples: usize, report: &mut Report) -> Result<(), String> {
    let mut runtimes = vec![Series::default(); endpoints.len()];
    let mut machines = vec![Series::default(); endpoints.len()];
    for _ in 0..samples.div_ceil(10) {
        for (index, (endpoint, pod)) in endpoints.iter().zip(pods).enumerate() {
            let meter = Meter::start(endpoint);
            for _ in 0..BLOCK {
                exec(&endpoint.cri, pod).await.map_err(|status| told(endpoint, &status))?;
            }
            tokio::time::sleep(SETTLE).await;
            let used = meter.used();
            let each = |time: Duration| time / BLOCK as u32;
            runtimes.get_mut(index).into_iter().for_each(|series| series.add_time(each(used.runtime)));
            machines.get_mut(index).into_iter().for_each(|series| series.add_time(each(used.machine)));
        }
    }
    report.add("  processor time of the runtime and the program", "ms", runtimes);
    report.add("  processor time of the machine, caller included", "ms", machines);
    Ok(())
}

/// Probes that come at a steady rate, however long they take.
pub(crate) async fn probes(endpoints: &[Endpoint], rate: u32, time: Duration, report: &mut Report) -> Result<(), String> {
    let mut outcomes = Vec::new();
    for endpoint in endpoints {
        outcomes.push(flood(endpoint, rate, time).await.map_err(|status| told(endpoint, &status))?);
    }
    let mut add = |name: &str, unit: &'static str, of: &dyn Fn(&Outcome) -> Series| {
        report.add(format!("{rate} exec probes a second: {name}"), unit, outcomes.iter().map(of).collect());
    };
    add("time of one", "ms", &|outcome| outcome.times.clone());
    add("answered in time", "/s", &|outcome| Series::of(outcome.rate));
    add("failed", "", &|outcome| Series::of(outcome.failed as f64));
    add("cores used by the runtime and the programs", "", &|outcome| Series::of(outcome.runtime_cores));
    add("cores used by the machine, caller included", "", &|outcome| Series::of(outcome.machine_cores));
    Ok(())
}

/// What a flood of probes came to.
struct Outcome {
    times: Series,
    /// Answers a second, from the first call until the last answer.
    rate: f64,
    failed: usize,
    runtime_cores: f64,
    machine_cores: f64,
}

async fn flood(endpoint: &Endpoint, rate: u32, time: Duration) -> Result<Outcome, Status> {
    let mut pods = Vec::new();
    for _ in 0..PROBED {
        pods.push(Arc::new(endpoint.start(Network::Host).await?));
    }
    let connections: Vec<Cri> = (0..CONNECTIONS).map(|_| Cri::new(endpoint.cri.socket())).collect();
    let meter = Meter::start(endpoint);
    let mut probes = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    for (cri, pod) in connections.iter().cycle().zip(pods.iter().cycle()) {
        ticks.tick().await;
        if meter.begin.elapsed() >= time {
            break;
        }
        let (cri, pod) = (cri.clone(), Arc::clone(pod));
        probes.spawn(async move { timed(exec(&cri, &pod)).await.map(|(_, time)| time) });
    }
    let mut times = Series::default();
    let mut failed = 0;
    for outcome in probes.join_all().await {
        match outcome {
            Ok(time) => times.add_time(time),
            Err(_) => failed += 1,
        }
    }
    let elapsed = meter.begin.elapsed().as_secs_f64();
    let used = meter.used();
    for pod in pods {
        endpoint.remove(&pod.pod).await?;
    }
    Ok(Outcome {
        rate: times.summary().map_or(0.0, |summary| summary.count as f64 / elapsed),
        times,
        failed,
        runtime_cores: used.runtime.as_secs_f64() / elapsed,
        machine_cores: used.machine.as_secs_f64() / elapsed,
    })
}

async fn exec(cri: &Cri, pod: &Started) -> Result<(), Status> {
    cri.exec(&pod.container, &COMMAND, LIMIT).await.map(drop)
}

fn told(endpoint: &Endpoint, status: &Status) -> String {
    format!("{}: {status}", endpoint.name)
}

/// Processor time since a moment.
struct Meter<'a> {
    begin: Instant,
    endpoint: &'a Endpoint,
    before: Used,
}

/// Processor time of a runtime with its children, and of the whole machine.
struct Used {
    runtime: Duration,
    machine: Duration,
}

impl Used {
    fn of(endpoint: &Endpoint) -> Self {
        let processes = endpoint.runtime_processes();
        Self { runtime: processes.into_iter().map(machine::process_time).sum(), machine: machine::busy_time() }
    }
}

impl<'a> Meter<'a> {
    fn start(endpoint: &'a Endpoint) -> Self {
        Self { begin: Instant::now(), before: Used::of(endpoint), endpoint }
    }

    /// A process that was made meanwhile counts from its beginning; the time of one that has ended is its parent's.
    fn used(&self) -> Used {
        let now = Used::of(self.endpoint);
        Used { runtime: now.runtime.saturating_sub(self.before.runtime), machine: now.machine.saturating_sub(self.before.machine) }
    }
}
