//! What containers and pods are said to use.

use std::collections::BTreeSet;
use std::path::Path;

use coracle_e2e::api::{ContainerStats, ContainerStatsFilter, PodSandboxMetrics, PodSandboxStats, PodSandboxStatsFilter, UInt64Value};
use coracle_e2e::wire::{self, Value};
use coracle_e2e::{ContainerSpec, Node, Pod, PodSpec, eventually, skip};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};

fn number(value: &Option<UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

async fn of_pod(node: &Node, pod: &Pod) -> PodSandboxStats {
    let filter = PodSandboxStatsFilter { id: pod.id.clone(), ..Default::default() };
    let stats = node.cri.all_pod_stats(Some(filter)).await.expect("ListPodSandboxStats");
    stats.into_iter().next().expect("the pod is measured")
}

fn processor_time(stats: &ContainerStats) -> Option<u64> {
    stats.cpu.as_ref().and_then(|cpu| number(&cpu.usage_core_nano_seconds))
}

#[tokio::test]
async fn a_busy_container_uses_processor_time_and_memory() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("busy").await;
    let script = "head -c 30000000 /dev/zero >/dev/shm/ballast; echo ready; while :; do :; done";
    let busy = pod.start(&ContainerSpec::new("busy", &image).script(script).resources(|r| r.memory_limit_in_bytes = 128 << 20)).await;
    let idle = pod.start(&ContainerSpec::new("idle", &image)).await;
    busy.logged("ready").await;
    let time = async |id: &str| {
        let stats = node.cri.container_stats(id).await.expect("ContainerStats");
        stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |time| time.value)
    };
    let first = time(&busy.id).await;
    eventually("two seconds of processor time", || async { (time(&busy.id).await > first + 2_000_000_000).then_some(()) }).await;
    assert!(time(&idle.id).await < 500_000_000, "an idle container uses next to none");

    let stats = node.cri.container_stats(&busy.id).await.expect("ContainerStats");
    let attributes = stats.attributes.expect("they say whose they are");
    assert_eq!(attributes.id, busy.id);
    assert_eq!(attributes.metadata.map(|metadata| metadata.name).as_deref(), Some("busy"));
    assert!(stats.cpu.is_some_and(|cpu| cpu.timestamp > 0));
    let memory = stats.memory.expect("memory is counted");
    assert!(memory.timestamp > 0);
    let working_set = memory.working_set_bytes.map_or(0, |bytes| bytes.value);
    assert!((30_000_000..60_000_000).contains(&working_set), "{working_set} bytes, of which 30 MB are held in shared memory");
    if !node.target.is_foreign() {
        let (usage, available) = (memory.usage_bytes.map_or(0, |bytes| bytes.value), memory.available_bytes.map_or(0, |bytes| bytes.value));
        assert!(usage >= working_set, "{usage}");
        assert_eq!(available, (128 << 20) - working_set, "what is left of the limit");
    }
    node.finish().await;
}

#[tokio::test]
async fn stats_are_listed_by_every_filter_for_what_runs() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let (pod, other) = (node.pod("one").await, node.pod("other").await);
    let labelled = ContainerSpec::new("labelled", &image).with(|config| drop(config.labels.insert("kind".into(), "a".into())));
    let running = pod.start(&labelled).await;
    let second = pod.start(&ContainerSpec::new("second", &image)).await;
    let ended = pod.start(&ContainerSpec::new("ended", &image).command(&["/bin/true"])).await;
    ended.exited().await;
    other.start(&ContainerSpec::new("elsewhere", &image)).await;
    let ids = async |filter: ContainerStatsFilter| -> Vec<String> {
        let stats = node.cri.all_container_stats(Some(filter)).await.expect("ListContainerStats");
        let mut ids: Vec<String> = stats.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect();
        ids.sort();
        ids
    };
    let in_pod = ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let mut expected = vec![running.id.clone(), second.id.clone()];
    expected.sort();
    let listed = ids(in_pod.clone()).await;
    assert!(expected.iter().all(|id| listed.contains(id)), "{listed:?}");
    assert!(node.target.is_foreign() || listed == expected, "what does not run uses nothing");
    let label = ContainerStatsFilter { label_selector: [("kind".to_owned(), "a".to_owned())].into(), ..in_pod };
    assert_eq!(ids(label).await, [running.id.as_str()]);
    assert_eq!(ids(ContainerStatsFilter { id: second.id.clone(), ..Default::default() }).await, [second.id.as_str()]);
    node.finish().await;
}

#[tokio::test]
async fn a_pods_stats_hold_those_of_its_containers() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("sum").await;
    let container =
        pod.start(&ContainerSpec::new("c", &image).script("head -c 8000000 /dev/zero >/dev/shm/x; echo ready; sleep 100000")).await;
    container.logged("ready").await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let filter = PodSandboxStatsFilter { id: pod.id.clone(), ..Default::default() };
    let stats = node.cri.all_pod_stats(Some(filter)).await.expect("ListPodSandboxStats");
    assert_eq!(stats.len(), 1);
    let attributes = stats[0].attributes.as_ref().expect("they say whose they are");
    assert_eq!((attributes.id.as_str(), &attributes.metadata), (pod.id.as_str(), &pod.config.metadata));
    let linux = stats[0].linux.as_ref().expect("this is Linux");
    assert!(linux.memory.as_ref().and_then(|memory| memory.working_set_bytes).is_some_and(|bytes| bytes.value >= 8_000_000));
    assert!(linux.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|time| time.value > 0));
    let contained: Vec<&str> =
        linux.containers.iter().filter_map(|stats| stats.attributes.as_ref()).map(|attributes| attributes.id.as_str()).collect();
    assert_eq!(contained, [container.id.as_str()]);
    node.finish().await;
}

#[tokio::test]
async fn figures_are_the_kernels() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let script = "head -c 8000000 /dev/zero >/dev/shm/ballast; echo ready; exec sleep 100000";
    let container = node.pod("kernel").await.start(&ContainerSpec::new("c", &image).script(script)).await;
    container.logged("ready").await;
    eventually("it sleeps", || async { (container.host_pids().len() == 1).then_some(()) }).await;
    let kernel = |places: &[(&str, &str)]| container.cgroup_number(places);
    let earlier = node.cri.container_stats(&container.id).await.expect("ContainerStats");
    let nanoseconds = kernel(&[("cpuacct.usage", "")]).or(kernel(&[("cpu.stat", "usage_usec ")]).map(|time| time * 1000));
    let stats = node.cri.container_stats(&container.id).await.expect("ContainerStats");
    assert!(processor_time(&earlier) <= nanoseconds && nanoseconds <= processor_time(&stats), "nanoseconds, since it began");
    // A kernel adds up what its processors counted some time after the container rests: only what stood still on both sides of the
    // question can be compared with the answer.
    let counted = || {
        [
            kernel(&[("memory.usage_in_bytes", ""), ("memory.current", "")]),
            kernel(&[("memory.stat", "total_rss "), ("memory.stat", "anon ")]),
            kernel(&[("memory.stat", "total_pgfault "), ("memory.stat", "pgfault ")]),
            kernel(&[("memory.stat", "total_pgmajfault "), ("memory.stat", "pgmajfault ")]),
            kernel(&[("memory.stat", "total_inactive_file "), ("memory.stat", "inactive_file ")]),
        ]
    };
    let (before, stats) = eventually("figures that stand still", || async {
        let before = counted();
        let stats = node.cri.container_stats(&container.id).await.expect("ContainerStats");
        (before == counted()).then_some((before, stats))
    })
    .await;
    let memory = stats.memory.expect("memory is counted");
    assert_eq!([number(&memory.usage_bytes), number(&memory.rss_bytes)], before[..2]);
    assert_eq!([number(&memory.page_faults), number(&memory.major_page_faults)], before[2..4]);
    assert_eq!(number(&memory.working_set_bytes), number(&memory.usage_bytes).zip(before[4]).map(|(usage, inactive)| usage - inactive));
    assert_eq!(number(&memory.available_bytes), None, "without a limit nothing is left of it");
    let swap = stats.swap.as_ref().and_then(|swap| number(&swap.swap_usage_bytes));
    assert_eq!(swap, kernel(&[("memory.stat", "total_swap "), ("memory.swap.current", "")]));
    node.finish().await;
}

#[tokio::test]
async fn the_rate_of_processor_time_is_the_runtimes_own() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("rate").await;
    let busy = pod.start(&ContainerSpec::new("busy", &image).script("while :; do :; done")).await;
    let idle = pod.start(&ContainerSpec::new("idle", &image)).await;
    let rate = async |id: &str| {
        let stats = node.cri.container_stats(id).await.expect("ContainerStats");
        stats.cpu.and_then(|cpu| number(&cpu.usage_nano_cores))
    };
    eventually("a rate above a hundredth of a core", || async { (rate(&busy.id).await? > 10_000_000).then_some(()) }).await;
    eventually("no rate to speak of", || async { (rate(&idle.id).await? < 10_000_000).then_some(()) }).await;
    if !node.target.is_foreign() {
        let of_pod = async || of_pod(&node, &pod).await.linux?.cpu.and_then(|cpu| number(&cpu.usage_nano_cores));
        eventually("the pod's rate", || async { (of_pod().await? > 10_000_000).then_some(()) }).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_ended_has_only_its_writable_layer_left() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container =
        node.pod("ended").await.start(&ContainerSpec::new("c", &image).script("head -c 3000000 /dev/zero >/file; sync /file")).await;
    container.exited().await;
    let layer = eventually("the file is counted", || async {
        let stats = node.cri.container_stats(&container.id).await.expect("ContainerStats");
        assert!(stats.cpu.is_none() && stats.memory.is_none(), "{stats:?}");
        stats.writable_layer.filter(|layer| number(&layer.used_bytes) > Some(3_000_000))
    })
    .await;
    assert!(layer.timestamp > 0 && number(&layer.inodes_used) > Some(1), "{layer:?}");
    assert!(layer.fs_id.is_some_and(|id| Path::new(&id.mountpoint).is_dir()), "the kubelet looks up the file system of that path");
    let status = node.cri.container_stats("0123").await.expect_err("there is none");
    assert_eq!(status.code(), coracle_e2e::Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn a_pods_processor_time_keeps_what_ended_containers_used() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("counters").await;
    let worker = pod.start(&ContainerSpec::new("worker", &image).script("head -c 200000000 /dev/zero | md5sum")).await;
    let stays = pod.start(&ContainerSpec::new("stays", &image)).await;
    worker.exited().await;
    let linux = of_pod(&node, &pod).await.linux.expect("this is Linux");
    let left: u64 = linux.containers.iter().filter_map(processor_time).sum();
    assert_eq!(linux.containers.len(), 1);
    let whole = linux.cpu.as_ref().and_then(|cpu| number(&cpu.usage_core_nano_seconds)).expect("time is counted");
    assert!(whole > left + 50_000_000, "{whole} of the pod, of which the container that stays has {left}");
    worker.remove().await;
    let after = of_pod(&node, &pod).await.linux.and_then(|linux| linux.cpu).and_then(|cpu| number(&cpu.usage_core_nano_seconds));
    assert!(after >= Some(whole), "a counter never falls: {after:?}");
    let process = linux.process.expect("processes are counted");
    assert!(process.timestamp > 0);
    assert_eq!(number(&process.process_count), stays.cgroup_number(&[("pids.current", "")]));
    node.finish().await;
}

#[tokio::test]
async fn a_pods_network_is_counted_at_its_own_interface() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("network").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    container.exec(&["/bin/sh", "-c", "nc -w 1 $(ip route | awk '/default/ {print $3}') 9 </dev/null"]).await;
    let pid = container.host_pids()[0];
    eventually("the counters that the pod sees", || async {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("the container lives");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("the pod's interface");
        let kernel: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let network = of_pod(&node, &pod).await.linux?.network?;
        assert!(network.timestamp > 0 && network.interfaces.iter().all(|other| other.name != "eth0" && other.name != "lo"));
        let own = network.default_interface.expect("the kubelet shows this one");
        let told = [&own.rx_bytes, &own.rx_errors, &own.tx_bytes, &own.tx_errors].map(number);
        assert_eq!(own.name, "eth0");
        (kernel[0] > 0 && told == [kernel[0], kernel[2], kernel[8], kernel[10]].map(Some)).then_some(())
    })
    .await;
    let host = node.run(&PodSpec::new("host").host_network()).await;
    host.start(&ContainerSpec::new("c", &image)).await;
    assert!(of_pod(&node, &host).await.linux.is_some_and(|linux| linux.network.is_none()), "the node's network is not the pod's");
    node.finish().await;
}

#[tokio::test]
async fn what_runs_is_measured_before_its_monitor_has_answered_a_new_daemon() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("still").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let monitor = Pid::from_raw(node.footprint.monitor(&pod.id)).expect("a process id");
    node.kill_daemon();
    kill_process(monitor, Signal::STOP).expect("stopping the monitor");
    node.launch_daemon();
    let stats = eventually("an answer", || async { node.cri.all_pod_stats(None).await.ok() }).await;
    let measured: Vec<_> = stats.into_iter().filter_map(|stats| stats.linux).flat_map(|linux| linux.containers).collect();
    let listed = node.cri.all_container_stats(None).await.expect("ListContainerStats");
    for stats in [measured, listed] {
        assert_eq!(stats.len(), 1, "{stats:?}");
        assert_eq!(stats[0].attributes.as_ref().map(|attributes| &attributes.id), Some(&container.id));
        assert!(processor_time(&stats[0]) > Some(0) && stats[0].memory.is_some(), "{stats:?}");
    }
    kill_process(monitor, Signal::CONT).expect("waking the monitor");
    node.serving().await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}

/// The items of a stream that ends after one batch, whose one field they are.
async fn streamed<T: Message + Default>(node: &Node, method: &str) -> Vec<T> {
    let batch = node.cri.raw(method, Vec::new()).await.unwrap_or_else(|status| panic!("{method}: {status}"));
    let item = |value| match value {
        Value::Bytes(bytes) => T::decode(&*bytes).expect("an item"),
        Value::Number(number) => panic!("{method} tells {number}"),
    };
    wire::find(&batch, 1).into_iter().map(item).collect()
}

#[tokio::test]
async fn streams_tell_what_lists_tell() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pods = [node.pod("first").await, node.pod("second").await];
    let containers = [pods[0].start(&ContainerSpec::new("a", &image)).await, pods[1].start(&ContainerSpec::new("b", &image)).await];
    let ids = |attributes: Vec<Option<String>>| -> BTreeSet<String> { attributes.into_iter().flatten().collect() };
    let stats: Vec<ContainerStats> = streamed(&node, "StreamContainerStats").await;
    assert_eq!(stats.len(), 2);
    let streamed_ids = ids(stats.into_iter().map(|stats| Some(stats.attributes?.id)).collect());
    assert_eq!(streamed_ids, containers.iter().map(|container| container.id.clone()).collect());
    let stats: Vec<PodSandboxStats> = streamed(&node, "StreamPodSandboxStats").await;
    assert!(stats.iter().all(|stats| stats.linux.as_ref().is_some_and(|linux| linux.containers.len() == 1)), "{stats:?}");
    let expected: BTreeSet<String> = pods.iter().map(|pod| pod.id.clone()).collect();
    assert_eq!(ids(stats.into_iter().map(|stats| Some(stats.attributes?.id)).collect()), expected);
    let metrics: Vec<PodSandboxMetrics> = streamed(&node, "StreamPodSandboxMetrics").await;
    assert_eq!(metrics.iter().map(|metrics| metrics.pod_sandbox_id.clone()).collect::<BTreeSet<_>>(), expected);
    assert!(metrics.iter().all(|metrics| metrics.container_metrics.len() == 1 && metrics.metrics.len() >= 8), "{metrics:?}");
    node.finish().await;
}

/// Pressure came into CRI later than the client library that the harness is built on: so it is asked through ours.
#[tokio::test]
async fn pressure_is_told_where_the_kernel_counts_it() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let busy =
        ContainerSpec::new("busy", &image).script("while :; do :; done").resources(|r| (r.cpu_period, r.cpu_quota) = (100_000, 1000));
    let container = node.pod("pressure").await.start(&busy).await;
    if container.cgroup_file("cpu.pressure").is_none() {
        skip("this kernel counts no pressure");
        return node.finish().await;
    }
    let total =
        |text: &str, line: &str| -> Option<u64> { text.lines().find(|found| found.starts_with(line))?.rsplit_once('=')?.1.parse().ok() };
    let stats = || -> Option<serde_json::Value> {
        let endpoint = format!("unix://{}", node.cri.socket().display());
        let output =
            std::process::Command::new(&node.target.binary).args(["-o", "json", "stats"]).env("CORACLE_ENDPOINT", endpoint).output();
        serde_json::from_slice::<serde_json::Value>(&output.expect("the client runs").stdout).ok()?.pointer("/stats/0").cloned()
    };
    eventually("waiting for a processor", || async {
        let before = total(&container.cgroup_file("cpu.pressure")?, "some")?;
        let stats = stats()?;
        let after = total(&container.cgroup_file("cpu.pressure")?, "some")?;
        let told: u64 = stats.pointer("/cpu/psi/Some/Total")?.as_str()?.parse().ok()?;
        assert!((before * 1000..=after * 1000).contains(&told), "{told} nanoseconds, by the kernel {before} to {after} microseconds");
        assert!(stats.pointer("/memory/psi/Some").is_some() && stats.pointer("/io/psi/Some").is_some(), "{stats}");
        (told > 0).then_some(())
    })
    .await;
    node.finish().await;
}
