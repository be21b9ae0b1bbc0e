//! What a node's daemon is started with: its programs, its configuration and its variables, in the node's scratch directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::Daemon;
use crate::host;

/// A node's programs and what they are told.
#[derive(Debug)]
pub(crate) struct Installation {
    scratch: PathBuf,
    /// The configuration, from the second line of its section `daemon` on.
    settings: String,
    /// The daemon's program.
    program: PathBuf,
    /// The monitor's, if it is not the one beside the daemon.
    monitor: Option<PathBuf>,
    /// Variables beside the usual.
    environment: Vec<(String, String)>,
}

impl Installation {
    /// What [`Installation::install`] will put into `scratch`.
    pub(crate) fn new(scratch: &Path, settings: String) -> Self {
        let program = scratch.join("bin/coracle");
        Self { scratch: scratch.to_owned(), settings, program, monitor: None, environment: Vec::new() }
    }

    /// Puts the programs, `binary` and the monitor beside it, into the scratch directory, so that every process of the node's
    /// can be told by its program: the daemon's by its path, a monitor's by its file, of which each node has a copy.
    pub(crate) fn install(&self, binary: &Path) {
        let directory = self.scratch.join("bin");
        fs::create_dir_all(&directory).expect("making a directory");
        let source = |name: &str| {
            let source = binary.with_file_name(name);
            fs::canonicalize(&source).unwrap_or_else(|error| panic!("{}: {error}; build with hack/build first", source.display()))
        };
        link(&source("coracle"), &directory.join("coracle"));
        copy(&source("coracle-monitor"), &directory.join("coracle-monitor"));
        self.configure();
    }

    /// The daemon that is started next is another build: a program and a monitor of other names, the monitor with these
    /// bytes, or with the usual ones.
    pub(crate) fn install_other(&mut self, name: &str, monitor: Option<&[u8]>) {
        let directory = self.scratch.join("bin");
        let place = |kind: &str| directory.join(format!("{kind}-{name}"));
        (self.program, self.monitor) = (place("coracle"), Some(place("coracle-monitor")));
        link(&directory.join("coracle"), &self.program);
        match monitor {
            Some(bytes) => {
                let draft = directory.join("draft");
                fs::write(&draft, bytes).expect("writing the monitor");
                copy(&draft, &place("coracle-monitor"));
                fs::remove_file(draft).expect("removing what was copied");
            }
            None => copy(&directory.join("coracle-monitor"), &place("coracle-monitor")),
        }
        self.configure();
    }

    /// The daemon is started with this variable from now on.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn launch(&self) -> Daemon {
        Daemon::start(&self.program, &self.configuration(), &self.log(), &self.environment)
    }

    /// The file with what all its daemons said.
    pub(crate) fn log(&self) -> PathBuf {
        self.scratch.join("daemon.log")
    }

    fn configuration(&self) -> PathBuf {
        self.scratch.join("config.toml")
    }

    fn configure(&self) {
        let monitor = self.monitor.as_ref().map(|path| format!("monitor = {path:?}\n")).unwrap_or_default();
        let text = format!("[daemon]\n{monitor}{}", self.settings);
        fs::write(self.configuration(), text).expect("writing the daemon's configuration");
    }
}

/// Gives a program another name, where that can be, or copies it.
fn link(source: &Path, to: &Path) {
    fs::hard_link(source, to).unwrap_or_else(|_| copy(source, to));
}

/// Copies a program. Not in this process: whoever is started by another test at that moment would for a while hold the file
/// open for writing, and nobody can run it then (ETXTBSY).
fn copy(source: &Path, to: &Path) {
    host::run("install", &["-m", "755", &source.to_string_lossy(), &to.to_string_lossy()]).expect("copying a program");
}
