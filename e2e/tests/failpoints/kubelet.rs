//! What a kubelet does after a call that was not answered: it looks what is there, and makes the call again, or a pod
//! anew with the next attempt. And what must be true then.

use coracle_e2e::api::{ContainerState, ContainerStatus, PodSandboxState};
use coracle_e2e::{Code, Container, Pod, PodSpec, eventually};
use coracle_failpoint::Point;

use crate::call::{Answer, Call, Kind, NEW_LIMIT, Scene};
use crate::case::{Case, Victim};
use crate::stage::Stage;

/// Carries on after the call of `case`, which had answered or not. Leaves what [`Stage::clear`] removes.
pub(crate) async fn carry_on(stage: &mut Stage, case: Case, scene: &Scene, answer: Option<&Answer>) {
    let kept = answer.and_then(|answer| answer.as_ref().ok()).filter(|_| case.victim == Victim::Daemon);
    match case.call {
        Call::PullImage => stage.check_images_after_pull(kept.is_some()).await,
        Call::RemoveImage => stage.check_images_after_removal().await,
        Call::UpdateRuntimeConfig => set_subnet(stage, case, scene, kept.is_some()).await,
        Call::RunPodSandbox(kind) => run_pod(stage, &scene.spec, kind, kept).await,
        Call::StopPodSandbox(_) | Call::RemovePodSandbox(_) => end_pod(stage, case, scene).await,
        Call::Restart => {
            carry_on_in_container(stage, case, scene).await;
            stage.check_the_half_made_pod_is_gone().await;
        }
        _ if case.victim == Victim::Monitor => {
            eventually("the pod without a monitor to be known as such", || async { (!is_ready(scene).await).then_some(()) }).await;
            begin_anew(stage, case, scene).await;
        }
        _ if !is_ready(scene).await => panic!("a pod whose monitor was not killed is not ready"),
        Call::CreateContainer(_) => create(stage, case, scene, kept).await,
        Call::StopContainer(_) => stop(stage, case, scene).await,
        Call::RemoveContainer(_) => remove(stage, case, scene).await,
        _ => carry_on_in_container(stage, case, scene).await,
    }
}

fn container(scene: &Scene) -> &Container {
    scene.container.as_ref().expect("the scene has a container")
}

fn pod(scene: &Scene) -> &Pod {
    scene.pod.as_ref().expect("the scene has a pod")
}

async fn is_ready(scene: &Scene) -> bool {
    pod(scene).status().await.state() == PodSandboxState::SandboxReady
}

/// A subnet that was answered for holds without being given again.
async fn set_subnet(stage: &mut Stage, case: Case, scene: &Scene, kept: bool) {
    if !kept {
        case.call.make(stage, scene).await.unwrap_or_else(|status| panic!("{:?} again: {status}", case.call));
    }
    let made = stage.node.run(&scene.spec).await;
    assert_eq!(made.last_octet().await & 0b1100_0000, scene.subnet, "it is of another subnet");
}

/// RunPodSandbox again: of the pod that is there, or the next attempt where that is dead.
async fn run_pod(stage: &mut Stage, spec: &PodSpec, kind: Kind, kept: Option<&String>) {
    let listed = stage.case_pods().await;
    if let Some(id) = kept {
        assert!(listed.iter().any(|pod| pod.id == *id), "a pod that was answered for is gone");
    }
    assert!(listed.len() <= 1, "one request made several pods: {listed:?}");
    let ready = listed.iter().find(|pod| pod.state() == PodSandboxState::SandboxReady);
    let mut spec = spec.clone();
    if ready.is_none()
        && let Some(dead) = listed.first()
    {
        stage.node.cri.stop_pod(&dead.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status}"));
        spec = spec.with(|config| config.metadata.get_or_insert_default().attempt += 1);
    }
    let made = stage.node.run(&spec).await;
    if let Some(ready) = ready {
        assert_eq!(made.id, ready.id, "the same request again is answered with the pod that is there");
    }
    check_serves(stage, &made, kind).await;
}

/// A pod takes a container, which runs, and has what it asked for of the node.
async fn check_serves(stage: &mut Stage, pod: &Pod, kind: Kind) {
    let spec = coracle_e2e::ContainerSpec::new("proof", &stage.image);
    let container = pod.start(&spec).await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    if kind == Kind::Own {
        let (ports, address) = (stage.node.footprint.host_ports(), pod.address().await);
        assert!(ports.iter().filter(|port| port.contains(&address)).count() >= 2, "its host ports are closed: {ports:?}");
        let bridge = container.shell("cat /proc/net/route").await;
        assert!(bridge.contains("eth0"), "its network is not attached: {bridge}");
    }
    container.stop(0).await;
    assert_eq!(container.status().await.exit_code, 137);
}

/// Of a stopped pod that had lost its monitor: the cgroups are gone by now; the last who were in them may still be on their
/// way out of a pid namespace.
async fn no_processes(container: &Container) {
    eventually("a stopped pod to have no processes", || async { container.host_pids().is_empty().then_some(()) }).await;
}

/// A pod of the same name, after the dead one is out of the way.
async fn begin_anew(stage: &mut Stage, case: Case, scene: &Scene) {
    let dead = pod(scene);
    dead.stop().await;
    if let Some(container) = &scene.container {
        no_processes(container).await;
        match stage.node.cri.status(&container.id).await {
            Ok(ended) => check_end(case, &ended),
            Err(gone) => assert!(matches!(case.call, Call::RemoveContainer(_)) && gone.code() == Code::NotFound, "{gone}"),
        }
    }
    dead.remove().await;
    stage.node.run(&scene.spec).await;
}

/// Of the container that the call was about: it has ended as the call has containers end; or, if its monitor was killed before it
/// wrote that down, in a way that nobody knows.
fn check_end(case: Case, status: &ContainerStatus) {
    let code = match case.call {
        Call::StopContainer(_) => Some(3),
        Call::RemoveContainer(_) | Call::StopPodSandbox(_) | Call::RemovePodSandbox(_) => Some(137),
        _ => None,
    };
    let unknown: &[&str] = match case.call {
        _ if case.victim == Victim::Daemon || case.point == Point::ExitRename => &[],
        Call::StartContainer(_) => &["ContainerStatusUnknown", "StartError"],
        _ => &["ContainerStatusUnknown"],
    };
    let reason = status.reason.as_str();
    let is_true = if status.exit_code == -1 { unknown.contains(&reason) } else { Some(status.exit_code) == code && reason == "Error" };
    assert!(status.state() == ContainerState::ContainerExited && is_true, "{status:?}");
}

async fn end_pod(stage: &mut Stage, case: Case, scene: &Scene) {
    let (pod, container) = (pod(scene), container(scene));
    if stage.node.cri.pod_status(&pod.id).await.is_ok() {
        pod.stop().await;
        // Removal may have come as far as this, and no further.
        if let Ok(status) = stage.node.cri.pod_status(&pod.id).await {
            assert_eq!(status.status.expect("a status").state(), PodSandboxState::SandboxNotready);
            check_end(case, &container.status().await);
        }
    }
    if case.victim == Victim::Monitor {
        no_processes(container).await;
    }
    assert!(container.host_pids().is_empty(), "a stopped pod has no processes");
    pod.remove().await;
    assert_eq!(stage.node.cri.pod_status(&pod.id).await.expect_err("a removed pod is gone").code(), Code::NotFound);
    // No name stays reserved.
    stage.node.run(&scene.spec).await;
}

async fn create(stage: &mut Stage, case: Case, scene: &Scene, kept: Option<&String>) {
    let listed = containers_in(stage, pod(scene)).await;
    if let Some(id) = kept {
        assert_eq!(listed, std::slice::from_ref(id), "a container that was answered for is there");
    }
    assert!(listed.len() <= 1, "one request made several containers: {listed:?}");
    let made = pod(scene).create(&scene.to_be).await;
    if let Some(before) = listed.first() {
        assert_eq!(made.id, *before, "{case}: the same request again is answered with the container that is there");
    }
    made.start().await;
    made.logged("ready").await;
    assert_eq!(made.exec(&["/bin/true"]).await.code, 0);
}

async fn stop(stage: &mut Stage, case: Case, scene: &Scene) {
    case.call.make(stage, scene).await.unwrap_or_else(|status| panic!("{:?} again: {status}", case.call));
    let container = container(scene);
    check_end(case, &container.status().await);
    // Where process ids are shared they do not end with its first process.
    eventually("the rest of its processes to end", || async { container.host_pids().is_empty().then_some(()) }).await;
}

async fn remove(stage: &mut Stage, case: Case, scene: &Scene) {
    let container = container(scene);
    if let Ok(status) = stage.node.cri.status(&container.id).await
        && status.state() == ContainerState::ContainerExited
    {
        check_end(case, &status);
    }
    container.remove().await;
    assert_eq!(stage.node.cri.status(&container.id).await.expect_err("a removed container is gone").code(), Code::NotFound);
    assert!(container.host_pids().is_empty(), "a removed container has no processes");
    let again = pod(scene).start(&scene.to_be).await;
    assert_ne!(again.id, container.id, "no name stays reserved");
}

async fn containers_in(stage: &Stage, pod: &Pod) -> Vec<String> {
    let all = stage.node.cri.containers(None).await.unwrap_or_else(|status| panic!("ListContainers: {status}"));
    all.into_iter().filter(|container| container.pod_sandbox_id == pod.id).map(|container| container.id).collect()
}

/// The calls that leave the container there.
async fn carry_on_in_container(stage: &mut Stage, case: Case, scene: &Scene) {
    let container = container(scene);
    let cri = stage.node.cri.clone();
    let again = || async { case.call.make(stage, scene).await.unwrap_or_else(|status| panic!("{:?} again: {status}", case.call)) };
    let status = container.status().await;
    match case.call {
        Call::StartContainer(_) => match status.state() {
            ContainerState::ContainerRunning => {}
            ContainerState::ContainerCreated => match case.call.make(stage, scene).await {
                Ok(_) => {}
                // The monitor came to the end of the first call's start in between.
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{:?} again: {status}", case.call),
            },
            _ => panic!("a container died: {status:?}"),
        },
        Call::Restart => {}
        _ => drop(again().await),
    }
    if case.call == Call::UpdateContainerResources {
        let limit = container.cgroup_number(&[("memory.max", ""), ("memory.limit_in_bytes", "")]);
        assert_eq!(limit, NEW_LIMIT.try_into().ok());
    }
    if case.call == Call::ReopenContainerLog {
        container.shell("echo anew >/proc/1/fd/1").await;
        container.logged("anew").await;
    } else {
        container.logged("ready").await;
        assert_eq!(container.lines("stdout").iter().filter(|line| *line == "ready").count(), 1, "it was started once");
    }
    let status = cri.status(&container.id).await.expect("ContainerStatus");
    assert_eq!(status.state(), ContainerState::ContainerRunning, "a container died: {status:?}");
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    if !scene.processes.is_empty() {
        eventually("only the container's own processes to be left", || async { (container.host_pids() == scene.processes).then_some(()) })
            .await;
    }
}
