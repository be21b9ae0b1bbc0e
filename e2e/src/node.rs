//! A node: a daemon with everything of its own, and a registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tonic::Status;

use crate::daemon::Daemon;
use crate::fail_points::FailPoints;
use crate::image::{BuiltImage, Image};
use crate::installation::Installation;
use crate::leaks::{self, Expected, Footprint};
use crate::registry::{Access, Pushed, Registry};
use crate::subnet::Subnet;
use crate::{Cri, Pod, PodSpec, Target, host, skip};

/// The label by which a node's pods are known among those of other tests, where they share a runtime.
const LABEL: &str = "coracle-e2e";

/// A node of its own for one test. Its last act is [`Node::finish`].
#[derive(Debug)]
pub struct Node {
    /// What the tests run against.
    pub target: Target,
    /// The client.
    pub cri: Cri,
    /// The node's registry.
    pub registry: Registry,
    /// The names of what it may leave behind.
    pub footprint: Footprint,
    /// The line to a daemon that has fail points.
    pub points: Option<FailPoints>,
    name: String,
    daemon: Option<Daemon>,
    installation: Installation,
    scratch: TempDir,
    subnet: Subnet,
    pods: Mutex<Vec<String>>,
    state_before: BTreeSet<PathBuf>,
    finished: bool,
}

impl Node {
    /// A node, with a daemon of its own unless the target says where one runs.
    pub async fn start() -> Self {
        Self::start_with(Target::from_environment(), |_| {}).await
    }

    /// A node with a daemon of its own, or `None` (and a word of it) where the target is somebody else's.
    pub async fn own() -> Option<Self> {
        Self::own_with(|_| {}).await
    }

    /// [`Node::own`], with `prepare` called before the daemon starts: it may mount something on the storage directory.
    pub async fn own_with(prepare: impl FnOnce(&Footprint)) -> Option<Self> {
        Some(Self::start_with(own_target()?, prepare).await)
    }

    /// [`Node::own`], with TOML added to the daemon's configuration.
    pub async fn own_configured(more: &str) -> Option<Self> {
        let target = own_target()?;
        let target = Target { config: format!("{}\n{more}", target.config), ..target };
        Some(Self::start_with(target, |_| {}).await)
    }

    /// A node whose daemon, `binary`, was built with fail points.
    pub async fn with_fail_points(binary: PathBuf) -> Self {
        let target = Target { binary, endpoint: None, ..Target::from_environment() };
        let points = FailPoints::new(&target.directory);
        // In memory, as these tests have the store wait for the disk all the time.
        let storage_in_memory = |footprint: &Footprint| {
            crate::host::run("mount", &["-t", "tmpfs", "coracle-e2e", &footprint.storage.to_string_lossy()]).expect("mounting a tmpfs");
        };
        Self::start_as(target, Some(points), storage_in_memory).await
    }

    async fn start_with(target: Target, prepare: impl FnOnce(&Footprint)) -> Self {
        Self::start_as(target, None, prepare).await
    }

    async fn start_as(target: Target, points: Option<FailPoints>, prepare: impl FnOnce(&Footprint)) -> Self {
        assert!(rustix::process::geteuid().is_root(), "the whole-program tests make namespaces, links and mounts: they must run as root");
        let name = node_name();
        let scratch = tempfile::Builder::new().prefix("c").tempdir_in(&target.directory).expect("making a scratch directory");
        let footprint = footprint_in(scratch.path(), &name);
        for directory in [&footprint.state, &footprint.storage, &scratch.path().join("logs")] {
            fs::create_dir_all(directory).expect("making a directory");
        }
        prepare(&footprint);
        let registry = Registry::start(&scratch.path().join("registry"), Access::Open);
        let subnet = Subnet::claim();
        let socket = target.endpoint.clone().unwrap_or_else(|| scratch.path().join("s"));
        let mut installation = Installation::new(scratch.path(), settings(&target, &socket, &footprint, &subnet));
        if let Some(points) = &points {
            installation.set_variable(coracle_failpoint::VARIABLE, &points.path().to_string_lossy());
        }
        let mut node = Self {
            cri: Cri::new(&socket),
            target,
            registry,
            footprint,
            points,
            name,
            daemon: None,
            installation,
            scratch,
            subnet,
            pods: Mutex::default(),
            state_before: BTreeSet::new(),
            finished: false,
        };
        if !node.target.is_foreign() {
            node.installation.install(&node.target.binary);
            node.start_daemon().await;
            node.state_before = leaks::tree(&node.footprint.state);
        }
        node
    }

    /// The scratch directory.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A part of the node's subnet, for a kubelet to give: the last octet of its first address, and its prefix length.
    pub fn part_of_subnet(&self, first: u8, prefix: u8) -> String {
        self.subnet.part(first, prefix)
    }

    /// The path of a file of the host's that nobody inside a container may see.
    pub fn secret(&self) -> String {
        let path = self.scratch().join("secret");
        fs::write(&path, "the node's").expect("writing a file");
        path.to_string_lossy().into_owned()
    }

    /// The daemon's process id. Panics where the daemon is somebody else's.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().expect("the node has a daemon of its own").pid()
    }

    /// Kills the daemon (SIGKILL).
    pub fn kill_daemon(&mut self) {
        self.daemon.take().expect("the node has a daemon of its own").kill();
    }

    /// Starts the daemon again and waits until it serves.
    pub async fn start_daemon(&mut self) {
        self.launch_daemon();
        self.serving().await;
    }

    /// Starts the daemon again and does not wait.
    pub fn launch_daemon(&mut self) {
        self.daemon = Some(self.installation.launch());
    }

    /// The daemon is started with this variable from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.installation.set_variable(name, value);
    }

    /// The daemon that is started next is another build: a program and a monitor of other names, the monitor with these
    /// bytes, or with the usual ones.
    pub fn install_other(&mut self, name: &str, monitor: Option<&[u8]>) {
        self.installation.install_other(name, monitor);
    }

    /// Waits until the daemon serves.
    pub async fn serving(&mut self) {
        self.daemon.as_mut().expect("the node has a daemon of its own").serving(&self.cri).await;
    }

    /// Breaks every connection between the daemon and monitors; how many there were.
    pub fn break_links(&self) -> usize {
        self.daemon.as_ref().expect("the node has a daemon of its own").break_links()
    }

    /// How the daemon ended, if it did so without being told to.
    pub fn daemon_ending(&mut self) -> Option<ExitStatus> {
        self.daemon.as_mut().and_then(Daemon::ending)
    }

    /// Whether there is no daemon any more.
    pub fn daemon_has_ended(&mut self) -> bool {
        self.daemon.is_none() || self.daemon_ending().is_some()
    }

    /// What the daemon has said so far.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.installation.log()).unwrap_or_default()
    }

    /// Imitates a reboot, where a file system of its own was mounted on the state directory: the daemon, its monitors and
    /// all containers are gone, and so is what was in that directory. Links, rules and cgroups stay: there will be litter.
    pub fn reboot(&mut self, mount_state: impl FnOnce(&Footprint)) {
        self.kill_daemon();
        self.footprint.kill_all(&self.spared());
        let state = self.footprint.state.to_string_lossy().into_owned();
        host::run("umount", &["--lazy", &state]).expect("taking the state directory away");
        mount_state(&self.footprint);
    }

    /// Kills the daemon and starts it again.
    pub async fn restart(&mut self) {
        self.kill_daemon();
        self.start_daemon().await;
    }

    /// Asks the daemon to end (SIGTERM); how it ended.
    pub async fn terminate_daemon(&mut self) -> ExitStatus {
        self.daemon.take().expect("the node has a daemon of its own").terminate().await
    }

    /// Pushes an image to the node's registry.
    pub fn push(&self, name: &str, image: &Image) -> Pushed {
        self.registry.push(name, "1", &image.build())
    }

    /// Pushes and pulls an image; its reference.
    pub async fn pull(&self, name: &str, image: &Image) -> String {
        self.pull_built(name, &image.build()).await
    }

    /// Pushes and pulls the small system of [`crate::layer::busybox`]; its reference.
    pub async fn busybox(&self) -> String {
        self.pull("busybox", &Image::busybox()).await
    }

    async fn pull_built(&self, name: &str, image: &BuiltImage) -> String {
        let pushed = self.registry.push(name, "1", image);
        let pulled =
            self.cri.pull(&pushed.reference, None).await.unwrap_or_else(|status| panic!("PullImage {}: {status}", pushed.reference));
        assert_eq!(pulled, pushed.id, "PullImage answers with the digest of the image's config");
        pushed.reference
    }

    /// Fills in what a kubelet would: namespace, uid, labels and log directory.
    pub fn complete(&self, spec: &PodSpec) -> PodSpec {
        let mut spec = spec.clone();
        let metadata = spec.config.metadata.get_or_insert_default();
        metadata.namespace = self.name.clone();
        if metadata.uid.is_empty() {
            metadata.uid = format!("{}-{}", self.name, metadata.name);
        }
        if spec.config.log_directory.is_empty() {
            let directory = self.scratch.path().join("logs").join(&metadata.uid);
            fs::create_dir_all(&directory).expect("making a log directory");
            spec.config.log_directory = directory.to_string_lossy().into_owned();
        }
        spec.config.labels.insert(LABEL.to_owned(), self.name.clone());
        spec
    }

    /// RunPodSandbox.
    pub async fn try_run(&self, spec: &PodSpec) -> Result<Pod, Status> {
        let spec = self.complete(spec);
        let handler = spec.handler.as_ref().unwrap_or(&self.target.handler);
        let id = self.cri.run_pod(&spec.config, handler).await?;
        self.pods.lock().expect("no test panicked here").push(id.clone());
        Ok(Pod { id, config: spec.config, cri: self.cri.clone() })
    }

    /// RunPodSandbox.
    pub async fn run(&self, spec: &PodSpec) -> Pod {
        self.try_run(spec).await.unwrap_or_else(|status| panic!("RunPodSandbox: {status}"))
    }

    /// A pod of that name with its own network.
    pub async fn pod(&self, name: &str) -> Pod {
        self.run(&PodSpec::new(name)).await
    }

    /// The pods of this test, newest first or as the server has them.
    pub async fn pods(&self) -> Vec<k8s_cri::v1::PodSandbox> {
        let filter = k8s_cri::v1::PodSandboxFilter { label_selector: [(LABEL.to_owned(), self.name.clone())].into(), ..Default::default() };
        self.cri.pods(Some(filter)).await.unwrap_or_else(|status| panic!("ListPodSandbox: {status}"))
    }

    /// Removes all pods of this test over CRI, ends the daemon and fails if anything is left.
    pub async fn finish(mut self) {
        let mut expected = self.expected();
        for pod in self.pods().await {
            if let Ok(answer) = self.cri.pod_status(&pod.id).await {
                expected
                    .addresses
                    .extend(answer.status.and_then(|status| status.network).map(|network| network.ip).filter(|ip| !ip.is_empty()));
            }
            expected.pods.push(pod.id.clone());
            self.cri.stop_pod(&pod.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status}"));
            self.cri.remove_pod(&pod.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status}"));
        }
        let listed = self.pods().await;
        assert!(listed.is_empty(), "pods are listed after they were removed: {listed:?}");
        if !self.target.is_foreign() {
            self.check_leaks(&expected).await;
        }
        self.finished = true;
    }

    /// Checks that a call was turned down with one code and a message that names its subject. Of somebody
    /// else's runtime only the refusal is asked; codes and words are ours.
    pub fn refused<T: std::fmt::Debug>(&self, result: Result<T, Status>, code: tonic::Code, subject: &str) {
        let status = result.expect_err("this call must be turned down");
        if !self.target.is_foreign() {
            assert_eq!(status.code(), code, "{}", status.message());
            assert!(status.message().contains(subject), "the message does not name {subject:?}: {}", status.message());
        }
    }

    /// What is there beside the daemon and the registry, pods' things too: to be compared with a later look.
    pub fn objects(&self) -> BTreeSet<String> {
        self.footprint.look(&self.expected()).into_iter().collect()
    }

    /// What is there although nothing should be but the daemon: for tests that look in the middle.
    pub fn remains(&self) -> Vec<String> {
        self.footprint.remains(&self.expected())
    }

    async fn check_leaks(&mut self, expected: &Expected) {
        let left = self.footprint.remains(expected);
        assert!(left.is_empty(), "left after every pod was removed:\n{}", left.join("\n"));
        if let Some(mut daemon) = self.daemon.take() {
            let ending = daemon.terminate().await;
            assert!(ending.success(), "the daemon's end: {ending}");
        }
        let left = self.footprint.remains(expected);
        assert!(left.is_empty(), "left after the daemon's end:\n{}", left.join("\n"));
        let stuck = self.footprint.remove_node();
        assert!(stuck.is_empty(), "the node's own objects cannot be removed:\n{}", stuck.join("\n"));
    }

    fn expected(&self) -> Expected {
        Expected {
            processes: self.spared().into_iter().chain(self.daemon.as_ref().map(Daemon::pid)).collect(),
            state: self.state_before.clone(),
            pods: self.pods.lock().map(|pods| pods.clone()).unwrap_or_default(),
            addresses: Vec::new(),
        }
    }

    fn spared(&self) -> Vec<i32> {
        i32::try_from(self.registry.pid()).into_iter().collect()
    }
}

impl Drop for Node {
    /// A test that ended without [`Node::finish`] has failed, or forgot it: then it fails here. Either way
    /// nothing of the node outlives it.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Some(daemon) = &self.daemon {
            eprintln!("--- the daemon's last words ({}):\n{}", self.name, daemon.log_tail());
        }
        if !self.target.is_foreign() {
            let pods = self.pods.lock().map(|pods| pods.clone()).unwrap_or_default();
            if let Some(mut daemon) = self.daemon.take() {
                daemon.kill();
            }
            self.footprint.wreck(&self.spared(), &pods);
        }
        assert!(std::thread::panicking(), "the test did not finish its node: Node::finish must be its last act");
    }
}

fn own_target() -> Option<Target> {
    let target = Target::from_environment();
    if target.is_foreign() {
        skip("this test needs a daemon of its own, and CORACLE_E2E_ENDPOINT names another");
        return None;
    }
    Some(target)
}

/// The daemon's configuration, from the second line of its first section on.
fn settings(target: &Target, socket: &Path, footprint: &Footprint, subnet: &Subnet) -> String {
    let Footprint { state, storage, bridge, cgroup_root, .. } = footprint;
    format!(
        "socket = {socket:?}\nstate = {state:?}\nroot = {storage:?}\ncgroup_root = {cgroup_root:?}\n\n[network.bridge]\nname = {bridge:?}\nsubnet = {:?}\n{}\n",
        subnet.cidr(),
        target.config,
    )
}

fn node_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("e{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn footprint_in(scratch: &Path, name: &str) -> Footprint {
    Footprint {
        scratch: scratch.to_owned(),
        state: scratch.join("run"),
        storage: scratch.join("lib"),
        // A link's name has 15 characters at most: `e`, a process id of 7 digits, `n` and a number fit.
        bridge: name.to_owned(),
        cgroup_root: format!("coracle-{name}"),
    }
}
