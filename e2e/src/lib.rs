//! The harness of the whole-program tests and of the benchmark.
//!
//! A [`Node`] is one machine's worth of Coracle: a daemon of its own with its own socket, directories,
//! bridge, subnet and cgroups, and a real registry on loopback, so that tests run side by side. Everything
//! is asked of it over CRI with the types of the `k8s-cri` crate, which others generated: the harness shares
//! no code with the product, and what passes here passes for a client nobody here wrote. When a test is done
//! it calls [`Node::finish`], which fails if a process, mount, link, cgroup, table, lease or directory is left.
//!
//! The same tests run against other handlers and other endpoints: see [`Target`].

#![forbid(unsafe_code)]

pub mod cri;
mod daemon;
pub mod fail_points;
pub mod faults;
pub mod frozen;
pub mod host;
pub mod image;
mod installation;
pub mod layer;
pub mod leaks;
pub mod log;
pub mod mount;
mod node;
mod pod;
pub mod program;
pub mod quota;
pub mod registry;
pub mod session;
mod skip;
mod spec;
mod subnet;
pub mod suite;
mod target;
pub mod volume;
mod wait;
pub mod wire;

pub use cri::Cri;
pub use k8s_cri::v1 as api;
pub use node::Node;
pub use pod::{Container, Output, Pod};
pub use skip::skip;
pub use spec::{ContainerSpec, PodSpec, number, profile, strings, users};
pub use target::Target;
pub use tonic::{Code, Status};
pub use wait::{DEADLINE, eventually};
