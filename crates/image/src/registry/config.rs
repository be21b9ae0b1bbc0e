//! How registries are reached: the `[registries]` table of the configuration. An unknown key is an
//! error, and so is a mirror that is no URL; nothing here touches the network.
//!
//! ```toml
//! [registries]
//! stall_timeout_seconds = 30
//!
//! [registries.hosts."docker.io"]
//! mirrors = ["https://mirror.example.com", "http://10.0.0.7:5000"]
//!
//! [registries.hosts."registry.lan:5000"]
//! ca_file = "/etc/coracle/registry-lan.pem"
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Everything there is to say about registries.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// Options by the registry's name as it stands in references, `docker.io` or `registry.lan:5000`;
    /// those of a mirror by the mirror's own host and port.
    pub hosts: BTreeMap<String, RegistryOptions>,
    /// How long a connection, TLS included, may take to be made.
    #[serde(rename = "connect_timeout_seconds", deserialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// How long a registry may send nothing while we wait for it.
    #[serde(rename = "stall_timeout_seconds", deserialize_with = "seconds")]
    pub stall_timeout: Duration,
    /// The pause before the first retry of a broken download; it doubles each time.
    #[serde(rename = "retry_pause_seconds", deserialize_with = "seconds")]
    pub retry_pause: Duration,
    /// How many layers a pull downloads at once.
    pub concurrent_downloads: usize,
}

/// What is particular to one registry or mirror.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryOptions {
    /// Tried in this order, before the registry itself.
    pub mirrors: Vec<Endpoint>,
    /// Speak http instead of https. Where it is not said, loopback addresses without a `ca_file` are
    /// spoken to in http, all others in https.
    pub http: Option<bool>,
    /// PEM certificates to trust for this host beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// A server that speaks the distribution protocol: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub(crate) scheme: Scheme,
    pub(crate) authority: String,
}

/// Encrypted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retry_pause: Duration::from_millis(250),
            concurrent_downloads: 3,
        }
    }
}

impl Registries {
    /// The registry's own endpoint.
    pub(crate) fn origin(&self, registry: &str) -> Endpoint {
        // The name everybody writes is not the host that serves it.
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if self.allows_http(registry) { Scheme::Http } else { Scheme::Https };
        Endpoint { scheme, authority: authority.to_owned() }
    }

    /// The mirrors of a registry, in the order in which they are tried.
    pub(crate) fn mirrors(&self, registry: &str) -> &[Endpoint] {
        self.hosts.get(registry).map_or(&[], |options| options.mirrors.as_slice())
    }

    /// Whether `authority` (host, or host and port) may be spoken to without encryption.
    pub(crate) fn allows_http(&self, authority: &str) -> bool {
        let options = self.hosts.get(authority);
        let unsaid = is_loopback(authority) && options.is_none_or(|options| options.ca_file.is_none());
        options.and_then(|options| options.http).unwrap_or(unsaid) || self.is_http_mirror(authority)
    }

    fn is_http_mirror(&self, authority: &str) -> bool {
        let mut mirrors = self.hosts.values().flat_map(|options| &options.mirrors);
        mirrors.any(|mirror| mirror.scheme == Scheme::Http && mirror.authority == authority)
    }

    /// The file of certificates to trust for `authority`, where one is configured.
    pub(crate) fn ca_file(&self, authority: &str) -> Option<&PathBuf> {
        let name = if authority == "registry-1.docker.io" { "docker.io" } else { authority };
        self.hosts.get(name).and_then(|options| options.ca_file.as_ref())
    }
}

/// Whether a host, its port aside, is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("{text:?} is no endpoint: it must be http://host[:port] or https://host[:port]");
        let url = reqwest::Url::parse(text).map_err(|_| problem())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if plain && url.password().is_none() { Self::of(&url).ok_or_else(problem) } else { Err(problem()) }
    }
}

impl Endpoint {
    /// The server that `url` points to; none if its scheme is neither http nor https.
    pub(crate) fn of(url: &reqwest::Url) -> Option<Self> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let host = url.host_str()?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Some(Self { scheme, authority })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.scheme == Scheme::Http { "http" } else { "https" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_named_hosts_are_spoken_to_in_the_clear() {
        let registries: Registries = toml::from_str(
            "[hosts.\"plain.lan\"]\nhttp = true\n[hosts.\"localhost:5443\"]\nca_file = \"/ca\"\n[hosts.\"docker.io\"]\nmirrors = [\"http://mirror.lan:5000\", \"https://safe.lan\"]",
        )
        .unwrap();
        for (authority, clear) in [
            ("localhost:5000", true),
            ("127.0.0.9:80", true),
            ("[::1]:5000", true),
            ("plain.lan", true),
            ("mirror.lan:5000", true),
            ("localhost:5443", false),
            ("safe.lan", false),
            ("example.com", false),
            ("localhost.evil.com", false),
            ("127.0.0.1.evil.com", false),
        ] {
            assert_eq!(registries.allows_http(authority), clear, "{authority}");
        }
        assert_eq!(registries.origin("docker.io").to_string(), "https://registry-1.docker.io");
        assert_eq!(registries.mirrors("docker.io").len(), 2);
    }

    #[test]
    fn an_unknown_key_and_a_malformed_mirror_are_errors() {
        for bad in [
            "mirors = []",
            "[hosts.a]\nmirror = []",
            "[hosts.a]\nmirrors = [\"mirror.lan\"]",
            "[hosts.a]\nmirrors = [\"ftp://x\"]",
            "[hosts.a]\nmirrors = [\"https://u:p@x\"]",
            "stall_timeout_seconds = -1.0",
        ] {
            assert!(toml::from_str::<Registries>(bad).is_err(), "{bad}");
        }
        assert_eq!(toml::from_str::<Registries>("stall_timeout_seconds = 1.5").unwrap().stall_timeout, Duration::from_millis(1500));
    }
}
