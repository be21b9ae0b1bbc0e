//! Berths: what a daemon and a process that waits in a container say to each other.
//!
//! Where one exec follows the other, most of the work is the same each time: a process is made, enters the container, gives up
//! its rights and loads the system call filter, all to execute a program that may do less than that. A berth has done it once.
//! The monitor makes it like any exec; it has no program of its own, and is told over its standard input, a socket that keeps
//! messages apart, which programs to start, one after the other. It reaps them and says how they ended, so the monitor
//! sleeps on.
//!
//! ```text
//! daemon ──Exec without arguments──> monitor ──clone3──> child::berth: set up, and waits
//!        ──Order, three descriptors───────────────────────> berth ──vfork, execve──> program
//!        <─Outcome───────────────────────────────────────────┘ <──────wait───────────┘
//! ```
//!
//! It lives in the node's pid namespace, so nobody in the container sees it, and in the exec's cgroup, so it dies with that. It
//! ends when the daemon closes the socket or wants nothing for [`PATIENCE`]. A message that it has not read when it ends is
//! known to its sender (ECONNRESET), so a program is never started twice.

use std::time::Duration;

use coracle_plan::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::Fault;

/// How long it waits for the next order.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The longest order, in bytes. Longer commands are executed without a berth.
pub(crate) const LONGEST_ORDER: usize = 4 << 10;
/// Longer than any outcome, in bytes: a program's name in it may be spelled with six for one.
#[cfg(any(feature = "client", fuzzing))]
pub(crate) const LONGEST_OUTCOME: usize = 8 * LONGEST_ORDER;

/// A program to start. Descriptors: its standard input, output and error, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The program and its arguments.
    pub(crate) arguments: Vec<Bytes>,
}

/// What a berth says: that it is there, once, and what became of each order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It has done once all that comes with a program, but for the program.
    Rehearsed,
    /// The program was executed and has ended.
    Ended {
        /// Its exit status, or 128 and the number of the signal that killed it.
        code: i32,
    },
    /// The program cannot be executed.
    Failed(Fault),
    /// It was not tried, because a berth is not able to; another process may be.
    Unable,
}
