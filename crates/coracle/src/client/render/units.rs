//! Quantities as people write them: ages, sizes, shares of a processor, and short ids.

use crate::client::time::Timestamp;

/// What stands where a value is not known.
pub(crate) const UNKNOWN: &str = "-";

/// How long ago `since` was, in its largest unit: `3m`. Zero is CRI's "not set".
pub(crate) fn age(since: i64, now: Timestamp) -> String {
    if since == 0 {
        return UNKNOWN.into();
    }
    let seconds = now.0.saturating_sub(since).max(0) / 1_000_000_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in decimal units with three digits at most: `12.3MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in UNITS {
        value /= 1000.0;
        name = unit;
        if value < 999.5 {
            break;
        }
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{name}")
}

/// A difference of sizes with its sign: `+12.3MB`.
pub(crate) fn growth(before: u64, after: u64) -> String {
    let sign = if after < before { '-' } else { '+' };
    format!("{sign}{}", size(after.abs_diff(before)))
}

/// Thousand-millionths of a processor in per cent of one: `12.3%`.
pub(crate) fn processor(nano_cores: u64) -> String {
    format!("{:.1}%", nano_cores as f64 / 1e7)
}

/// The first thirteen digits of an id, without the name of its hash.
pub(crate) fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..13).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ages_use_their_largest_unit() {
        let age = |seconds: i64| age(1, Timestamp(seconds * 1_000_000_000 + 1));
        assert_eq!([0, 59, 60, 3599, 3600, 86_399, 86_400, 864_000].map(age), ["0s", "59s", "1m", "59m", "1h", "23h", "1d", "10d"]);
        assert_eq!(age(-5), "0s");
        assert_eq!(super::age(0, Timestamp(5)), "-");
    }

    #[test]
    fn sizes_have_three_digits() {
        let expected = ["0B", "999B", "1kB", "1.5kB", "12.3MB", "123MB", "1MB", "1GB", "18.4EB"];
        let sizes = [0, 999, 1000, 1500, 12_345_678, 123_456_789, 999_999, 999_999_999, u64::MAX];
        assert_eq!(sizes.map(size), expected);
    }

    #[test]
    fn growth_has_a_sign() {
        assert_eq!((growth(0, 1500), growth(1500, 0), growth(1, 1)), ("+1.5kB".into(), "-1.5kB".into(), "+0B".into()));
    }

    #[test]
    fn a_processor_is_a_hundred_per_cent() {
        assert_eq!((processor(1_000_000_000), processor(1_234_567), processor(0)), ("100.0%".into(), "0.1%".into(), "0.0%".into()));
    }

    #[test]
    fn short_ids_lose_the_hash_s_name() {
        assert_eq!((short("sha256:0123456789abcdef"), short("abc"), short("")), ("0123456789abc", "abc", ""));
    }

    proptest! {
        #[test]
        fn no_size_is_longer_than_seven_characters(bytes in any::<u64>()) {
            prop_assert!(size(bytes).len() <= 6, "{}", size(bytes));
        }
    }
}
