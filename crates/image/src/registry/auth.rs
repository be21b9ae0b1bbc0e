//! Credentials, and the tokens that registries give for them.
//!
//! Bearer tokens follow the distribution project's token authentication: GET on the challenge's realm
//! with `service` and `scope`, or for identity tokens an OAuth 2 POST (RFC 6749, section 6). Secrets
//! appear in no `Debug` output and are sent to nobody but the registry and the realm it names.

use std::fmt;

use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::Challenge;
use super::client::{Client, read_bounded};
use super::config::Endpoint;
use super::error::{Cause, RegistryError};

/// The longest answer of a token endpoint, bytes.
const TOKEN_LIMIT: usize = 1 << 20;
const CLIENT_ID: &str = "coracle";

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

/// How a caller proves to a registry who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A user and a password.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, exchanged at the token endpoint for a bearer token.
    IdentityToken(Secret),
    /// A bearer token, sent as it is.
    RegistryToken(Secret),
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The `Authorization` header that should satisfy one of `challenges` for pulling from `repository`.
pub(super) async fn authorize(
    client: &Client,
    endpoint: &Endpoint,
    challenges: &[Challenge],
    repository: &str,
    credentials: Option<&Credentials>,
) -> Result<HeaderValue, RegistryError> {
    if let Some(Credentials::RegistryToken(token)) = credentials {
        return header(endpoint, &format!("Bearer {}", token.reveal()));
    }
    let named = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
    if let Some(challenge) = named("bearer") {
        let token = fetch_token(client, endpoint, challenge, repository, credentials).await?;
        return header(endpoint, &format!("Bearer {token}"));
    }
    match (named("basic"), credentials) {
        (Some(_), Some(Credentials::Basic { username, password })) => header(endpoint, &basic(username, password)),
        (Some(_), _) => Err(RegistryError::new(Cause::Denied, endpoint, "it wants a user name and a password")),
        (None, _) => Err(RegistryError::new(Cause::Denied, endpoint, "it refuses without saying which authentication it wants")),
    }
}

async fn fetch_token(
    client: &Client,
    endpoint: &Endpoint,
    challenge: &Challenge,
    repository: &str,
    credentials: Option<&Credentials>,
) -> Result<String, RegistryError> {
    let broken = |problem: String| RegistryError::new(Cause::Broken, endpoint, problem);
    let realm = challenge.get("realm").ok_or_else(|| broken("its bearer challenge names no realm".into()))?;
    let url = reqwest::Url::parse(realm).map_err(|_| broken(format!("its token realm {realm:?} is no URL")))?;
    let token_server = client.reachable(&url).map_err(|problem| broken(format!("its token realm is refused: {problem}")))?;
    let default_scope = format!("repository:{repository}:pull");
    let scope = challenge.get("scope").unwrap_or(&default_scope);
    let mut form = vec![("scope", scope)];
    form.extend(challenge.get("service").map(|service| ("service", service)));

    let http = client.http(&token_server)?;
    let request = match credentials {
        Some(Credentials::IdentityToken(token)) => {
            form.extend([("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token.reveal())]);
            http.post(url).header("content-type", "application/x-www-form-urlencoded").body(encode(&form))
        }
        Some(Credentials::Basic { username, password }) => {
            form.push(("account", username));
            http.get(with_query(url, &form)).header("authorization", header(endpoint, &basic(username, password))?)
        }
        _ => http.get(with_query(url, &form)),
    };
    let answer = request.send().await.map_err(|error| RegistryError::transport(&token_server, error))?;
    let answer = client.expect_success(&token_server, answer).await?;
    let body = read_bounded(&token_server, answer, TOKEN_LIMIT).await?;
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| broken("its token server answers with something else".into()))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    token.ok_or_else(|| RegistryError::new(Cause::Denied, endpoint, "its token server gives no token"))
}

fn with_query(mut url: reqwest::Url, form: &[(&str, &str)]) -> reqwest::Url {
    url.query_pairs_mut().extend_pairs(form);
    url
}

/// `application/x-www-form-urlencoded`.
fn encode(form: &[(&str, &str)]) -> String {
    reqwest::Url::parse("http://form").map(|url| with_query(url, form).query().unwrap_or_default().to_owned()).unwrap_or_default()
}

fn basic(username: &str, password: &Secret) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.reveal())))
}

fn header(endpoint: &Endpoint, text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| RegistryError::new(Cause::Denied, endpoint, "the credentials hold characters that no header may"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials::Basic { username: "me".into(), password: Secret::new("hunter2") };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    #[test]
    fn forms_are_escaped() {
        assert_eq!(encode(&[("a", "b&c=d"), ("e", "f g")]), "a=b%26c%3Dd&e=f+g");
    }
}
