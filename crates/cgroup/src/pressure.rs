//! How much of the time a cgroup's tasks stood still: its pressure files, which the unified hierarchy has for every
//! cgroup, whichever controllers live there.
//!
//! Format: the kernel's `Documentation/accounting/psi.rst`:
//! `some avg10=0.12 avg60=0.00 avg300=0.00 total=1234`, then the same for `full`; total in microseconds.

use std::os::fd::OwnedFd;

use coracle_domain::{Pressure, Stall};

use crate::file::sample;

/// The resources that the kernel tells the pressure on; all `None` on pure v1, where it does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressures {
    /// `cpu.pressure`.
    pub cpu: Option<Pressure>,
    /// `memory.pressure`.
    pub memory: Option<Pressure>,
    /// `io.pressure`.
    pub io: Option<Pressure>,
}

impl Pressures {
    /// A sample from a directory of the unified hierarchy.
    pub(crate) fn read(directory: &OwnedFd, buffer: &mut [u8]) -> Self {
        let mut of = |file: &str| parse(str::from_utf8(sample(directory, file, buffer)).ok()?);
        Self { cpu: of("cpu.pressure"), memory: of("memory.pressure"), io: of("io.pressure") }
    }
}

pub(crate) fn parse(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|line| stall(line.strip_prefix(name)?));
    Some(Pressure { some: line("some ")?, full: line("full ") })
}

fn stall(fields: &str) -> Option<Stall> {
    let value = |key: &str| fields.split_ascii_whitespace().find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
    let microseconds: u64 = value("total")?.parse().ok()?;
    let averages = [hundredths(value("avg10")?)?, hundredths(value("avg60")?)?, hundredths(value("avg300")?)?];
    Some(Stall { total: microseconds.checked_mul(1000)?, averages })
}

/// `12.34`, which has two decimals always.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.')?;
    let decimals: u32 = (decimals.len() == 2).then(|| decimals.parse().ok())??;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(decimals)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_lines_are_read_in_nanoseconds_and_hundredths() {
        let text = "some avg10=83.75 avg60=9.02 avg300=100.00 total=4086727623\nfull avg10=0.00 avg60=0.50 avg300=0.00 total=7";
        let some = Stall { total: 4_086_727_623_000, averages: [8375, 902, 10_000] };
        let full = Stall { total: 7000, averages: [0, 50, 0] };
        assert_eq!(parse(text), Some(Pressure { some, full: Some(full) }));
    }

    #[test]
    fn a_kernel_that_knows_no_full_for_the_processor_tells_none() {
        let pressure = parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n").unwrap();
        assert_eq!((pressure.some.total, pressure.full), (5000, None));
        assert_eq!(parse(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(some|full)?( (avg10|total)=[0-9.]{0,22}){0,4}\n?") {
            let _ = parse(&text);
        }
    }
}
