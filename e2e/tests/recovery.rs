//! The daemon dies, by `kill -9`, at any moment: no container notices, and the next daemon knows everything.

use coracle_e2e::api::{ContainerState, NamespaceMode, PodSandboxState, Protocol};
use coracle_e2e::{Code, ContainerSpec, Node, Pod, PodSpec, eventually, host};
use serde_json::{Value, json};

#[tokio::test]
async fn containers_live_on_and_the_next_daemon_serves_the_same_pods() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("lasting").await;
    let script = "echo ahoy >/var/www/index.html; exec httpd -f -p 8080 -h /var/www";
    let server = pod.start(&ContainerSpec::new("server", &image).script(script)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let host_pod = node.run(&PodSpec::new("host").host_network()).await;
    let other = host_pod.start(&ContainerSpec::new("c", &image)).await;
    let address = pod.address().await;
    let before = (pod.status().await, server.status().await, created.status().await, other.status().await);
    let first = server.host_pids()[0];
    let url = format!("http://{address}:8080/");
    eventually("the server", || async { host::http_get(&url) }).await;

    node.kill_daemon();
    assert_eq!(host::http_get(&url).as_deref(), Some("ahoy\n"), "it is served while the daemon is dead");
    node.start_daemon().await;

    // The server answers each request with a process of its own.
    assert_eq!(server.host_pids()[0], first, "the same process");
    let after = (pod.status().await, server.status().await, created.status().await, other.status().await);
    assert_eq!(after, before, "the same statuses");
    assert_eq!(node.pods().await.len(), 2);
    assert_eq!(server.exec(&["/bin/cat", "/var/www/index.html"]).await.stdout, "ahoy", "exec works on");
    created.start().await;
    assert_eq!(created.exec(&["/bin/true"]).await.code, 0, "what was created can be started");
    let third = pod.start(&ContainerSpec::new("third", &image)).await;
    assert_eq!(third.shell("wget -q -O - http://127.0.0.1:8080/").await, "ahoy", "new containers join the old network");
    let fresh = node.pod("fresh").await;
    assert_ne!(fresh.address().await, address, "the address is still taken");
    server.stop(0).await;
    assert_eq!(server.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn exits_that_happened_meanwhile_are_told_truly() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("meanwhile").await;
    let wait = |code: u8| format!("until [ -e /dev/shm/go ]; do sleep 0.05; done; echo leaving; exit {code}");
    let seven = pod.start(&ContainerSpec::new("seven", &image).script(&wait(7))).await;
    let zero = pod.start(&ContainerSpec::new("zero", &image).script(&wait(0))).await;
    let killed = pod.start(&ContainerSpec::new("killed", &image)).await;
    let greedy_script = "until [ -e /dev/shm/go ]; do sleep 0.05; done; exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'";
    let greedy = ContainerSpec::new("greedy", &image).script(greedy_script).resources(|r| r.memory_limit_in_bytes = 24 << 20);
    let greedy = pod.start(&greedy).await;
    let waiting = pod.start(&ContainerSpec::new("waiting", &image)).await;
    let victim = killed.host_pids()[0];

    node.kill_daemon();
    host::kill(victim).await;
    let shm = node.footprint.state.join("pods").join(&pod.id).join("shm");
    std::fs::write(shm.join("go"), "").expect("telling the containers through their shared memory");
    for container in [&seven, &zero, &killed, &greedy] {
        eventually("the containers' ends", || async { container.host_pids().is_empty().then_some(()) }).await;
    }
    node.start_daemon().await;

    for (container, code, reason) in [(&seven, 7, "Error"), (&zero, 0, "Completed"), (&killed, 137, "Error"), (&greedy, 137, "OOMKilled")] {
        // The monitor may have had no time yet to look at the dead.
        let status = container.exited().await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0, "{status:?}");
    }
    assert_eq!(waiting.status().await.state(), ContainerState::ContainerRunning);
    assert_eq!(seven.lines("stdout"), ["leaving"]);
    node.finish().await;
}

#[tokio::test]
async fn the_first_lists_of_a_daemon_tell_no_state_that_has_passed() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let (lasting, fresh) = (node.pod("lasting").await, node.pod("fresh").await);
    let (orphan, still) = (node.pod("orphan").await, node.pod("still").await);
    let running = lasting.start(&ContainerSpec::new("running", &image)).await;
    let ended = lasting.start(&ContainerSpec::new("ended", &image)).await;
    let created = fresh.create(&ContainerSpec::new("created", &image)).await;
    let orphaned = orphan.start(&ContainerSpec::new("c", &image)).await;
    let unheard = still.start(&ContainerSpec::new("c", &image)).await;
    let signal = |name: &str, pid: i32| host::run("kill", &[name, &pid.to_string()]).expect("sending a signal");
    let monitor = |pod: &Pod| node.footprint.monitors(&pod.id)[0];
    let (dying, standing) = (monitor(&orphan), monitor(&still));

    node.kill_daemon();
    signal("-KILL", ended.host_pids()[0]);
    signal("-KILL", dying);
    // It can tell nothing, but of its pod nothing is to be told.
    signal("-STOP", standing);
    eventually("the container's end", || async { ended.host_pids().is_empty().then_some(()) }).await;
    node.launch_daemon();
    let containers = eventually("the first list of containers", || async { node.cri.containers(None).await.ok() }).await;
    let pods = node.pods().await;
    signal("-CONT", standing);

    let state = |id: &str| containers.iter().find(|container| container.id == id).map(|container| container.state());
    assert_eq!(state(&running.id), Some(ContainerState::ContainerRunning));
    assert_eq!(state(&ended.id), Some(ContainerState::ContainerExited));
    assert_eq!(state(&created.id), Some(ContainerState::ContainerCreated));
    assert_eq!(state(&orphaned.id), Some(ContainerState::ContainerExited));
    assert_eq!(state(&unheard.id), Some(ContainerState::ContainerRunning));
    let state = |pod: &Pod| pods.iter().find(|listed| listed.id == pod.id).map(|listed| listed.state());
    assert!([&lasting, &fresh].iter().all(|pod| state(pod) == Some(PodSandboxState::SandboxReady)));
    assert_eq!(state(&orphan), Some(PodSandboxState::SandboxNotready));
    assert_eq!(state(&still), Some(PodSandboxState::SandboxReady));
    node.finish().await;
}

#[tokio::test]
async fn logs_flow_while_the_daemon_is_dead() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("talkative").await;
    // More than any pipe holds, so that a writer without a reader would stand still.
    let script = "until [ -e /dev/shm/go ]; do sleep 0.05; done; i=0; while [ $i -lt 4000 ]; do echo line $i of a long tale that fills the pipe; i=$((i+1)); done; touch /dev/shm/told; sleep 100000";
    let container = pod.start(&ContainerSpec::new("c", &image).script(script)).await;
    let shm = node.footprint.state.join("pods").join(&pod.id).join("shm");
    node.kill_daemon();
    std::fs::write(shm.join("go"), "").expect("telling the container");
    eventually("the tale's end", || async { shm.join("told").exists().then_some(()) }).await;
    container.logged("line 3999").await;
    assert_eq!(container.lines("stdout").len(), 4000);
    node.start_daemon().await;
    let rotated = container.log.with_extension("old");
    std::fs::rename(&container.log, &rotated).expect("moving the log");
    let request = coracle_e2e::api::ReopenContainerLogRequest { container_id: container.id.clone() };
    node.cri.runtime().reopen_container_log(request).await.expect("ReopenContainerLog");
    assert!(container.log.exists(), "the new daemon can have the log opened anew");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_killed_while_it_creates_leaves_nothing() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let steady = node.pod("steady").await;
    let witness = steady.start(&ContainerSpec::new("witness", &image)).await;
    // Killed at many moments of many creates; what a call has answered for is kept, all else goes.
    for round in 0..8_u64 {
        let specs: Vec<PodSpec> = (0..4).map(|number| node.complete(&PodSpec::new(&format!("r{round}n{number}")))).collect();
        let calls: Vec<_> = specs
            .iter()
            .map(|spec| {
                let (cri, config, handler) = (node.cri.clone(), spec.config.clone(), node.target.handler.clone());
                tokio::spawn(async move { cri.run_pod(&config, &handler).await })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(round * 3)).await;
        node.kill_daemon();
        let mut answered = Vec::new();
        for call in calls {
            answered.extend(call.await.expect("the call itself does not panic"));
        }
        node.start_daemon().await;
        let listed: Vec<String> = node.pods().await.into_iter().map(|pod| pod.id).collect();
        for id in &answered {
            assert!(listed.contains(id), "round {round}: a pod that was answered for is gone");
        }
        for id in listed.iter().filter(|id| **id != steady.id) {
            assert_eq!(
                node.cri.pod_status(id).await.expect("PodSandboxStatus").status.map(|status| status.state()),
                Some(PodSandboxState::SandboxReady)
            );
            node.cri.stop_pod(id).await.expect("StopPodSandbox");
            node.cri.remove_pod(id).await.expect("RemovePodSandbox");
        }
        // The retry that a kubelet makes: the same request again.
        let again = node.run(&specs[0]).await;
        again.stop().await;
        again.remove().await;
    }
    assert_eq!(witness.exec(&["/bin/true"]).await.code, 0, "the bystander is not disturbed");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_killed_while_it_creates_containers_leaves_nothing() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("steady").await;
    for round in 0..6_u64 {
        let calls: Vec<_> = (0..3)
            .map(|number| {
                let (pod, spec) = (pod.clone(), ContainerSpec::new(&format!("r{round}n{number}"), &image));
                let cri = node.cri.clone();
                tokio::spawn(async move {
                    let container = pod.try_create(&spec).await?;
                    cri.start(&container.id).await.map(|()| container.id)
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(round * 4)).await;
        node.kill_daemon();
        for call in calls {
            let _ = call.await.expect("the call itself does not panic");
        }
        node.start_daemon().await;
        for container in node.cri.containers(None).await.expect("ListContainers") {
            let status = node.cri.status(&container.id).await.expect("ContainerStatus");
            assert_ne!(status.state(), ContainerState::ContainerUnknown, "{status:?}");
            node.cri.remove(&container.id).await.expect("RemoveContainer");
        }
        let left = node.footprint.processes();
        let strays: Vec<String> = left.iter().map(|&pid| host::command_line(pid)).filter(|line| line.contains("sleep")).collect();
        assert!(strays.is_empty(), "round {round}: {strays:?}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_stop_that_the_daemons_death_interrupts_can_be_asked_for_again() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("stopping").await;
    let container = pod.start(&ContainerSpec::new("c", &image).script("trap : TERM; echo ready; while :; do sleep 1; done")).await;
    container.logged("ready").await;
    let patient = node.cri.clone();
    let id = container.id.clone();
    let stop = tokio::spawn(async move { patient.stop(&id, 100).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    node.restart().await;
    assert!(stop.await.expect("the call itself does not panic").is_err(), "its daemon died");
    container.stop(0).await;
    let status = container.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    pod.stop().await;
    node.restart().await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready, "a stopped pod stays stopped");
    pod.remove().await;
    node.restart().await;
    assert_eq!(node.cri.pod_status(&pod.id).await.expect_err("a removed pod stays removed").code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test]
async fn ends_that_a_daemon_did_not_live_to_see_are_known_to_the_next() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let port = host::free_port(std::net::Ipv4Addr::LOCALHOST);
    let pod = node.run(&PodSpec::new("ending").host_port(Protocol::Tcp, "127.0.0.1", port, 80)).await;
    let containers = [pod.start(&ContainerSpec::new("one", &image)).await, pod.start(&ContainerSpec::new("two", &image)).await];
    node.kill_daemon();
    // What a daemon leaves that is killed after it put the pod's end on record and before it killed the first container.
    let path = node.footprint.state.join("pods").join(&pod.id).join("record.json");
    let record = std::fs::read_to_string(&path).expect("reading the record");
    let ending = record.replacen("\"phase\":\"Ready\"", "\"phase\":\"Stopped\"", 1);
    assert_ne!(ending, record, "the record names the phase");
    std::fs::write(&path, ending).expect("writing the record");
    node.start_daemon().await;
    eventually("the end of what was begun", || async { containers.iter().all(|c| c.host_pids().is_empty()).then_some(()) }).await;
    for container in &containers {
        let status = container.exited().await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
    }
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    eventually("its host port to lead nowhere", || async { node.footprint.host_ports().is_empty().then_some(()) }).await;
    node.finish().await;
}

#[tokio::test]
async fn what_an_ended_container_left_ends_though_its_daemon_did_not_live_to_kill_it() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
    let family = ContainerSpec::new("family", &image).pid_mode(NamespaceMode::Pod).script("sleep 100000 & echo ready; wait");
    let family = pod.start(&family).await;
    family.logged("ready").await;
    node.kill_daemon();
    host::kill(family.host_pids()[0]).await;
    assert_eq!(family.host_pids().len(), 1, "its child lives");
    // What a daemon leaves that is killed after it put the container's end on record and before it killed what was left.
    let path = node.footprint.state.join("pods").join(&pod.id).join("record.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).expect("reading the record")).expect("a record");
    let phase = &mut record["V1"]["containers"][0]["phase"];
    let at = phase["Running"]["started_at"].take();
    assert!(at.is_number(), "the record says since when it runs");
    let exit = json!({ "code": { "Known": 137 }, "at": at, "oom_killed": false });
    *phase = json!({ "Exited": { "started_at": at, "exit": exit, "message": "" } });
    std::fs::write(&path, record.to_string()).expect("writing the record");
    node.start_daemon().await;
    eventually("the end of what was left", || async { family.host_pids().is_empty().then_some(()) }).await;
    let status = family.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{status:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_half_made_container_of_a_dead_pod_leaves_no_cgroup_with_the_kubelet() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let parent = format!("/{}-kubelet/pod1", node.footprint.cgroup_root);
    let kubelets =
        |name: &str| host::cgroup_mounts().into_iter().map(|top| top.join(format!("{}{name}", &parent[1..]))).collect::<Vec<_>>();
    let pod = node.run(&PodSpec::new("kubelets").with(|config| config.linux.get_or_insert_default().cgroup_parent = parent.clone())).await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    // What a daemon leaves that is killed while it makes a second container: a directory and cgroups, and no record.
    let half_made = "0".repeat(container.id.len());
    node.kill_daemon();
    for pid in container.host_pids().into_iter().chain(node.footprint.monitors(&pod.id)) {
        host::kill(pid).await;
    }
    let directory = node.footprint.state.join("pods").join(&pod.id).join("containers").join(&half_made);
    std::fs::create_dir(&directory).expect("making the container's directory");
    let left: Vec<_> = kubelets(&format!("/{half_made}")).into_iter().filter(|path| path.with_file_name(&container.id).is_dir()).collect();
    assert!(!left.is_empty(), "the container's cgroup is under the kubelet's");
    for path in &left {
        std::fs::create_dir(path).expect("making the container's cgroup");
    }
    node.start_daemon().await;
    pod.remove().await;
    let still: Vec<_> = left.iter().filter(|path| path.exists()).collect();
    assert!(still.is_empty(), "{still:?}");
    for path in kubelets("").iter().flat_map(|path| [path.as_path(), path.parent().expect("a parent")]) {
        // The pod's cgroup is the kubelet's to remove: here, ours.
        let _ = std::fs::remove_dir(path);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let Some(node) = Node::own().await else { return };
    let pod = node.pod("first").await;
    let binary = node.scratch().join("bin/coracle");
    let config = node.scratch().join("config.toml");
    let second = host::run(&binary.to_string_lossy(), &["serve", "--config", &config.to_string_lossy()]);
    assert!(second.is_err(), "two daemons would share one state");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady, "and the first one is not harmed");
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_leaves_its_pods_running() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("upgraded").await.start(&ContainerSpec::new("c", &image)).await;
    let pids = container.host_pids();
    assert!(node.terminate_daemon().await.success());
    assert_eq!(container.host_pids(), pids);
    node.start_daemon().await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_takes_no_monitor_for_dead() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let mut containers = Vec::new();
    for number in 0..12 {
        containers.push(node.pod(&format!("stays{number}")).await.start(&ContainerSpec::new("c", &image)).await);
    }
    for _ in 0..8 {
        assert!(node.terminate_daemon().await.success());
        node.start_daemon().await;
        for container in &containers {
            let status = container.status().await;
            assert_eq!(status.state(), ContainerState::ContainerRunning, "{status:?}");
        }
    }
    assert!(!node.daemon_log().contains("monitor is gone"), "{}", node.daemon_log());
    node.finish().await;
}
