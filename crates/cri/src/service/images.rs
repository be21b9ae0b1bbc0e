//! `ImageService`: all its calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_domain::{During, ImageId, Refusal, Result};
use coracle_engine::Engine;
use coracle_image::{Image, PullRequest, Reference, Store};
use tonic::Request;

use super::call::{Answer, Call};
use super::stream::{Batches, batches};
use crate::v1::image_service_server::ImageService;
use crate::{image, stats, v1};

/// The service over an engine's images.
#[derive(Debug)]
pub(crate) struct Images {
    engine: Arc<Engine>,
}

impl Images {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn store(&self) -> &Arc<Store> {
        self.engine.images()
    }

    /// All images, or the one that the filter names.
    fn list(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let name = filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let images = if name.is_empty() { self.store().list() } else { self.store().find(&name).into_iter().collect() };
        images.iter().map(|found| image::item(found)).collect()
    }

    fn status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse> {
        let name = image::name(request.image.as_ref())?;
        let Some(found) = self.store().find(name) else {
            return Ok(v1::ImageStatusResponse::default());
        };
        let info = if request.verbose { info(&found)? } else { BTreeMap::new() };
        Ok(v1::ImageStatusResponse { image: Some(image::item(&found)), info })
    }

    async fn pull(&self, request: v1::PullImageRequest) -> Result<ImageId> {
        let reference = image::name(request.image.as_ref())?.to_owned();
        let name: Reference = reference.parse().map_err(|problem| Refusal::invalid("image.image", format!("{reference:?}: {problem}")))?;
        self.check_handler(request.image.as_ref()).await?;
        let credentials = image::credentials(request.auth, name.registry())?;
        self.store().pull(PullRequest { reference, credentials }).await
    }

    /// An image can be asked for on behalf of a handler, which then must be there.
    async fn check_handler(&self, spec: Option<&v1::ImageSpec>) -> Result<()> {
        let name = spec.map(|spec| spec.runtime_handler.as_str()).unwrap_or_default();
        if name.is_empty() || self.engine.status().await.handlers.iter().any(|handler| handler.name == name) {
            return Ok(());
        }
        Err(Refusal::invalid("image.runtime_handler", format!("there is no handler {name:?}")).into())
    }

    async fn remove(&self, request: &v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse> {
        self.store().remove(image::name(request.image.as_ref())?).await?;
        Ok(v1::RemoveImageResponse {})
    }

    fn file_systems(&self) -> v1::ImageFsInfoResponse {
        v1::ImageFsInfoResponse {
            image_filesystems: vec![stats::filesystem(&self.store().usage())],
            container_filesystems: vec![stats::filesystem(&self.store().container_usage())],
        }
    }
}

/// What a verbose caller is told: the image's configuration.
fn info(image: &Image) -> Result<BTreeMap<String, String>> {
    let config = serde_json::to_value(&image.config).during("writing the configuration of", image.id.as_str())?;
    let info = serde_json::json!({ "imageSpec": config });
    Ok(BTreeMap::from([("info".to_owned(), info.to_string())]))
}

/// How the log names an image.
fn subject(spec: Option<&v1::ImageSpec>) -> String {
    spec.map(|spec| spec.image.clone()).unwrap_or_default()
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let images = self.list(request.into_inner().filter);
        Call::of("ListImages", "").read(Ok(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = Batches<v1::StreamImagesResponse>;

    async fn stream_images(&self, request: Request<v1::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.list(request.into_inner().filter);
        Call::of("StreamImages", "").read(Ok(batches(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        Call::of("ImageStatus", subject(request.image.as_ref())).read(self.status(request))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let call = Call::of("PullImage", subject(request.image.as_ref()));
        call.made(self.pull(request).await.map(String::from), |image_ref| v1::PullImageResponse { image_ref })
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        let request = request.into_inner();
        Call::of("RemoveImage", subject(request.image.as_ref())).changed(self.remove(&request).await)
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        Call::of("ImageFsInfo", "").read(Ok(self.file_systems()))
    }
}
