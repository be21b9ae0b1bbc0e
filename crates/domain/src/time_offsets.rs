//! How far a pod's clocks are ahead of the node's (time_namespaces(7)).

use serde::{Deserialize, Serialize};

/// The offsets of the two clocks that a pod can have of its own. With any, it has a time namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffsets {
    /// CLOCK_MONOTONIC.
    pub monotonic: Option<TimeOffset>,
    /// CLOCK_BOOTTIME, which /proc/uptime shows.
    pub boottime: Option<TimeOffset>,
}

/// `seconds` and `nanoseconds` together; behind the node's clock where `seconds` is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// Rounded down.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

impl TimeOffsets {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
