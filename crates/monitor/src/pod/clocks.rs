//! The pod's time namespace (time_namespaces(7)). The monitor keeps the node's clocks: it is its children that are born
//! into the namespace, and so every process of the pod is, without a word about it in plans or execs.

use std::path::Path;

use coracle_sys::namespace::{Namespace, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};

use super::pin;
use crate::fault::{OrFault, Result};
use crate::protocol::{Clock, Prepare, TimeOffset};

/// The namespace that the next children are born into.
const NAMESPACE: &str = "/proc/self/ns/time_for_children";
/// Written before the first of them is born; the kernel refuses it afterwards.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// Makes it, if any offsets are wanted.
pub(super) fn make_namespace(wanted: &Prepare) -> Result<()> {
    if wanted.time_offsets.is_empty() {
        return Ok(());
    }
    if !Path::new(NAMESPACE).exists() {
        return Err(Errno::NOSYS).or_fault("making", "a time namespace, which this kernel does not have (CONFIG_TIME_NS)");
    }
    unshare(&[Namespace::Time]).or_fault("making", "a time namespace")?;
    for offset in &wanted.time_offsets {
        let line = line_of(offset);
        let file = open(OFFSETS, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).or_fault("opening", OFFSETS)?;
        write(file, line.as_bytes()).or_fault("setting the pod's clock (clock, seconds, nanoseconds):", &line)?;
    }
    pin(NAMESPACE, &wanted.pins.join("time"))
}

fn line_of(offset: &TimeOffset) -> String {
    let clock = match offset.clock {
        Clock::Monotonic => "monotonic",
        Clock::BootTime => "boottime",
    };
    format!("{clock} {} {}", offset.seconds, offset.nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_written_as_the_kernel_reads_it() {
        let offset = TimeOffset { clock: Clock::BootTime, seconds: -61, nanoseconds: 500_000_000 };
        assert_eq!(line_of(&offset), "boottime -61 500000000");
    }
}
