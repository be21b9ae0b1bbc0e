//! The way to a CRI endpoint: gRPC over a unix socket, to whichever runtime listens there.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use coracle_cri::v1;
use coracle_cri::v1::image_service_client::ImageServiceClient;
use coracle_cri::v1::runtime_service_client::RuntimeServiceClient;
use coracle_domain::Failure;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::error::{Error, Result};

/// Two streams of ExecSync at their cap of 16 MiB each, and room for the rest of the message.
const LARGEST_ANSWER: usize = 40 << 20;

/// A connection to both services of an endpoint. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects. A socket that is missing or refuses is an error here, not at the first call.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self> {
        let path = socket_path(endpoint)?;
        let target = path.clone();
        let connector = tower::service_fn(move |_| {
            let target = target.clone();
            async move { UnixStream::connect(target).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(|error| unreachable(&path, error))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER),
            images: ImageServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER),
        })
    }
}

/// The questions that more than one command asks.
impl Client {
    /// All pods.
    pub(crate) async fn pods(&self) -> Result<v1::ListPodSandboxResponse> {
        Ok(self.runtime.clone().list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner())
    }

    /// All containers.
    pub(crate) async fn containers(&self) -> Result<v1::ListContainersResponse> {
        Ok(self.runtime.clone().list_containers(v1::ListContainersRequest::default()).await?.into_inner())
    }

    /// All images.
    pub(crate) async fn list_images(&self) -> Result<v1::ListImagesResponse> {
        Ok(self.images.clone().list_images(v1::ListImagesRequest::default()).await?.into_inner())
    }

    /// A container's status, with the runtime's own additions if it is `verbose`.
    pub(crate) async fn container_status(&self, id: &str, verbose: bool) -> Result<v1::ContainerStatusResponse> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose };
        Ok(self.runtime.clone().container_status(request).await?.into_inner())
    }

    /// A pod's status, likewise.
    pub(crate) async fn pod_status(&self, id: &str, verbose: bool) -> Result<v1::PodSandboxStatusResponse> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose };
        Ok(self.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    /// An image's status, likewise; a missing image is an answer without one.
    pub(crate) async fn image_status(&self, name: &str, verbose: bool) -> Result<v1::ImageStatusResponse> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(name)), verbose };
        Ok(self.images.clone().image_status(request).await?.into_inner())
    }
}

/// An image by name or id.
pub(crate) fn image_spec(name: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: name.into(), ..Default::default() }
}

/// The path of `unix:///path`, `unix:path` or a bare path.
fn socket_path(endpoint: &str) -> Result<PathBuf> {
    let path = match endpoint.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        _ => endpoint,
    };
    if path.is_empty() || path.contains("://") {
        return Err(Error::Usage(format!("the endpoint {endpoint:?} is neither unix:///PATH nor a path")));
    }
    Ok(path.into())
}

fn unreachable(path: &Path, error: tonic::transport::Error) -> Failure {
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(found) = source.downcast_ref::<io::Error>() {
            return hinted(path, found);
        }
        cause = source.source();
    }
    Failure::new("connecting to", path.display(), error)
}

fn hinted(path: &Path, error: &io::Error) -> Failure {
    let cause = match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    };
    let failure = Failure::new("connecting to", path.display(), cause);
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint("start the daemon with `coracle serve`, or name another socket by --endpoint"),
        io::ErrorKind::ConnectionRefused => failure.hint("nobody serves it any more: start the daemon with `coracle serve`"),
        io::ErrorKind::PermissionDenied => failure.hint("the socket belongs to root"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_path_with_or_without_its_scheme() {
        for text in ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"] {
            assert_eq!(socket_path(text).unwrap(), Path::new("/run/x.sock"), "{text}");
        }
        assert_eq!(socket_path("x.sock").unwrap(), Path::new("x.sock"));
        for text in ["", "unix://", "tcp://127.0.0.1:1", "http://x"] {
            assert_eq!(socket_path(text).unwrap_err().status(), 2, "{text}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.sock");
        let error = Client::connect(path.to_str().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("coracle serve"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_told_from_a_missing_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::connect(path.to_str().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("nobody serves"), "{error}");
    }
}
