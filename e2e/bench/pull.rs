//! Pulls: how long, with how much processor time, and how the disk grows.

use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::machine;
use crate::many::SLOW;
use crate::report::Report;
use crate::series::{Series, timed};

/// How long a runtime may take to give back the room of a removed image.
const COLLECTION: Duration = Duration::from_secs(20);

/// Pulls an image again and again, removing it in between; then pulls what is there already.
pub(crate) async fn measure(endpoints: &[Endpoint], image: &str, samples: usize, report: &mut Report) -> Result<(), String> {
    let mut series = vec![[Series::default(), Series::default(), Series::default()]; endpoints.len()];
    for _ in 0..samples.div_ceil(SLOW).max(3) {
        for (endpoint, series) in endpoints.iter().zip(&mut series) {
            let [time, work, growth] = pull(endpoint, image).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
            series[0].add(time);
            series[1].add(work);
            if endpoint.data.is_some() {
                series[2].add(growth);
            }
        }
    }
    for (index, (name, unit)) in
        [("pull", "ms"), ("processor time of the daemon for a pull", "ms"), ("disk growth of a pull", "MiB")].into_iter().enumerate()
    {
        report.add(name, unit, series.iter().filter_map(|series| series.get(index).cloned()).collect());
    }
    present(endpoints, image, samples, report).await?;
    for endpoint in endpoints {
        endpoint.cri.remove_image(image).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
    }
    Ok(())
}

/// One pull of an image that is not there: milliseconds, milliseconds of processor time, MiB on disk.
async fn pull(endpoint: &Endpoint, image: &str) -> Result<[f64; 3], coracle_e2e::Status> {
    endpoint.cri.remove_image(image).await?;
    let before = settled(endpoint).await;
    let worked = machine::process_time(endpoint.daemon);
    let (_, time) = timed(endpoint.cri.pull(image, None)).await?;
    let work = machine::process_time(endpoint.daemon).saturating_sub(worked);
    let growth = usage(endpoint) - before;
    Ok([time.as_secs_f64() * 1000.0, work.as_secs_f64() * 1000.0, growth])
}

/// The room taken on disk, once it no longer shrinks.
async fn settled(endpoint: &Endpoint) -> f64 {
    let begin = Instant::now();
    let mut last = usage(endpoint);
    while endpoint.data.is_some() && begin.elapsed() < COLLECTION {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = usage(endpoint);
        if now >= last {
            break;
        }
        last = now;
    }
    last
}

fn usage(endpoint: &Endpoint) -> f64 {
    endpoint.data.as_deref().map_or(0.0, machine::disk_usage)
}

async fn present(endpoints: &[Endpoint], image: &str, samples: usize, report: &mut Report) -> Result<(), String> {
    let mut series = vec![Series::default(); endpoints.len()];
    for _ in 0..samples {
        for (endpoint, series) in endpoints.iter().zip(&mut series) {
            let (_, time) = timed(endpoint.cri.pull(image, None)).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
            series.add_time(time);
        }
    }
    report.add("pull of a present image", "ms", series);
    Ok(())
}
