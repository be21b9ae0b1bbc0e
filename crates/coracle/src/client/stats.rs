//! `stats`: what containers use. Where the runtime gives no rate of processor time, two samples make one.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use coracle_cri::v1;
use coracle_domain::Refusal;

use super::connect::Client;
use super::error::Result;
use super::print_json;
use super::render::table::Table;
use super::render::units::{UNKNOWN, processor, short, size};
use super::resolve::{Catalogue, Kind};
use crate::cli::Output;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints what the containers use, or those of the pods, or all that run.
pub(crate) async fn stats(client: &Client, names: &[String], output: Output) -> Result<()> {
    let catalogue = Catalogue::containers_and_pods(client).await?;
    let wanted = if names.is_empty() { None } else { Some(wanted(&catalogue, names)?) };
    let mut latest = sample(client, wanted.as_ref()).await?;
    if output == Output::Json {
        return print_json(&v1::ListContainerStatsResponse { stats: latest });
    }
    let mut earlier = Vec::new();
    if latest.iter().any(|stats| given_rate(stats).is_none()) {
        tokio::time::sleep(INTERVAL).await;
        earlier = std::mem::replace(&mut latest, sample(client, wanted.as_ref()).await?);
    }
    let mut table = Table::new(["CONTAINER", "NAME", "CPU", "MEMORY", "LIMIT", "DISK"]);
    for stats in &latest {
        let before = earlier.iter().find(|before| id(before) == id(stats));
        table.row(row(&catalogue, stats, before));
    }
    Ok(table.write(&mut io::stdout().lock())?)
}

/// The ids of the containers that are meant.
fn wanted(catalogue: &Catalogue, names: &[String]) -> Result<HashSet<String>> {
    let mut ids = HashSet::new();
    for name in names {
        let subject = catalogue.resolve(name)?;
        match subject.kind {
            Kind::Pod => ids.extend(catalogue.containers_of(&subject.id).map(|container| container.id.clone())),
            _ if !subject.active => return Err(Refusal::wrong_state(format!("container {name:?} does not run and uses nothing")).into()),
            _ => drop(ids.insert(subject.id.clone())),
        }
    }
    Ok(ids)
}

async fn sample(client: &Client, wanted: Option<&HashSet<String>>) -> Result<Vec<v1::ContainerStats>> {
    let request = v1::ListContainerStatsRequest::default();
    let mut stats = client.runtime.clone().list_container_stats(request).await?.into_inner().stats;
    stats.retain(|stats| wanted.is_none_or(|wanted| wanted.contains(id(stats))));
    Ok(stats)
}

fn id(stats: &v1::ContainerStats) -> &str {
    stats.attributes.as_ref().map_or("", |attributes| &attributes.id)
}

fn row(catalogue: &Catalogue, stats: &v1::ContainerStats, before: Option<&v1::ContainerStats>) -> [String; 6] {
    let id = id(stats);
    let name = catalogue.get(id).map_or(UNKNOWN, |subject| subject.name());
    let memory = stats.memory.as_ref();
    let used = memory.and_then(|memory| memory.working_set_bytes).map(|used| used.value);
    let available = memory.and_then(|memory| memory.available_bytes).map(|available| available.value);
    let limit = used.zip(available.filter(|available| *available > 0)).map(|(used, available)| used.saturating_add(available));
    let disk = stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes).map(|used| used.value);
    let bytes = |value: Option<u64>| value.map_or(UNKNOWN.into(), size);
    let rate = given_rate(stats).or_else(|| rate_between(before?, stats));
    [short(id).into(), name.into(), rate.map_or(UNKNOWN.into(), processor), bytes(used), bytes(limit), bytes(disk)]
}

/// The runtime's own rate, in thousand-millionths of a processor.
fn given_rate(stats: &v1::ContainerStats) -> Option<u64> {
    Some(stats.cpu.as_ref()?.usage_nano_cores?.value)
}

/// The rate between two samples, by the samples' own clocks. None if they are one and the same.
fn rate_between(before: &v1::ContainerStats, after: &v1::ContainerStats) -> Option<u64> {
    let (before, after) = (before.cpu.as_ref()?, after.cpu.as_ref()?);
    let elapsed = u64::try_from(after.timestamp - before.timestamp).ok().filter(|elapsed| *elapsed > 0)?;
    let used = after.usage_core_nano_seconds?.value.checked_sub(before.usage_core_nano_seconds?.value)?;
    u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(elapsed)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(timestamp: i64, used: u64) -> v1::ContainerStats {
        let usage_core_nano_seconds = Some(v1::UInt64Value { value: used });
        let cpu = Some(v1::CpuUsage { timestamp, usage_core_nano_seconds, ..Default::default() });
        v1::ContainerStats { cpu, ..Default::default() }
    }

    #[test]
    fn a_rate_is_time_used_over_time_passed() {
        assert_eq!(rate_between(&sample(0, 100), &sample(2_000_000_000, 1_000_000_100)), Some(500_000_000));
    }

    #[test]
    fn no_rate_is_made_up() {
        assert_eq!(rate_between(&sample(5, 100), &sample(5, 100)), None);
        assert_eq!(rate_between(&sample(5, 100), &sample(9, 50)), None);
        assert_eq!(rate_between(&sample(5, 100), &v1::ContainerStats::default()), None);
    }
}
