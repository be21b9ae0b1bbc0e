//! Names by which an archive says that something below is gone (OCI image specification, "Whiteouts").
//! Pure: what overlayfs wants to see instead is made in `apply`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::archive::malformed;

/// How a name is meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// As it stands.
    Plain,
    /// This name is hidden in the layers below.
    Whiteout(&'a OsStr),
    /// Everything that the layers below have in this directory is hidden.
    Opaque,
    /// Bookkeeping of aufs, of no meaning to anybody else.
    Ignored,
}

/// Reads the last component of a member's path.
pub(super) fn classify(name: &OsStr) -> std::io::Result<Name<'_>> {
    let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") else { return Ok(Name::Plain) };
    match hidden {
        b".wh..opq" => Ok(Name::Opaque),
        b"" | b"." | b".." => Err(malformed("a whiteout names no file")),
        other if other.starts_with(b".wh.") => Ok(Name::Ignored),
        other => Ok(Name::Whiteout(OsStr::from_bytes(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_are_told_by_their_names() {
        let of = |name: &'static str| classify(OsStr::new(name));
        assert_eq!(of("a.wh.").unwrap(), Name::Plain);
        assert_eq!(of(".wh.a").unwrap(), Name::Whiteout(OsStr::new("a")));
        assert_eq!(of(".wh..a").unwrap(), Name::Whiteout(OsStr::new(".a")));
        assert_eq!(of(".wh..wh..opq").unwrap(), Name::Opaque);
        assert_eq!(of(".wh..wh.plnk").unwrap(), Name::Ignored);
        for bad in [".wh.", ".wh..", ".wh..."] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
