//! One pod at a time: its start by call, its whole cycle, and the processor time that takes.

use std::time::Duration;

use crate::endpoint::{Endpoint, Network};
use crate::machine;
use crate::report::Report;
use crate::series::{Series, timed};

/// Names of what is measured of a cycle, in order.
const STEPS: [&str; 7] =
    ["pod start", "  RunPodSandbox", "  CreateContainer", "  StartContainer", "StopPodSandbox", "RemovePodSandbox", "whole cycle"];

/// Cycles in a block of which the processor time is taken: the clock counts in steps of 10 ms.
const BLOCK: usize = 10;

/// What comes after a removal in the kernel's own time is counted to it.
const SETTLE: Duration = Duration::from_millis(300);

/// Starts and whole cycles, with either network.
pub(crate) async fn measure(endpoints: &[Endpoint], samples: usize, report: &mut Report) -> Result<(), String> {
    for network in [Network::Own, Network::Host] {
        let mut series = vec![vec![Series::default(); STEPS.len()]; endpoints.len()];
        for round in 0..=samples {
            for (endpoint, steps) in endpoints.iter().zip(&mut series) {
                let times = cycle(endpoint, network).await.map_err(|problem| format!("{}: {problem}", endpoint.name))?;
                // The first one warms up.
                if round > 0 {
                    steps.iter_mut().zip(times).for_each(|(step, time)| step.add_time(time));
                }
            }
        }
        for (step, name) in STEPS.iter().enumerate() {
            let column = series.iter().filter_map(|steps| steps.get(step).cloned()).collect();
            report.add(format!("{name}, {}", network.label()), "ms", column);
        }
        processor_time(endpoints, network, samples, report).await?;
    }
    Ok(())
}

/// The times of [`STEPS`].
async fn cycle(endpoint: &Endpoint, network: Network) -> Result<[Duration; STEPS.len()], coracle_e2e::Status> {
    let spec = endpoint.pod(network);
    let container = endpoint.container();
    let (pod, run) = timed(endpoint.run_pod(&spec)).await?;
    let (id, create) = timed(endpoint.cri.create(&pod, &spec.config, &container.config)).await?;
    let ((), start) = timed(endpoint.cri.start(&id)).await?;
    let ((), stop) = timed(endpoint.cri.stop_pod(&pod)).await?;
    let ((), remove) = timed(endpoint.cri.remove_pod(&pod)).await?;
    let started = run + create + start;
    Ok([started, run, create, start, stop, remove, started + stop + remove])
}

async fn processor_time(endpoints: &[Endpoint], network: Network, samples: usize, report: &mut Report) -> Result<(), String> {
    let mut series = vec![Series::default(); endpoints.len()];
    for _ in 0..samples.div_ceil(BLOCK) {
        for (endpoint, series) in endpoints.iter().zip(&mut series) {
            let before = machine::busy_time();
            for _ in 0..BLOCK {
                cycle(endpoint, network).await.map_err(|problem| format!("{}: {problem}", endpoint.name))?;
            }
            tokio::time::sleep(SETTLE).await;
            series.add_time(machine::busy_time().saturating_sub(before) / BLOCK as u32);
        }
    }
    report.add(format!("processor time of the machine per cycle, {}", network.label()), "ms", series);
    Ok(())
}
