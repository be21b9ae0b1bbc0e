//! Images: `pull`, `images`, `rmi`.

use std::io;
use std::path::Path;

use coracle_cri::v1;
use coracle_domain::{During, Failure, Refusal};

use super::connect::{Client, image_spec};
use super::error::{Error, Result};
use super::render::table::Table;
use super::render::units::{UNKNOWN, short, size};
use super::resolve::Catalogue;
use super::values::Credentials;
use super::{Tally, print_json, print_line, progress};
use crate::cli::{Output, PullArgs};

/// Fetches an image and prints its id and size.
pub(crate) async fn pull(client: &Client, args: &PullArgs, output: Output) -> Result<()> {
    let credentials = match (&args.credentials_file, &args.creds) {
        (Some(path), _) => Some(read_credentials(path)?),
        (None, Some(secret)) => Some(Credentials::parse(&secret.0).map_err(|problem| Error::Usage(format!("--creds is {problem}")))?),
        (None, None) => None,
    };
    let id = fetch(client, &args.image, credentials).await?;
    let answer = client.image_status(&id, false).await?;
    match output {
        Output::Json => print_json(&answer),
        Output::Table => {
            let size = answer.image.map_or(UNKNOWN.into(), |image| size(image.size));
            print_line(&format!("{id}  {size}"))
        }
    }
}

/// Fetches an image, showing progress, and answers with its id.
pub(crate) async fn fetch(client: &Client, image: &str, credentials: Option<Credentials>) -> Result<String> {
    let auth = credentials.map(|Credentials { user, password }| v1::AuthConfig { username: user, password, ..Default::default() });
    let request = v1::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: None };
    let mut images = client.images.clone();
    let work = async { Ok(images.pull_image(request).await?.into_inner().image_ref) };
    progress::during(client, image, work).await
}

/// The first line of a file.
fn read_credentials(path: &Path) -> Result<Credentials> {
    const STAGE: &str = "reading the credentials in";
    let text = std::fs::read_to_string(path).during(STAGE, path.display())?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Credentials::parse(line).map_err(|problem| Failure::new(STAGE, path.display(), format!("its first line is {problem}")))?)
}

/// Prints the images, a row for each name.
pub(crate) async fn list(client: &Client, output: Output) -> Result<()> {
    let answer = client.list_images().await?;
    if output == Output::Json {
        return print_json(&answer);
    }
    let mut rows: Vec<_> = answer.images.iter().flat_map(rows).collect();
    rows.sort();
    let mut table = Table::new(["IMAGE", "TAG", "ID", "SIZE"]);
    rows.into_iter().for_each(|row| table.row(row));
    Ok(table.write(&mut io::stdout().lock())?)
}

/// A row for each tag; of an image without tags, one for each digest, or one at least.
fn rows(image: &v1::Image) -> Vec<[String; 4]> {
    let row = |name: &str, tag: &str| [name.into(), tag.into(), short(&image.id).into(), size(image.size)];
    let tags = image.repo_tags.iter().map(|name| split_tag(name)).map(|(name, tag)| row(name, tag));
    let digests = image.repo_digests.iter().map(|name| row(name.split('@').next().unwrap_or(name), UNKNOWN));
    let rows: Vec<_> = if image.repo_tags.is_empty() { digests.collect() } else { tags.collect() };
    if rows.is_empty() { vec![row(UNKNOWN, UNKNOWN)] } else { rows }
}

/// A reference's name and tag. A colon before a slash belongs to a port.
fn split_tag(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, UNKNOWN),
    }
}

/// Removes images.
pub(crate) async fn remove(client: &Client, names: &[String], output: Output) -> Result<()> {
    let mut tally = Tally::new(output);
    for name in names {
        tally.note(name, remove_one(client, name).await);
    }
    tally.outcome()
}

async fn remove_one(client: &Client, name: &str) -> Result<()> {
    let catalogue = Catalogue::images(client, name).await?;
    let id = &catalogue.resolve(name)?.id;
    client.images.clone().remove_image(v1::RemoveImageRequest { image: Some(image_spec(id)) }).await?;
    Ok(())
}

/// The id of an image on the node, pulled if it is missing and that is allowed.
pub(crate) async fn ensure(client: &Client, name: &str, pull: bool) -> Result<String> {
    match client.image_status(name, false).await?.image {
        Some(image) => Ok(image.id),
        None if pull => fetch(client, name, None).await,
        None => Err(Refusal::not_found("image", name).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(split_tag("localhost:5000/a/b"), ("localhost:5000/a/b", "-"));
        assert_eq!(split_tag("localhost:5000/a/b:1"), ("localhost:5000/a/b", "1"));
    }

    #[test]
    fn every_image_has_a_row() {
        let image = |tags: &[&str], digests: &[&str]| v1::Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 1500,
            ..Default::default()
        };
        let names = |image| rows(&image).into_iter().map(|[name, tag, _, _]| format!("{name} {tag}")).collect::<Vec<_>>();
        assert_eq!(names(image(&["r/a:1", "r/a:2"], &["r/a@sha256:0"])), ["r/a 1", "r/a 2"]);
        assert_eq!(names(image(&[], &["r/a@sha256:0"])), ["r/a -"]);
        assert_eq!(names(image(&[], &[])), ["- -"]);
    }

    #[test]
    fn credentials_are_the_first_line_and_never_in_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("creds");
        std::fs::write(&path, "ann:hunter2\nmore\n").unwrap();
        assert_eq!(read_credentials(&path).unwrap().password, "hunter2");
        std::fs::write(&path, "hunter2\n").unwrap();
        assert!(!read_credentials(&path).unwrap_err().to_string().contains("hunter2"));
    }
}
