//! Tests of [`super`].

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::samples;

fn all_metrics(stats: &PodStats) -> Vec<v1::Metric> {
    let message = pod(stats);
    message.metrics.into_iter().chain(message.container_metrics.into_iter().flat_map(|container| container.metrics)).collect()
}

/// The values of one metric, by the labels that are its own.
fn values(name: &str) -> BTreeMap<String, u64> {
    let of_name = all_metrics(&samples::pod_stats()).into_iter().filter(|metric| metric.name == name);
    of_name.map(|metric| (metric.label_values[COMMON_LABELS.len()..].join(","), metric.value.unwrap().value)).collect()
}

fn map<const N: usize>(pairs: [(&str, u64); N]) -> BTreeMap<String, u64> {
    pairs.map(|(labels, value)| (labels.to_owned(), value)).into()
}

#[test]
fn descriptors_are_unique_and_say_what_they_mean() {
    let descriptors = descriptors();
    let names: BTreeSet<&str> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
    assert_eq!((names.len(), descriptors.len()), (56, 56));
    assert!(descriptors.iter().all(|descriptor| !descriptor.help.is_empty() && descriptor.name.starts_with("container_")));
    assert!(descriptors.iter().all(|descriptor| descriptor.label_keys.starts_with(&COMMON_LABELS.map(str::to_owned))));
}

#[test]
fn of_a_sample_in_which_everything_is_known_every_descriptor_has_a_metric_with_a_value_for_each_label() {
    let metrics = all_metrics(&samples::pod_stats());
    for descriptor in descriptors() {
        let of_name: Vec<_> = metrics.iter().filter(|metric| metric.name == descriptor.name).collect();
        // A container without a quota has none to tell, and this kernel tells no full stall of the processor.
        assert!(
            !of_name.is_empty() || descriptor.name.starts_with("container_spec_cpu_") || descriptor.name.contains("cpu_stalled"),
            "{descriptor:?}"
        );
        assert!(of_name.iter().all(|metric| metric.label_values.len() == descriptor.label_keys.len()), "{of_name:?}");
    }
}

#[test]
fn what_was_not_measured_has_no_metric() {
    let stats = PodStats { network: None, containers: vec![samples::unmeasured()], ..samples::pod_stats() };
    let names: BTreeSet<String> = all_metrics(&stats).into_iter().map(|metric| metric.name).collect();
    assert!(names.iter().all(|name| name.starts_with("container_spec_")), "{names:?}");
}

#[test]
fn a_containers_metrics_say_whose_they_are() {
    let stats = samples::pod_stats();
    let message = pod(&stats);
    let container = &message.container_metrics[0];
    let usage = container.metrics.iter().find(|metric| metric.name == "container_cpu_usage_seconds_total").unwrap();
    let id = stats.containers[0].container.id.to_string();
    assert_eq!(usage.label_values, ["web", "default", "server", &id, "registry.example/web:1", "total"]);
    assert_eq!((container.container_id.as_str(), usage.metric_type()), (id.as_str(), v1::MetricType::Counter));
    let received = &message.metrics[0];
    assert_eq!(received.label_values, ["web", "default", "POD", stats.pod.id.as_str(), "", "eth0"]);
}

#[test]
fn times_are_whole_seconds_and_limits_that_are_none_are_zero() {
    let expected = [
        ("container_cpu_usage_seconds_total", map([("total", 5)])),
        ("container_cpu_system_seconds_total", map([("", 2)])),
        ("container_cpu_cfs_throttled_seconds_total", map([("", 6)])),
        ("container_pressure_cpu_waiting_seconds_total", map([("", 2)])),
        ("container_pressure_cpu_stalled_seconds_total", map([])),
        ("container_pressure_io_stalled_seconds_total", map([("", 4)])),
        ("container_start_time_seconds", map([("", 200)])),
        ("container_threads_max", map([("", 0)])),
        ("container_spec_memory_limit_bytes", map([("", 64 << 20)])),
        ("container_spec_memory_swap_limit_bytes", map([("", 0)])),
        ("container_spec_cpu_shares", map([("", 1024)])),
    ];
    for (name, expected) in expected {
        assert_eq!(values(name), expected, "{name}");
    }
}

#[test]
fn parts_are_told_apart_by_their_labels() {
    let expected = [
        ("container_network_transmit_packets_dropped_total", map([("eth0", 8), ("tunl0", 0)])),
        (
            "container_memory_failures_total",
            map([("pgfault,container", 7), ("pgfault,hierarchy", 7), ("pgmajfault,container", 1), ("pgmajfault,hierarchy", 1)]),
        ),
        ("container_fs_inodes_free", map([("/dev/vda", 63)])),
        ("container_fs_writes_bytes_total", map([("/dev/vda", 34)])),
        ("container_blkio_device_usage_total", map([("/dev/vda,254,0,Read", 32), ("/dev/vda,254,0,Write", 34)])),
        ("container_hugetlb_max_usage_bytes", map([("2MB", 42)])),
        ("container_ulimits_soft", map([("max_open_files", 1024)])),
    ];
    for (name, expected) in expected {
        assert_eq!(values(name), expected, "{name}");
    }
}

#[test]
fn only_what_was_measured_before_has_a_time_of_its_own() {
    let metrics = all_metrics(&samples::pod_stats());
    let times: BTreeMap<&str, i64> = metrics.iter().map(|metric| (metric.name.as_str(), metric.timestamp)).collect();
    assert_eq!((times["container_fs_usage_bytes"], times["container_fs_limit_bytes"]), (12, 14));
    assert!(times.iter().all(|(name, at)| name.contains("_fs_") || *at == 0), "{times:?}");
}
