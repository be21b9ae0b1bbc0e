//! What a node's daemon is started with: its programs, its configuration and its variables, in the node's scratch directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::Daemon;

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
        let copy = |name: &str, linked: bool| {
            let source = binary.with_file_name(name);
            let (source, to) = (fs::canonicalize(&source).unwrap_or(source), directory.join(name));
            let link = if linked { fs::hard_link(&source, &to) } else { Err(std::io::ErrorKind::Unsupported.into()) };
            let copied = link.or_else(|_| fs::copy(&source, &to).map(drop));
            copied.unwrap_or_else(|error| panic!("{}: {error}; build with hack/build first", source.display()));
        };
        copy("coracle", true);
        copy("coracle-monitor", false);
        self.configure();
    }

    /// The daemon that is started next is another build: a program and a monitor of other names, the monitor with these
    /// bytes, or with the usual ones.
    pub(crate) fn install_other(&mut self, name: &str, monitor: Option<&[u8]>) {
        let directory = self.scratch.join("bin");
        let place = |kind: &str| directory.join(format!("{kind}-{name}"));
        (self.program, self.monitor) = (place("coracle"), Some(place("coracle-monitor")));
        fs::copy(directory.join("coracle"), &self.program).expect("copying the daemon's program");
        fs::copy(directory.join("coracle-monitor"), place("coracle-monitor")).expect("copying the monitor");
        if let Some(bytes) = monitor {
            fs::write(place("coracle-monitor"), bytes).expect("writing the monitor");
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
