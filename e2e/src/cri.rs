//! A CRI client over a unix socket, with the generated types of `k8s-cri`.
//!
//! Each method is one call and returns what the server said. What is more than that is in [`crate::Pod`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// The largest message: what kubelet's client allows.
const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;
/// How long a call may take: kubelet's longest deadline.
const CALL_LIMIT: Duration = Duration::from_secs(240);

/// A connection to a CRI server. It connects when it is used, and again when the server was restarted.
#[derive(Debug, Clone)]
pub struct Cri {
    socket: PathBuf,
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    /// A client of the server at `socket`. Must be called within a tokio runtime.
    pub fn new(socket: &Path) -> Self {
        let path = socket.to_owned();
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_LIMIT);
        let channel = endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
        Self {
            socket: socket.to_owned(),
            channel: channel.clone(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        }
    }

    /// The server's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The RuntimeService, for calls that have no method here.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// The ImageService, for calls that have no method here.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// A call of RuntimeService with messages as they are on the wire: see [`crate::wire`].
    pub async fn raw(&self, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/runtime.v1.RuntimeService/{method}").parse().map_err(|_| Status::invalid_argument("a method's name"))?;
        Ok(client.unary(tonic::Request::new(message), path, crate::wire::Plain).await?.into_inner())
    }

    /// Version.
    pub async fn version(&self) -> Result<api::VersionResponse, Status> {
        let request = api::VersionRequest { version: String::from("v1") };
        Ok(self.runtime().version(request).await?.into_inner())
    }

    /// UpdateRuntimeConfig, with addresses for pods.
    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<(), Status> {
        let network = api::NetworkConfig { pod_cidr: cidr.to_owned() };
        let config = api::RuntimeConfig { network_config: Some(network) };
        self.runtime().update_runtime_config(api::UpdateRuntimeConfigRequest { runtime_config: Some(config) }).await.map(drop)
    }

    /// RunPodSandbox; the pod's id.
    pub async fn run_pod(&self, config: &api::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, pod: &str) -> Result<api::PodSandboxStatusResponse, Status> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        Ok(self.runtime().pod_sandbox_status(request).await?.into_inner())
    }

    /// ListPodSandbox.
    pub async fn pods(&self, filter: Option<api::PodSandboxFilter>) -> Result<Vec<api::PodSandbox>, Status> {
        let request = api::ListPodSandboxRequest { filter };
        Ok(self.runtime().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// CreateContainer; the container's id.
    pub async fn create(&self, pod: &str, sandbox: &api::PodSandboxConfig, config: &api::ContainerConfig) -> Result<String, Status> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start(&self, container: &str) -> Result<(), Status> {
        let request = api::StartContainerRequest { container_id: container.to_owned() };
        self.runtime().start_container(request).await.map(drop)
    }

    /// StopContainer, with the grace period in seconds.
    pub async fn stop(&self, container: &str, timeout: i64) -> Result<(), Status> {
        let request = api::StopContainerRequest { container_id: container.to_owned(), timeout };
        self.runtime().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&self, container: &str) -> Result<(), Status> {
        let request = api::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime().remove_container(request).await.map(drop)
    }

    /// ContainerStatus.
    pub async fn status(&self, container: &str) -> Result<api::ContainerStatus, Status> {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("ContainerStatus answered without a status"))
    }

    /// ListContainers.
    pub async fn containers(&self, filter: Option<api::ContainerFilter>) -> Result<Vec<api::Container>, Status> {
        let request = api::ListContainersRequest { filter };
        Ok(self.runtime().list_containers(request).await?.into_inner().containers)
    }

    /// ExecSync, with a time limit in seconds (0: none).
    pub async fn exec(&self, container: &str, command: &[&str], timeout: i64) -> Result<api::ExecSyncResponse, Status> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = api::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    /// ContainerStats.
    pub async fn container_stats(&self, container: &str) -> Result<api::ContainerStats, Status> {
        let request = api::ContainerStatsRequest { container_id: container.to_owned() };
        let answer = self.runtime().container_stats(request).await?.into_inner();
        answer.stats.ok_or_else(|| Status::internal("ContainerStats answered without stats"))
    }

    /// ListContainerStats.
    pub async fn all_container_stats(&self, filter: Option<api::ContainerStatsFilter>) -> Result<Vec<api::ContainerStats>, Status> {
        let request = api::ListContainerStatsRequest { filter };
        Ok(self.runtime().list_container_stats(request).await?.into_inner().stats)
    }

    /// ListPodSandboxStats.
    pub async fn all_pod_stats(&self, filter: Option<api::PodSandboxStatsFilter>) -> Result<Vec<api::PodSandboxStats>, Status> {
        let request = api::ListPodSandboxStatsRequest { filter };
        Ok(self.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats)
    }

    /// ListMetricDescriptors.
    pub async fn metric_descriptors(&self) -> Result<Vec<api::MetricDescriptor>, Status> {
        Ok(self.runtime().list_metric_descriptors(api::ListMetricDescriptorsRequest {}).await?.into_inner().descriptors)
    }

    /// ListPodSandboxMetrics.
    pub async fn pod_metrics(&self) -> Result<Vec<api::PodSandboxMetrics>, Status> {
        Ok(self.runtime().list_pod_sandbox_metrics(api::ListPodSandboxMetricsRequest {}).await?.into_inner().pod_metrics)
    }

    /// PullImage; the image's id.
    pub async fn pull(&self, reference: &str, auth: Option<api::AuthConfig>) -> Result<String, Status> {
        let request = api::PullImageRequest { image: Some(image_spec(reference)), auth, sandbox_config: None };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }

    /// ImageStatus; `None` where there is no such image.
    pub async fn image(&self, reference: &str) -> Result<Option<api::Image>, Status> {
        let request = api::ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.images().image_status(request).await?.into_inner().image)
    }

    /// ListImages.
    pub async fn all_images(&self, filter: Option<api::ImageFilter>) -> Result<Vec<api::Image>, Status> {
        let request = api::ListImagesRequest { filter };
        Ok(self.images().list_images(request).await?.into_inner().images)
    }

    /// RemoveImage.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        let request = api::RemoveImageRequest { image: Some(image_spec(reference)) };
        self.images().remove_image(request).await.map(drop)
    }
}

/// An image as a request names it.
pub fn image_spec(reference: &str) -> api::ImageSpec {
    api::ImageSpec { image: reference.to_owned(), ..Default::default() }
}
