//! A node with a daemon that has fail points, and the bystanders who must not notice: a container that goes on, and one
//! that ends while nobody looks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use coracle_e2e::api::{ContainerState, PodSandbox, StatusRequest};
use coracle_e2e::fail_points::FailPoints;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::registry::Pushed;
use coracle_e2e::{Container, ContainerSpec, Cri, DEADLINE, Node, Pod, PodSpec, eventually, host, leaks};
use coracle_failpoint::Point;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::call::{Call, Kind};
use crate::case::Case;

/// What of the image store is compared: paths, and the sizes of files.
type Store = BTreeMap<PathBuf, u64>;

/// A node to be killed on.
pub(crate) struct Stage {
    pub(crate) node: Node,
    /// The containers' image.
    pub(crate) image: String,
    /// An image that is pulled and removed.
    pub(crate) small: Pushed,
    /// A port of the node that nobody has.
    pub(crate) port: u16,
    /// The last octet of the first address of the subnet that the kubelet gave last.
    subnet: u8,
    bystander: Pod,
    steady: Bystander,
    before: Before,
    half_made: Option<PodSpec>,
    serial: u32,
}

/// How it was before the first case, and is to be after each.
struct Before {
    objects: BTreeSet<String>,
    store: Store,
    with_small: Store,
    monitors: Vec<i32>,
}

/// A container that has nothing to do with any case.
pub(crate) struct Bystander {
    name: String,
    container: Container,
    /// Its processes, and when each started (`/proc/PID/stat`).
    processes: Vec<(i32, Option<u64>)>,
}

impl Bystander {
    fn of(name: &str, container: Container) -> Self {
        let processes = container.host_pids().into_iter().map(|pid| (pid, started(pid))).collect();
        Self { name: name.to_owned(), container, processes }
    }
}

impl Stage {
    pub(crate) async fn new(binary: PathBuf) -> Self {
        let node = Node::with_fail_points(binary).await;
        let image = node.busybox().await;
        let small = node.push("small", &small_image());
        let bystander = node.pod("bystander").await;
        let steady = Bystander::of("steady", bystander.start(&ContainerSpec::new("steady", &image)).await);
        let mut stage = Self {
            node,
            image,
            small,
            port: host::free_port(Ipv4Addr::UNSPECIFIED),
            subnet: 128,
            bystander,
            steady,
            before: Before { objects: BTreeSet::new(), store: Store::new(), with_small: Store::new(), monitors: Vec::new() },
            half_made: None,
            serial: 0,
        };
        stage.before = stage.look().await;
        stage
    }

    async fn look(&self) -> Before {
        let cri = &self.node.cri;
        // Rules of the table are made with the first host port and stay.
        let spec = PodSpec::new("first").host_port(coracle_e2e::api::Protocol::Tcp, "", self.port, 80);
        let first = self.node.run(&spec).await;
        first.stop().await;
        first.remove().await;
        // The kernel takes its time to remove a link with the last of its namespace.
        let is_firsts = |object: &String| object.contains(&first.id[..12]);
        eventually("the first pod's link to be gone", || async { (!self.objects().iter().any(is_firsts)).then_some(()) }).await;
        let store = self.settled_store().await;
        cri.pull(&self.small.reference, None).await.unwrap_or_else(|status| panic!("PullImage: {status}"));
        let with_small = self.settled_store().await;
        cri.remove_image(&self.small.reference).await.unwrap_or_else(|status| panic!("RemoveImage: {status}"));
        assert_eq!(self.settled_store().await, store, "an image that came and went leaves nothing");
        Before { objects: self.objects(), store, with_small, monitors: self.all_monitors() }
    }

    /// The same for another runtime: connections belong to the one they were made in.
    pub(crate) fn renewed(mut self) -> Self {
        let cri = Cri::new(self.node.cri.socket());
        self.node.cri = cri.clone();
        self.bystander = self.bystander.through(&cri);
        self.steady.container = self.steady.container.through(&cri);
        self
    }

    /// Whether pods can have users of their own here.
    pub(crate) async fn has_user_namespaces(&self) -> bool {
        let status = self.node.cri.runtime().status(StatusRequest { verbose: false }).await.expect("Status").into_inner();
        status.runtime_handlers.iter().any(|handler| handler.features.as_ref().is_some_and(|features| features.user_namespaces))
    }

    pub(crate) fn points(&self) -> &FailPoints {
        self.node.points.as_ref().expect("the node has fail points")
    }

    pub(crate) fn new_name(&mut self, what: &str) -> String {
        self.serial += 1;
        format!("{what}{}", self.serial)
    }

    /// The upper quarter of the node's subnet, or the one below it: not the one that was given last.
    pub(crate) fn other_subnet(&mut self) -> u8 {
        self.subnet ^= 64;
        self.subnet
    }

    /// A cgroup that no kubelet has made, for a pod.
    pub(crate) fn kubelets_parent(&mut self) -> String {
        format!("/{}/{}", self.kubelets(), self.new_name("pod"))
    }

    fn kubelets(&self) -> String {
        format!("{}-kubelet", self.node.footprint.cgroup_root)
    }

    fn objects(&self) -> BTreeSet<String> {
        let mut objects = self.node.objects();
        // An empty cgroup for execs stays with its container, one of each daemon that made any in it.
        let of_execs = format!("{}/exec-", self.steady.container.id);
        objects.retain(|object| !object.contains(&of_execs));
        objects.extend(host::cgroups(Path::new(&self.kubelets())).iter().map(|path| format!("kubelet's cgroup {}", path.display())));
        objects
    }

    /// The monitors themselves, not processes that they are setting up.
    fn all_monitors(&self) -> Vec<i32> {
        let mut all = self.node.footprint.all_monitors();
        let copies = all.clone();
        all.retain(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            parent.is_some_and(|parent: i32| !copies.contains(&parent))
        });
        all
    }

    /// The monitors that are not the bystander's.
    pub(crate) fn monitors_of_others(&self) -> Vec<i32> {
        let mut all = self.all_monitors();
        all.retain(|pid| !self.before.monitors.contains(pid));
        all
    }

    /// The pods that are not the bystander.
    pub(crate) async fn case_pods(&self) -> Vec<PodSandbox> {
        let mut pods = self.node.pods().await;
        pods.retain(|pod| pod.id != self.bystander.id);
        pods
    }

    /// Has the daemon killed in the middle of a pod's making. It stays dead.
    pub(crate) async fn leave_a_pod_half_made(&mut self) {
        let name = self.new_name("half");
        let spec = self.node.complete(&PodSpec::new(&name));
        self.points().order("pod.shm", 1);
        let made = self.node.cri.run_pod(&spec.config, &self.node.target.handler).await;
        assert!(made.is_err(), "the daemon was to die");
        self.node.kill_daemon();
        self.half_made = Some(spec);
    }

    pub(crate) async fn check_the_half_made_pod_is_gone(&mut self) {
        let spec = self.half_made.take().expect("a pod was left half made");
        let name = spec.config.metadata.clone().unwrap_or_default().name;
        let listed = self.case_pods().await;
        assert!(listed.iter().all(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name != name)), "{listed:?}");
        self.node.run(&spec).await;
    }

    fn shm(&self, name: &str) -> PathBuf {
        self.node.footprint.state.join("pods").join(&self.bystander.id).join("shm").join(name)
    }

    /// A container of the bystander's that ends with 7 as soon as it is told, whether or not there is a daemon.
    pub(crate) async fn leaver(&mut self) -> Bystander {
        let name = self.new_name("leaver");
        rustix::fs::mknodat(CWD, self.shm(&name), FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("making a pipe");
        let script = format!("read word </dev/shm/{name}; exit 7");
        let container = self.bystander.start(&ContainerSpec::new(&name, &self.image).script(&script)).await;
        Bystander::of(&name, container)
    }

    /// Tells it, and waits for its end without asking anybody.
    pub(crate) async fn see_off(&self, leaver: &Bystander) {
        let pipe = self.shm(&leaver.name);
        let tell = || rustix::fs::open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        eventually("the container that is to leave", || async { tell().and_then(|pipe| rustix::io::write(pipe, b"go\n")).ok() }).await;
        eventually("its end", || async { (!leaver.processes.iter().any(|&(pid, _)| host::is_alive(pid))).then_some(()) }).await;
        fs::remove_file(&pipe).expect("removing the pipe");
    }

    /// Nobody else has noticed anything.
    pub(crate) async fn check_bystanders(&self, leaver: &Bystander) {
        let status = leaver.container.exited().await;
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"), "of the container that ended meanwhile: {status:?}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0, "{status:?}");
        leaver.container.remove().await;
        let Bystander { container, processes, .. } = &self.steady;
        let status = container.status().await;
        assert_eq!(status.state(), ContainerState::ContainerRunning, "the bystander: {status:?}");
        assert!(
            status.started_at > 0 && processes.iter().all(|&(pid, then)| then.is_some() && started(pid) == then),
            "the bystander is the same"
        );
        assert_eq!(container.exec(&["/bin/true"]).await.code, 0);
    }

    /// Where no kubelet has made a pod's cgroup, the daemon does, and marks it as its own to remove. One that it had no time
    /// to mark could be a kubelet's, and stays: the one thing that a kill leaves behind, for the want of a kubelet.
    fn remove_unmarked_parents(&self) {
        for top in host::cgroups(Path::new(&self.kubelets())) {
            for pod in fs::read_dir(&top).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(pod.path());
            }
            let _ = fs::remove_dir(top);
        }
    }

    /// Removes the pods of a case, and sees that nothing is left of it.
    pub(crate) async fn clear(&mut self, case: Case) {
        // In a build for tests a panic ends a task and not the daemon.
        assert!(!self.node.daemon_log().contains("panicked at"), "a task panicked:\n{}", self.node.daemon_log());
        for pod in self.case_pods().await {
            self.node.cri.stop_pod(&pod.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status}"));
            self.node.cri.remove_pod(&pod.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status}"));
        }
        self.node.cri.remove_image(&self.small.reference).await.unwrap_or_else(|status| panic!("RemoveImage: {status}"));
        if (case.call, case.point) == (Call::CreateContainer(Kind::Host), Point::CgroupDirectory) {
            self.remove_unmarked_parents();
        }
        let begin = Instant::now();
        loop {
            let now = self.objects();
            let (more, less): (Vec<_>, Vec<_>) =
                (now.difference(&self.before.objects).collect(), self.before.objects.difference(&now).collect());
            if more.is_empty() && less.is_empty() {
                break;
            }
            assert!(begin.elapsed() < DEADLINE, "left: {more:#?}\nlost: {less:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(self.settled_store().await, self.before.store, "left in the image store, or lost from it");
    }

    /// After a pull: the image is there as a whole, or nothing of it is; and it can be pulled again.
    pub(crate) async fn check_images_after_pull(&self, kept: bool) {
        let cri = &self.node.cri;
        let found = cri.image(&self.small.reference).await.unwrap_or_else(|status| panic!("ImageStatus: {status}"));
        assert!(found.is_some() || !kept, "an image that was answered for is gone");
        let expected = if found.is_some() { &self.before.with_small } else { &self.before.store };
        assert_eq!(&self.settled_store().await, expected, "the store after the kill; image found: {}", found.is_some());
        let pulled = cri.pull(&self.small.reference, None).await.unwrap_or_else(|status| panic!("PullImage again: {status}"));
        assert_eq!((pulled, self.settled_store().await), (self.small.id.clone(), self.before.with_small.clone()));
    }

    pub(crate) async fn check_images_after_removal(&self) {
        let cri = &self.node.cri;
        let found = cri.image(&self.small.reference).await.unwrap_or_else(|status| panic!("ImageStatus: {status}"));
        let expected = if found.is_some() { &self.before.with_small } else { &self.before.store };
        assert_eq!(&self.settled_store().await, expected, "the store after the kill; image found: {}", found.is_some());
        cri.remove_image(&self.small.reference).await.unwrap_or_else(|status| panic!("RemoveImage again: {status}"));
        assert_eq!(self.settled_store().await, self.before.store);
    }

    /// The image store once nothing waits to be deleted and all layers are known to be on the disk.
    async fn settled_store(&self) -> Store {
        let root = &self.node.footprint.storage;
        eventually("the image store to settle", || async {
            let tmp = fs::read_dir(root.join("tmp")).into_iter().flatten().count();
            let records = fs::read_dir(root.join("layers")).into_iter().flatten().flatten().map(|layer| layer.path().join("record.json"));
            let durable =
                |record: PathBuf| fs::read_to_string(record).map_or(true, |text| !text.replace(' ', "").contains("\"durable\":false"));
            (tmp == 0 && records.into_iter().all(durable)).then_some(())
        })
        .await;
        let mut store = Store::new();
        for place in ["images", "layers", "records"] {
            for path in leaks::tree(&root.join(place)) {
                let size = fs::symlink_metadata(&path).map_or(0, |metadata| if metadata.is_dir() { 0 } else { metadata.size() });
                // When it came, and in which order, differs.
                let says_when = place == "records" || path.ends_with("record.json");
                store.insert(path, if says_when { 0 } else { size });
            }
        }
        store
    }

    /// Removes the bystander and ends the daemon; nothing is left.
    pub(crate) async fn finish(self) {
        self.node.finish().await;
    }
}

/// Two layers: one that stands for itself, and one that leans on it.
fn small_image() -> Image {
    let base = Layer::new().directory("srv", 0o755, (0, 0)).file("srv/one", 0o644, b"one").symlink("srv/link", "one").into_tar();
    let upper = Layer::new().file("srv/two", 0o600, b"two").file("srv/three", 0o644, &[3; 5000]).into_tar();
    Image::scratch().layer(&base, Compression::Gzip).layer(&upper, Compression::Zstd)
}

/// When a process started: field 22 of its stat (proc(5)).
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}
