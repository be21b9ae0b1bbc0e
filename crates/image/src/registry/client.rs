//! HTTP underneath: pools of connections, time limits, and what a status means.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::config::{Endpoint, Registries, Scheme, is_loopback};
use super::error::{Cause, RegistryError};

/// How much of an error's body is looked at, bytes.
const ERROR_LIMIT: usize = 16 << 10;

/// Shared by all pulls.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) registries: Registries,
    pools: Mutex<HashMap<Manner, reqwest::Client>>,
}

/// How a server is spoken to. Those that are spoken to alike share a pool: registries send us to as many servers as they like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Manner {
    scheme: Scheme,
    is_loopback: bool,
    /// Certificates to trust beside the system's.
    ca_file: Option<PathBuf>,
}

impl Client {
    pub(crate) fn new(registries: Registries) -> Self {
        Self { registries, pools: Mutex::default() }
    }

    /// The connections to `endpoint`, and to others.
    pub(super) fn http(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let ca_file = self.registries.ca_file(&endpoint.authority).filter(|_| endpoint.scheme == Scheme::Https).cloned();
        let manner = Manner { scheme: endpoint.scheme, is_loopback: is_loopback(&endpoint.authority), ca_file };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&manner) {
            return Ok(pool.clone());
        }
        let pool = self.connect(&manner, endpoint)?;
        pools.insert(manner, pool.clone());
        Ok(pool)
    }

    fn connect(&self, manner: &Manner, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        // Ring, because it is quick to build; the process may have chosen before us.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.registries.connect_timeout)
            .read_timeout(self.registries.stall_timeout);
        if manner.is_loopback {
            builder = builder.no_proxy();
        }
        if manner.scheme == Scheme::Http {
            // No certificates: saves reading the system's.
            builder = builder.tls_certs_only([]);
        } else if let Some(path) = &manner.ca_file {
            let unusable = |problem: String| RegistryError::new(Cause::Broken, endpoint, format!("CA file {}: {problem}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        builder.build().map_err(|error| RegistryError::transport(endpoint, error))
    }

    /// The server of `url`, if it may be spoken to in the way the URL says.
    pub(super) fn reachable(&self, url: &reqwest::Url) -> Result<Endpoint, String> {
        let endpoint = Endpoint::of(url).ok_or_else(|| format!("{} is neither http nor https", url.scheme()))?;
        if endpoint.scheme == Scheme::Http && !self.registries.allows_http(&endpoint.authority) {
            return Err(format!("{endpoint} is not encrypted and not configured with http = true"));
        }
        Ok(endpoint)
    }

    /// The answer, if its status says that it is one.
    pub(super) async fn expect_success(&self, endpoint: &Endpoint, answer: Response) -> Result<Response, RegistryError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let cause = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::Denied,
            StatusCode::NOT_FOUND => Cause::Absent,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Cause::Unavailable,
            status if status.is_server_error() => Cause::Unavailable,
            _ => Cause::Broken,
        };
        let body = read_bounded(endpoint, answer, ERROR_LIMIT).await.unwrap_or_default();
        Err(RegistryError::new(cause, endpoint, format!("answers {status}{}", explanation(&body))))
    }
}

/// An answer's body, refused beyond `limit` bytes.
pub(super) async fn read_bounded(endpoint: &Endpoint, mut answer: Response, limit: usize) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| RegistryError::transport(endpoint, error))? {
        if body.len() + chunk.len() > limit {
            return Err(RegistryError::new(Cause::Broken, endpoint, format!("answers with more than {limit} bytes where less is due")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an error's body says in words (OCI distribution specification, "Error Codes").
fn explanation(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return String::new() };
    let texts = answer.errors.iter().map(|problem| format!("{}: {}", problem.code, problem.message));
    let text: String = texts.collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(500).collect();
    if text.is_empty() { text } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_spoken_to_alike_share_a_pool() {
        let client = Client::new(Registries::default());
        for server in 0..100 {
            client.http(&format!("https://s{server}.example.com").parse().unwrap()).unwrap();
            client.http(&format!("http://127.0.0.1:{}", 1000 + server).parse().unwrap()).unwrap();
        }
        assert_eq!(client.pools.lock().unwrap().len(), 2);
    }

    #[test]
    fn error_bodies_are_put_in_words() {
        assert_eq!(explanation(br#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#), " (DENIED: noway)");
        assert_eq!(explanation(b"<html>"), "");
    }
}
