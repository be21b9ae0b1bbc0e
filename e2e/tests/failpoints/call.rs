//! The calls that are interrupted: what each needs beforehand, and the call itself.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use coracle_e2e::api::{NamespaceMode, Protocol, ReopenContainerLogRequest, UpdateContainerResourcesRequest};
use coracle_e2e::{Container, ContainerSpec, Pod, PodSpec, Status, api};

use crate::stage::Stage;

/// A kind of pod: between them they have something of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A network of its own, ports of the node, a kernel parameter, cgroups where the daemon wants them.
    Own,
    /// The node's network, process ids shared in the pod, cgroups under a kubelet's.
    Host,
    /// Users of its own, process ids shared: other ways to its namespaces and into its containers.
    Users,
}

/// A call that is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    PullImage,
    UpdateRuntimeConfig,
    RunPodSandbox(Kind),
    CreateContainer(Kind),
    StartContainer(Kind),
    ExecSync,
    UpdateContainerResources,
    ReopenContainerLog,
    StopContainer(Kind),
    RemoveContainer(Kind),
    StopPodSandbox(Kind),
    RemovePodSandbox(Kind),
    RemoveImage,
    /// No call: the daemon's own start, with a pod that runs and one that was being made.
    Restart,
}

/// What a call needs, and what it is about.
pub(crate) struct Scene {
    /// The subnet to be given.
    pub(crate) subnet: u8,
    pub(crate) spec: PodSpec,
    pub(crate) pod: Option<Pod>,
    pub(crate) to_be: ContainerSpec,
    pub(crate) container: Option<Container>,
    /// The container's processes before the call.
    pub(crate) processes: Vec<i32>,
}

pub(crate) type Answer = Result<String, Status>;
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The limit that UpdateContainerResources sets, bytes.
pub(crate) const NEW_LIMIT: i64 = 48 << 20;
/// The prefix length of the subnets that UpdateRuntimeConfig gives.
const SUBNET_PREFIX: u8 = 26;
/// Ends with 3 when it is asked to.
const POLITE: &str = "trap 'exit 3' TERM; sleep 100000 & echo ready; wait";

impl Call {
    /// All of them, in the order of a pod's life. Where there are `users`, pods can have user namespaces.
    pub(crate) fn all(users: bool) -> Vec<Self> {
        let kinds: &[Kind] = if users { &[Kind::Own, Kind::Host, Kind::Users] } else { &[Kind::Own, Kind::Host] };
        let mut all = vec![Self::PullImage, Self::UpdateRuntimeConfig];
        for &kind in kinds {
            all.extend([Self::RunPodSandbox(kind), Self::CreateContainer(kind), Self::StartContainer(kind)]);
        }
        all.extend([Self::ExecSync, Self::UpdateContainerResources, Self::ReopenContainerLog]);
        for &kind in kinds {
            all.extend([Self::StopContainer(kind), Self::RemoveContainer(kind)]);
            all.extend([Self::StopPodSandbox(kind), Self::RemovePodSandbox(kind)]);
        }
        all.extend([Self::RemoveImage, Self::Restart]);
        all
    }

    fn kind(self) -> Kind {
        match self {
            Self::RunPodSandbox(kind) | Self::CreateContainer(kind) | Self::StartContainer(kind) => kind,
            Self::StopContainer(kind) | Self::RemoveContainer(kind) => kind,
            Self::StopPodSandbox(kind) | Self::RemovePodSandbox(kind) => kind,
            _ => Kind::Own,
        }
    }

    fn needs_pod(self) -> bool {
        !matches!(self, Self::PullImage | Self::RemoveImage | Self::UpdateRuntimeConfig | Self::RunPodSandbox(_))
    }

    fn needs_container(self) -> bool {
        self.needs_pod() && !matches!(self, Self::CreateContainer(_))
    }

    /// Makes what the call needs.
    pub(crate) async fn prepare(self, stage: &mut Stage) -> Scene {
        if self == Self::RemoveImage {
            stage.node.cri.pull(&stage.small.reference, None).await.unwrap_or_else(|status| panic!("PullImage: {status}"));
        }
        let spec = pod_spec(stage, self.kind());
        let to_be = container_spec(stage, self);
        let mut scene = Scene { subnet: stage.other_subnet(), spec, pod: None, to_be, container: None, processes: Vec::new() };
        if self.needs_pod() {
            scene.pod = Some(stage.node.run(&scene.spec).await);
        }
        if let (Some(pod), true) = (&scene.pod, self.needs_container()) {
            let container = pod.create(&scene.to_be).await;
            if !matches!(self, Self::StartContainer(_)) {
                container.start().await;
                container.logged("ready").await;
                scene.processes = container.host_pids();
            }
            scene.container = Some(container);
        }
        if let (Self::ReopenContainerLog, Some(container)) = (self, &scene.container) {
            std::fs::rename(&container.log, container.log.with_extension("old")).expect("moving the log");
        }
        scene
    }

    /// The call.
    pub(crate) fn make(self, stage: &Stage, scene: &Scene) -> Pending {
        let cri = stage.node.cri.clone();
        let pod = scene.pod.as_ref().map(|pod| pod.id.clone()).unwrap_or_default();
        let container = scene.container.as_ref().map(|container| container.id.clone()).unwrap_or_default();
        let (handler, image) = (stage.node.target.handler.clone(), stage.small.reference.clone());
        let cidr = stage.node.part_of_subnet(scene.subnet, SUBNET_PREFIX);
        let (sandbox, to_be) = (stage.node.complete(&scene.spec).config, scene.to_be.config.clone());
        Box::pin(async move {
            let done = match self {
                Self::PullImage => return cri.pull(&image, None).await,
                Self::UpdateRuntimeConfig => cri.set_pod_cidr(&cidr).await,
                Self::RunPodSandbox(_) => return cri.run_pod(&sandbox, &handler).await,
                Self::CreateContainer(_) => return cri.create(&pod, &sandbox, &to_be).await,
                Self::StartContainer(_) => cri.start(&container).await,
                Self::ExecSync => {
                    // By a process of its own; by one that is made to wait for more; by the one that waits.
                    for _ in 0..2 {
                        cri.exec(&container, &["/bin/true"], 0).await?;
                    }
                    cri.exec(&container, &["/bin/true"], 0).await.map(drop)
                }
                Self::UpdateContainerResources => {
                    let linux = api::LinuxContainerResources { memory_limit_in_bytes: NEW_LIMIT, ..Default::default() };
                    let request = UpdateContainerResourcesRequest { container_id: container, linux: Some(linux), ..Default::default() };
                    cri.runtime().update_container_resources(request).await.map(drop)
                }
                Self::ReopenContainerLog => {
                    cri.runtime().reopen_container_log(ReopenContainerLogRequest { container_id: container }).await.map(drop)
                }
                Self::StopContainer(_) => cri.stop(&container, 100).await,
                Self::RemoveContainer(_) => cri.remove(&container).await,
                Self::StopPodSandbox(_) => cri.stop_pod(&pod).await,
                Self::RemovePodSandbox(_) => cri.remove_pod(&pod).await,
                Self::RemoveImage => cri.remove_image(&image).await,
                Self::Restart => {
                    while cri.version().await.is_err() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Ok(())
                }
            };
            done.map(|()| String::new())
        })
    }
}

fn pod_spec(stage: &mut Stage, kind: Kind) -> PodSpec {
    let spec = PodSpec::new(&stage.new_name("pod"));
    match kind {
        Kind::Own => {
            spec.host_port(Protocol::Tcp, "", stage.port, 80).host_port(Protocol::Udp, "127.0.0.1", stage.port, 53).with(|config| {
                let linux = config.linux.get_or_insert_default();
                linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "1000".to_owned());
            })
        }
        Kind::Users => spec.users(1_310_720, 65_536).pid_mode(NamespaceMode::Pod),
        Kind::Host => {
            let spec = spec.host_network().pid_mode(NamespaceMode::Pod);
            let parent = stage.kubelets_parent();
            spec.with(|config| config.linux.get_or_insert_default().cgroup_parent = parent)
        }
    }
}

fn container_spec(stage: &mut Stage, call: Call) -> ContainerSpec {
    let volume = stage.node.scratch().join("volumes").join(stage.new_name("volume"));
    let spec = ContainerSpec::new("main", &stage.image).mount(&volume.to_string_lossy(), "/volume", false).resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_shares = 512;
    });
    let spec = if call.kind() == Kind::Own { spec } else { spec.pid_mode(NamespaceMode::Pod) };
    spec.script(POLITE)
}
