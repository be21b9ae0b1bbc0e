//! What systemd is told of the daemon: sd_notify(3), and the watchdog of sd_watchdog_enabled(3).
//!
//! A message is one datagram of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names: a path, or an abstract name
//! after `@`. Without that variable nothing is told. No child inherits it: monitors start with an empty environment.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

/// Who does not read is not waited for any longer.
const PATIENCE: Duration = Duration::from_millis(500);

/// The way to whoever started the daemon, if they want to hear of it.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    supervisor: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The one that the environment asks for.
    pub(crate) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(name) = variable("NOTIFY_SOCKET") else { return Self::default() };
        match open(&name) {
            Ok(supervisor) => {
                let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
                Self { supervisor: Some(supervisor), watchdog }
            }
            Err(error) => {
                warn!(socket = name, %error, "systemd cannot be told anything");
                Self::default()
            }
        }
    }

    /// One that tells `name`, and is watched so closely.
    #[cfg(test)]
    pub(crate) fn to(name: &str, watchdog: Duration) -> Self {
        Self { supervisor: Some(open(name).unwrap()), watchdog: Some(watchdog) }
    }

    /// After so long without a sign of life the daemon is killed; `None`: it is not watched.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// It serves, for the first time.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// It is going to end.
    pub(crate) fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// It lives.
    pub(crate) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, message: &str) {
        let Some((socket, supervisor)) = &self.supervisor else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), supervisor) {
            warn!(%error, message, "systemd was not told");
        }
    }
}

fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
        None => return Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// The daemon's watchdog; another process's is nothing to it.
fn watchdog(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|&microseconds| microseconds > 0)?;
    Some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = listener.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn paths_and_abstract_names_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("coracle-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (listener, name) in [(by_path, path.to_str().unwrap().to_owned()), (by_name, format!("@{name}"))] {
            let notifier = Notifier { supervisor: Some(open(&name).unwrap()), watchdog: None };
            notifier.ready("serving");
            notifier.alive();
            assert_eq!(received(&listener), "READY=1\nSTATUS=serving");
            assert_eq!(received(&listener), "WATCHDOG=1");
        }
        assert!(open("vsock:2:1").is_err());
    }

    #[test]
    fn only_ones_own_watchdog_is_heeded() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(watchdog(text("3000000"), text("7"), 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), None, 7), Some(Duration::from_secs(3)));
        for (microseconds, pid) in [(text("3000000"), text("8")), (text("0"), None), (text("soon"), None), (None, text("7"))] {
            assert_eq!(watchdog(microseconds, pid, 7), None);
        }
    }
}
