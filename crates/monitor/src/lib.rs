//! The per-pod process, its protocol, and the daemon's client of it.
//!
//! A monitor acts for one pod and decides nothing: it makes the pod's namespaces, starts containers from Plans, copies
//! their output, reaps them and records how they ended. It has one thread and one loop that never waits for anything
//! but the next event, and outlives the daemons that talk to it.
//!
//! ```text
//! daemon ──calls──> Connection ──> Monitor ──clone3──> child: cgroups, steps, identity ──execve──> program
//!        <─replies,              │  │    <──Report───┘                                               │
//!          events──              │  └── Log <── pipes ────────────────────────────────────────────────┤
//!                                └───── exit record <── SIGCHLD ──────────────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

mod attached;
pub mod berth;
mod channel;
mod child;
#[cfg(feature = "client")]
pub mod client;
mod connection;
mod container;
mod exit;
mod fault;
pub mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod init;
mod log;
mod monitor;
mod pod;
mod process;
pub mod protocol;
mod sysctl;
mod unwritable;

pub use monitor::serve;
pub use unwritable::null;
