//! Wall clock time, as numbers and as the text that CRI logs want: RFC 3339 in UTC with nine decimals,
//! `2026-03-01T12:00:00.000000001Z`.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOSECONDS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// The length of a time in text.
pub(crate) const LENGTH: usize = 30;

/// Now, in nanoseconds since the epoch. Asked of the C library, as rustix panics where the kernel's vDSO lacks one of its
/// usual functions, such as that of User-Mode Linux.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A time in text.
pub(crate) fn format(nanoseconds: i64) -> [u8; LENGTH] {
    let (seconds, fraction) = (nanoseconds.div_euclid(NANOSECONDS), nanoseconds.rem_euclid(NANOSECONDS));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    for (range, number) in [
        (0..4, year),
        (5..7, month),
        (8..10, day),
        (11..13, second / 3600),
        (14..16, second / 60 % 60),
        (17..19, second % 60),
        (20..29, fraction),
    ] {
        write_digits(text.get_mut(range).unwrap_or_default(), number);
    }
    text
}

fn write_digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is a year's last, and in cycles of 400 years, after which the
/// calendar repeats.
fn date(days: i64) -> (i64, i64, i64) {
    const CYCLE: i64 = 146_097;
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    let days = days + EPOCH;
    let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    // Takes the leap days out: one in 4 years, none in 100, one in 400.
    let year = (day - day / 1_460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March, months have 31, 30, 31, 30, 31 days and again: 153 in five.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_written_exactly() {
        for (seconds, fraction, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199, 5, "2024-02-29T23:59:59.000000005Z"),
            (1_709_251_200, 0, "2024-03-01T00:00:00.000000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (-1, 0, "1969-12-31T23:59:59.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&format(seconds * NANOSECONDS + fraction)).unwrap(), text);
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..146_097 {
            assert_eq!(date(days), (year, month, day));
            let length = match month {
                2 => 28 + i64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }
}
