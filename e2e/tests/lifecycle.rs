//! The main job: a pod of two containers, from RunPodSandbox to RemovePodSandbox, and every step of it twice; and how the end of a
//! container is told.

use coracle_e2e::api::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatus, NamespaceMode, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue,
};
use coracle_e2e::{Code, ContainerSpec, Node, Pod, PodSpec, eventually, host};

/// Serves `/var/www` over HTTP.
fn server(image: &str) -> ContainerSpec {
    ContainerSpec::new("server", image).script("echo ahoy >/var/www/index.html; echo serving; exec httpd -f -v -p 8080 -h /var/www")
}

#[tokio::test]
async fn a_pod_of_two_containers_serves_the_other_one_and_the_host() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("main").await;
    let server = pod.start(&server(&image)).await;
    let client = pod.start(&ContainerSpec::new("client", &image)).await;
    let address = pod.address().await;

    let fetched = eventually("the server's answer to its neighbour", || async {
        let output = client.exec(&["/bin/wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]).await;
        (output.code == 0).then_some(output.stdout)
    })
    .await;
    assert_eq!(fetched, "ahoy");
    assert_eq!(client.shell(&format!("wget -q -O - http://{address}:8080/")).await, "ahoy", "by the pod's own address");
    assert_eq!(host::http_get(&format!("http://{address}:8080/")).as_deref(), Some("ahoy\n"), "from the host at {address}");
    server.logged("serving").await;

    assert_eq!(server.exec(&["/bin/cat", "/var/www/index.html"]).await.stdout, "ahoy");
    assert_eq!(client.exec(&["/bin/cat", "/var/www/index.html"]).await.code, 1, "each container has its own root file system");
    assert_eq!(server.status().await.state(), ContainerState::ContainerRunning);
    assert!(!server.host_pids().is_empty(), "a running container has processes on the host");

    server.stop(0).await;
    let status = server.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{status:?}");
    assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    assert_eq!(client.status().await.state(), ContainerState::ContainerRunning, "the neighbour is not disturbed");
    server.remove().await;
    pod.stop().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    assert!(client.host_pids().is_empty(), "no process outlives its pod");
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn pods_reach_each_other_and_nobody_shares_an_address() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let (first, second) = (node.pod("first").await, node.pod("second").await);
    let (here, there) = (first.address().await, second.address().await);
    assert_ne!(here, there);
    first.start(&server(&image)).await;
    let client = second.start(&ContainerSpec::new("client", &image)).await;
    let fetched = eventually("an answer from the other pod", || async {
        let output = client.exec(&["/bin/wget", "-q", "-O", "-", &format!("http://{here}:8080/")]).await;
        (output.code == 0).then_some(output.stdout)
    })
    .await;
    assert_eq!(fetched, "ahoy");
    assert_ne!(client.exec(&["/bin/wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]).await.code, 0, "loopback is the pod's own");
    let addresses = client.shell("ip -4 -o addr show dev eth0").await;
    assert!(addresses.contains(&there), "eth0 has the address that CRI tells, {there}: {addresses}");
    assert!(client.shell("ip route").await.contains("default via"), "there is a default route");
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_created_before_it_is_started_and_says_so() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("states").await;
    let container = pod
        .create(&ContainerSpec::new("c", &image).with(|config| {
            config.labels.insert("colour".into(), "blue".into());
            config.annotations.insert("note".into(), "a \"quoted\"\nnote".into());
        }))
        .await;
    let status = container.status().await;
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert!(status.created_at > 0);
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    assert_eq!(status.image.as_ref().map(|image| image.image.as_str()), Some(image.as_str()), "the reference that was asked for");
    assert_eq!(status.labels.get("colour").map(String::as_str), Some("blue"));
    assert_eq!(status.annotations.get("note").map(String::as_str), Some("a \"quoted\"\nnote"), "annotations come back byte by byte");
    assert_eq!(status.metadata.map(|metadata| metadata.name).as_deref(), Some("c"));
    assert_eq!(status.log_path, container.log.to_string_lossy());
    container.start().await;
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    node.finish().await;
}

#[tokio::test]
async fn stopping_and_removing_twice_is_as_good_as_once() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("twice").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    container.stop(0).await;
    let first = container.status().await;
    container.stop(0).await;
    assert_eq!(container.status().await, first, "a second stop changes nothing");
    container.remove().await;
    container.remove().await;
    assert_eq!(node.cri.status(&container.id).await.expect_err("it is gone").code(), Code::NotFound);
    pod.stop().await;
    pod.stop().await;
    pod.remove().await;
    pod.remove().await;
    if !node.target.is_foreign() {
        pod.stop().await;
    }
    assert_eq!(node.cri.pod_status(&pod.id).await.expect_err("it is gone").code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn a_running_pod_is_removed_with_all_that_runs_in_it() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("whole").await;
    let running = pod.start(&ContainerSpec::new("running", &image)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    running.remove().await;
    assert!(running.host_pids().is_empty(), "RemoveContainer ends a running container");
    pod.start(&ContainerSpec::new("another", &image)).await;
    pod.stop().await;
    pod.remove().await;
    assert_eq!(node.cri.status(&created.id).await.expect_err("it is gone").code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn a_stopped_pods_link_goes_though_another_pod_has_the_daemons_state_mounted() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    // It has one address for pods.
    node.cri.set_pod_cidr(&node.part_of_subnet(252, 30)).await.expect("UpdateRuntimeConfig");
    let pod = node.pod("stopped").await;
    let agent = node.run(&PodSpec::new("agent").host_network()).await;
    let state = host::text(&node.footprint.state);
    let agents = agent.start(&ContainerSpec::new("c", &image).mount(&state, "/state", true)).await;
    let link = format!("/sys/class/net/cor{}", &pod.id[..12]);
    assert!(std::path::Path::new(&link).exists());
    pod.stop().await;
    eventually("the link's end", || async { (!std::path::Path::new(&link).exists()).then_some(()) }).await;
    assert_eq!(agents.status().await.state(), ContainerState::ContainerRunning, "it has a copy of what is mounted there");
    assert_eq!(node.pod("next").await.last_octet().await, 254);
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_ignores_its_stop_signal_is_killed_after_its_grace() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("stubborn").await;
    let stubborn = pod.start(&ContainerSpec::new("stubborn", &image).script("trap : TERM; echo ready; while :; do sleep 1; done")).await;
    let polite =
        pod.start(&ContainerSpec::new("polite", &image).script("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")).await;
    stubborn.logged("ready").await;
    polite.logged("ready").await;
    polite.stop(60).await;
    assert_eq!(polite.status().await.exit_code, 7, "the stop signal gives it the chance to end by itself");
    stubborn.stop(1).await;
    assert_eq!(stubborn.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_shorter_stop_overtakes_a_longer_one() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("overtaken").await;
    let container = pod.start(&ContainerSpec::new("c", &image).script("trap : TERM; echo ready; while :; do sleep 1; done")).await;
    container.logged("ready").await;
    let patient = container.clone();
    let long = tokio::spawn(async move { patient.stop(200).await });
    tokio::task::yield_now().await;
    container.stop(0).await;
    long.await.expect("the longer stop ends as well");
    assert_eq!(container.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_retry_of_a_finished_create_gets_the_same_pod_and_container() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let image = node.busybox().await;
    let spec = PodSpec::new("again");
    let pod = node.run(&spec).await;
    assert_eq!(node.run(&spec).await.id, pod.id, "the same name, namespace, uid and attempt is the same pod");
    let container = pod.create(&ContainerSpec::new("c", &image)).await;
    assert_eq!(pod.create(&ContainerSpec::new("c", &image)).await.id, container.id);
    let next = node.run(&spec.clone().with(|config| config.metadata.as_mut().expect("it has metadata").attempt = 1)).await;
    assert_ne!(next.id, pod.id, "another attempt is another pod");
    node.finish().await;
}

#[tokio::test]
async fn a_create_that_fails_gives_its_address_back() {
    let Some(node) = Node::own().await else { return };
    // There is one address for pods.
    node.cri.set_pod_cidr(&node.part_of_subnet(252, 30)).await.expect("UpdateRuntimeConfig");
    for round in 0..3 {
        let refused = PodSpec::new(&format!("refused{round}")).with(|config| {
            let sysctls = &mut config.linux.get_or_insert_default().sysctls;
            sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "many".to_owned());
        });
        let error = node.try_run(&refused).await.expect_err("that is no port");
        assert!(error.message().contains("ip_unprivileged_port_start"), "{error}");
    }
    let pod = node.pod("one").await;
    let error = node.try_run(&PodSpec::new("other")).await.expect_err("the address is in use");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    pod.remove().await;
    node.pod("other").await;
    node.finish().await;
}

#[tokio::test]
async fn simultaneous_creates_of_one_pod_join() {
    let node = Node::start().await;
    if node.target.is_foreign() {
        return node.finish().await;
    }
    let spec = PodSpec::new("joined");
    let (one, two, three) = tokio::join!(node.run(&spec), node.run(&spec), node.run(&spec));
    assert_eq!((&one.id, &one.id), (&two.id, &three.id));
    assert_eq!(node.pods().await.len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn many_pods_at_once() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let names: Vec<String> = (0..12).map(|number| format!("crowd-{number}")).collect();
    let starts = names.iter().map(|name| async {
        let pod = node.pod(name).await;
        let container = pod.start(&ContainerSpec::new("c", &image)).await;
        (pod, container)
    });
    let crowd = futures_util::future::join_all(starts).await;
    let mut addresses = std::collections::BTreeSet::new();
    for (pod, container) in &crowd {
        assert!(addresses.insert(pod.address().await), "two pods with one address");
        assert_eq!(container.exec(&["/bin/hostname"]).await.stdout, pod.config.hostname);
    }
    futures_util::future::join_all(crowd.iter().map(|(pod, _)| pod.remove_all())).await;
    assert!(node.pods().await.is_empty());
    node.finish().await;
}

/// The small help that only this file needs.
trait RemoveAll {
    /// Stops and removes the pod.
    async fn remove_all(&self);
}

impl RemoveAll for Pod {
    async fn remove_all(&self) {
        self.stop().await;
        self.remove().await;
    }
}

#[tokio::test]
async fn pods_are_listed_by_every_filter() {
    let node = Node::start().await;
    let tag = format!("filter-{}", node.scratch().display());
    let ready = node.run(&PodSpec::new("ready").label("tag", &tag).label("which", "1")).await;
    let stopped = node.run(&PodSpec::new("stopped").label("tag", &tag)).await;
    stopped.stop().await;
    let ids = async |filter: PodSandboxFilter| -> Vec<String> {
        let pods = node.cri.pods(Some(filter)).await.expect("ListPodSandbox");
        pods.into_iter().map(|pod| pod.id).collect()
    };
    let labelled = |pairs: &[(&str, &str)]| PodSandboxFilter {
        label_selector: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Default::default()
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let mut both = ids(labelled(&[("tag", &tag)])).await;
    both.sort();
    let mut expected = vec![ready.id.clone(), stopped.id.clone()];
    expected.sort();
    assert_eq!(both, expected);
    assert_eq!(ids(labelled(&[("tag", &tag), ("which", "1")])).await, [ready.id.as_str()], "all labels must match");
    assert_eq!(ids(PodSandboxFilter { id: ready.id.clone(), ..Default::default() }).await, [ready.id.as_str()]);
    assert_eq!(
        ids(PodSandboxFilter { id: ready.id[..20].to_owned(), ..Default::default() }).await,
        [ready.id.as_str()],
        "an id may be shortened"
    );
    let not_ready = PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..labelled(&[("tag", &tag)]) };
    assert_eq!(ids(not_ready).await, [stopped.id.as_str()]);
    let contradiction = PodSandboxFilter { id: ready.id.clone(), state: state(PodSandboxState::SandboxNotready), ..Default::default() };
    assert!(ids(contradiction).await.is_empty(), "every condition must hold");
    node.finish().await;
}

#[tokio::test]
async fn containers_are_listed_by_every_filter() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let (pod, other) = (node.pod("one").await, node.pod("other").await);
    let labelled =
        |name: &str, value: &str| ContainerSpec::new(name, &image).with(|config| drop(config.labels.insert("kind".into(), value.into())));
    let running = pod.start(&labelled("running", "a")).await;
    let created = pod.create(&labelled("created", "b")).await;
    let elsewhere = other.create(&labelled("elsewhere", "a")).await;
    let ids = async |filter: ContainerFilter| -> Vec<String> {
        let containers = node.cri.containers(Some(filter)).await.expect("ListContainers");
        let mut ids: Vec<String> = containers.into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    };
    let in_pod = ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let mut both = vec![running.id.clone(), created.id.clone()];
    both.sort();
    assert_eq!(ids(in_pod.clone()).await, both);
    let state = ContainerFilter { state: Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() }), ..in_pod.clone() };
    assert_eq!(ids(state).await, [running.id.as_str()]);
    let label = ContainerFilter { label_selector: [("kind".to_owned(), "b".to_owned())].into(), ..in_pod.clone() };
    assert_eq!(ids(label).await, [created.id.as_str()]);
    assert_eq!(ids(ContainerFilter { id: elsewhere.id.clone(), ..Default::default() }).await, [elsewhere.id.as_str()]);
    assert!(ids(ContainerFilter { id: elsewhere.id.clone(), ..in_pod }).await.is_empty());
    let listed = node.cri.containers(Some(ContainerFilter { id: running.id.clone(), ..Default::default() })).await.expect("ListContainers");
    let container = &listed[0];
    assert_eq!(container.pod_sandbox_id, pod.id);
    assert_eq!(container.state(), ContainerState::ContainerRunning);
    let status = running.status().await;
    assert_eq!((&container.image_id, container.created_at), (&status.image_id, status.created_at));
    node.finish().await;
}

#[tokio::test]
async fn a_status_tells_who_a_pod_is() {
    let node = Node::start().await;
    let spec = PodSpec::new("told").label("app", "lighthouse").with(|config| drop(config.annotations.insert("k".into(), "v\n".into())));
    let pod = node.run(&spec).await;
    let status = pod.status().await;
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert_eq!(status.state(), PodSandboxState::SandboxReady, "a pod is ready when RunPodSandbox returns");
    assert!(status.created_at > 0);
    assert!(status.network.is_some_and(|network| network.ip.parse::<std::net::Ipv4Addr>().is_ok()));
    let listed = node.pods().await;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, listed[0].created_at, &listed[0].metadata), (&pod.id, status.created_at, &pod.config.metadata));
    node.finish().await;
}

/// How a container ended: its code and the reason told for it.
fn ending(status: &ContainerStatus) -> (i32, &str) {
    (status.exit_code, status.reason.as_str())
}

#[tokio::test]
async fn exit_codes_are_the_programs_own() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("codes").await;
    let run = async |name: &str, script: &str| pod.run(&ContainerSpec::new(name, &image).script(script)).await.0;
    assert_eq!(ending(&run("good", "true").await), (0, "Completed"));
    assert_eq!(ending(&run("three", "exit 3").await), (3, "Error"));
    assert_eq!(ending(&run("large", "exit 255").await), (255, "Error"));
    // The first process of a pid namespace is hit by no signal but KILL, so the others are tried in a shared one.
    let shared = PodSpec::new("signals").pid_mode(NamespaceMode::Pod);
    let pod = node.run(&shared).await;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
        let spec =
            ContainerSpec::new(signal, &image).security(|s| s.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into());
        let container = pod.start(&spec).await;
        host::run("kill", &[&format!("-{signal}"), &container.host_pids()[0].to_string()]).expect("sending a signal");
        assert_eq!(ending(&container.exited().await), (code, "Error"), "{signal}");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_kernel_killing_for_memory_is_told() {
    let node = Node::start().await;
    let image = node.busybox().await;
    let pod = node.pod("greedy").await;
    let limited = |name: &str| ContainerSpec::new(name, &image).resources(|r| r.memory_limit_in_bytes = 24 << 20);
    let greedy = limited("greedy").command(&["/bin/awk", "BEGIN { s = \"x\"; while (1) s = s s }"]);
    let (status, _) = pod.run(&greedy).await;
    assert_eq!(ending(&status), (137, "OOMKilled"), "{status:?}");
    let (status, _) = pod.run(&limited("modest").script("exit 5")).await;
    assert_eq!(ending(&status), (5, "Error"), "a limit that was not reached is no reason");
    node.finish().await;
}
