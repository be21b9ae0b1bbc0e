//! The annotation by which a pod asks for clocks of its own, for which CRI has no field:
//!
//! ```text
//! coracle.dev/time-offsets: monotonic=3600,boottime=-60.5
//! ```
//!
//! One or both of the clocks, each once; seconds ahead of the node's, with at most nine decimals; no spaces.

use std::collections::BTreeMap;

use coracle_domain::{Refusal, TimeOffset, TimeOffsets};

use crate::check::Checked;

/// The annotation's key.
pub(crate) const ANNOTATION: &str = "coracle.dev/time-offsets";
/// The kernel keeps clocks within half of what 64 bits of nanoseconds hold.
const MOST_SECONDS: i64 = i64::MAX / 1_000_000_000 / 2;
const DECIMALS: usize = 9;

/// The offsets that a pod's annotations ask for.
pub(crate) fn parse(annotations: &BTreeMap<String, String>) -> Checked<TimeOffsets> {
    let Some(text) = annotations.get(ANNOTATION) else { return Ok(TimeOffsets::default()) };
    let mut offsets = TimeOffsets::default();
    for part in text.split(',') {
        let (clock, value) = part.split_once('=').ok_or_else(|| refusal(text, &format!("{part:?} is not of the form clock=seconds")))?;
        let place = match clock {
            "monotonic" => &mut offsets.monotonic,
            "boottime" => &mut offsets.boottime,
            _ => return Err(refusal(text, &format!("{clock:?} is neither \"monotonic\" nor \"boottime\""))),
        };
        let problem =
            || refusal(text, &format!("{value:?} is no number of seconds, with at most {DECIMALS} decimals, up to {MOST_SECONDS}"));
        if place.replace(offset(value).ok_or_else(problem)?).is_some() {
            return Err(refusal(text, &format!("{clock:?} is there twice")));
        }
    }
    Ok(offsets)
}

fn refusal(text: &str, problem: &str) -> Refusal {
    Refusal::invalid(format!("config.annotations[{ANNOTATION}]"), format!("{text:?}: {problem}"))
}

fn offset(text: &str) -> Option<TimeOffset> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, decimals) = text.split_once('.').map_or((text, None), |(whole, decimals)| (whole, Some(decimals)));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || decimals.is_some_and(|decimals| !digits(decimals) || decimals.len() > DECIMALS) {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|seconds| *seconds < MOST_SECONDS)?;
    let nanoseconds: u32 = decimals.map_or(Some(0), |decimals| format!("{decimals:0<DECIMALS$}").parse().ok())?;
    Some(match (negative, nanoseconds) {
        (false, _) => TimeOffset { seconds, nanoseconds },
        (true, 0) => TimeOffset { seconds: -seconds, nanoseconds },
        (true, _) => TimeOffset { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Checked<TimeOffsets> {
        parse(&BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]))
    }

    #[test]
    fn offsets_are_read_as_written() {
        let at = |seconds, nanoseconds| Some(TimeOffset { seconds, nanoseconds });
        assert_eq!(parse(&BTreeMap::new()), Ok(TimeOffsets::default()));
        for (text, monotonic, boottime) in [
            ("monotonic=3600,boottime=-60.5", at(3600, 0), at(-61, 500_000_000)),
            ("boottime=0.000000001", None, at(0, 1)),
            ("monotonic=-0.25", at(-1, 750_000_000), None),
            ("monotonic=-0", at(0, 0), None),
            ("monotonic=-7.0", at(-7, 0), None),
        ] {
            assert_eq!(parsed(text), Ok(TimeOffsets { monotonic, boottime }), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_text_that_was_given() {
        for text in [
            "",
            ",",
            "monotonic",
            "monotonic=",
            "monotonic=1,",
            "monotonic=1, boottime=2",
            "realtime=1",
            "Monotonic=1",
            "monotonic=+1",
            "monotonic=1.",
            "monotonic=.5",
            "monotonic=1e3",
            "monotonic=--1",
            "monotonic=1.0000000001",
            "monotonic=1,monotonic=2",
            "monotonic=4611686018",
            "boottime=99999999999999999999",
            "monotonic=1;boottime=2",
            "monotonic=１",
        ] {
            let refused = parsed(text).unwrap_err().to_string();
            assert!(refused.contains(ANNOTATION) && refused.contains(&format!("{text:?}")), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn an_offset_is_what_its_digits_say(nanoseconds in -4_000_000_000_000_000_000_i64..4_000_000_000_000_000_000) {
            let (sign, size) = (if nanoseconds < 0 { "-" } else { "" }, nanoseconds.unsigned_abs());
            let text = format!("{sign}{}.{:09}", size / 1_000_000_000, size % 1_000_000_000);
            let read = offset(&text).unwrap();
            prop_assert!(read.nanoseconds < 1_000_000_000);
            prop_assert_eq!(i128::from(read.seconds) * 1_000_000_000 + i128::from(read.nanoseconds), i128::from(nanoseconds));
        }

        #[test]
        fn no_text_makes_the_parser_fall(text in ".{0,40}") {
            let _ = parsed(&text);
        }

        #[test]
        fn text_near_the_form_is_either_refused_or_within_bounds(text in "(monotonic|boottime|x)?=?-?[0-9]{0,22}[.]?[0-9]{0,11},?(boottime=1)?") {
            if let Ok(offsets) = parsed(&text) {
                for offset in [offsets.monotonic, offsets.boottime].into_iter().flatten() {
                    prop_assert!(offset.seconds.abs() <= MOST_SECONDS && offset.nanoseconds < 1_000_000_000);
                }
            }
        }
    }
}
