//! The pod network: native bridge, address leases, masquerading, host ports.
//!
//! It attaches network namespaces that others made to a bridge, says what it counts on them, and dials into them. It keeps no
//! state on disk: the subnet, leases and host ports are on the engine's record, all else is in the kernel. It speaks netlink
//! itself; no helper program runs.

#![forbid(unsafe_code)]

mod attach;
mod bridge;
mod config;
mod conntrack;
mod dial;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod interfaces;
mod lease;
mod netlink;
mod nft;
mod opening;
mod ports;
mod rtnetlink;
mod rules;
mod subnet;
mod worker;

pub use bridge::{Bridge, host_link_name};
pub use config::{BridgeConfig, BridgeName, InvalidBridgeName};
pub use dial::dial;
pub use interfaces::interfaces_of;
pub use lease::Lease;
pub use ports::PortRequest;
pub use subnet::{InvalidSubnet, Subnet, parse_pod_cidrs};

/// The name of a pod's interface, inside the pod.
pub const POD_INTERFACE: &str = "eth0";
