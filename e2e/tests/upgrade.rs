//! A daemon is replaced by another build, told to end or killed, while everything is under way: containers notice nothing,
//! and the next daemon serves the pods and monitors of the former one.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_e2e::api::{AttachRequest, ContainerState, PodSandboxState, ReopenContainerLogRequest};
use coracle_e2e::image::Image;
use coracle_e2e::layer::Compression;
use coracle_e2e::session::{REMOTE, STDIN, STDOUT, Session};
use coracle_e2e::{Code, Container, ContainerSpec, DEADLINE, Node, eventually, frozen, host, skip};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::sync::mpsc;

/// Writes numbered lines as fast as a busy machine lets it, and says so if it gets a signal.
const WRITER: &str = "for signal in HUP INT QUIT TERM PIPE USR1 USR2 CONT; do trap \"echo signalled $signal\" $signal; done; i=0
while [ ! -e /dev/shm/enough ]; do j=0; while [ $j -lt 40 ]; do echo line $i; i=$((i+1)); j=$((j+1)); done; sleep 0.01; done; exit 9";

/// A process that cannot be mistaken for another: its id, and when it was started.
fn identity(container: &Container) -> (i32, String) {
    let pid = *container.host_pids().first().expect("the container has a process");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let started = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).expect("field 22");
    (pid, started.to_owned())
}

async fn attach(node: &Node, container: &Container) -> Session {
    let request = AttachRequest { container_id: container.id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
    Session::begin(&node.cri.attach_url(request).await.expect("Attach"), REMOTE).await
}

/// How a daemon goes.
#[derive(Clone, Copy, PartialEq)]
enum Departure {
    Told,
    Killed,
}

async fn replace(node: &mut Node, departure: Departure) {
    match departure {
        Departure::Killed => node.kill_daemon(),
        Departure::Told => assert!(node.terminate_daemon().await.success()),
    }
    node.install_other("next", None);
    node.start_daemon().await;
}

async fn under_load(departure: Departure) {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let pod = node.pod("loaded").await;
    let writer = pod.start(&ContainerSpec::new("writer", &image).script(WRITER)).await;
    let answering = "while read line; do echo got $line; done; exit 3";
    let answering = ContainerSpec::new("answering", &image).script(answering).with(|config| config.stdin = true);
    let answering = pod.start(&answering).await;
    let leaving = "trap 'sleep 1; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let leaving = pod.start(&ContainerSpec::new("leaving", &image).script(leaving)).await;
    let stubborn = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done";
    let stubborn = pod.start(&ContainerSpec::new("stubborn", &image).script(stubborn)).await;
    for container in [&leaving, &stubborn] {
        container.logged("ready").await;
    }
    let before = [identity(&writer), identity(&answering), identity(&stubborn)];
    let noise: Vec<u8> = (0..6_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let large = node.push("large", &Image::busybox().layer(&noise_layer(&noise), Compression::Gzip));

    let mut attached = attach(&node, &answering).await;
    attached.send(STDIN, b"one\n").await;
    attached.until(STDOUT, "got one").await;
    let call = |id: &str, script: &'static str| {
        let (cri, id) = (node.cri.clone(), id.to_owned());
        tokio::spawn(async move { cri.exec(&id, &["/bin/sh", "-c", script], 0).await })
    };
    let stop = |id: &str, grace| {
        let (cri, id) = (node.cri.clone(), id.to_owned());
        tokio::spawn(async move { cri.stop(&id, grace).await })
    };
    let runs = |container: &Container, command: &str| container.host_pids().iter().any(|pid| host::command_line(*pid) == command);
    let (endless, patient) = (call(&writer.id, "sleep 100000"), stop(&stubborn.id, 100_000));
    stubborn.logged("asked").await;
    eventually("the endless exec", || async { runs(&writer, "sleep 100000").then_some(()) }).await;
    let registry = node.registry.pid().to_string();
    host::run("kill", &["-STOP", &registry]).expect("stopping the registry");
    let (brief, gentle) = (call(&writer.id, "sleep 1; echo said; exit 5"), stop(&leaving.id, 60));
    let pull = tokio::spawn({
        let (cri, reference) = (node.cri.clone(), large.reference.clone());
        async move { cri.pull(&reference, None).await }
    });
    eventually("what is brief to be under way, or over", || async {
        let said = brief.is_finished() || runs(&writer, "/bin/sh -c sleep 1; echo said; exit 5");
        (said && (gentle.is_finished() || runs(&leaving, "sleep 1"))).then_some(())
    })
    .await;
    assert!(!pull.is_finished(), "the registry stands still");
    replace(&mut node, departure).await;
    host::run("kill", &["-CONT", &registry]).expect("letting the registry go on");

    let brief = brief.await.expect("no panic");
    let gentle = gentle.await.expect("no panic");
    if departure == Departure::Told {
        let brief = brief.expect("what ends soon is waited for");
        assert_eq!((brief.exit_code, &brief.stdout[..]), (5, &b"said\n"[..]));
        gentle.expect("what ends soon is waited for");
    }
    let pull = pull.await.expect("no panic").map(drop);
    for cut_off in [endless.await.expect("no panic").map(drop), patient.await.expect("no panic"), pull] {
        let status = cut_off.expect_err("its daemon is gone");
        assert!(departure == Departure::Killed || status.code() == Code::Unavailable, "{status}");
    }
    drop(attached);

    assert_eq!([identity(&writer), identity(&answering), identity(&stubborn)], before, "the same processes");
    assert_eq!(node.cri.pull(&large.reference, None).await.expect("the pull is made again"), large.id);
    let mut attached = attach(&node, &answering).await;
    attached.send(STDIN, b"two\n").await;
    attached.until(STDOUT, "got two").await;
    drop(attached);
    gentle_end(&leaving).await;
    stubborn.stop(0).await;
    assert_eq!(stubborn.status().await.exit_code, 137);
    assert_eq!(writer.exec(&["/bin/sh", "-c", "exit 4"]).await.code, 4);
    writer.shell("touch /dev/shm/enough").await;
    assert_eq!(writer.exited().await.exit_code, 9);
    let lines = writer.lines("stdout");
    let expected = (0..lines.len()).map(|number| format!("line {number}"));
    assert!(lines.len() > 100 && expected.eq(lines.iter().cloned()), "no line is lost, doubled or out of order, and no signal was seen");
    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady);
    node.finish().await;
}

/// Its signal was sent by the former daemon.
async fn gentle_end(container: &Container) {
    let status = container.exited().await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
}

/// An archive of one file.
fn noise_layer(bytes: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, "noise", bytes).expect("writing to memory");
    archive.into_inner().expect("writing to memory")
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_is_replaced_under_load() {
    under_load(Departure::Told).await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_is_replaced_under_load() {
    under_load(Departure::Killed).await;
}

#[tokio::test]
async fn monitors_of_the_previous_release_are_served() {
    let Some(monitor) = frozen::monitor() else { return };
    let Some(mut node) = Node::own().await else { return };
    node.install_other("earlier", Some(&monitor));
    node.restart().await;
    let image = node.busybox().await;
    let pod = node.pod("old").await;
    let answering = "while read line; do echo got $line; done; exit 3";
    let running = pod.start(&ContainerSpec::new("running", &image).script(answering).with(|config| config.stdin = true)).await;
    let created = pod.create(&ContainerSpec::new("created", &image).script("echo hello; sleep 100000")).await;
    let leaving = pod.start(&ContainerSpec::new("leaving", &image).script("until [ -e /dev/shm/go ]; do sleep 0.05; done; exit 7")).await;
    let earlier = program_of(&node, &pod.id);

    node.kill_daemon();
    let shm = node.footprint.state.join("pods").join(&pod.id).join("shm");
    std::fs::write(shm.join("go"), "").expect("telling the container");
    eventually("its end", || async { leaving.host_pids().is_empty().then_some(()) }).await;
    node.install_other("today", None);
    node.start_daemon().await;

    assert_eq!((leaving.exited().await.exit_code, program_of(&node, &pod.id)), (7, earlier));
    created.start().await;
    created.logged("hello").await;
    for _ in 0..3 {
        assert_eq!(running.exec(&["/bin/sh", "-c", "exit 6"]).await.code, 6);
    }
    let mut attached = attach(&node, &running).await;
    attached.send(STDIN, b"one\n").await;
    attached.until(STDOUT, "got one").await;
    drop(attached);
    let missing = pod.create(&ContainerSpec::new("missing", &image).command(&["/no/such"])).await;
    node.refused(node.cri.start(&missing.id).await, Code::InvalidArgument, "/no/such");
    let fresh = pod.start(&ContainerSpec::new("fresh", &image).with(|config| config.tty = true)).await;
    assert_eq!(fresh.exec(&["/bin/true"]).await.code, 0, "a new container in an old pod");
    std::fs::rename(&created.log, created.log.with_extension("old")).expect("moving the log");
    let request = ReopenContainerLogRequest { container_id: created.id.clone() };
    node.cri.runtime().reopen_container_log(request).await.expect("ReopenContainerLog");
    assert!(created.log.exists());
    created.stop(0).await;
    assert_eq!(created.status().await.exit_code, 137);
    created.remove().await;
    let new = node.pod("new").await;
    assert_ne!(program_of(&node, &new.id), earlier, "new pods have the new monitor");
    // Once more, with monitors of both releases.
    node.restart().await;
    assert_eq!(running.exec(&["/bin/true"]).await.code, 0);
    pod.stop().await;
    pod.remove().await;
    node.finish().await;
}

/// The file that a pod's monitor runs.
fn program_of(node: &Node, pod: &str) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let monitors = node.footprint.monitors(pod);
    assert_eq!(monitors.len(), 1, "a pod has one monitor: {monitors:?}");
    let program = std::fs::metadata(format!("/proc/{}/exe", monitors[0])).expect("it lives");
    (program.dev(), program.ino())
}

/// A file system that answers nothing, mounted at a directory. Unmounted in the end.
struct DeadMount {
    place: PathBuf,
    server: Option<std::os::fd::OwnedFd>,
}

impl DeadMount {
    fn at(place: &Path) -> Self {
        use std::os::fd::AsRawFd as _;
        let server = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("opening /dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("it has no NUL");
        mount("dead", place, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).expect("mounting");
        Self { place: place.to_owned(), server: Some(server) }
    }

    /// The server dies: whoever waited gets an error.
    fn end(&mut self) {
        self.server = None;
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        self.end();
        let _ = unmount(&self.place, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_start_that_hangs_costs_its_container_and_not_the_pod() {
    let Some(mut node) = Node::own().await else { return };
    if !Path::new("/dev/fuse").exists() {
        skip("there is no /dev/fuse");
        return node.finish().await;
    }
    let image = node.busybox().await;
    let pod = node.pod("hanging").await;
    let neighbour = pod.start(&ContainerSpec::new("neighbour", &image)).await;
    let outside = tempfile::tempdir().expect("making a directory");
    let volume = outside.path().join("volume");
    std::fs::create_dir_all(volume.join("sub")).expect("making a directory");
    let hanging = |name: &str| ContainerSpec::new(name, &image).mount(&volume.join("sub").to_string_lossy(), "/volume", false);
    let (first, second) = (pod.create(&hanging("first")).await, pod.create(&hanging("second")).await);
    let mut dead = DeadMount::at(&volume);
    let caller = node.cri.clone();
    let start = |id: &str| {
        let (cri, id) = (caller.clone(), id.to_owned());
        tokio::spawn(async move { cri.start(&id).await })
    };
    let starting = start(&first.id);
    eventually("the start to hang", || async { (!first.host_pids().is_empty()).then_some(()) }).await;
    node.kill_daemon();
    starting.await.expect("no panic").expect_err("its daemon died");
    node.start_daemon().await;

    assert_eq!(pod.status().await.state(), PodSandboxState::SandboxReady, "the pod is served");
    assert_eq!(neighbour.exec(&["/bin/true"]).await.code, 0);
    assert_eq!(first.status().await.state(), ContainerState::ContainerCreated, "nobody knows yet how it ends");
    let joined = start(&first.id);
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.kill_daemon();
    joined.await.expect("no panic").expect_err("its daemon died");
    // It ends while there is no daemon: the monitor remembers how.
    dead.end();
    eventually("the start's end", || async { first.host_pids().is_empty().then_some(()) }).await;
    node.start_daemon().await;
    let status = first.exited().await;
    assert_eq!(status.reason, "StartError", "{status:?}");
    assert!(status.message.contains("/volume") || status.message.contains("volume/sub"), "stage and object are named: {status:?}");
    drop(dead);

    let dead = DeadMount::at(&volume);
    let starting = start(&second.id);
    eventually("the start to hang", || async { (!second.host_pids().is_empty()).then_some(()) }).await;
    node.restart().await;
    starting.await.expect("no panic").expect_err("its daemon died");
    second.remove().await;
    assert!(second.host_pids().is_empty(), "what hangs can be removed");
    assert_eq!(neighbour.exec(&["/bin/true"]).await.code, 0);
    drop(dead);
    node.finish().await;
}

/// What comes to a socket, read as it comes. The thread ends with the test program.
fn received_by(supervisor: UnixDatagram) -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length) = supervisor.recv(&mut bytes)
            && sender.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_ok()
        {}
    });
    receiver
}

async fn hear(messages: &mut mpsc::UnboundedReceiver<String>, wanted: &str) -> String {
    loop {
        let next = tokio::time::timeout(DEADLINE, messages.recv()).await;
        let message = next.ok().flatten().unwrap_or_else(|| panic!("{wanted} was not told"));
        if message.lines().any(|line| line == wanted) {
            return message;
        }
    }
}

#[tokio::test]
async fn systemd_is_told_what_the_daemon_does() {
    let Some(mut node) = Node::own().await else { return };
    let image = node.busybox().await;
    let path = node.scratch().join("notify");
    let supervisor = UnixDatagram::bind(&path).expect("binding a socket");
    let mut messages = received_by(supervisor);
    node.set_variable("NOTIFY_SOCKET", &path.to_string_lossy());
    node.set_variable("WATCHDOG_USEC", "400000");
    node.restart().await;
    assert!(hear(&mut messages, "READY=1").await.contains("STATUS=serving"));
    for _ in 0..3 {
        hear(&mut messages, "WATCHDOG=1").await;
    }
    let pod = node.pod("heard").await;
    let container = pod.start(&ContainerSpec::new("c", &image)).await;
    for pid in node.footprint.monitors(&pod.id).into_iter().chain(container.host_pids()) {
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).expect("reading an environment");
        assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("WATCHDOG"), "{environment}");
    }
    let waiting = tokio::spawn({
        let (cri, id) = (node.cri.clone(), container.id.clone());
        async move { cri.exec(&id, &["/bin/sleep", "1"], 0).await }
    });
    eventually("a call under way", || async { (waiting.is_finished() || container.host_pids().len() >= 2).then_some(()) }).await;
    host::run("kill", &["-TERM", &node.daemon_pid().to_string()]).expect("telling the daemon to end");
    hear(&mut messages, "STOPPING=1").await;
    let socket = node.cri.socket().to_owned();
    eventually("newcomers to be turned away", || async { UnixStream::connect(&socket).is_err().then_some(()) }).await;
    assert_eq!(waiting.await.expect("no panic").expect("a call under way is finished").exit_code, 0);
    assert!(node.terminate_daemon().await.success());
    node.start_daemon().await;
    hear(&mut messages, "READY=1").await;
    assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    node.finish().await;
}
