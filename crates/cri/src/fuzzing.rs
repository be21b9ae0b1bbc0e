//! Doors for the fuzz targets into what is private here. Built for them only.

use coracle_domain::{ContainerRequest, PodRequest};
use prost::Message;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};

use crate::{container, deadline, filter, image, pod, resources, v1};

/// What a request asks for.
#[derive(Debug)]
pub enum Asked {
    /// A pod.
    Pod(Box<PodRequest>),
    /// A container in a pod.
    Container(Box<PodRequest>, Box<ContainerRequest>),
}

/// A request of the kind that `kind` stands for, as it comes off the wire; what it asks for, if it makes sense.
pub fn request(kind: u8, bytes: &[u8]) -> Option<Asked> {
    match kind {
        0 => {
            let request = pod::parse(&v1::RunPodSandboxRequest::decode(bytes).ok()?).ok()?;
            let _ = crate::namespaces::message(&request);
            return Some(Asked::Pod(Box::new(request)));
        }
        1 => {
            let mut message = v1::CreateContainerRequest::decode(bytes).ok()?;
            let config = message.sandbox_config.take();
            let pod = pod::parse(&v1::RunPodSandboxRequest { config, ..Default::default() }).ok()?;
            let container = container::parse(&message).ok()?;
            container::fits(&message, &container, &pod).ok()?;
            return Some(Asked::Container(Box::new(pod), Box::new(container)));
        }
        2 => {
            let message = v1::LinuxContainerResources::decode(bytes).ok()?;
            let resources = resources::parse("linux", &message).ok()?;
            // What is told can be asked for again.
            assert_eq!(resources::parse("linux", &resources::message(&resources)).as_ref(), Ok(&resources));
        }
        3 => drop(pod::parse_resize(&v1::UpdatePodSandboxResourcesRequest::decode(bytes).ok()?)),
        4 => {
            let message = v1::PullImageRequest::decode(bytes).ok()?;
            let name = image::name(message.image.as_ref()).ok()?.to_owned();
            let _ = image::credentials(message.auth, &name);
        }
        5 => drop(filter::PodFilter::parse(v1::ListPodSandboxRequest::decode(bytes).ok()?.filter)),
        6 => drop(filter::ContainerFilter::parse(v1::ListContainersRequest::decode(bytes).ok()?.filter)),
        _ => {
            let headers: HeaderMap =
                HeaderValue::from_bytes(bytes).map(|value| (HeaderName::from_static("grpc-timeout"), value)).into_iter().collect();
            let _ = deadline::limit(&headers);
        }
    }
    None
}
