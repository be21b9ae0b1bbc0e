//! The daemon's process.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::net::{Shutdown, SocketAddrUnix, getpeername, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use crate::{Cri, DEADLINE};

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `binary serve --config config` with these variables more, and its output appended to `log`. It may take a moment
    /// to serve.
    pub(crate) fn start(binary: &Path, config: &Path, log: &Path, environment: &[(String, String)]) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("opening the daemon's log");
        let process = Command::new(binary)
            .args(["serve", "--config"])
            .arg(config)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUST_BACKTRACE", "1")
            .env("CORACLE_LOG", std::env::var("CORACLE_LOG").unwrap_or_else(|_| String::from("info")))
            .envs(environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicating a descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        Self { process, log: log.to_owned() }
    }

    /// Waits until it answers, and has taken over the pods that it found; panics with its log if it ends instead.
    pub(crate) async fn serving(&mut self, cri: &Cri) {
        let begin = Instant::now();
        loop {
            if let Ok(pods) = cri.pods(None).await {
                // Lists tell of pods that are not taken over yet; a call about a pod waits for that.
                join_all(pods.iter().map(|pod| cri.pod_status(&pod.id))).await;
                return;
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("the daemon ended with {status} before it served:\n{}", self.log_tail());
            }
            assert!(begin.elapsed() < DEADLINE, "the daemon does not serve:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a process id fits")
    }

    /// Breaks its connections to monitors, by copies of its sockets; how many there were.
    pub(crate) fn break_links(&self) -> usize {
        let process = Pid::from_raw(self.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let numbers = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
        let sockets = numbers.filter_map(|number| pidfd_getfd(process.as_ref()?, number, PidfdGetfdFlags::empty()).ok());
        let links = sockets.filter(|socket| {
            let peer = getpeername(socket).ok().flatten().and_then(|address| SocketAddrUnix::try_from(address).ok());
            peer.is_some_and(|peer| peer.path_bytes().is_some_and(|path| path.ends_with(b"monitor.sock")))
        });
        links.filter(|link| shutdown(link, Shutdown::Both).is_ok()).count()
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Kills it, as the kernel would: it cannot say good-bye.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks it to end (SIGTERM) and waits until it has. Kills it if it does not.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        if let Some(pid) = Pid::from_raw(self.pid()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if let Ok(Some(status)) = self.process.try_wait() {
                return status;
            }
            // The client lives in this thread: it must be able to hear that the server leaves.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.kill();
        ExitStatus::from_raw(9)
    }

    /// The last lines it wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }
}
