//! The configuration file. Every key has a sensible default, so that there need not be one; a key that does
//! not exist is an error, so that a slip of the pen is not a silent default.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_domain::{During, Refusal, Result};
use coracle_image::Registries;
use coracle_network::BridgeConfig;
use coracle_streaming::{Settings, Tls};
use serde::Deserialize;

/// Read when no other file is named.
const DEFAULT_PATH: &str = "/etc/coracle/config.toml";

/// In seconds: longer than anything lasts, and within what clocks can add.
const A_YEAR: u64 = 365 * 24 * 60 * 60;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The daemon's own places.
    pub(crate) daemon: Daemon,
    /// The pods' network.
    pub(crate) network: Network,
    /// The server of exec, attach and port-forward sessions.
    pub(crate) streaming: Streaming,
    /// Where images come from.
    pub(crate) registries: Registries,
}

/// The daemon's own places.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Daemon {
    /// Where CRI is served; absent: `coracle.sock` in the state directory.
    pub(crate) socket: Option<PathBuf>,
    /// What dies with the kernel; on tmpfs.
    pub(crate) state: PathBuf,
    /// What survives a reboot: images and writable layers.
    pub(crate) root: PathBuf,
    /// The cgroup, in every hierarchy, above pods for which the kubelet names none.
    pub(crate) cgroup_root: String,
    /// The monitor's executable; absent: `coracle-monitor` beside this program.
    pub(crate) monitor: Option<PathBuf>,
}

/// The pods' network.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Network {
    /// The native bridge.
    pub(crate) bridge: BridgeConfig,
}

/// The server of exec, attach and port-forward sessions.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Streaming {
    /// Where it listens; port 0: any that is free.
    pub(crate) address: SocketAddr,
    /// Its certificate and those above it, in PEM; absent, with `key`: plain HTTP.
    pub(crate) certificate: Option<PathBuf>,
    /// The certificate's key, in PEM.
    pub(crate) key: Option<PathBuf>,
    /// After so many seconds without a byte a session ends.
    pub(crate) idle_seconds: u64,
    /// So many seconds a client may take to create the streams of its session.
    pub(crate) creation_seconds: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        let Settings { address, idle, creation, .. } = Settings::default();
        Self { address, certificate: None, key: None, idle_seconds: idle.as_secs(), creation_seconds: creation.as_secs() }
    }
}

impl Streaming {
    /// What the server is told.
    ///
    /// # Errors
    /// One of certificate and key is missing, or they cannot be used.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(Tls::read(certificate, key)?),
            (None, None) => None,
            _ => return Err(Refusal::invalid("streaming", "certificate and key go together").into()),
        };
        let [idle, creation] = [("idle_seconds", self.idle_seconds), ("creation_seconds", self.creation_seconds)].map(limit);
        Ok(Settings { address: self.address, tls, idle: idle?, creation: creation? })
    }
}

/// A limit that lets something happen, and whose end can be told.
fn limit((key, seconds): (&str, u64)) -> Result<Duration> {
    match seconds {
        1..=A_YEAR => Ok(Duration::from_secs(seconds)),
        _ => Err(Refusal::invalid(format!("streaming.{key}"), format!("{seconds} is not between 1 and {A_YEAR}")).into()),
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            socket: None,
            state: "/run/coracle".into(),
            root: "/var/lib/coracle".into(),
            cgroup_root: "coracle".to_owned(),
            monitor: None,
        }
    }
}

impl Config {
    /// Reads the named file, or the usual one if it is there.
    ///
    /// # Errors
    /// The named file is not there, or a file is not as it should be.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match fs::read_to_string(path) {
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.during("reading the configuration", path.display())?,
        };
        toml::from_str(&text).map_err(|error| Refusal::invalid(path.display().to_string(), error).into())
    }

    /// Where CRI is served.
    pub(crate) fn socket(&self) -> PathBuf {
        self.daemon.socket.clone().unwrap_or_else(|| self.daemon.state.join("coracle.sock"))
    }

    /// The monitor's executable.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn monitor(&self) -> Result<PathBuf> {
        let path = match &self.daemon.monitor {
            Some(path) => path.clone(),
            None => std::env::current_exe().during("finding", "this program")?.with_file_name("coracle-monitor"),
        };
        match fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(error).during("looking for the monitor's executable", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional_and_no_other_is_taken() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config.socket(), Path::new("/run/coracle/coracle.sock"));
        let config: Config = toml::from_str("[daemon]\nstate = \"/tmp/x\"\n[network.bridge]\nname = \"test0\"\n").unwrap();
        assert_eq!(config.socket(), Path::new("/tmp/x/coracle.sock"));
        assert_eq!(config.network.bridge.name.as_str(), "test0");
        assert!(toml::from_str::<Config>("[daemon]\nsockets = \"/x\"").is_err());
        assert!(config.streaming.settings().unwrap().address.ip().is_loopback());
        assert!(toml::from_str::<Config>("[streaming]\nport = 1").is_err());
        assert!(toml::from_str::<Config>("[network.bridge]\nsubnet = \"10.0.0.0/40\"").is_err());
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let config: Config = toml::from_str("[streaming]\ncertificate = \"/x.pem\"").unwrap();
        assert!(config.streaming.settings().unwrap_err().to_string().contains("go together"));
    }

    #[test]
    fn limits_of_sessions_are_taken_in_seconds() {
        let settings = |text: &str| toml::from_str::<Config>(text).unwrap().streaming.settings();
        let default = settings("").unwrap();
        assert_eq!((default.idle.as_secs(), default.creation.as_secs()), (4 * 60 * 60, 30));
        let set = settings("[streaming]\nidle_seconds = 5\ncreation_seconds = 1").unwrap();
        assert_eq!((set.idle.as_secs(), set.creation.as_secs()), (5, 1));
        for wrong in ["idle_seconds = 0", "creation_seconds = 18446744073709551"] {
            let refused = settings(&format!("[streaming]\n{wrong}")).unwrap_err().to_string();
            assert!(refused.contains("streaming."), "{refused}");
        }
    }

    #[test]
    fn a_named_file_must_be_there() {
        assert!(Config::load(Some(Path::new("/nonexistent/config.toml"))).is_err());
    }
}
