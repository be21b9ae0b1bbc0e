//! The daemon's side against a real monitor.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use coracle_domain::{Error, Failure, FailureKind, Refusal};
use coracle_monitor::client::{Monitor, Program, spawn};
use coracle_monitor::protocol::*;
use coracle_plan::*;

mod common;
use common::{bind, make_image, possible, process, program};

fn failure<T: std::fmt::Debug>(result: coracle_domain::Result<T>) -> Failure {
    match result {
        Err(Error::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

/// A monitor outlives those who started it; one of a test that failed must not.
struct KilledAtTheEnd(i32);

impl Drop for KilledAtTheEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let monitor = rustix::process::Pid::from_raw(self.0).unwrap();
            let _ = rustix::process::kill_process(monitor, rustix::process::Signal::KILL);
        }
    }
}

#[tokio::test]
async fn a_daemon_commands_a_monitor_and_outlives_it() {
    if !possible() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    // Longer than a socket's address may be.
    let pod = scratch.path().join("pod".repeat(50));
    let image = pod.join("image");
    make_image(&image);
    let program = Program::open(&program()).unwrap();
    spawn(&program, &pod).await.unwrap();
    let (monitor, mut events) = Monitor::connect(&pod).await.unwrap();
    let _guard = KilledAtTheEnd(monitor.pid());
    assert_eq!(monitor.revision(), REVISION);
    let exe = format!("/proc/{}/exe", monitor.pid());
    let held = rustix::fs::open(exe, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();

    let plan = Plan {
        cgroups: Cgroups::default(),
        namespaces: Namespaces { pid: PidNamespace::New, cgroup: false, user: None },
        root: image.clone(),
        steps: vec![Step::Propagate(Propagation::Slave), bind(&image, "/"), Step::PivotRoot],
        process: process(&["sleep", "1000"]),
    };
    let file = pod.join("plan");
    let start = |container: &str, plan: &Plan| {
        fs::write(&file, serde_json::to_vec(plan).unwrap()).unwrap();
        let exit = pod.join(container);
        Start { container: container.to_owned(), plan: file.clone(), exit, log: None, stdin: false, oom: None }
    };
    let started = monitor.start(start("one", &plan)).await.unwrap();
    assert!(started.pid > 0 && started.at > 0);
    let exec = |name: &str, arguments: &[&str]| Exec {
        exec: name.to_owned(),
        container: "one".to_owned(),
        process: process(arguments),
        cgroups: Cgroups::default(),
        answer: Answer::AtStart,
    };
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let (mut output, theirs) = std::io::pipe().unwrap();
    let running = monitor.exec(exec("x", &["sh", "-c", "echo hi; exit 6"]), [null(), theirs.into(), null()]).await.unwrap();
    assert_eq!(running.exited.await.unwrap(), 6);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hi\n");

    // Answered at its end alone: nothing is told of it beside.
    assert_eq!(monitor.run(exec("w", &["sh", "-c", "exit 7"]), [null(), null(), null()]).await.unwrap(), 7);
    let killed = exec("w", &["sh", "-c", "kill -9 $$"]);
    assert_eq!(monitor.run(killed, [null(), null(), null()]).await.unwrap(), 137);
    let missing = monitor.run(exec("w", &["nope"]), [null(), null(), null()]).await.unwrap_err();
    assert!(missing.to_string().contains("finding the program nope: No such file"), "{missing}");

    let missing = monitor.exec(exec("y", &["nope"]), [null(), null(), null()]).await.unwrap_err();
    assert!(matches!(&missing, Error::Refused(Refusal::Invalid { .. })), "{missing:?}");
    assert!(missing.to_string().contains("finding the program nope: No such file"), "{missing}");
    let mut lost = exec("z", &["true"]);
    lost.process.working_directory = Bytes::from("/no/such");
    let lost = failure(monitor.exec(lost, [null(), null(), null()]).await);
    assert_eq!((lost.stage.as_ref(), lost.subject.as_str()), ("entering the working directory", "/no/such"));

    let another = tokio::spawn({
        let monitor = monitor.clone();
        async move { monitor.state().await.unwrap().containers.len() }
    });
    assert_eq!(another.await.unwrap(), 1);
    // Who did not ask for a start can hear of its end, and so can who comes when that is long told.
    assert_eq!(monitor.await_start("one").await.unwrap(), started);
    assert_eq!(failure(monitor.await_start("none").await).stage, "finding the started container");
    let mut broken = plan.clone();
    broken.steps.push(bind(&pod.join("absent"), "/absent"));
    let refused = failure(monitor.start(start("broken", &broken)).await);
    let (second, _events) = Monitor::connect(&pod).await.unwrap();
    let remembered = second.state().await.unwrap();
    assert_eq!(remembered.containers.len(), 1);
    assert_eq!(remembered.failed["broken"].to_string(), refused.to_string());
    assert_eq!(failure(second.await_start("broken").await).to_string(), refused.to_string());
    second.forget("broken").await.unwrap();
    assert!(second.state().await.unwrap().failed.is_empty());

    monitor.signal(Target::Container("one".to_owned()), 9).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap();
    assert!(matches!(*event, Event::Exited { container, exit } if container == "one" && exit.code == 137));

    monitor.shutdown().await.unwrap();
    // Nothing runs the binary that was held any more, and still it cannot be written to.
    let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    while let Err(refused) = fs::OpenOptions::new().write(true).open(&held) {
        if refused.kind() == std::io::ErrorKind::ReadOnlyFilesystem {
            break;
        }
        assert_eq!(refused.kind(), std::io::ErrorKind::ExecutableFileBusy);
    }
    assert_eq!(failure(monitor.state().await).kind, FailureKind::Unavailable);
    assert!(events.recv().await.is_none());
    assert_eq!(failure(Monitor::connect(&pod).await).kind, FailureKind::Unavailable);
}
