//! The metrics that the kubelet publishes in cAdvisor's place: told, labelled, and as the kernel counts them.

use std::collections::{BTreeMap, BTreeSet};

use coracle_e2e::api::{MetricDescriptor, PodSandboxMetrics};
use coracle_e2e::{Container, ContainerSpec, Node, Pod, PodSpec, eventually};

/// The metrics of one pod, found by name and label.
struct Metrics {
    descriptors: BTreeMap<String, MetricDescriptor>,
    pod: PodSandboxMetrics,
}

impl Metrics {
    async fn of(node: &Node, pod: &Pod) -> Self {
        let descriptors = node.cri.metric_descriptors().await.expect("ListMetricDescriptors");
        let pods = node.cri.pod_metrics().await.expect("ListPodSandboxMetrics");
        let pod = pods.into_iter().find(|metrics| metrics.pod_sandbox_id == pod.id).expect("the pod has metrics");
        Self { descriptors: descriptors.into_iter().map(|descriptor| (descriptor.name.clone(), descriptor)).collect(), pod }
    }

    /// Every metric with its labels.
    fn all(&self) -> impl Iterator<Item = (&str, BTreeMap<&str, &str>, u64)> {
        let metrics = self.pod.metrics.iter().chain(self.pod.container_metrics.iter().flat_map(|container| &container.metrics));
        metrics.map(|metric| {
            let keys = self.descriptors.get(&metric.name).unwrap_or_else(|| panic!("{} has no descriptor", metric.name)).label_keys.iter();
            let labels = keys.zip(&metric.label_values).map(|(key, value)| (key.as_str(), value.as_str())).collect();
            (metric.name.as_str(), labels, metric.value.map(|value| value.value).expect("a metric has a value"))
        })
    }

    /// The one value of a container's metric, or of the one that has `label` too.
    fn value(&self, container: &Container, name: &str, label: Option<(&str, &str)>) -> Option<u64> {
        let fits = |labels: &BTreeMap<&str, &str>| label.is_none_or(|(key, value)| labels.get(key) == Some(&value));
        let found: Vec<u64> = self
            .all()
            .filter(|(metric, labels, _)| *metric == name && labels["id"] == container.id && fits(labels))
            .map(|(_, _, value)| value)
            .collect();
        assert!(found.len() < 2, "{name} of a container is told more than once: {found:?}");
        found.first().copied()
    }
}

#[tokio::test]
async fn every_metric_is_described_and_labelled_with_whose_it_is() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("labels").await;
    let limits = ContainerSpec::new("app", &image).resources(|r| {
        (r.cpu_period, r.cpu_quota, r.cpu_shares) = (100_000, 20_000, 512);
        (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (64 << 20, 64 << 20);
    });
    let container = pod.start(&limits).await;
    let metrics = Metrics::of(&node, &pod).await;
    assert!(metrics.descriptors.len() >= 56, "{}", metrics.descriptors.len());
    let told: BTreeSet<&str> = metrics.all().map(|(name, _, _)| name).collect();
    for (name, descriptor) in &metrics.descriptors {
        assert!(
            !descriptor.help.is_empty()
                && ["pod", "namespace", "container", "id", "image"]
                    .iter()
                    .all(|key| descriptor.label_keys.iter().any(|label| label == key)),
            "{descriptor:?}"
        );
        // Left out where the kernel does not tell: transfers and huge pages on v1, stalls without their accounting.
        let depends = ["container_blkio_", "container_fs_reads", "container_fs_writes", "container_hugetlb_", "container_pressure_"];
        assert!(told.contains(name.as_str()) || depends.iter().any(|start| name.starts_with(start)), "{name} has no value");
    }
    let all = counts_of_labels(&metrics);
    assert!(all.iter().all(|(name, count)| *count == metrics.descriptors[*name].label_keys.len()), "{all:?}");
    let metadata = pod.config.metadata.clone().expect("a pod has metadata");
    for (name, labels, _) in metrics.all() {
        assert_eq!((labels["pod"], labels["namespace"]), (metadata.name.as_str(), metadata.namespace.as_str()), "{name}");
        let of_container = (labels["container"], labels["id"]) == ("app", container.id.as_str()) && !labels["image"].is_empty();
        let of_pod = (labels["container"], labels["id"]) == ("POD", pod.id.as_str());
        assert!(of_container || of_pod && name.starts_with("container_network_"), "{name}: {labels:?}");
    }
    let spec = |name: &str| metrics.value(&container, &format!("container_spec_{name}"), None);
    assert_eq!((spec("cpu_period"), spec("cpu_quota"), spec("cpu_shares")), (Some(100_000), Some(20_000), Some(512)));
    assert_eq!((spec("memory_limit_bytes"), spec("memory_swap_limit_bytes")), (Some(64 << 20), Some(64 << 20)));
    node.finish().await;
}

fn counts_of_labels(metrics: &Metrics) -> Vec<(&str, usize)> {
    let all = metrics.pod.metrics.iter().chain(metrics.pod.container_metrics.iter().flat_map(|container| &container.metrics));
    all.map(|metric| (metric.name.as_str(), metric.label_values.len())).collect()
}

#[tokio::test]
async fn memory_and_processes_are_what_the_kernel_counts() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("kernel").await;
    // A second process, which holds a socket open; then all of it sleeps.
    let script = "head -c 8000000 /dev/zero >/dev/shm/ballast; nc -l -p 7 -e cat <&- & echo ready; exec sleep 100000 <&-";
    let container = pod.start(&ContainerSpec::new("app", &image).script(script)).await;
    container.logged("ready").await;
    let files = |is_asked_for: fn(&String) -> bool| {
        let files = container.host_pids().into_iter().flat_map(open_files);
        Some(files.filter(is_asked_for).count() as u64)
    };
    let kernel = |places: &[(&str, &str)]| container.cgroup_number(places);
    let counted = || {
        [
            ("container_processes", Some(container.host_pids().len() as u64)),
            ("container_threads", kernel(&[("pids.current", "")])),
            ("container_sockets", files(|target| target.starts_with("socket:"))),
            ("container_file_descriptors", files(|_| true)),
            ("container_memory_cache", kernel(&[("memory.stat", "total_cache "), ("memory.stat", "file ")])),
            ("container_memory_rss", kernel(&[("memory.stat", "total_rss "), ("memory.stat", "anon ")])),
            ("container_memory_max_usage_bytes", kernel(&[("memory.max_usage_in_bytes", ""), ("memory.peak", "")])),
        ]
    };
    // Processes come to rest, and the kernel adds up, in their own time: what stood still on both sides of the question is compared.
    let (before, metrics) = eventually("figures that stand still", || async {
        let before = counted();
        let metrics = Metrics::of(&node, &pod).await;
        let at_rest = before[0].1 == Some(2) && before[2].1 == Some(1);
        (at_rest && before == counted()).then_some((before, metrics))
    })
    .await;
    let value = |name: &str| metrics.value(&container, name, None);
    assert_eq!(before.map(|(name, _)| (name, value(name))), before);
    assert_eq!(value("container_threads_max"), Some(0), "there is no limit");
    assert!(value("container_memory_cache") >= Some(8_000_000));
    let usage = value("container_memory_usage_bytes").expect("memory is counted");
    assert!(usage >= value("container_memory_working_set_bytes").expect("and the working set"));
    assert!(value("container_memory_max_usage_bytes").expect("and the peak") >= usage);
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds / 1_000_000_000).expect("after 1970");
    assert_eq!(value("container_start_time_seconds"), Some(seconds(container.status().await.started_at)));
    assert!(value("container_last_seen") >= value("container_start_time_seconds"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", container.host_pids()[0])).expect("limits");
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    assert_eq!(metrics.value(&container, "container_ulimits_soft", Some(("ulimit", "max_open_files"))), soft);
    node.finish().await;
}

/// What the descriptors of a process lead to.
fn open_files(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}

#[tokio::test]
async fn processor_time_throttling_and_oom_kills_are_counted() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("load").await;
    let named = |name: &str| ContainerSpec::new(name, &image).script("while :; do :; done");
    let busy = pod.start(&named("busy")).await;
    let throttled = pod.start(&named("throttled").resources(|r| (r.cpu_period, r.cpu_quota) = (100_000, 1000))).await;
    // The shell outlives what is killed for its memory.
    let script = "sh -c 'tail -c 100000000 /dev/zero'; echo survived; exec sleep 100000";
    let hungry = ContainerSpec::new("hungry", &image).script(script).resources(|r| r.memory_limit_in_bytes = 32 << 20);
    let hungry = pod.start(&hungry).await;
    hungry.logged("survived").await;
    eventually("two seconds of processor time and one of waiting for the quota", || async {
        let metrics = Metrics::of(&node, &pod).await;
        let used = metrics.value(&busy, "container_cpu_usage_seconds_total", Some(("cpu", "total")))?;
        let waited = metrics.value(&throttled, "container_cpu_cfs_throttled_seconds_total", None)?;
        (used >= 2 && waited >= 1).then_some(())
    })
    .await;
    let metrics = Metrics::of(&node, &pod).await;
    let value = |name: &str| metrics.value(&throttled, name, None).unwrap_or_else(|| panic!("no {name}"));
    assert!(value("container_cpu_cfs_periods_total") >= value("container_cpu_cfs_throttled_periods_total"));
    let time =
        |part: &str| metrics.value(&busy, &format!("container_cpu_{part}seconds_total"), None).unwrap_or_else(|| panic!("no {part}"));
    assert!(time("usage_").abs_diff(time("user_") + time("system_")) <= 2, "the parts make the whole, each rounded down");
    assert!(time("usage_") < 3600, "seconds, and not a smaller unit");
    assert_eq!(metrics.value(&hungry, "container_oom_events_total", None), Some(1));
    assert_eq!(metrics.value(&throttled, "container_oom_events_total", None), Some(0));
    assert!(metrics.value(&hungry, "container_memory_failcnt", None) > Some(0), "its limit was hit");
    node.finish().await;
}

#[tokio::test]
async fn the_network_is_counted_by_pod_and_interface_and_the_nodes_is_not_the_pods() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("network").await;
    let container = pod.start(&ContainerSpec::new("app", &image)).await;
    // Nobody listens there: a packet each way.
    container.exec(&["/bin/sh", "-c", "nc -w 1 $(ip route | awk '/default/ {print $3}') 9 </dev/null"]).await;
    let pid = container.host_pids()[0];
    let names = ["bytes", "packets", "errors", "packets_dropped"];
    eventually("the counters that the pod sees", || async {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("the container lives");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("the pod's interface");
        let kernel: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let metrics = Metrics::of(&node, &pod).await;
        let told = |direction: &str| -> Vec<u64> {
            let metric = |name: &str| {
                let name = format!("container_network_{direction}_{name}_total");
                metrics.all().find(|(metric, labels, _)| *metric == name && labels["interface"] == "eth0").map(|(_, _, value)| value)
            };
            names.iter().filter_map(|name| metric(name)).collect()
        };
        (kernel[0] > 0 && told("receive") == kernel[..4] && told("transmit") == kernel[8..12]).then_some(())
    })
    .await;
    let host = node.run(&PodSpec::new("host").host_network()).await;
    host.start(&ContainerSpec::new("app", &image)).await;
    let metrics = Metrics::of(&node, &host).await;
    assert!(metrics.all().all(|(name, _, _)| !name.starts_with("container_network_")));
    node.finish().await;
}

#[tokio::test]
async fn transfers_are_told_by_device_where_the_kernel_counts_them() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("transfers").await;
    let script = "head -c 4000000 /dev/zero >/file; sync /file; echo ready; exec sleep 100000";
    let container = pod.start(&ContainerSpec::new("app", &image).script(script)).await;
    container.logged("ready").await;
    let counted = || container.cgroup_file("io.stat").unwrap_or_default();
    let (kernel, metrics) = eventually("figures that stand still", || async {
        let before = counted();
        let metrics = Metrics::of(&node, &pod).await;
        (before == counted()).then_some((before, metrics))
    })
    .await;
    let used: Vec<&str> = kernel.lines().filter(|line| line.contains("wbytes=")).collect();
    let told = metrics.all().filter(|(name, _, _)| *name == "container_fs_writes_bytes_total").count();
    assert_eq!(told, used.len(), "{kernel}");
    for line in used {
        let (major, minor) = line.split_once(' ').and_then(|(device, _)| device.split_once(':')).expect("a device");
        let counter = |key: &str| line.split_whitespace().find_map(|field| field.strip_prefix(key)?.parse().ok());
        let operation = |operation: &str| {
            let of_device = |labels: &BTreeMap<&str, &str>| labels["major"] == major && labels["minor"] == minor;
            let found = metrics.all().find(|(name, labels, _)| {
                *name == "container_blkio_device_usage_total" && of_device(labels) && labels["operation"] == operation
            });
            found.map(|(_, labels, value)| (labels["device"].starts_with("/dev/"), value))
        };
        assert_eq!(operation("Write"), counter("wbytes=").map(|bytes: u64| (true, bytes)), "{line}");
        assert_eq!(operation("Read"), counter("rbytes=").map(|bytes: u64| (true, bytes)), "{line}");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_does_not_run_has_no_metrics() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let (pod, stopped) = (node.pod("alive").await, node.pod("stopped").await);
    let running = pod.start(&ContainerSpec::new("running", &image)).await;
    pod.start(&ContainerSpec::new("ended", &image).command(&["/bin/true"])).await.exited().await;
    pod.create(&ContainerSpec::new("created", &image)).await;
    stopped.stop().await;
    let pods = node.cri.pod_metrics().await.expect("ListPodSandboxMetrics");
    assert_eq!(pods.iter().map(|metrics| &metrics.pod_sandbox_id).collect::<Vec<_>>(), [&pod.id]);
    let containers: Vec<_> = pods[0].container_metrics.iter().map(|metrics| &metrics.container_id).collect();
    assert_eq!(containers, [&running.id]);
    node.finish().await;
}
