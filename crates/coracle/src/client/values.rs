//! Values with a syntax of their own on the command line.
//!
//! Quantities follow Kubernetes (`64Mi` is binary, `64M` decimal). Nothing here does I/O.

use std::fmt;
use std::str::FromStr;

use super::time::{Timestamp, now};

/// A limit of memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory(pub(crate) i64);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale = scale(unit).ok_or_else(|| format!("{unit:?} is not a unit: use k, M, G, T or Ki, Mi, Gi, Ti"))?;
        let bytes = decimal(number, scale).ok_or_else(|| format!("{number:?} is not a size"))?;
        if bytes == 0 { Err("a limit of zero is none: leave it out".into()) } else { Ok(Self(bytes)) }
    }
}

fn scale(unit: &str) -> Option<i64> {
    let unit = unit.strip_suffix(['B', 'b']).unwrap_or(unit);
    Some(match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    })
}

/// `number` times `scale`, rounded down, without the errors of floating point; at most nine decimals count.
fn decimal(number: &str, scale: i64) -> Option<i64> {
    const NANO: i128 = 1_000_000_000;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let nano: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let whole: i128 = if whole.is_empty() { 0 } else { i64::from_str(whole).ok()?.into() };
    let scale = i128::from(scale);
    // Apart, because together they may be too much for 128 bits.
    let total = whole * scale + i128::from_str(&nano).ok()? * scale / NANO;
    total.try_into().ok()
}

/// A limit of processor time, in thousandths of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus(i64);

impl Cpus {
    /// The length of a period of the quota, in microseconds: the kernel's default.
    pub(crate) const PERIOD: i64 = 100_000;

    /// Microseconds per period; the kernel takes no less than 1000.
    pub(crate) fn quota(self) -> i64 {
        (self.0 * Self::PERIOD / 1000).max(1000)
    }

    /// The weight that the kubelet would give to a request of as much.
    pub(crate) fn shares(self) -> i64 {
        (self.0 * 1024 / 1000).clamp(2, 262_144)
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let millis = match text.strip_suffix('m') {
            Some(millis) => decimal(millis, 1),
            None => decimal(text, 1000),
        };
        match millis {
            Some(millis @ 1..=1_000_000) => Ok(Self(millis)),
            Some(_) => Err("not between 1m and 1000 processors".into()),
            None => Err("not a number of processors, as 0.5 or 500m".into()),
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err("not of the form KEY=VALUE".into()),
        }
    }
}

/// A port of this machine, and the pod's to which it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    /// 0: any that is free.
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        match (local.parse(), remote.parse()) {
            (Ok(local), Ok(remote @ 1..)) => Ok(Self { local, remote }),
            _ => Err("not of the form [LOCAL:]REMOTE, with ports up to 65535".into()),
        }
    }
}

/// A name of a pod, a container or a namespace: it becomes part of file names.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.len() > 253 || !text.bytes().all(fits) || !text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
        return Err("a name is letters, digits, - . and _, and begins with one of the first two".into());
    }
    Ok(text.into())
}

/// A host path shown in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) host: String,
    pub(crate) container: String,
    pub(crate) read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (host, container) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let read_only = match (parts.next(), parts.next()) {
            (None, _) | (Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err("not of the form HOST:CONTAINER[:ro]".into()),
        };
        if !host.starts_with('/') || !container.starts_with('/') {
            return Err("both paths must be absolute".into());
        }
        Ok(Self { host: host.into(), container: container.into(), read_only })
    }
}

/// Who a container's process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: UserName,
    pub(crate) group: Option<i64>,
}

/// A user by number, or by a name that the image's passwd file knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserName {
    Id(i64),
    Name(String),
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |text: &str| u32::from_str(text).map(i64::from);
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let group = group.map(id).transpose().map_err(|_| "the group must be a number: CRI has no names for groups")?;
        let name = match id(user) {
            Ok(id) => UserName::Id(id),
            Err(_) if user.is_empty() || user.bytes().all(|byte| byte.is_ascii_digit()) => return Err("not a user".into()),
            Err(_) => UserName::Name(user.into()),
        };
        Ok(Self { name, group })
    }
}

/// What to tell a registry. Its `Debug` hides the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Credentials {
    /// Reads `USER:PASSWORD`. The problem does not quote the text.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.split_once(':') {
            Some((user, password)) if !user.is_empty() => Ok(Self { user: user.into(), password: password.into() }),
            _ => Err("not of the form USER:PASSWORD"),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:…", self.user)
    }
}

/// A word of the command line that is not to be shown again, not even where it is malformed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A point in time, given as an age or as an RFC 3339 time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) Timestamp);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(time) = Timestamp::parse(text) {
            return Ok(Self(time));
        }
        let age = age(text).ok_or("neither an age, as 90s, 5m, 2h or 1d, nor a time, as 2026-11-22T03:00:00Z")?;
        Ok(Self(Timestamp(now().0.saturating_sub(age))))
    }
}

/// An age in nanoseconds.
fn age(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    decimal(number, seconds * 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Option<i64> {
        text.parse::<Memory>().ok().map(|memory| memory.0)
    }

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!("80".parse(), Ok(Ports { local: 80, remote: 80 }));
        assert_eq!("0:80".parse(), Ok(Ports { local: 0, remote: 80 }));
        for text in ["", "0", "80:0", "80:", ":80", "65536", "1:2:3", "http"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_read_as_kubernetes_writes_it() {
        for (text, expected) in [
            ("64M", 64_000_000),
            ("64Mi", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("0.1k", 100),
            (".5k", 500),
            ("4096", 4096),
            ("1T", 1_000_000_000_000),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "M", "-1", "1.2.3", "1Qi", "0", "1m", "99999999999Ti", "1 M", "."] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn processors_become_quota_and_shares() {
        let cpus = |text: &str| text.parse::<Cpus>().ok().map(|cpus| (cpus.quota(), cpus.shares()));
        assert_eq!(cpus("0.5"), Some((50_000, 512)));
        assert_eq!(cpus("500m"), cpus("0.5"));
        assert_eq!(cpus("2"), Some((200_000, 2048)));
        assert_eq!(cpus("1m"), Some((1000, 2)));
        for text in ["0", "-1", "x", "", "1001", "m"] {
            assert_eq!(cpus(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_too_much_is_no_size() {
        for text in ["8050110115815880174T", "9223372036854775807.999999999Ti", "8388608Ti", "9223372036854775808"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn a_volume_is_two_absolute_paths() {
        let volume = |text: &str| text.parse::<Volume>().ok().map(|v| (v.host, v.container, v.read_only));
        assert_eq!(volume("/a:/b"), Some(("/a".into(), "/b".into(), false)));
        assert_eq!(volume("/a:/b:ro"), Some(("/a".into(), "/b".into(), true)));
        for text in ["/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:ro", ""] {
            assert_eq!(volume(text), None, "{text}");
        }
    }

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let user = |text: &str| text.parse::<User>().ok().map(|user| (user.name, user.group));
        assert_eq!(user("0"), Some((UserName::Id(0), None)));
        assert_eq!(user("1:2"), Some((UserName::Id(1), Some(2))));
        assert_eq!(user("ann:2"), Some((UserName::Name("ann".into()), Some(2))));
        for text in ["", ":1", "1:", "ann:staff", "99999999999"] {
            assert_eq!(user(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_no_path() {
        for (text, valid) in [("web-1", true), ("a.b_c", true), ("", false), ("..", false), ("a/b", false), ("-a", false), ("a b", false)] {
            assert_eq!(name(text).is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn only_the_first_sign_separates() {
        assert_eq!("A=b=c".parse(), Ok(Pair { key: "A".into(), value: "b=c".into() }));
        assert_eq!(Credentials::parse("a:b:c"), Ok(Credentials { user: "a".into(), password: "b:c".into() }));
        assert!("=b".parse::<Pair>().is_err() && "a".parse::<Pair>().is_err() && Credentials::parse(":b").is_err());
    }

    #[test]
    fn a_moment_is_a_time_or_an_age() {
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Moment(Timestamp(1_000_000_000))));
        assert_eq!(age("1.5m"), Some(90_000_000_000));
        assert_eq!((age("90"), age("s"), age(""), age("5é")), (None, None, None, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,20}") {
            let _ = (text.parse::<Memory>(), text.parse::<Cpus>(), text.parse::<Volume>(), text.parse::<User>(), text.parse::<Moment>());
        }

        #[test]
        fn whole_numbers_scale_exactly(number in 1_i64..8_000_000) {
            prop_assert_eq!(bytes(&format!("{number}Ti")), Some(number << 40));
        }
    }
}
