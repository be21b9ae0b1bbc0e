//! One repository on the endpoints that may have it: mirrors first, the registry itself last.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};

use super::auth::{Credentials, authorize};
use super::challenge;
use super::client::{Client, read_bounded};
use super::config::Endpoint;
use super::error::{Cause, RegistryError};
use crate::manifest::{MANIFEST_LIMIT, MANIFEST_TYPES};
use crate::{Digest, Reference, Target};

const REDIRECT_LIMIT: usize = 10;

/// A manifest or an index, compared with its digest.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// As it was served, byte by byte.
    pub(crate) bytes: Vec<u8>,
    /// Of these bytes.
    pub(crate) digest: Digest,
    /// `Content-Type`, which may be wrong or empty.
    pub(crate) media_type: String,
}

/// Where an image comes from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) sessions: Vec<Session>,
}

/// One repository on one endpoint, with the authorization it gave us.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    endpoint: Endpoint,
    repository: String,
    /// The registry that this endpoint mirrors.
    mirrored: Option<String>,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Source {
    /// The endpoints for `reference`. Credentials go to the registry itself and to no mirror.
    pub(crate) fn new(client: &Arc<Client>, reference: &Reference, credentials: Option<Credentials>) -> Self {
        let session = |endpoint: Endpoint, mirrored: Option<String>, credentials| Session {
            client: Arc::clone(client),
            endpoint,
            repository: reference.repository().to_owned(),
            mirrored,
            credentials,
            authorization: Mutex::default(),
        };
        let registry = reference.registry();
        let mirrors = client.registries.mirrors(registry).iter();
        let mut sessions: Vec<Session> = mirrors.map(|mirror| session(mirror.clone(), Some(registry.to_owned()), None)).collect();
        sessions.push(session(client.registries.origin(registry), None, credentials));
        Self { sessions }
    }

    /// The digest that `target` has now; none where the registry does not tell without sending it all.
    pub(crate) async fn current_digest(&self, target: &Target) -> Result<Option<Digest>, RegistryError> {
        let mut earlier = Vec::new();
        for session in &self.sessions {
            match session.manifest_digest(target).await {
                Ok(digest) => return Ok(digest),
                Err(error) => earlier.push(error),
            }
        }
        Err(last_of(earlier, &self.sessions))
    }

    /// The manifest or index that `target` means.
    pub(crate) async fn manifest(&self, target: &Target) -> Result<Fetched, RegistryError> {
        let mut earlier = Vec::new();
        for session in &self.sessions {
            match session.manifest(target).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => earlier.push(error),
            }
        }
        Err(last_of(earlier, &self.sessions))
    }
}

/// The registry's own answer, with what its mirrors had said.
pub(super) fn last_of(mut errors: Vec<RegistryError>, sessions: &[Session]) -> RegistryError {
    match (errors.pop(), sessions.last()) {
        (Some(last), _) => last.after(&errors),
        (None, Some(session)) => session.broken("was not asked"),
        (None, None) => {
            let nowhere = Endpoint { scheme: super::config::Scheme::Https, authority: String::new() };
            RegistryError::new(Cause::Broken, &nowhere, "there is no endpoint to ask")
        }
    }
}

impl Session {
    async fn manifest_digest(&self, target: &Target) -> Result<Option<Digest>, RegistryError> {
        let answer = self.request(Method::HEAD, &manifest_path(target), accept_manifests()).await?;
        if let Target::Digest(digest) = target {
            return Ok(Some(*digest));
        }
        let header = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(header.and_then(|text| text.parse().ok()))
    }

    async fn manifest(&self, target: &Target) -> Result<Fetched, RegistryError> {
        let answer = self.request(Method::GET, &manifest_path(target), accept_manifests()).await?;
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = read_bounded(&self.endpoint, answer, MANIFEST_LIMIT).await?;
        let digest = Digest::of(&bytes);
        match target {
            Target::Digest(asked) if *asked != digest => Err(self.broken(format!("serves {digest} as {asked}"))),
            _ => Ok(Fetched { bytes, digest, media_type }),
        }
    }

    /// A blob's content from byte `offset` on; status 200 means that it comes from the start all the same.
    pub(super) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        self.request(Method::GET, &format!("blobs/{digest}"), headers).await
    }

    pub(super) fn broken(&self, problem: impl std::fmt::Display) -> RegistryError {
        RegistryError::new(Cause::Broken, &self.endpoint, problem)
    }

    pub(super) fn unavailable(&self, problem: impl std::fmt::Display) -> RegistryError {
        RegistryError::new(Cause::Unavailable, &self.endpoint, problem)
    }

    pub(super) fn transport(&self, error: reqwest::Error) -> RegistryError {
        RegistryError::transport(&self.endpoint, error)
    }

    /// A successful answer, after authenticating if the endpoint wants that.
    async fn request(&self, method: Method, path: &str, headers: HeaderMap) -> Result<Response, RegistryError> {
        let url = self.url(path)?;
        let (answer, server) = self.send(&method, &url, &headers).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || server != self.endpoint {
            return self.client.expect_success(&server, answer).await;
        }
        let values = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = values.iter().filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect();
        let credentials = self.credentials.as_ref();
        let header = authorize(&self.client, &self.endpoint, &challenges, &self.repository, credentials).await?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        let (answer, server) = self.send(&method, &url, &headers).await?;
        self.client.expect_success(&server, answer).await
    }

    /// Sends a request and follows its redirects. Only the endpoint itself sees the authorization.
    async fn send(&self, method: &Method, url: &Url, headers: &HeaderMap) -> Result<(Response, Endpoint), RegistryError> {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut url, mut server) = (url.clone(), self.endpoint.clone());
        for _ in 0..=REDIRECT_LIMIT {
            let mut request = self.client.http(&server)?.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(authorization) = authorization.as_ref().filter(|_| server == self.endpoint) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let answer = request.send().await.map_err(|error| RegistryError::transport(&server, error))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, server));
            }
            let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| self.broken("redirects to nowhere"))?;
            url = url.join(location).map_err(|_| self.broken("redirects to what is no URL"))?;
            server = self.client.reachable(&url).map_err(|problem| self.broken(format!("its redirect is refused: {problem}")))?;
        }
        Err(self.broken(format!("redirects more than {REDIRECT_LIMIT} times")))
    }

    fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let text = format!("{}/v2/{}/{path}", self.endpoint, self.repository);
        let mut url = Url::parse(&text).map_err(|error| self.broken(format!("{text} is no URL: {error}")))?;
        if let Some(registry) = &self.mirrored {
            // A mirror of several registries tells them apart by this parameter.
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }
}

fn manifest_path(target: &Target) -> String {
    match target {
        Target::Tag(tag) => format!("manifests/{tag}"),
        Target::Digest(digest) => format!("manifests/{digest}"),
    }
}

fn accept_manifests() -> HeaderMap {
    MANIFEST_TYPES.iter().map(|media_type| (ACCEPT, HeaderValue::from_static(media_type))).collect()
}
