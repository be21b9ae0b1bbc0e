//! The environment of a process. Values are bytes: CRI allows any, while the OCI spec has text only, so the true bytes
//! travel beside the spec in an [`Environment`].
//!
//! Later settings win: runtime defaults (`PATH`, `TERM`, `HOSTNAME`), the image, the request; `HOME` comes from the
//! image's user database if nobody set it.

use std::fmt;

use coracle_domain::{EnvironmentVariable, Refusal, Result};
use coracle_plan::Bytes;

/// Where programs are looked for if neither image nor request says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names and values, each name once, in the order in which they were first set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(Vec<u8>, Vec<u8>)>);

impl fmt::Debug for Environment {
    /// Values may be secrets: only names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

/// What an environment is made of.
pub(crate) struct Sources<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) terminal: bool,
    pub(crate) image: &'a [String],
    pub(crate) request: &'a [EnvironmentVariable],
    pub(crate) home: &'a str,
}

impl Environment {
    /// The environment of a container. Refused: a variable the kernel could not be given.
    pub(crate) fn of(sources: &Sources<'_>) -> Result<Self> {
        let mut environment = Self::default();
        environment.set("PATH", DEFAULT_PATH);
        if sources.terminal {
            environment.set("TERM", "xterm");
        }
        environment.set("HOSTNAME", sources.hostname);
        // What has no `=` sets nothing: Docker writes a name alone for "unset".
        for (name, value) in sources.image.iter().filter_map(|entry| entry.split_once('=')) {
            if name.is_empty() || name.contains('\0') || value.contains('\0') {
                return Err(Refusal::invalid("config.image", format!("the image sets an unusable environment variable {name:?}")).into());
            }
            environment.set(name, value);
        }
        for EnvironmentVariable { name, value } in sources.request {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains(&0) {
                return Err(Refusal::invalid("config.envs", format!("{name:?} is no usable environment variable")).into());
            }
            environment.set(name, value);
        }
        if environment.get("HOME").is_none_or(<[u8]>::is_empty) {
            environment.set("HOME", sources.home);
        }
        Ok(environment)
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Sets a variable, in its place if there is one.
    pub(crate) fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref().to_vec());
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_vec(), value)),
        }
    }

    /// `NAME=value`, byte by byte.
    pub fn entries(&self) -> Vec<Bytes> {
        self.0.iter().map(|(name, value)| Bytes([name, &b"="[..], value].concat())).collect()
    }

    /// `NAME=value` as text, in which what is not UTF-8 is lost.
    pub fn entries_as_text(&self) -> Vec<String> {
        self.entries().iter().map(|entry| String::from_utf8_lossy(&entry.0).into_owned()).collect()
    }
}

/// `entries` with a `TERM`, if they have none: what a terminal needs.
pub(crate) fn with_terminal(mut entries: Vec<Bytes>) -> Vec<Bytes> {
    if !entries.iter().any(|entry| entry.0.starts_with(b"TERM=")) {
        entries.push(Bytes::from("TERM=xterm"));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str, value: &[u8]) -> EnvironmentVariable {
        EnvironmentVariable { name: name.to_owned(), value: value.to_vec() }
    }

    fn merged(image: &[&str], request: &[EnvironmentVariable], terminal: bool) -> Result<Vec<String>> {
        let image: Vec<String> = image.iter().map(|entry| (*entry).to_owned()).collect();
        let sources = Sources { hostname: "web-0", terminal, image: &image, request, home: "/root" };
        Environment::of(&sources).map(|environment| environment.entries_as_text())
    }

    #[test]
    fn later_settings_replace_earlier_ones_in_place() {
        let request = [variable("B", b"request"), variable("C", b"1=2"), variable("C", b"3"), variable("HOSTNAME", b"mine")];
        let expected = ["PATH=/opt/bin", "HOSTNAME=mine", "A=image", "B=request", "C=3", "HOME=/root"];
        assert_eq!(merged(&["A=image", "B=image", "PATH=/opt/bin", "unset"], &request, false).unwrap(), expected);
    }

    #[test]
    fn defaults_fill_what_nobody_set() {
        let expected = [&format!("PATH={DEFAULT_PATH}"), "TERM=xterm", "HOSTNAME=web-0", "HOME=/root"];
        assert_eq!(merged(&[], &[], true).unwrap(), expected);
        assert!(merged(&["HOME=/srv"], &[], false).unwrap().contains(&"HOME=/srv".to_owned()));
        assert!(merged(&["HOME="], &[], false).unwrap().contains(&"HOME=/root".to_owned()));
    }

    #[test]
    fn bytes_survive_beside_the_text() {
        let request = [variable("KEY", b"\xff\x80")];
        let sources = Sources { hostname: "", terminal: false, image: &[], request: &request, home: "/" };
        let environment = Environment::of(&sources).unwrap();
        assert!(environment.entries().contains(&Bytes(b"KEY=\xff\x80".to_vec())));
        assert!(environment.entries_as_text().contains(&"KEY=\u{fffd}\u{fffd}".to_owned()));
    }

    #[test]
    fn what_the_kernel_cannot_take_is_refused() {
        for bad in [variable("", b"x"), variable("A=B", b"x"), variable("A", b"x\0y")] {
            assert!(merged(&[], &[bad], false).is_err());
        }
        assert!(merged(&["=x"], &[], false).is_err());
    }

    #[test]
    fn debug_shows_no_value() {
        let request = [variable("TOKEN", b"hunter2")];
        let sources = Sources { hostname: "", terminal: false, image: &[], request: &request, home: "/" };
        let shown = format!("{:?}", Environment::of(&sources).unwrap());
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
