//! `inspect`: all that the runtime tells of one container, pod or image.

use std::io;

use super::connect::Client;
use super::error::Result;
use super::render::json;
use super::resolve::{Catalogue, Kind};

/// Prints the status and the runtime's own additions to it, as JSON.
pub(crate) async fn inspect(client: &Client, name: &str) -> Result<()> {
    let catalogue = Catalogue::everything(client, name).await?;
    let subject = catalogue.resolve(name)?;
    let value = match subject.kind {
        Kind::Container => json::with_info(&client.container_status(&subject.id, true).await?)?,
        Kind::Pod => json::with_info(&client.pod_status(&subject.id, true).await?)?,
        Kind::Image => json::with_info(&client.image_status(&subject.id, true).await?)?,
    };
    json::write(&mut io::stdout().lock(), &value)
}
