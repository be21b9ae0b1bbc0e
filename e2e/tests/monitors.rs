//! A pod's monitor dies, and what becomes of the pod.

use std::fs;

use coracle_e2e::api::{ContainerMetadata, ContainerState, NamespaceMode, PodSandboxMetadata, PodSandboxState};
use coracle_e2e::{Code, ContainerSpec, Node, PodSpec, eventually, host};

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
    let mut shared = PodSpec::new("shared");
    shared.namespaces().pid = NamespaceMode::Pod.into();
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
