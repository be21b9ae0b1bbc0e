//! What containers and pods are said to use.

use coracle_e2e::api::{ContainerStatsFilter, PodSandboxStatsFilter};
use coracle_e2e::{ContainerSpec, Node, eventually};

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
