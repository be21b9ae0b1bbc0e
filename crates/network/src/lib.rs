//! The pod network: native bridge, address leases, masquerading.
//!
//! It attaches network namespaces that others made to a bridge, and says what it counts on them. It keeps no
//! state on disk: leases live in the pods' records, all else in the kernel. It speaks netlink itself; no
//! helper program runs.

#![forbid(unsafe_code)]

mod attach;
mod bridge;
mod config;
mod host;
mod lease;
mod netlink;
mod nft;
mod rtnetlink;
mod subnet;
mod worker;

pub use bridge::{Bridge, host_link_name};
pub use config::{BridgeConfig, BridgeName, InvalidBridgeName};
pub use lease::Lease;
pub use subnet::{InvalidSubnet, Subnet};

/// The name of a pod's interface, inside the pod.
pub const POD_INTERFACE: &str = "eth0";
