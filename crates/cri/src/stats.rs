//! Measurements in CRI's messages. What was not measured is absent, never zero.

use coracle_domain::{
    ContainerStats, CpuStats, FilesystemUsage, InterfaceStats, IoStats, MemoryStats, NetworkStats, PodStats, Pressure, Stall,
};

use crate::{container_status, pod, v1};

/// A container's sample.
pub(crate) fn container(stats: &ContainerStats) -> v1::ContainerStats {
    v1::ContainerStats {
        attributes: Some(container_status::attributes(&stats.container)),
        cpu: stats.cpu.as_ref().map(cpu),
        memory: stats.memory.as_ref().map(memory),
        writable_layer: stats.writable_layer.as_ref().map(filesystem),
        swap: stats.memory.as_ref().and_then(swap),
        io: stats.io.as_ref().map(io),
    }
}

/// A pod's sample.
pub(crate) fn pod(stats: &PodStats) -> v1::PodSandboxStats {
    let linux = v1::LinuxPodSandboxStats {
        cpu: stats.cpu.as_ref().map(cpu),
        memory: stats.memory.as_ref().map(memory),
        network: stats.network.as_ref().map(network),
        process: stats.tasks.map(|count| v1::ProcessUsage { timestamp: stats.at, process_count: number(count) }),
        containers: stats.containers.iter().map(container).collect(),
        io: stats.io.as_ref().map(io),
    };
    v1::PodSandboxStats { attributes: Some(pod::attributes(&stats.pod)), linux: Some(linux), windows: None }
}

/// The room that one subject takes of a file system.
pub(crate) fn filesystem(usage: &FilesystemUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: number(usage.bytes),
        inodes_used: number(usage.inodes),
    }
}

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(stats: &CpuStats) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: stats.at,
        usage_core_nano_seconds: number(stats.usage),
        usage_nano_cores: stats.rate.and_then(number),
        psi: stats.pressure.as_ref().map(pressure),
    }
}

fn memory(stats: &MemoryStats) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: stats.at,
        working_set_bytes: number(stats.working_set),
        available_bytes: stats.available.and_then(number),
        usage_bytes: number(stats.usage),
        rss_bytes: number(stats.rss),
        page_faults: number(stats.page_faults),
        major_page_faults: number(stats.major_page_faults),
        psi: stats.pressure.as_ref().map(pressure),
    }
}

fn swap(stats: &MemoryStats) -> Option<v1::SwapUsage> {
    let swap_available_bytes = stats.swap_available.and_then(number);
    stats.swap.map(|used| v1::SwapUsage { timestamp: stats.at, swap_available_bytes, swap_usage_bytes: number(used) })
}

fn io(stats: &IoStats) -> v1::IoUsage {
    v1::IoUsage { timestamp: stats.at, psi: Some(pressure(&stats.pressure)) }
}

fn pressure(pressure: &Pressure) -> v1::PsiStats {
    v1::PsiStats { full: pressure.full.as_ref().map(stall), some: Some(stall(&pressure.some)) }
}

fn stall(stall: &Stall) -> v1::PsiData {
    let [avg10, avg60, avg300] = stall.averages.map(|hundredths| f64::from(hundredths) / 100.0);
    v1::PsiData { total: stall.total, avg10, avg60, avg300 }
}

fn network(stats: &NetworkStats) -> v1::NetworkUsage {
    let mut interfaces = stats.interfaces.iter().map(interface);
    v1::NetworkUsage { timestamp: stats.at, default_interface: interfaces.next(), interfaces: interfaces.collect() }
}

fn interface(stats: &InterfaceStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: number(stats.received.bytes),
        rx_errors: number(stats.received.errors),
        tx_bytes: number(stats.sent.bytes),
        tx_errors: number(stats.sent.errors),
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::samples;

    fn value(value: Option<v1::UInt64Value>) -> Option<u64> {
        value.map(|value| value.value)
    }

    #[test]
    fn every_figure_lands_in_the_field_of_its_name() {
        let message = container(&samples::container_stats());
        let (cpu, memory, swap) = (message.cpu.unwrap(), message.memory.unwrap(), message.swap.unwrap());
        assert_eq!((cpu.timestamp, value(cpu.usage_core_nano_seconds), value(cpu.usage_nano_cores)), (10, Some(5_000_000_000), Some(50)));
        assert_eq!((memory.timestamp, value(memory.usage_bytes), value(memory.working_set_bytes)), (11, Some(100), Some(80)));
        assert_eq!((value(memory.available_bytes), value(memory.rss_bytes)), (Some(20), Some(60)));
        assert_eq!((value(memory.page_faults), value(memory.major_page_faults)), (Some(7), Some(1)));
        assert_eq!((swap.timestamp, value(swap.swap_usage_bytes), value(swap.swap_available_bytes)), (11, Some(5), Some(3)));
        let layer = message.writable_layer.unwrap();
        assert_eq!((layer.timestamp, value(layer.used_bytes), value(layer.inodes_used)), (12, Some(4096), Some(3)));
        assert_eq!(layer.fs_id.unwrap().mountpoint, "/run/c");
    }

    #[test]
    fn pressure_is_told_in_nanoseconds_and_per_cent() {
        let message = container(&samples::container_stats());
        let (cpu, memory, io) = (message.cpu.unwrap().psi.unwrap(), message.memory.unwrap().psi.unwrap(), message.io.unwrap());
        let some = cpu.some.unwrap();
        assert_eq!((some.total, some.avg10, some.avg60, some.avg300), (2_000_000_000, 12.34, 0.5, 100.0));
        assert_eq!((cpu.full, memory.full.map(|full| full.total), io.timestamp), (None, Some(3_000_000_000), 13));
        assert_eq!(io.psi.unwrap().full.map(|full| full.total), Some(4_000_000_000));
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let cpu = CpuStats { at: 10, usage: 500, ..CpuStats::default() };
        let message = container(&ContainerStats { cpu: Some(cpu), ..samples::unmeasured() });
        let cpu = message.cpu.unwrap();
        assert!(cpu.usage_nano_cores.is_none() && cpu.psi.is_none() && message.io.is_none());
        assert!(message.memory.is_none() && message.swap.is_none() && message.writable_layer.is_none() && message.attributes.is_some());
    }

    #[test]
    fn a_pods_sample_carries_its_interfaces_and_its_containers() {
        let message = pod(&samples::pod_stats());
        let linux = message.linux.unwrap();
        let network = linux.network.unwrap();
        let own = network.default_interface.unwrap();
        assert_eq!((own.name.as_str(), value(own.rx_bytes), value(own.rx_errors)), ("eth0", Some(1), Some(3)));
        assert_eq!((value(own.tx_bytes), value(own.tx_errors)), (Some(5), Some(7)));
        assert_eq!(network.interfaces.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["tunl0"]);
        let process = linux.process.unwrap();
        assert_eq!((process.timestamp, value(process.process_count), linux.containers.len()), (8, Some(2), 1));
    }
}
