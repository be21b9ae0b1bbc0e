//! Limits and accounting by cgroup v2, v1 or both.
//!
//! A machine has one of three shapes: everything on v2, everything on v1, or *hybrid*: controllers on v1
//! and beside them a cgroup2 mount with few controllers or none. The crate asks one question for each
//! controller, "where does it live?", so the three shapes share one path: limits go where their controller
//! is, and processes are grouped, listed and killed on the unified hierarchy wherever there is one.
//!
//! Nothing here remembers anything: which hierarchies a container is in is what directories there are, and
//! every removal is a total, idempotent "make sure that it is gone". It makes and removes directories of its
//! own only; what a kubelet made is never removed, and no mount is ever touched.
//!
//! ```text
//! Hierarchy::detect ─> Location ─> Cgroup::create ─> join_paths, unified_dir ─> a process is born inside
//!                          │            update, stats, counts, exec_leaf, kill, oom_source
//!                          └──────> Cgroup::open (recovery) ─> remove ─> Hierarchy::remove_pod, sweep
//! ```
//!
//! Formats: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

#![forbid(unsafe_code)]

mod cgroup;
mod convert;
mod counts;
mod create;
mod detect;
mod device;
mod exec;
mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hierarchy;
mod location;
mod pressure;
mod settings;
mod stats;
mod tree;
mod update;
mod v1;
mod v2;

#[cfg(test)]
mod real;

pub use cgroup::{Cgroup, OomSource, VisibleHierarchy};
pub use convert::weight_of_shares;
pub use exec::ExecLeaf;
pub use hierarchy::{Driver, Hierarchy, Shape, Sweep};
pub use location::Location;
pub use pressure::Pressures;
pub use stats::Stats;
