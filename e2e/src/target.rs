//! What the tests run against, read from the environment.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `CORACLE_E2E_BINARY` | the `coracle` program; `coracle-monitor` lies beside it | `target/release/coracle` |
//! | `CORACLE_E2E_HANDLER` | the runtime handler that pods ask for | the default one |
//! | `CORACLE_E2E_CONFIG` | TOML added to every daemon's configuration | none |
//! | `CORACLE_E2E_ENDPOINT` | a socket that is already served, by any CRI runtime | each test starts its own daemon |
//! | `CORACLE_E2E_DIR` | where scratch directories are made; keep it short, sockets live there | `/tmp` |

use std::env;
use std::path::{Path, PathBuf};

/// What the tests run against.
#[derive(Debug, Clone)]
pub struct Target {
    /// The daemon's program.
    pub binary: PathBuf,
    /// The handler pods ask for; empty: the default.
    pub handler: String,
    /// TOML added to the daemon's configuration.
    pub config: String,
    /// The socket of a runtime that runs already. Tests that must own their daemon are skipped then.
    pub endpoint: Option<PathBuf>,
    /// The parent of scratch directories.
    pub directory: PathBuf,
}

impl Target {
    /// Reads the environment.
    pub fn from_environment() -> Self {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = text("CORACLE_E2E_ENDPOINT").map(|value| PathBuf::from(value.trim_start_matches("unix://")));
        Self {
            binary: text("CORACLE_E2E_BINARY").map_or_else(built_binary, PathBuf::from),
            handler: text("CORACLE_E2E_HANDLER").unwrap_or_default(),
            config: text("CORACLE_E2E_CONFIG").unwrap_or_default(),
            endpoint,
            directory: text("CORACLE_E2E_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
        }
    }

    /// Whether the runtime was started by somebody else.
    pub fn is_foreign(&self) -> bool {
        self.endpoint.is_some()
    }
}

fn built_binary() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).join("target/release/coracle")
}
