//! Measurements in CRI's messages. What was not measured is absent, never zero.

use coracle_domain::{ContainerStats, CpuStats, FilesystemUsage, MemoryStats, NetworkStats, PodStats};

use crate::{container_status, pod, v1};

/// A container's sample.
pub(crate) fn container(stats: &ContainerStats) -> v1::ContainerStats {
    v1::ContainerStats {
        attributes: Some(container_status::attributes(&stats.container)),
        cpu: stats.cpu.as_ref().map(cpu),
        memory: stats.memory.as_ref().map(memory),
        writable_layer: stats.writable_layer.as_ref().map(filesystem),
        swap: stats.memory.as_ref().and_then(swap),
        io: None,
    }
}

/// A pod's sample.
pub(crate) fn pod(stats: &PodStats) -> v1::PodSandboxStats {
    let taken_at = stats.cpu.map(|cpu| cpu.at).or(stats.memory.map(|memory| memory.at));
    let process = stats.processes.zip(taken_at).map(|(count, timestamp)| v1::ProcessUsage { timestamp, process_count: number(count) });
    let linux = v1::LinuxPodSandboxStats {
        cpu: stats.cpu.as_ref().map(cpu),
        memory: stats.memory.as_ref().map(memory),
        network: stats.network.as_ref().map(network),
        process,
        containers: stats.containers.iter().map(container).collect(),
        io: None,
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
        psi: None,
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
        psi: None,
    }
}

fn swap(stats: &MemoryStats) -> Option<v1::SwapUsage> {
    stats.swap.map(|used| v1::SwapUsage { timestamp: stats.at, swap_available_bytes: None, swap_usage_bytes: number(used) })
}

fn network(stats: &NetworkStats) -> v1::NetworkUsage {
    let default_interface = v1::NetworkInterfaceUsage {
        name: stats.interface.clone(),
        rx_bytes: number(stats.received),
        rx_errors: number(stats.receive_errors),
        tx_bytes: number(stats.sent),
        tx_errors: number(stats.send_errors),
    };
    v1::NetworkUsage { timestamp: stats.at, default_interface: Some(default_interface), interfaces: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::samples;

    #[test]
    fn every_figure_lands_in_the_field_of_its_name() {
        let memory = MemoryStats {
            at: 11,
            usage: 100,
            working_set: 80,
            available: Some(20),
            rss: 60,
            page_faults: 7,
            major_page_faults: 1,
            swap: Some(5),
        };
        let layer = FilesystemUsage { at: 12, mountpoint: PathBuf::from("/run/c"), bytes: 4096, inodes: 3 };
        let sample = ContainerStats {
            container: samples::container(),
            cpu: Some(CpuStats { at: 10, usage: 500, rate: Some(50) }),
            memory: Some(memory),
            writable_layer: Some(layer),
        };
        let message = container(&sample);
        let value = |value: Option<v1::UInt64Value>| value.map(|value| value.value);
        let (cpu, memory, swap) = (message.cpu.unwrap(), message.memory.unwrap(), message.swap.unwrap());
        assert_eq!((cpu.timestamp, value(cpu.usage_core_nano_seconds), value(cpu.usage_nano_cores)), (10, Some(500), Some(50)));
        assert_eq!((memory.timestamp, value(memory.usage_bytes), value(memory.working_set_bytes)), (11, Some(100), Some(80)));
        assert_eq!((value(memory.available_bytes), value(memory.rss_bytes)), (Some(20), Some(60)));
        assert_eq!((value(memory.page_faults), value(memory.major_page_faults), value(swap.swap_usage_bytes)), (Some(7), Some(1), Some(5)));
        let layer = message.writable_layer.unwrap();
        assert_eq!((layer.timestamp, value(layer.used_bytes), value(layer.inodes_used)), (12, Some(4096), Some(3)));
        assert_eq!(layer.fs_id.unwrap().mountpoint, "/run/c");
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let sample = ContainerStats {
            container: samples::container(),
            cpu: Some(CpuStats { at: 10, usage: 500, rate: None }),
            memory: None,
            writable_layer: None,
        };
        let message = container(&sample);
        assert_eq!(message.cpu.unwrap().usage_nano_cores, None);
        assert!(message.memory.is_none() && message.swap.is_none() && message.writable_layer.is_none() && message.attributes.is_some());
    }

    #[test]
    fn a_pods_sample_carries_its_interface_and_its_containers() {
        let network = NetworkStats { at: 9, interface: "eth0".to_owned(), received: 1, receive_errors: 2, sent: 3, send_errors: 4 };
        let inner = ContainerStats { container: samples::container(), cpu: None, memory: None, writable_layer: None };
        let sample = PodStats {
            pod: samples::pod(),
            cpu: Some(CpuStats { at: 8, usage: 1, rate: None }),
            memory: None,
            network: Some(network),
            processes: Some(2),
            containers: vec![inner],
        };
        let linux = pod(&sample).linux.unwrap();
        let interface = linux.network.unwrap().default_interface.unwrap();
        assert_eq!((interface.name.as_str(), interface.tx_errors.map(|errors| errors.value)), ("eth0", Some(4)));
        assert_eq!((linux.process.map(|process| process.timestamp), linux.containers.len()), (Some(8), 1));
    }
}
