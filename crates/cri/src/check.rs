//! The checks that many fields share: text without NUL, paths, ids, enums. Each names the field it
//! refuses, as CRI spells it. No check looks at the machine.

use std::path::{Component, Path, PathBuf};

use coracle_domain::Refusal;

pub(crate) type Checked<T> = Result<T, Refusal>;

/// Text that can be handed to the kernel: anything but NUL.
pub(crate) fn text(field: &str, value: &str) -> Checked<String> {
    if value.contains('\0') { Err(Refusal::invalid(field, "contains a NUL byte")) } else { Ok(value.to_owned()) }
}

/// Text that must be there.
pub(crate) fn required(field: &str, value: &str) -> Checked<String> {
    if value.is_empty() { Err(Refusal::invalid(field, "is empty")) } else { text(field, value) }
}

/// A message that must be there.
pub(crate) fn present<'a, T>(field: &str, value: &'a Option<T>) -> Checked<&'a T> {
    value.as_ref().ok_or_else(|| Refusal::invalid(field, "is missing"))
}

/// Texts of a list.
pub(crate) fn texts(field: &str, values: &[String]) -> Checked<Vec<String>> {
    values.iter().map(|value| text(field, value)).collect()
}

/// One word of a configuration file: no space and no control character, so that it cannot become a line
/// of its own.
pub(crate) fn word(field: &str, value: &str) -> Checked<String> {
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Refusal::invalid(field, format!("{value:?} contains white space or control characters")));
    }
    required(field, value)
}

/// An absolute path.
pub(crate) fn absolute(field: &str, value: &str) -> Checked<PathBuf> {
    let path = PathBuf::from(required(field, value)?);
    if path.is_absolute() { Ok(path) } else { Err(Refusal::invalid(field, format!("{value:?} is not an absolute path"))) }
}

/// An absolute path, or nothing.
pub(crate) fn absolute_or_none(field: &str, value: &str) -> Checked<Option<PathBuf>> {
    if value.is_empty() { Ok(None) } else { absolute(field, value).map(Some) }
}

/// A relative path that stays beneath what it is relative to, or nothing.
pub(crate) fn beneath_or_none(field: &str, value: &str) -> Checked<Option<PathBuf>> {
    if value.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(text(field, value)?);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if stays { Ok(Some(path)) } else { Err(Refusal::invalid(field, format!("{value:?} is not a relative path without \"..\""))) }
}

/// Whether a path has no `..` in it.
pub(crate) fn never_climbs(path: &str) -> bool {
    !Path::new(path).components().any(|part| part == Component::ParentDir)
}

/// A uid or gid. The kernel reads the highest one as "no change", so it is none.
pub(crate) fn id(field: &str, value: i64) -> Checked<u32> {
    let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| Refusal::invalid(field, format!("{value} is not between 0 and {}", u32::MAX - 1)))
}

/// A value of an enum that this version of CRI knows.
pub(crate) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Checked<E> {
    E::try_from(value).map_err(|_| Refusal::invalid(field, format!("unknown value {value}")))
}

/// A number of seconds; zero stands for itself. Capped at a century, so that no deadline overflows.
pub(crate) fn seconds(field: &str, value: i64) -> Checked<std::time::Duration> {
    const CENTURY: u64 = 100 * 366 * 24 * 60 * 60;
    let seconds = u64::try_from(value).map_err(|_| Refusal::invalid(field, format!("{value} seconds is negative")))?;
    Ok(std::time::Duration::from_secs(seconds.min(CENTURY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_end_before_the_one_that_means_no_change() {
        assert_eq!(id("f", 0), Ok(0));
        assert_eq!(id("f", i64::from(u32::MAX) - 1), Ok(u32::MAX - 1));
        for value in [-1, i64::from(u32::MAX), i64::MIN, i64::MAX] {
            assert!(id("f", value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_path_beneath_neither_climbs_nor_starts_over() {
        assert_eq!(beneath_or_none("f", ""), Ok(None));
        assert_eq!(beneath_or_none("f", "c/0.log"), Ok(Some(PathBuf::from("c/0.log"))));
        for value in ["/c", "..", "a/../../b", "a\0b"] {
            assert!(beneath_or_none("f", value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_word_cannot_become_a_line() {
        assert!(word("f", "ndots:5").is_ok());
        for value in ["", "a b", "a\nnameserver 6.6.6.6", "a\u{0}", "a\u{85}"] {
            assert!(word("f", value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn seconds_are_never_negative_and_never_overflow_a_clock() {
        assert!(seconds("f", -1).is_err());
        let longest = seconds("f", i64::MAX).unwrap();
        assert!(std::time::Instant::now().checked_add(longest).is_some());
    }
}
