//! Pure translation: what a caller asks for and what its image says become an OCI runtime spec
//! ([`oci_spec_for`]), and the spec becomes a [`coracle_plan::Plan`] ([`plan`]).
//!
//! ```text
//! ContainerSpec ─ oci_spec_for ─> Description { oci_spec::runtime::Spec, … } ─ plan ─> Plan ─ exec_process ─> Process
//! ```
//!
//! Everything is decided here and nothing is done: no file is read, no mount is made. What must be known of the node,
//! the pod and the image comes in as [`ContainerSpec`], so that every decision can be tested without root. The one
//! thing that touches the kernel is a pipe through which libseccomp hands over a compiled filter.
//!
//! Formats: the OCI runtime specification 1.2 for the spec; crate `coracle-plan` for the Plan.

#![forbid(unsafe_code)]

mod args;
mod capabilities;
mod cgroup;
mod devices;
mod environment;
mod input;
mod mounts;
mod oci;
mod options;
mod plan;
mod process;
mod resources;
pub mod seccomp;
mod selinux;
mod signal;
mod user_namespace;
mod users;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod snapshot_tests;

pub use capabilities::{NAMES as CAPABILITY_NAMES, bit as capability_bit};
pub use devices::device_rules;
pub use environment::Environment;
pub use input::{
    AppArmor, CgroupHierarchy, CgroupView, ContainerSpec, DeviceNode, ImageDefaults, NamespacePaths, Node, OpenFiles, PodFiles,
};
pub use mounts::{ImageVolume, has_recursive_read_only};
pub use oci::{Description, oci_spec_for};
pub use plan::{Layers, Placement, exec_process, plan};
pub use selinux::{Selinux, SelinuxLabels};
pub use signal::{SIGTERM, signal_number};
pub use users::{LARGEST_DATABASE, ResolvedUser, UserDatabase};
