//! `RuntimeService`: all its calls, one after the other in the order of the contract.

use std::sync::Arc;

use coracle_engine::Engine;
use coracle_streaming::Urls;
use tonic::Request;

use super::call::{Answer, Call, unbuilt};
use super::stream::{Batches, batches};
use super::{containers, node, pods, sessions};
use crate::v1::runtime_service_server::RuntimeService;
use crate::{metrics, v1};

/// The service over an engine, with a server of streaming sessions beside it.
#[derive(Debug)]
pub(crate) struct Runtime {
    engine: Arc<Engine>,
    urls: Urls,
}

impl Runtime {
    pub(crate) fn new(engine: Arc<Engine>, urls: Urls) -> Self {
        Self { engine, urls }
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Call::of("Version", "").read(Ok(node::version()))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let call = Call::of("RunPodSandbox", pods::name(&request));
        call.made(pods::run(&self.engine, &request).await, |pod_sandbox_id| v1::RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(&self, request: Request<v1::StopPodSandboxRequest>) -> Answer<v1::StopPodSandboxResponse> {
        let request = request.into_inner();
        Call::of("StopPodSandbox", &request.pod_sandbox_id).changed(pods::stop(&self.engine, &request).await)
    }

    async fn remove_pod_sandbox(&self, request: Request<v1::RemovePodSandboxRequest>) -> Answer<v1::RemovePodSandboxResponse> {
        let request = request.into_inner();
        Call::of("RemovePodSandbox", &request.pod_sandbox_id).changed(pods::remove(&self.engine, &request).await)
    }

    async fn pod_sandbox_status(&self, request: Request<v1::PodSandboxStatusRequest>) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        Call::of("PodSandboxStatus", &request.pod_sandbox_id).read(pods::status(&self.engine, &request).await)
    }

    async fn list_pod_sandbox(&self, request: Request<v1::ListPodSandboxRequest>) -> Answer<v1::ListPodSandboxResponse> {
        let items = pods::list(&self.engine, request.into_inner().filter).await;
        Call::of("ListPodSandbox", "").read(items.map(|items| v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Batches<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(&self, request: Request<v1::StreamPodSandboxesRequest>) -> Answer<Self::StreamPodSandboxesStream> {
        let items = pods::list(&self.engine, request.into_inner().filter).await;
        let response = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        Call::of("StreamPodSandboxes", "").read(items.map(|items| batches(items, response)))
    }

    async fn create_container(&self, request: Request<v1::CreateContainerRequest>) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let call = Call::of("CreateContainer", containers::name(&request));
        call.made(containers::create(&self.engine, &request).await, |container_id| v1::CreateContainerResponse { container_id })
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let request = request.into_inner();
        Call::of("StartContainer", &request.container_id).changed(containers::start(&self.engine, &request).await)
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        Call::of("StopContainer", &request.container_id).changed(containers::stop(&self.engine, &request).await)
    }

    async fn remove_container(&self, request: Request<v1::RemoveContainerRequest>) -> Answer<v1::RemoveContainerResponse> {
        let request = request.into_inner();
        Call::of("RemoveContainer", &request.container_id).changed(containers::remove(&self.engine, &request).await)
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let items = containers::list(&self.engine, request.into_inner().filter).await;
        Call::of("ListContainers", "").read(items.map(|containers| v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Batches<v1::StreamContainersResponse>;

    async fn stream_containers(&self, request: Request<v1::StreamContainersRequest>) -> Answer<Self::StreamContainersStream> {
        let items = containers::list(&self.engine, request.into_inner().filter).await;
        let response = |containers| v1::StreamContainersResponse { containers };
        Call::of("StreamContainers", "").read(items.map(|items| batches(items, response)))
    }

    async fn container_status(&self, request: Request<v1::ContainerStatusRequest>) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        Call::of("ContainerStatus", &request.container_id).read(containers::status(&self.engine, &request).await)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        Call::of("UpdateContainerResources", &request.container_id).changed(containers::update(&self.engine, &request).await)
    }

    async fn reopen_container_log(&self, request: Request<v1::ReopenContainerLogRequest>) -> Answer<v1::ReopenContainerLogResponse> {
        let request = request.into_inner();
        Call::of("ReopenContainerLog", &request.container_id).changed(containers::reopen_log(&self.engine, &request).await)
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        Call::of("ExecSync", &request.container_id).read(containers::exec_sync(&self.engine, &request).await)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        Call::of("Exec", &request.container_id).read(sessions::exec(&self.engine, &self.urls, &request).await)
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        Call::of("Attach", &request.container_id).read(sessions::attach(&self.engine, &self.urls, &request).await)
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        Call::of("PortForward", &request.pod_sandbox_id).read(sessions::port_forward(&self.engine, &self.urls, &request).await)
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let request = request.into_inner();
        Call::of("ContainerStats", &request.container_id).read(containers::stats(&self.engine, &request).await)
    }

    async fn list_container_stats(&self, request: Request<v1::ListContainerStatsRequest>) -> Answer<v1::ListContainerStatsResponse> {
        let samples = containers::list_stats(&self.engine, request.into_inner().filter).await;
        Call::of("ListContainerStats", "").read(samples.map(|stats| v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Batches<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(&self, request: Request<v1::StreamContainerStatsRequest>) -> Answer<Self::StreamContainerStatsStream> {
        let samples = containers::list_stats(&self.engine, request.into_inner().filter).await;
        let response = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        Call::of("StreamContainerStats", "").read(samples.map(|samples| batches(samples, response)))
    }

    async fn pod_sandbox_stats(&self, request: Request<v1::PodSandboxStatsRequest>) -> Answer<v1::PodSandboxStatsResponse> {
        let request = request.into_inner();
        Call::of("PodSandboxStats", &request.pod_sandbox_id).read(pods::stats(&self.engine, &request).await)
    }

    async fn list_pod_sandbox_stats(&self, request: Request<v1::ListPodSandboxStatsRequest>) -> Answer<v1::ListPodSandboxStatsResponse> {
        let samples = pods::list_stats(&self.engine, request.into_inner().filter).await;
        Call::of("ListPodSandboxStats", "").read(samples.map(|stats| v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Batches<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let samples = pods::list_stats(&self.engine, request.into_inner().filter).await;
        let response = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Call::of("StreamPodSandboxStats", "").read(samples.map(|samples| batches(samples, response)))
    }

    async fn update_runtime_config(&self, request: Request<v1::UpdateRuntimeConfigRequest>) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let request = request.into_inner();
        Call::of("UpdateRuntimeConfig", node::pod_cidr(&request)).changed(node::update_config(&self.engine, &request).await)
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        Call::of("Status", "").read(Ok(node::status(&self.engine, request.get_ref()).await))
    }

    async fn checkpoint_container(&self, _: Request<v1::CheckpointContainerRequest>) -> Answer<v1::CheckpointContainerResponse> {
        unbuilt("CheckpointContainer")
    }

    async fn checkpoint_pod(&self, _: Request<v1::CheckpointPodRequest>) -> Answer<v1::CheckpointPodResponse> {
        unbuilt("CheckpointPod")
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Answer<v1::RestorePodResponse> {
        unbuilt("RestorePod")
    }

    type GetContainerEventsStream = Batches<v1::ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        unbuilt("GetContainerEvents")
    }

    async fn list_metric_descriptors(&self, _: Request<v1::ListMetricDescriptorsRequest>) -> Answer<v1::ListMetricDescriptorsResponse> {
        Call::of("ListMetricDescriptors", "").read(Ok(v1::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(&self, _: Request<v1::ListPodSandboxMetricsRequest>) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = pods::list_metrics(&self.engine).await;
        Call::of("ListPodSandboxMetrics", "").read(Ok(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Batches<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let pods = pods::list_metrics(&self.engine).await;
        let response = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Call::of("StreamPodSandboxMetrics", "").read(Ok(batches(pods, response)))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        Call::of("RuntimeConfig", "").read(Ok(node::runtime_config(&self.engine).await))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        Call::of("UpdatePodSandboxResources", &request.pod_sandbox_id).changed(pods::resize(&self.engine, &request).await)
    }
}
