//! Pods and containers: their lifecycle, owners, index, stats and recovery.
//!
//! Each pod has one owner, a task with an inbox (`pod`); nobody else changes that pod, so a slow or hung pod
//! delays no other. Owners publish immutable views into the `index`, from which all lists and statuses are
//! served without touching disk or kernel. Calls that change nothing but need the kernel, execs and stats, use
//! the `live` parts published beside the views and go past the inbox.
//!
//! This crate decides and orders; it acts through the crates below it: `image` for root file systems, `network`
//! and `cgroup` for a pod's share of the node, `handler` for Plans, `monitor` for processes. It knows no gRPC.

#![forbid(unsafe_code)]

mod apparmor;
mod attach;
mod berth;
mod cgroups;
mod claims;
mod clock;
mod deadline;
mod etc;
mod exec;
#[cfg(fuzzing)]
pub mod fuzzing;
mod index;
mod inspect;
mod layout;
mod leaf;
mod live;
mod lock;
mod node;
mod pod;
mod probe;
mod process;
mod record;
mod recoveries;
mod retry;
mod selinux;
mod session;
mod settle;
mod shares;
mod stats;
mod subnet;
mod terminal;
#[cfg(test)]
mod testing;
mod undead;
mod volumes;

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use coracle_cgroup::Hierarchy;
use coracle_domain::{
    ContainerId, ContainerRequest, ContainerView, During, Error, Id, IdKind, PodId, PodRequest, PodResources, PodView, Refusal, Resources,
    Result,
};
use coracle_handler::{HandlerInfo, Handlers};
use coracle_image::Store;
use coracle_network::{Bridge, parse_pod_cidrs};
use tokio::sync::Mutex;

pub use coracle_monitor::client::Program;
pub use coracle_spec::OpenFiles;
pub use exec::ExecOutput;
pub use layout::Layout;
pub use lock::lock;
pub use session::{Session, TerminalSize, WantedStreams};

use claims::Claims;
use coracle_spec::Node;
use deadline::DEATH;
use index::{Entry, Index};
use pod::Command;
use settle::Later;
use undead::Undead;
use volumes::Looks;

/// What the engine is built from.
#[derive(Debug)]
pub struct Parts {
    /// Where pods are recorded.
    pub layout: Layout,
    /// The monitor's executable.
    pub monitor: Program,
    /// Images and root file systems.
    pub images: Arc<Store>,
    /// The pods' network.
    pub network: Bridge,
    /// The node's cgroups.
    pub hierarchy: Hierarchy,
    /// The ways to run containers.
    pub handlers: Handlers,
    /// The limit on open files that the daemon was started with, if it has another one now.
    pub open_files: Option<OpenFiles>,
}

/// What all owners share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) monitor: Program,
    pub(crate) images: Arc<Store>,
    pub(crate) network: Bridge,
    pub(crate) hierarchy: Arc<Hierarchy>,
    pub(crate) handlers: Handlers,
    pub(crate) node: Node,
    /// Whether pods can have user namespaces; else why not.
    pub(crate) user_namespaces: Later<std::result::Result<(), String>>,
    /// Known when the links of pods that are gone were swept from the node, as far as they could be.
    pub(crate) links_swept: Later<()>,
    pub(crate) index: Index,
    pub(crate) looks: Looks,
}

impl Shared {
    /// A new id from the system's random source.
    pub(crate) fn new_id<K: IdKind>(&self) -> Result<Id<K>> {
        let mut entropy = [0; 32];
        rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty()).during("making an id of", "random bytes")?;
        Ok(Id::from_entropy(entropy))
    }
}

/// Whether the runtime can serve, and with what.
#[derive(Debug, Clone)]
pub struct RuntimeStatus {
    /// Whether pods can have networks of their own; else why not.
    pub network: Result<(), String>,
    /// The ways to run containers, the default first.
    pub handlers: Vec<HandlerInfo>,
    /// Whether cgroup parents are systemd's slices.
    pub systemd_cgroups: bool,
    /// For people: the configuration in force.
    pub details: BTreeMap<String, String>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    claims: Claims,
    /// Held while the pods' subnet changes, on record and in use.
    subnet: Mutex<()>,
    /// Numbers execs; they are unique in a pod across daemons because they begin with this daemon's own mark.
    execs: AtomicU64,
    mark: String,
}

impl Engine {
    /// Reads what is on record of the pods that are there, and is ready to serve: the pods are taken over meanwhile, each for
    /// itself, and what no pod claims is swept.
    ///
    /// # Errors
    /// The state directory cannot be made or read.
    pub async fn start(parts: Parts) -> Result<Self> {
        let shared = Arc::new(Shared {
            user_namespaces: Later::default(),
            links_swept: Later::default(),
            layout: parts.layout,
            monitor: parts.monitor,
            images: parts.images,
            network: parts.network,
            hierarchy: Arc::new(parts.hierarchy),
            handlers: parts.handlers,
            node: Node { apparmor: apparmor::prepare().await, open_files: parts.open_files, ..node::look() },
            index: Index::default(),
            looks: Looks::default(),
        });
        let pods = shared.layout.pods();
        DirBuilder::new().recursive(true).mode(0o711).create(&pods).during("making the state directory", pods.display())?;
        if let Some(subnet) = subnet::kept(&shared.layout) {
            shared.network.set_subnet(subnet);
        }
        let found = pod::Found::read(&shared).await?;
        settle::begin(&shared, found.links());
        found.take_over(&shared);
        let mark: Id<coracle_domain::PodKind> = shared.new_id()?;
        Ok(Self { shared, claims: Claims::default(), subnet: Mutex::default(), execs: AtomicU64::new(0), mark: mark.short().to_owned() })
    }

    /// Images and their store.
    pub fn images(&self) -> &Arc<Store> {
        &self.shared.images
    }

    /// Makes a pod. The same request again joins the attempt under way, or gets the pod that it made.
    ///
    /// # Errors
    /// Refused if the handler is unknown, or if another pod, or a stopped one, has the name.
    pub async fn run_pod(&self, request: PodRequest) -> Result<PodId> {
        let claim = self.claims.claim(&request.metadata).await;
        if let Some(pod) = self.shared.index.named(&request.metadata).await {
            return retry::same_pod(&pod, &request);
        }
        let shared = Arc::clone(&self.shared);
        // In a task of its own, so that a caller who goes away does not leave a pod half made.
        let making = tokio::spawn(async move {
            let made = pod::create(shared, request).await;
            drop(claim);
            made
        });
        making.await.during("making", "a pod")?
    }

    /// Ends a pod's containers and gives back its network; nothing to do is success.
    ///
    /// # Errors
    /// Something could not be ended; calling again goes on.
    pub async fn stop_pod(&self, id: &str) -> Result<()> {
        self.tell_pod(id, Command::Stop).await
    }

    /// Stops a pod and removes all its traces; nothing to do is success.
    ///
    /// # Errors
    /// Something could not be removed; calling again goes on.
    pub async fn remove_pod(&self, id: &str) -> Result<()> {
        self.tell_pod(id, Command::Remove).await
    }

    /// A pod, by its id or a unique prefix of it.
    ///
    /// # Errors
    /// Refused if there is none.
    pub async fn pod(&self, id: &str) -> Result<Arc<PodView>> {
        Ok(self.shared.index.pod(id).await?.view)
    }

    /// All pods, oldest first.
    pub async fn pods(&self) -> Vec<Arc<PodView>> {
        self.shared.index.pods().await
    }

    /// How many pods there are, for people.
    pub fn known_pods(&self) -> usize {
        self.shared.index.count()
    }

    /// Makes a container in a pod. The same request again gets the container that it made.
    ///
    /// # Errors
    /// Refused if the pod is absent or stopped, the image absent, or the request contradictory.
    pub async fn create_container(&self, pod: &str, request: ContainerRequest) -> Result<ContainerId> {
        let entry = self.shared.index.pod(pod).await?;
        let answer = entry.owner.ask(|answer| Command::Create(Box::new(request), answer)).await;
        answer.unwrap_or_else(|| Err(Refusal::not_found("pod sandbox", pod).into()))
    }

    /// Starts a container; returns when its program was executed.
    ///
    /// # Errors
    /// Refused if it is absent or was started before; fails with the stage that failed.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.tell_container(id, Command::Start).await
    }

    /// Asks a container to end, and kills it when `grace` has passed. Of several callers the most impatient wins.
    ///
    /// # Errors
    /// It cannot be killed. An absent or ended container is success.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let Some((container, entry)) = absent_is_none(self.shared.index.container(id).await)? else { return Ok(()) };
        if !grace.is_zero() {
            let asked = entry.owner.ask(|answer| Command::AskToEnd(container.id.clone(), answer)).await;
            let Some(mut news) = asked.transpose()? else { return Ok(()) };
            if tokio::time::timeout(grace, news.wait_for(|ended| *ended)).await.is_ok() {
                return Ok(());
            }
        }
        let killed = entry.owner.ask(|answer| Command::Kill(container.id.clone(), answer)).await;
        let Some(mut news) = killed.transpose()? else { return Ok(()) };
        // An error means that the container's owner dropped it: it is gone.
        if tokio::time::timeout(DEATH, news.wait_for(|ended| *ended)).await.is_ok() {
            return Ok(());
        }
        let left = entry.live.containers.get(&container.id);
        let undead = Undead::find("ending the processes of container", &container.id, left).await?;
        Err(undead.failure(entry.live.monitor.as_ref()).into())
    }

    /// Kills a container if need be and removes all its traces; nothing to do is success.
    ///
    /// # Errors
    /// Something could not be removed; calling again goes on.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        match self.tell_container(id, Command::RemoveContainer).await {
            Err(Error::Refused(Refusal::NotFound { .. })) => Ok(()),
            other => other,
        }
    }

    /// A container, by its id or a unique prefix of it.
    ///
    /// # Errors
    /// Refused if there is none.
    pub async fn container(&self, id: &str) -> Result<Arc<ContainerView>> {
        Ok(self.shared.index.container(id).await?.0)
    }

    /// All containers, pod by pod.
    pub async fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.pods().await.iter().flat_map(|pod| pod.containers.iter().cloned()).collect()
    }

    /// Changes a container's limits; what `change` does not set stays.
    ///
    /// # Errors
    /// Refused if it is absent or has ended; fails if the kernel refuses a value, and then nothing changed.
    pub async fn update_container(&self, id: &str, change: Resources) -> Result<()> {
        self.tell_container(id, |id, answer| Command::Update(id, Box::new(change), answer)).await
    }

    /// Remembers what a pod as a whole may use since the kubelet resized it.
    ///
    /// # Errors
    /// Refused if it is absent.
    pub async fn resize_pod(&self, id: &str, change: PodResources) -> Result<()> {
        let entry = self.shared.index.pod(id).await?;
        let answer = entry.owner.ask(|answer| Command::Resize(Box::new(change), answer)).await;
        answer.unwrap_or_else(|| Err(Refusal::not_found("pod sandbox", id).into()))
    }

    /// Opens a container's log anew, after rotation.
    ///
    /// # Errors
    /// Refused if it is absent or does not run.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        self.tell_container(id, Command::ReopenLog).await
    }

    /// Takes the pods' address range from the kubelet, for as long as the node is up.
    ///
    /// # Errors
    /// Refused if it is no range; fails if it cannot be written down, and then nothing changed.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let Some(subnet) = parse_pod_cidrs(cidr)? else { return Ok(()) };
        let _changing = self.subnet.lock().await;
        subnet::keep(&self.shared.layout, subnet)?;
        self.shared.network.set_subnet(subnet);
        self.shared.network.ensure().await
    }

    /// Whether the runtime can serve.
    pub async fn status(&self) -> RuntimeStatus {
        let user_namespaces = self.shared.user_namespaces.get().await;
        RuntimeStatus {
            network: self.shared.network.ready().await,
            handlers: self.shared.handlers.infos(self.shared.node.kernel, user_namespaces.is_ok()),
            systemd_cgroups: false,
            details: inspect::runtime(&self.shared, &user_namespaces),
        }
    }

    async fn tell_pod(&self, id: &str, command: impl FnOnce(tokio::sync::oneshot::Sender<Result<()>>) -> Command) -> Result<()> {
        let Some(entry) = absent_is_none(self.shared.index.pod(id).await)? else { return Ok(()) };
        entry.owner.ask(command).await.unwrap_or(Ok(()))
    }

    async fn tell_container(
        &self,
        id: &str,
        command: impl FnOnce(ContainerId, tokio::sync::oneshot::Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let (container, entry): (_, Entry) = self.shared.index.container(id).await?;
        let answer = entry.owner.ask(|answer| command(container.id.clone(), answer)).await;
        answer.unwrap_or_else(|| Err(Refusal::not_found("container", id).into()))
    }
}

fn absent_is_none<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Refused(Refusal::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}
