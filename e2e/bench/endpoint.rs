//! An endpoint under measurement, and the pods it is asked for.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_e2e::api::PodSandboxFilter;
use coracle_e2e::{ContainerSpec, Cri, PodSpec, Status};
use tokio::net::UnixStream;

use crate::machine;

/// The label of all pods made here.
const LABEL: &str = "coracle-bench";

/// An endpoint as the command line has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointSpec {
    socket: PathBuf,
    name: Option<String>,
    handler: String,
    processes: Vec<String>,
    data: Option<PathBuf>,
}

impl FromStr for EndpointSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let socket = parts.next().unwrap_or_default().trim_start_matches("unix://");
        let mut spec = Self { socket: socket.into(), ..Self::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("name", value)) => spec.name = Some(value.to_owned()),
                Some(("handler", value)) => spec.handler = value.to_owned(),
                Some(("process", value)) => spec.processes = value.split('+').map(str::to_owned).collect(),
                Some(("data", value)) => spec.data = Some(value.into()),
                _ => return Err(format!("{part:?} is none of name=, handler=, process= and data=")),
            }
        }
        Ok(spec)
    }
}

/// Whose network a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Its own.
    Own,
    /// The node's.
    Host,
}

impl Network {
    /// For the names of measurements.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Own => "own network",
            Self::Host => "host network",
        }
    }
}

/// A pod with one container that sleeps.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    /// The pod's id.
    pub(crate) pod: String,
    /// The container's id.
    pub(crate) container: String,
}

/// An endpoint that answers.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// What it is called in the report.
    pub(crate) name: String,
    /// Its runtime's name and version.
    pub(crate) version: String,
    /// The client.
    pub(crate) cri: Cri,
    /// The process that serves the socket.
    pub(crate) daemon: i32,
    /// Where it keeps images, if that was said.
    pub(crate) data: Option<PathBuf>,
    handler: String,
    processes: Vec<String>,
    image: String,
    logs: tempfile::TempDir,
    label: String,
}

impl Endpoint {
    /// Connects and pulls the image if it is not there.
    pub(crate) async fn connect(spec: &EndpointSpec, number: usize, image: &str) -> Result<Self, String> {
        let place = spec.socket.display().to_string();
        let told = |error: &dyn std::fmt::Display| format!("{place}: {error}");
        let stream = UnixStream::connect(&spec.socket).await.map_err(|error| told(&error))?;
        let daemon = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
        let cri = Cri::new(&spec.socket);
        let version = cri.version().await.map_err(|status| told(&status))?;
        if cri.image(image).await.map_err(|status| told(&status))?.is_none() {
            cri.pull(image, None).await.map_err(|status| told(&status))?;
        }
        let named = spec.name.clone().unwrap_or_else(|| version.runtime_name.clone());
        Ok(Self {
            name: if named.is_empty() { format!("endpoint {number}") } else { named },
            version: format!("{} {}", version.runtime_name, version.runtime_version),
            cri,
            daemon,
            data: spec.data.clone(),
            handler: spec.handler.clone(),
            processes: spec.processes.clone(),
            image: image.to_owned(),
            logs: tempfile::tempdir().map_err(|error| told(&error))?,
            label: format!("{}-{number}", std::process::id()),
        })
    }

    /// The container that all pods get.
    pub(crate) fn container(&self) -> ContainerSpec {
        ContainerSpec::new("c", &self.image)
    }

    /// A pod of a name that was never used before.
    pub(crate) fn pod(&self, network: Network) -> PodSpec {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("bench-{}-{}", self.label, NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = self.logs.path().join(&name);
        // Made ahead of the call, as a kubelet does.
        let _ = std::fs::create_dir_all(&directory);
        let spec = PodSpec::new(&name).label(LABEL, &self.label).with(|config| {
            let metadata = config.metadata.get_or_insert_default();
            metadata.namespace = String::from("bench");
            metadata.uid = name.clone();
            config.log_directory = directory.to_string_lossy().into_owned();
        });
        if network == Network::Host { spec.host_network() } else { spec }
    }

    /// RunPodSandbox.
    pub(crate) async fn run_pod(&self, spec: &PodSpec) -> Result<String, Status> {
        self.cri.run_pod(&spec.config, &self.handler).await
    }

    /// The three calls that start a pod.
    pub(crate) async fn start(&self, network: Network) -> Result<Started, Status> {
        let spec = self.pod(network);
        let pod = self.run_pod(&spec).await?;
        let container = self.cri.create(&pod, &spec.config, &self.container().config).await?;
        self.cri.start(&container).await?;
        Ok(Started { pod, container })
    }

    /// Stops and removes a pod.
    pub(crate) async fn remove(&self, pod: &str) -> Result<(), Status> {
        self.cri.stop_pod(pod).await?;
        self.cri.remove_pod(pod).await
    }

    /// Removes every pod that was made here.
    pub(crate) async fn clean(&self) {
        for pod in self.cri.pods(Some(self.filter())).await.unwrap_or_default() {
            if let Err(status) = self.remove(&pod.id).await {
                eprintln!("bench: {}: pod {} is left: {status}", self.name, pod.id);
            }
        }
    }

    /// Selects the pods that were made here.
    pub(crate) fn filter(&self) -> PodSandboxFilter {
        PodSandboxFilter { label_selector: [(LABEL.to_owned(), self.label.clone())].into(), ..Default::default() }
    }

    /// The runtime's own processes: the daemon and what it keeps for each pod; never the workload.
    pub(crate) fn runtime_processes(&self) -> Vec<i32> {
        let family = machine::family(self.daemon);
        machine::processes_of(|file, name| {
            if self.processes.is_empty() {
                file.is_some_and(|file| family.contains(&file))
            } else {
                self.processes.iter().any(|wanted| name == wanted)
            }
        })
    }
}
