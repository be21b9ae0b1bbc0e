//! A pod's monitor dies, and what becomes of the pod; or only the daemon's connection to it does, and nothing becomes of it.

use std::fs;

use coracle_e2e::api::{ContainerMetadata, ContainerState, NamespaceMode, PodSandboxMetadata, PodSandboxState};
use coracle_e2e::volume::Volume;
use coracle_e2e::{Code, Container, ContainerSpec, Node, PodSpec, eventually, host};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn a_pod_whose_monitor_died_is_told_honestly_and_can_be_removed() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("orphan").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let neighbour = node.pod("neighbour").await.start(&ContainerSpec::new("c", &image)).await;
    host::kill(node.footprint.monitor(&pod.id)).await;
    let status = eventually("the container to be said to have ended", || async {
        let status = container.status().await;
        (status.state() != ContainerState::ContainerRunning).then_some(status)
    })
    .await;
    assert_ne!((status.exit_code, status.reason.as_str()), (0, "Completed"), "nobody saw it end well: {status:?}");
    assert_eq!(neighbour.exec(&["/bin/true"]).await.code, 0, "other pods are not concerned");
    pod.stop().await;
    // Without a monitor nobody waits for the last who are on their way out of a pid namespace.
    eventually("a stopped pod to have no processes", || async { container.host_pids().is_empty().then_some(()) }).await;
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn the_init_process_of_shared_process_ids_ends_with_its_monitor() {
    let Some(node) = Node::own().await else { return };
    let shared = PodSpec::new("shared").pid_mode(NamespaceMode::Pod);
    let pod = node.run(&shared).await;
    host::kill(node.footprint.monitor(&pod.id)).await;
    pod.stop().await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_whose_monitor_was_killed_ends_and_says_only_what_is_known() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("orphan").await;
    let ended = pod.start(&ContainerSpec::new("ended", &image).script("exit 3")).await;
    let before = ended.exited().await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let family = pod.start(&ContainerSpec::new("family", &image).script("sleep 100000 & sleep 100000 & wait")).await;
    let (cri, id) = (node.cri.clone(), family.id.clone());
    let exec = tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", "echo >/begun; sleep 100000"], 0).await });
    eventually("the exec", || async { (family.exec(&["/bin/ls", "/begun"]).await.code == 0).then_some(()) }).await;
    host::kill(node.footprint.monitor(&pod.id)).await;

    let error = exec.await.expect("the call itself does not panic").expect_err("nobody saw how it ended");
    assert!(error.message().contains("monitor"), "{error}");
    let status = family.exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (-1, "ContainerStatusUnknown"), "{status:?}");
    assert!(status.finished_at >= status.started_at && status.started_at > 0, "{status:?}");
    assert_eq!(ended.status().await, before, "what was known stays known");
    eventually("the pod's end", || async { (pod.status().await.state() == PodSandboxState::SandboxNotready).then_some(()) }).await;
    // The first process of a pid namespace is gone when all in it are reaped, by the node's init now.
    eventually("the end of all its processes", || async { family.host_pids().is_empty().then_some(()) }).await;
    assert_eq!(node.cri.start(&created.id).await.expect_err("its pod has ended").code(), Code::FailedPrecondition);
    // What a kubelet does next: another attempt at the same pod, then it clears the first away.
    let again = PodSpec::new("orphan").with(|config| {
        config.metadata = Some(PodSandboxMetadata { name: "orphan".to_owned(), attempt: 1, ..Default::default() });
    });
    let again = node.run(&again).await;
    let second = ContainerSpec::new("family", &image).with(|config| {
        config.metadata = Some(ContainerMetadata { name: "family".to_owned(), attempt: 1 });
    });
    assert_eq!(again.start(&second).await.exec(&["/bin/true"]).await.code, 0);
    pod.stop().await;
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn what_a_monitor_wrote_before_it_died_is_believed_by_the_next_daemon() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("orphan").await;
    let leaving = "until [ -e /dev/shm/go ]; do sleep 0.05; done; exit 5";
    let told = pod.start(&ContainerSpec::new("told", &image).script(leaving)).await;
    let untold = pod.start(&ContainerSpec::new("untold", &image)).await;
    let monitor = node.footprint.monitor(&pod.id);
    node.kill_daemon();
    let directory = node.footprint.state.join("pods").join(&pod.id);
    fs::write(directory.join("shm/go"), "").expect("telling the container through its shared memory");
    eventually("the container's end", || async { told.host_pids().is_empty().then_some(()) }).await;
    let exit = directory.join("containers").join(&told.id).join("exit.json");
    eventually("the monitor's word", || async { exit.exists().then_some(()) }).await;
    host::kill(monitor).await;
    node.start_daemon().await;
    let status = told.exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"), "{status:?}");
    let status = untold.exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (-1, "ContainerStatusUnknown"), "{status:?}");
    eventually("the end of all its processes", || async { untold.host_pids().is_empty().then_some(()) }).await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxNotready);
    node.finish().await;
}

#[tokio::test]
async fn a_start_that_no_daemon_wrote_down_is_told_with_its_exit() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("orphan").await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let container = pod.create(&ContainerSpec::new("c", &image).script("exit 5")).await;
    let directory = node.footprint.state.join("pods").join(&pod.id);
    let before = fs::read(directory.join("record.json")).expect("reading the record");
    container.start().await;
    let status = container.exited().await;
    let monitor = node.footprint.monitor(&pod.id);
    // What a daemon leaves that is killed before it wrote down that the program was executed.
    node.kill_daemon();
    fs::write(directory.join("record.json"), before).expect("writing the record");
    host::kill(monitor).await;
    node.start_daemon().await;
    assert_eq!(container.status().await, status);
    assert_eq!(created.status().await.state(), ContainerState::ContainerCreated);
    node.finish().await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_no_monitors_death() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("connected").await;
    let container = pod.start(&ContainerSpec::new("c", &image).script("until [ -e /go ]; do sleep 0.05; done; echo going; exit 7")).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let (monitor, first) = (node.footprint.monitor(&pod.id), container.host_pids()[0]);
    for times in 1..=3 {
        let (cri, id) = (node.cri.clone(), container.id.clone());
        let waits = "touch /begun; until [ -e /ends ]; do sleep 0.05; done; rm /begun /ends";
        let exec = tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", waits], 0).await });
        eventually("the exec", || async { (container.exec(&["/bin/ls", "/begun"]).await.code == 0).then_some(()) }).await;
        assert!(node.break_links() > 0, "there is no connection to break");
        let connected = || async { (node.daemon_log().matches("connected to the pod's monitor again").count() == times).then_some(()) };
        eventually("another connection", connected).await;
        container.shell("touch /ends").await;
        // Of a program that somebody else than the monitor started, the end is heard of all the same.
        match exec.await.expect("the call itself does not panic") {
            Ok(output) => assert_eq!(output.exit_code, 0),
            Err(error) => assert!(error.message().contains("monitor"), "{error}"),
        }
        container.shell("rm -f /begun /ends").await;
    }
    assert_eq!(container.host_pids()[0], first);
    assert_eq!(node.footprint.monitor(&pod.id), monitor);
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    created.start().await;
    container.shell("touch /go").await;
    assert_eq!(container.exited().await.exit_code, 7, "its end is heard of");
    assert_eq!(container.lines("stdout"), ["going"]);
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_cannot_be_connected_to_for_want_of_descriptors_is_not_dead() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("connected").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let daemon = node.daemon_pid();
    let limit = |soft: &str| host::run("prlimit", &[&format!("--pid={daemon}"), &format!("--nofile={soft}:")]).expect("prlimit");
    let before = host::run("prlimit", &[&format!("--pid={daemon}"), "--nofile", "--noheadings", "--output=SOFT"]).expect("prlimit");
    limit("3");
    assert!(node.break_links() > 0, "there is no connection to break");
    eventually("the want of descriptors", || async { node.daemon_log().contains("cannot be talked to now").then_some(()) }).await;
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(container.status().await.state(), ContainerState::ContainerRunning);
    node.refused(node.cri.start(&created.id).await, Code::DeadlineExceeded, "does not answer");
    limit(before.trim());
    eventually("another connection", || async { node.daemon_log().contains("connected to the pod's monitor again").then_some(()) }).await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    created.start().await;
    assert_eq!(node.daemon_log().matches("cannot be talked to now").count(), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_start_outlives_the_connection_that_it_was_asked_for_over() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("starting").await;
    let neighbour = pod.start(&ContainerSpec::new("neighbour", &image)).await;
    let below = format!("{}/below", volume.path());
    let container = pod.create(&ContainerSpec::new("c", &image).mount(&below, "/volume", false)).await;
    volume.turn_deaf();
    let start = || {
        let (cri, id) = (node.cri.clone(), container.id.clone());
        tokio::spawn(async move { cri.start(&id).await })
    };
    let starting = start();
    eventually("the container's process", || async { (!container.host_pids().is_empty()).then_some(()) }).await;
    assert!(node.break_links() > 0, "there is no connection to break");
    let error = starting.await.expect("the call itself does not panic").expect_err("nobody knows how it ends");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(container.status().await.state(), ContainerState::ContainerCreated, "nobody knows yet how it ends");
    assert_eq!(neighbour.exec(&["/bin/true"]).await.code, 0, "the pod is served");
    let joined = start();
    drop(volume);
    joined.await.expect("the call itself does not panic").expect_err("its volume has failed");
    let status = container.exited().await;
    assert_eq!(status.reason, "StartError", "{status:?}");
    assert!(status.message.contains(&below), "stage and object are named: {status:?}");
    node.finish().await;
}

/// Has a start that hangs begun by a daemon that is killed then; the next one serves.
async fn leave_starting(node: &mut Node, container: &Container) {
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let starting = tokio::spawn(async move { cri.start(&id).await });
    eventually("the container's process", || async { (!container.host_pids().is_empty()).then_some(()) }).await;
    node.restart().await;
    starting.await.expect("the call itself does not panic").expect_err("its daemon was killed");
}

#[tokio::test]
async fn a_stop_ends_a_start_that_was_asked_for_over_another_connection() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("starting").await;
    let below = format!("{}/below", volume.path());
    let container = pod.create(&ContainerSpec::new("c", &image).mount(&below, "/volume", false)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    volume.turn_deaf();
    leave_starting(&mut node, &container).await;
    assert_eq!(container.status().await.state(), ContainerState::ContainerCreated, "nobody knows yet how it ends");
    container.stop(30).await;
    let status = container.status().await;
    assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"), "{status:?}");
    assert!(container.host_pids().is_empty());
    created.stop(30).await;
    assert_eq!(created.status().await.state(), ContainerState::ContainerCreated);

    // Only the monitor knows whether it was started.
    let monitor = Pid::from_raw(node.footprint.monitor(&pod.id)).expect("a process id");
    kill_process(monitor, Signal::STOP).expect("stopping the monitor");
    node.restart().await;
    for grace in [0, 30] {
        node.refused(node.cri.stop(&created.id, grace).await, Code::DeadlineExceeded, "does not answer");
    }
    kill_process(monitor, Signal::CONT).expect("waking the monitor");
    eventually("the monitor to be heard", || async { node.cri.stop(&created.id, 0).await.ok() }).await;
    kill_process(monitor, Signal::STOP).expect("stopping the monitor");
    node.restart().await;
    pod.stop().await;
    created.stop(30).await;
    created.remove().await;
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn a_container_whose_start_ended_while_a_connection_was_broken_hears_its_stop_signal() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("starting").await;
    let below = format!("{}/below", volume.path());
    let heeding = ContainerSpec::new("c", &image).script("trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done");
    let container = pod.create(&heeding.mount(&below, "/volume", false)).await;
    volume.turn_deaf();
    leave_starting(&mut node, &container).await;
    let daemon = Pid::from_raw(node.daemon_pid()).expect("a process id");
    kill_process(daemon, Signal::STOP).expect("stopping the daemon");
    assert!(node.break_links() > 0, "there is no connection to break");
    volume.recover();
    container.logged("ready").await;
    kill_process(daemon, Signal::CONT).expect("waking the daemon");
    let running = || async { (container.status().await.state() == ContainerState::ContainerRunning).then_some(()) };
    eventually("the daemon to hear of the start", running).await;
    container.stop(30).await;
    assert_eq!(container.status().await.exit_code, 5, "it ended by itself");
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_stands_still_when_a_daemon_starts_costs_no_container() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("still").await;
    let leaving = "echo here; until [ -e /dev/shm/go ]; do sleep 0.05; done; exit 7";
    let leaving = pod.start(&ContainerSpec::new("leaving", &image).script(leaving)).await;
    let staying = pod.start(&ContainerSpec::new("staying", &image)).await;
    let created = pod.create(&ContainerSpec::new("created", &image)).await;
    let neighbour = node.pod("neighbour").await.start(&ContainerSpec::new("c", &image)).await;
    let monitor = Pid::from_raw(node.footprint.monitor(&pod.id)).expect("a process id");
    let pids = staying.host_pids();
    kill_process(monitor, Signal::STOP).expect("stopping the monitor");
    node.restart().await;

    assert_eq!(neighbour.exec(&["/bin/true"]).await.code, 0, "others are taken over");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    assert_eq!(staying.status().await.state(), ContainerState::ContainerRunning);
    let refused = node.cri.exec(&staying.id, &["/bin/true"], 1).await;
    node.refused(refused, Code::DeadlineExceeded, &staying.id);
    node.refused(node.cri.start(&created.id).await, Code::DeadlineExceeded, "does not answer");
    fs::write(node.footprint.state.join("pods").join(&pod.id).join("shm/go"), "").expect("telling the container");
    eventually("its end", || async { leaving.host_pids().is_empty().then_some(()) }).await;
    kill_process(monitor, Signal::CONT).expect("waking the monitor");
    assert_eq!(leaving.exited().await.exit_code, 7);
    assert_eq!(leaving.lines("stdout"), ["here"]);
    assert_eq!(staying.exec(&["/bin/true"]).await.code, 0);
    assert_eq!(staying.host_pids()[..1], pids);
    created.start().await;

    // And if it never wakes, the pod can be stopped all the same.
    kill_process(monitor, Signal::STOP).expect("stopping the monitor");
    node.restart().await;
    pod.stop().await;
    assert!(!host::is_alive(monitor.as_raw_pid()), "the monitor was ended");
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_never_answers_is_gone_with_its_pod() {
    let Some(mut node) = Node::own().await else { return };
    let mute = fs::read("/usr/bin/yes").expect("a program that does something else");
    node.install_other("mute", Some(&mute));
    node.restart().await;
    let refused = node.try_run(&PodSpec::new("unanswered")).await;
    node.refused(refused, Code::DeadlineExceeded, "greeting the monitor of pod");
    assert_eq!(node.footprint.all_monitors(), [0; 0], "nobody would end it any more");
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_never_answered_a_daemon_that_was_killed_is_gone_with_its_pod() {
    let Some(mut node) = Node::own().await else { return };
    let mute = fs::read("/usr/bin/yes").expect("a program that does something else");
    node.install_other("mute", Some(&mute));
    node.restart().await;
    let (cri, spec, handler) = (node.cri.clone(), node.complete(&PodSpec::new("unanswered")), node.target.handler.clone());
    let asked = tokio::spawn(async move { cri.run_pod(&spec.config, &handler).await });
    eventually("the monitor", || async { (!node.footprint.all_monitors().is_empty()).then_some(()) }).await;
    node.kill_daemon();
    asked.await.expect("the call itself does not panic").expect_err("its daemon was killed");
    node.start_daemon().await;
    eventually("the monitor's end", || async { node.footprint.all_monitors().is_empty().then_some(()) }).await;
    node.finish().await;
}
