//! Extended headers: the records of POSIX.1-2001 pax archives (pax(1), "pax Extended Header").
//!
//! `<length> <key>=<value>\n`, where the length counts the whole record and the value may hold any
//! bytes, newlines included. Pure; strict, because two readers that disagree about a record would see
//! two different archives under one digest.

use std::collections::BTreeMap;
use std::io;

use rustix::fs::Timespec;

/// What the records of one entry override.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) modified: Option<Timespec>,
    pub(super) accessed: Option<Timespec>,
    /// Extended attributes by name.
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Where the name of an extended attribute starts in a key, as star and Go's archive/tar write it.
const ATTRIBUTE_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Reads all records of one extended header.
pub(super) fn parse(mut records: &[u8]) -> io::Result<Overrides> {
    let mut overrides = Overrides::default();
    while !records.is_empty() {
        let (key, value, rest) = split_record(records).ok_or_else(|| malformed("an extended header's record is malformed"))?;
        overrides.set(key, value)?;
        records = rest;
    }
    Ok(overrides)
}

/// The first record's key and value, and the records after it.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = text(records.get(..space)?)?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

impl Overrides {
    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if let Some(name) = key.strip_prefix(ATTRIBUTE_PREFIX) {
            self.attributes.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        match key {
            b"path" => self.path = some_text(value)?,
            b"linkpath" => self.link = some_text(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.modified = time(value)?,
            b"atime" => self.accessed = time(value)?,
            _ if key.starts_with(b"GNU.sparse.") => return Err(malformed("sparse files in pax format are not supported")),
            _ => {}
        }
        Ok(())
    }
}

/// An empty value takes an earlier one back.
fn some_text(value: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err(malformed("a name holds a NUL byte"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn number(value: &[u8]) -> io::Result<Option<u64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = text(value).and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| malformed("a number in an extended header is malformed"))
}

/// Seconds since the epoch with any number of decimals; what is finer than a nanosecond is cut off.
fn time(value: &[u8]) -> io::Result<Option<Timespec>> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = text(value).and_then(|text| {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let negative = seconds.starts_with('-');
        let seconds: i64 = seconds.parse().ok()?;
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanoseconds: i64 = digits.parse().ok()?;
        // The kernel counts nanoseconds forward, also before the epoch.
        let (tv_sec, tv_nsec) = match nanoseconds {
            fraction if negative && fraction > 0 => (seconds.checked_sub(1)?, 1_000_000_000 - fraction),
            fraction => (seconds, fraction),
        };
        Some(Timespec { tv_sec, tv_nsec })
    });
    parsed.map(Some).ok_or_else(|| malformed("a time in an extended header is malformed"))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn malformed(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key, b"=", value, b"\n"].concat();
        let length = (1..).find(|digits| format!("{}", rest.len() + digits).len() == *digits).unwrap();
        [(rest.len() + length).to_string().as_bytes(), &rest].concat()
    }

    #[test]
    fn values_may_hold_newlines() {
        let records = [record(b"SCHILY.xattr.security.capability", b"\x01\n\n9 path=x\n\0"), record(b"path", b"real")].concat();
        let overrides = parse(&records).unwrap();
        assert_eq!(overrides.path.as_deref(), Some(&b"real"[..]));
        assert_eq!(overrides.attributes, BTreeMap::from([(b"security.capability".to_vec(), b"\x01\n\n9 path=x\n\0".to_vec())]));
    }

    #[test]
    fn times_are_exact_to_the_nanosecond() {
        for (text, seconds, nanoseconds) in [
            ("1", 1, 0),
            ("1.5", 1, 500_000_000),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("0.0000000019", 0, 1),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
            ("-3", -3, 0),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds }), "{text}");
        }
        for bad in ["x", "1.x", "1.-5", "1e9", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for bad in [&b"5 a=b"[..], b"99 path=x\n", b"0 a=b\n", b"x a=b\n", b"7 path\n", b"\n", b"18446744073709551616 a=b\n"] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_value_comes_back(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let overrides = parse(&record(b"SCHILY.xattr.user.x", &value)).unwrap();
            prop_assert_eq!(&overrides.attributes[&b"user.x"[..]], &value);
        }
    }
}
