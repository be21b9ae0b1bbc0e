//! What hangs costs its own pod only: a dead file server, a silent registry, frozen processes, a stopped or killed monitor.
//! That pod's calls end in errors that name stage and object; the other pods' calls and all lists go on meanwhile.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use coracle_e2e::api::security_profile::ProfileType;
use coracle_e2e::api::{ContainerState, Device, ExecRequest, ExecSyncResponse, ImageFsInfoRequest, ReopenContainerLogRequest};
use coracle_e2e::image::Image;
use coracle_e2e::session::{STDERR, STDIN, STDOUT, Session, exit_code, script};
use coracle_e2e::volume::{ABSENT, STUCK, Volume};
use coracle_e2e::{Code, Container, ContainerSpec, Cri, Node, PodSpec, Status, eventually, host, profile};

/// A pod's whole life, and all lists and stats, while something else hangs.
async fn all_goes_on(node: &Node, image: &str, name: &str) {
    let pod = node.pod(name).await;
    let container = pod.start(&ContainerSpec::new("c", image)).await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    lists_go_on(node).await;
    container.stop(0).await;
    container.remove().await;
    pod.stop().await;
    pod.remove().await;
}

async fn lists_go_on(node: &Node) {
    let cri = &node.cri;
    cri.pods(None).await.expect("ListPodSandbox");
    for container in cri.containers(None).await.expect("ListContainers") {
        cri.status(&container.id).await.expect("ContainerStatus");
    }
    cri.all_container_stats(None).await.expect("ListContainerStats");
    cri.all_pod_stats(None).await.expect("ListPodSandboxStats");
    cri.pod_metrics().await.expect("ListPodSandboxMetrics");
    cri.all_images(None).await.expect("ListImages");
    cri.images().image_fs_info(ImageFsInfoRequest {}).await.expect("ImageFsInfo");
    cri.version().await.expect("Version");
}

/// That the call ended at its deadline with words that name stage and object.
fn ended_at_its_deadline<T: std::fmt::Debug>(result: Result<T, Status>, words: &[&str]) {
    let status = result.expect_err("what hangs cannot be done");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "the message does not name {word:?}: {}", status.message());
    }
}

fn signal(name: &str, pid: i32) {
    host::run("kill", &[&format!("-{name}"), &pid.to_string()]).expect("sending a signal");
}

/// A container that asks its volume for something, again and again.
fn asking(image: &str, volume: &Volume) -> ContainerSpec {
    let script = format!("echo ready; while [ ! -e /volume/{ABSENT} ]; do sleep 0.1; done");
    ContainerSpec::new("asking", image).mount(volume.path(), "/volume", false).script(&script)
}

#[tokio::test]
async fn a_volume_that_stops_answering_costs_only_its_own_pods() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let user = node.pod("user").await;
    let asking = user.start(&asking(&image, &volume)).await;
    asking.logged("ready").await;
    let starter = node.pod("starter").await;
    let below = format!("{}/below", volume.path());
    let created = starter.create(&ContainerSpec::new("c", &image).mount(&below, "/volume", false)).await;
    let maker = node.pod("maker").await;
    let device_maker = node.pod("device-maker").await;
    volume.fall_silent();
    eventually("a process to wait for the volume", || async { (volume.swallowed() > 0).then_some(()) }).await;

    let (cri, id) = (node.cri.clone(), created.id.clone());
    let start = tokio::spawn(async move { cri.start(&id).await });
    let (pod, late) = (maker.clone(), ContainerSpec::new("late", &image).mount(volume.path(), "/volume", false));
    let create = tokio::spawn(async move { pod.try_create(&late).await });
    let device = Device { host_path: below.clone(), container_path: "/dev/x".to_owned(), permissions: "r".to_owned() };
    let with_device = ContainerSpec::new("late", &image).with(|config| config.devices.push(device));
    let create_device = tokio::spawn(async move { device_maker.try_create(&with_device).await });
    let (cri, id) = (node.cri.clone(), asking.id.clone());
    let stop = tokio::spawn(async move { cri.stop(&id, 0).await });
    all_goes_on(&node, &image, "neighbour").await;
    let waiting = [start.is_finished(), create.is_finished(), create_device.is_finished()];
    assert_eq!(waiting, [false; 3], "they wait for the volume meanwhile");
    ended_at_its_deadline(stop.await.expect("the call itself does not panic"), &["container", &asking.id, "SIGKILL", "state D"]);
    ended_at_its_deadline(create.await.expect("the call itself does not panic"), &["looking at the host path", volume.path()]);
    ended_at_its_deadline(create_device.await.expect("the call itself does not panic"), &["looking at the device", &below]);
    ended_at_its_deadline(start.await.expect("the call itself does not panic"), &["starting container", &created.id]);
    let stop = node.cri.stop_pod(&user.id).await;
    ended_at_its_deadline(stop, &["pod", &user.id, "SIGKILL", "state D"]);
    assert_eq!(asking.status().await.state(), ContainerState::ContainerRunning, "what does not die is not said to be dead");
    let failed = created.status().await;
    assert_eq!((failed.state(), failed.reason.as_str()), (ContainerState::ContainerExited, "StartError"), "{failed:?}");
    all_goes_on(&node, &image, "neighbour").await;

    drop(volume);
    asking.stop(0).await;
    assert_eq!(asking.status().await.exit_code, 137);
    user.stop().await;
    maker.start(&ContainerSpec::new("c", &image)).await;
    node.finish().await;
}

#[tokio::test]
async fn an_address_is_nobody_elses_while_anything_of_its_pod_is_left() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    // It has one address for pods.
    node.cri.set_pod_cidr(&node.part_of_subnet(252, 30)).await.expect("UpdateRuntimeConfig");
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("starter").await;
    let below = format!("{}/below", volume.path());
    let container = pod.create(&ContainerSpec::new("c", &image).mount(&below, "/volume", false)).await;
    let monitor = node.footprint.monitor(&pod.id);
    volume.fall_silent();
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let start = tokio::spawn(async move { cri.start(&id).await });
    eventually("a process to wait for the volume", || async { (volume.swallowed() > 0).then_some(()) }).await;
    signal("KILL", monitor);
    start.await.expect("the call itself does not panic").expect_err("nobody is there to start it");
    for _ in 0..2 {
        node.cri.stop_pod(&pod.id).await.expect_err("its container's process cannot be killed");
        let refused = node.try_run(&PodSpec::new("next")).await.expect_err("there is no other address");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
    drop(volume);
    pod.stop().await;
    assert_eq!(node.pod("next").await.last_octet().await, 254);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_with_a_dead_volume_can_be_stopped_and_removed() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("user").await;
    let asking = pod.start(&asking(&image, &volume)).await;
    asking.logged("ready").await;
    volume.turn_deaf();
    // The file server is dead, but the kernel has not sent the request yet: whoever waits can be killed.
    asking.stop(1).await;
    assert_eq!(asking.status().await.exit_code, 137);
    pod.stop().await;
    pod.remove().await;
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_is_replaced_while_a_volume_hangs() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("maker").await;
    volume.turn_deaf();
    let (maker, spec) = (pod.clone(), ContainerSpec::new("c", &image).mount(volume.path(), "/volume", false));
    let create = tokio::spawn(async move { maker.try_create(&spec).await });
    all_goes_on(&node, &image, "neighbour").await;
    assert!(!create.is_finished(), "it waits for the volume");
    assert!(node.terminate_daemon().await.success(), "what hangs keeps no daemon from ending");
    create.await.expect("the call itself does not panic").expect_err("its daemon has ended");
    node.start_daemon().await;
    pod.start(&ContainerSpec::new("c", &image)).await;
    drop(volume);
    node.finish().await;
}

/// The path of the node at which the making of a container hangs.
#[derive(Debug, Clone, Copy)]
enum Hangs {
    Source,
    Log,
    Profile,
}

impl Hangs {
    fn pod(self, volume: &Volume) -> PodSpec {
        match self {
            Self::Log => PodSpec::new("maker").with(|config| config.log_directory = format!("{}/logs", volume.path())),
            Self::Source | Self::Profile => PodSpec::new("maker"),
        }
    }

    fn container(self, image: &str, volume: &Volume) -> ContainerSpec {
        let spec = ContainerSpec::new("c", image);
        match self {
            Self::Source => spec.mount(volume.path(), "/volume", false),
            Self::Log => spec,
            Self::Profile => {
                let file = format!("{}/profile.json", volume.path());
                spec.security(|security| security.seccomp = profile(ProfileType::Localhost, &file))
            }
        }
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_even_be_killed_is_replaced() {
    for hangs in [Hangs::Source, Hangs::Log, Hangs::Profile] {
        let Some(mut node) = Node::own().await else { return };
        let image = node.busybox().await;
        let volume = Volume::mount(&node.scratch().join("volume"));
        let pod = node.run(&hangs.pod(&volume)).await;
        volume.fall_silent();
        let (maker, spec) = (pod.clone(), hangs.container(&image, &volume));
        let create = tokio::spawn(async move { maker.try_create(&spec).await });
        eventually("the daemon to wait for the volume", || async { (volume.swallowed() > 0).then_some(()) }).await;
        let dying = node.daemon_pid();
        let threads = || std::fs::read_dir(format!("/proc/{dying}/task")).expect("it is there still").count();
        signal("KILL", dying);
        eventually("the end of its other threads", || async { (!host::is_alive(dying) && threads() == 2).then_some(()) }).await;
        node.start_daemon().await;
        all_goes_on(&node, &image, "neighbour").await;
        assert_eq!(threads(), 2, "{hangs:?}: one waits on, beside the first, which is kept for its sake");
        create.await.expect("the call itself does not panic").expect_err("its daemon has ended");
        drop(volume);
        pod.start(&ContainerSpec::new("c", &image)).await;
        node.finish().await;
    }
}

#[tokio::test]
async fn what_waits_for_a_dead_volume_with_a_pipe_in_its_hand_costs_only_its_own_calls() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("reader").await;
    let container = pod.start(&ContainerSpec::new("c", &image).mount(volume.path(), "/volume", false)).await;
    // Who hands a file on to a pipe has the pipe locked while the file is waited for.
    let file = format!("/volume/{STUCK}");
    let reading = {
        let (cri, id, file) = (node.cri.clone(), container.id.clone(), file.clone());
        tokio::spawn(async move { cri.exec(&id, &["/bin/cat", &file], 8).await })
    };
    let leaving: Vec<_> = (0..6)
        .map(|_| {
            let (cri, id, script) = (node.cri.clone(), container.id.clone(), format!("cat {file} & sleep 1; echo said >&2"));
            tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", &script], 0).await })
        })
        .collect();
    for leaving in leaving {
        let output = leaving.await.expect("the call itself does not panic").expect("what is left behind is not waited for");
        assert_eq!((output.exit_code, output.stderr.as_slice()), (0, &b"said\n"[..]));
    }
    let mut session = Session::exec(&node, script(&container, &format!("cat {file} & sleep 1; echo said >&2"))).await;
    assert_eq!(exit_code(&session.end().await), 0);
    assert_eq!(session.text(STDERR), "said\n");
    all_goes_on(&node, &image, "other").await;
    ended_at_its_deadline(reading.await.expect("the call itself does not panic"), &["running a command"]);
    pod.stop().await;
    drop(volume);
    node.finish().await;
}

/// The threads of a process that wait where no signal reaches them.
fn beyond_signals(pid: i32) -> BTreeSet<PathBuf> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|thread| thread.path());
    threads.filter(|thread| std::fs::read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") D "))).collect()
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_an_exec_has_its_pipe_locked_is_replaced() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("reader").await;
    let container = pod.start(&ContainerSpec::new("c", &image).mount(volume.path(), "/volume", false)).await;
    let reading = format!("echo ready; until [ -e /go ]; do sleep 0.1; done; echo said; cat /volume/{STUCK}");
    let mut session = Session::exec(&node, script(&container, &reading)).await;
    session.until(STDOUT, "ready").await;
    let dying = node.daemon_pid();
    // It finds the pipe locked when it wants to read what was said.
    signal("STOP", dying);
    std::fs::write(format!("/proc/{}/root/go", container.host_pids()[0]), "").expect("writing a file in the container");
    eventually("the exec to wait for the volume", || async { (volume.swallowed() > 0).then_some(()) }).await;
    signal("CONT", dying);
    let stuck = async || {
        let before = beyond_signals(dying);
        tokio::time::sleep(Duration::from_millis(200)).await;
        (!before.is_disjoint(&beyond_signals(dying))).then_some(())
    };
    eventually("the daemon to wait for the pipe", stuck).await;
    signal("KILL", dying);
    eventually("the end of its first thread", || async { (!host::is_alive(dying)).then_some(()) }).await;
    // The exec can be killed, but only a daemon does that.
    node.start_daemon().await;
    all_goes_on(&node, &image, "neighbour").await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    drop(session);
    drop(volume);
    pod.stop().await;
    node.finish().await;
}

#[tokio::test]
async fn a_second_daemon_disturbs_no_exec_of_the_first() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let container = node.pod("p").await.start(&ContainerSpec::new("c", &image)).await;
    let mut session = Session::exec(&node, ExecRequest { stdin: true, ..script(&container, "echo ready; exec cat") }).await;
    session.until(STDOUT, "ready").await;
    let mut second = tokio::process::Command::new(&node.target.binary);
    let second = second.args(["serve", "--config"]).arg(node.scratch().join("config.toml")).output().await.expect("running coracle");
    let said = String::from_utf8_lossy(&second.stderr).into_owned() + &String::from_utf8_lossy(&second.stdout);
    assert!(!second.status.success() && said.contains("another daemon serves"), "{said}");
    session.send(STDIN, b"still here\n").await;
    session.until(STDOUT, "still here").await;
    drop(session);
    node.finish().await;
}

/// As many as a container may have.
const MOST_EXECS: usize = 128;

/// An exec that has its standard output locked, and of which the daemon may be reading then.
async fn lock_output(cri: Cri, container: String) -> Result<ExecSyncResponse, Status> {
    cri.exec(&container, &["/bin/sh", "-c", &format!("cat /bin/busybox - </volume/{STUCK}")], 0).await
}

#[tokio::test]
async fn execs_of_a_container_are_bounded_and_whatever_they_lock_costs_nobody_else() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("reader").await;
    let container = pod.start(&ContainerSpec::new("c", &image).mount(volume.path(), "/volume", false)).await;
    let reading: Vec<_> = (0..=MOST_EXECS).map(|_| tokio::spawn(lock_output(node.cri.clone(), container.id.clone()))).collect();
    let one_too_many = async || reading.iter().any(tokio::task::JoinHandle::is_finished).then_some(());
    eventually("an exec to be refused, because there are enough", one_too_many).await;
    let refused = node.cri.exec(&container.id, &["/bin/true"], 5).await.expect_err("there are enough");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains(&container.id) && refused.message().contains("execs"), "{refused}");
    all_goes_on(&node, &image, "other").await;
    for reading in reading {
        reading.abort();
    }
    eventually("execs again", || async { node.cri.exec(&container.id, &["/bin/true"], 5).await.ok() }).await;
    pod.stop().await;
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn execs_that_cannot_be_killed_cost_only_their_own_calls_and_are_few() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("reader").await;
    let container = pod.start(&ContainerSpec::new("c", &image).mount(volume.path(), "/volume", false)).await;
    let session = Session::exec(&node, script(&container, &format!("cat /volume/{STUCK}"))).await;
    let most = 4;
    let reading: Vec<_> = (1..most)
        .map(|digit| {
            let (cri, id, file) = (node.cri.clone(), container.id.clone(), format!("/volume/{STUCK}{digit}"));
            tokio::spawn(async move { cri.exec(&id, &["/bin/cat", &file], 10).await })
        })
        .collect();
    eventually("all to wait for the volume", || async { (volume.swallowed() >= most).then_some(()) }).await;
    volume.fall_silent();
    for reading in reading {
        ended_at_its_deadline(reading.await.expect("the call itself does not panic"), &["running a command"]);
    }
    drop(session);
    let one_too_many = async || node.cri.exec(&container.id, &["/bin/true"], 5).await.err();
    let refused = eventually("an exec to be refused, because too many do not end", one_too_many).await;
    for words in [&container.id, "earlier execs", "state D"] {
        assert!(refused.message().contains(words), "the message does not name {words:?}: {refused}");
    }
    all_goes_on(&node, &image, "other").await;
    drop(volume);
    eventually("execs again", || async { node.cri.exec(&container.id, &["/bin/true"], 5).await.ok() }).await;
    pod.stop().await;
    node.finish().await;
}

#[tokio::test]
async fn a_start_that_hangs_ends_with_its_monitor() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let volume = Volume::mount(&node.scratch().join("volume"));
    let pod = node.pod("starter").await;
    let below = format!("{}/below", volume.path());
    let container = pod.create(&ContainerSpec::new("c", &image).mount(&below, "/volume", false)).await;
    let monitor = node.footprint.monitor(&pod.id);
    volume.turn_deaf();
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let start = tokio::spawn(async move { cri.start(&id).await });
    eventually("the container's process", || async { (!container.host_pids().is_empty()).then_some(()) }).await;
    signal("KILL", monitor);
    let error = start.await.expect("the call itself does not panic").expect_err("nobody is there to start it");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("monitor"), "{error}");
    eventually("the end of the container's process", || async { container.host_pids().is_empty().then_some(()) }).await;
    let status = container.exited().await;
    assert_eq!((status.exit_code, status.reason.as_str()), (-1, "StartError"), "{status:?}");
    drop(volume);
    node.finish().await;
}

#[tokio::test]
async fn a_registry_that_says_nothing_fails_its_own_pull_only() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let configuration = node.scratch().join("config.toml");
    let text = std::fs::read_to_string(&configuration).expect("reading the configuration");
    std::fs::write(&configuration, text + "\n[registries]\nstall_timeout_seconds = 10\n").expect("writing the configuration");
    node.restart().await;
    // It is connected to by the kernel, and nobody ever reads.
    let silent = TcpListener::bind("127.0.0.1:0").expect("binding to loopback");
    let reference = format!("{}/nothing:1", silent.local_addr().expect("a bound socket has an address"));
    let (cri, name) = (node.cri.clone(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&name, None).await });
    let other = node.pull("other", &Image::scratch()).await;
    node.cri.remove_image(&other).await.expect("RemoveImage");
    node.cri.remove_image(&reference).await.expect("RemoveImage of what is not there");
    lists_go_on(&node).await;
    let error = pull.await.expect("the call itself does not panic").expect_err("there is nothing to pull");
    assert!(error.message().contains("RegistryUnavailable") && error.message().contains(&reference), "{error}");
    all_goes_on(&node, &image, "neighbour").await;
    node.finish().await;
}

/// Freezes a container's processes, as an operator may.
fn freeze(container: &Container) {
    let pid = container.host_pids()[0];
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("reading a process's cgroups");
    let own = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| path.contains(&container.id));
    let directories: Vec<_> = own.flat_map(|path| host::cgroups(std::path::Path::new(path.trim_start_matches('/')))).collect();
    let frozen = [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")].into_iter().any(|(file, state)| {
        let mut files = directories.iter().map(|directory| directory.join(file)).filter(|file| file.exists());
        files.next().is_some_and(|file| std::fs::write(file, state).is_ok())
    });
    assert!(frozen, "one of the container's cgroups can be frozen: {directories:?}");
}

#[tokio::test]
async fn frozen_and_stopped_containers_are_killed_like_others() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("cold").await;
    let frozen = pod.start(&ContainerSpec::new("frozen", &image)).await;
    let stopped = pod.start(&ContainerSpec::new("stopped", &image).script("trap 'exit 0' TERM; sleep 100000 & wait")).await;
    let third = pod.start(&ContainerSpec::new("third", &image)).await;
    freeze(&frozen);
    freeze(&third);
    for pid in stopped.host_pids() {
        signal("STOP", pid);
    }
    ended_at_its_deadline(node.cri.exec(&frozen.id, &["/bin/true"], 1).await, &["running a command in container", &frozen.id]);
    lists_go_on(&node).await;
    all_goes_on(&node, &image, "neighbour").await;
    frozen.stop(1).await;
    assert_eq!(frozen.status().await.exit_code, 137);
    stopped.stop(1).await;
    assert_eq!(stopped.status().await.exit_code, 137);
    pod.stop().await;
    assert_eq!(third.status().await.exit_code, 137);
    node.finish().await;
}

#[tokio::test]
async fn a_monitor_that_stands_still_delays_its_own_pod_only() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("still").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    let monitor = node.footprint.monitor(&pod.id);
    signal("STOP", monitor);
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let reopen = tokio::spawn(async move { cri.runtime().reopen_container_log(ReopenContainerLogRequest { container_id: id }).await });
    ended_at_its_deadline(node.cri.exec(&container.id, &["/bin/true"], 1).await, &["running a command in container", &container.id]);
    all_goes_on(&node, &image, "neighbour").await;
    ended_at_its_deadline(reopen.await.expect("the call itself does not panic"), &["opening the log of container", &container.id]);
    signal("CONT", monitor);
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0, "all goes on when it does");

    signal("STOP", monitor);
    let (cri, id) = (node.cri.clone(), container.id.clone());
    let stop = tokio::spawn(async move { cri.stop(&id, 0).await });
    all_goes_on(&node, &image, "neighbour").await;
    ended_at_its_deadline(stop.await.expect("the call itself does not panic"), &[&container.id, "monitor"]);
    pod.stop().await;
    let status = container.status().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, -1), "{status:?}");
    assert!(!host::is_alive(monitor), "the monitor was ended");
    pod.remove().await;
    node.finish().await;
}
