//! What the interfaces of a network namespace counted, asked through a process that lives in it. So it is what the
//! pod itself sees, whoever made the interfaces: the host's end of a pair counts other drops than the pod's.
//!
//! Format: `/proc/PID/net/dev` (proc_pid_net(5)): two lines of headings, then per interface sixteen counters.

use std::time::{SystemTime, UNIX_EPOCH};

use coracle_domain::{During, InterfaceStats, NetworkStats, Result, Traffic};

use crate::POD_INTERFACE;

const LOOPBACK: &str = "lo";

/// Reads the counters in the network namespace of the process `pid`.
///
/// # Errors
/// There is no such process.
pub fn interfaces_of(pid: i32) -> Result<NetworkStats> {
    let path = format!("/proc/{pid}/net/dev");
    let text = std::fs::read_to_string(&path).during("reading the counters in", &path)?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
    let mut interfaces: Vec<_> = text.lines().filter_map(interface).filter(|interface| interface.name != LOOPBACK).collect();
    interfaces.sort_by_key(|interface| interface.name != POD_INTERFACE);
    Ok(NetworkStats { at, interfaces })
}

/// Headings have no colon. A name may, in that of an alias.
fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counters) = line.rsplit_once(':')?;
    let counters: Vec<u64> = counters.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let (received, sent) = counters.split_at_checked(8)?;
    Some(InterfaceStats { name: name.trim().to_owned(), received: traffic(received)?, sent: traffic(sent)? })
}

fn traffic(counters: &[u64]) -> Option<Traffic> {
    let [bytes, packets, errors, dropped, ..] = *counters else { return None };
    Some(Traffic { bytes, packets, errors, dropped })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_directions_of_an_interface_are_told_apart() {
        let line = "  eth0: 636418409   20998    1    2    9     9          9         9 1234  56    3    4    9     9       9          9";
        let received = Traffic { bytes: 636_418_409, packets: 20_998, errors: 1, dropped: 2 };
        let sent = Traffic { bytes: 1234, packets: 56, errors: 3, dropped: 4 };
        assert_eq!(interface(line), Some(InterfaceStats { name: "eth0".to_owned(), received, sent }));
    }

    #[test]
    fn headings_and_lines_cut_short_are_no_interfaces() {
        let heading = " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets";
        assert_eq!((interface(heading), interface("eth0: 1 2 3 4 5 6 7 8 9")), (None, None));
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in "[ a-z0-9:]{0,80}") {
            let _ = interface(&line);
        }
    }
}
