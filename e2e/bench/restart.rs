//! A daemon's restart with many pods: from the start of its process until it answers.
//!
//! The process that serves the socket is killed and its own command line, read from /proc, is run again; what runs at the
//! end is a child of the benchmark's that goes on.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_e2e::Cri;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::endpoint::{Endpoint, Network};
use crate::many::{remove, start};
use crate::report::Report;
use crate::series::Series;

/// Nothing is to take longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long monitors do nothing any more.
const REST: Duration = Duration::from_secs(2);
/// What is asked first, in the order of the rows.
const FIRST_CALLS: [&str; 6] =
    ["Version", "ListPodSandbox", "ListContainers", "ExecSync in an old pod", "RunPodSandbox", "ListPodSandboxStats"];

/// From the start of the process to the answer of each of these calls, all asked from the beginning on.
pub(crate) async fn measure(endpoints: &mut [Endpoint], counts: &[usize], samples: usize, report: &mut Report) -> Result<(), String> {
    for &count in counts {
        let mut series = vec![vec![Series::default(); endpoints.len()]; FIRST_CALLS.len()];
        for (number, endpoint) in endpoints.iter_mut().enumerate() {
            let told = |error: &dyn std::fmt::Display| format!("{}: {error}", endpoint.name);
            let pods = start(endpoint, Network::Host, count).await.map_err(|status| told(&status))?;
            let mut daemon = Daemon::found(endpoint.daemon).map_err(|error| told(&error))?;
            for round in 0..samples.div_ceil(crate::many::SLOW).max(5) {
                let old = &pods[round % pods.len()].container;
                let times = restart(endpoint, &mut daemon, old, count).await.map_err(|problem| told(&problem))?;
                for (series, time) in series.iter_mut().zip(times) {
                    series[number].add_time(time);
                }
            }
            endpoint.daemon = daemon.pid;
            remove(endpoint, &pods).await.map_err(|status| format!("{}: {status}", endpoint.name))?;
        }
        for (call, series) in FIRST_CALLS.iter().zip(series) {
            report.add(format!("restart to {call}, {count} pods"), "ms", series);
        }
    }
    Ok(())
}

/// One restart; how long each of the first calls took, from the start of the process on.
async fn restart(endpoint: &Endpoint, daemon: &mut Daemon, old: &str, count: usize) -> Result<[Duration; FIRST_CALLS.len()], String> {
    daemon.kill().await?;
    let spec = endpoint.pod(Network::Host);
    let begin = Instant::now();
    daemon.start().map_err(|error| error.to_string())?;
    let cri = &endpoint.cri;
    let complete = |listed: usize| if listed >= count { Ok(()) } else { Err(format!("{listed} of {count} are listed")) };
    let told = |status: coracle_e2e::Status| status.to_string();
    let (version, pods, containers, exec, pod, stats) = tokio::try_join!(
        answered(begin, || async { cri.version().await.map(drop).map_err(told) }),
        answered(begin, || async { cri.pods(Some(endpoint.filter())).await.map_err(told).and_then(|pods| complete(pods.len())) }),
        answered(begin, || async { cri.containers(None).await.map_err(told).and_then(|containers| complete(containers.len())) }),
        answered(begin, || async { cri.exec(old, &["/bin/true"], 10).await.map(drop).map_err(told) }),
        answered(begin, || async { endpoint.run_pod(&spec).await.map(drop).map_err(told) }),
        answered(begin, || async { cri.all_pod_stats(None).await.map_err(told).and_then(|stats| complete(stats.len())) }),
    )?;
    remove_by_name(cri, endpoint, &spec.config.metadata.unwrap_or_default().name).await?;
    // The statistics were there when all pods were taken over. The next daemon is to find as much to do as this one.
    tokio::time::sleep(REST).await;
    Ok([version, pods, containers, exec, pod, stats])
}

async fn remove_by_name(cri: &Cri, endpoint: &Endpoint, name: &str) -> Result<(), String> {
    let pods = cri.pods(Some(endpoint.filter())).await.map_err(|status| status.to_string())?;
    for pod in pods.iter().filter(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name)) {
        endpoint.remove(&pod.id).await.map_err(|status| status.to_string())?;
    }
    Ok(())
}

/// Asks until there is an answer; when that came.
async fn answered<F: Future<Output = Result<(), String>>>(begin: Instant, ask: impl Fn() -> F) -> Result<Duration, String> {
    loop {
        match ask().await {
            Ok(()) => return Ok(begin.elapsed()),
            Err(problem) if begin.elapsed() > PATIENCE => return Err(problem),
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// The process that serves, and how it was started.
struct Daemon {
    pid: i32,
    /// Where it was started here.
    child: Option<Child>,
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
}

impl Daemon {
    fn found(pid: i32) -> io::Result<Self> {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
        let text = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let arguments = text.split_terminator('\0').map(str::to_owned).collect();
        Ok(Self { pid, child: None, program: link("exe")?, directory: link("cwd")?, arguments })
    }

    async fn kill(&mut self) -> Result<(), String> {
        let pid = Pid::from_raw(self.pid).ok_or("no process id is known")?;
        kill_process(pid, Signal::KILL).map_err(|error| error.to_string())?;
        if let Some(mut child) = self.child.take() {
            child.wait().map_err(|error| error.to_string())?;
        }
        while test_kill_process(pid).is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(std::env::temp_dir().join("bench-restart.log"))?;
        let mut command = Command::new(&self.program);
        if let Some((name, arguments)) = self.arguments.split_first() {
            command.arg0(name).args(arguments);
        }
        let child = command.current_dir(&self.directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        self.child = Some(child);
        Ok(())
    }
}
