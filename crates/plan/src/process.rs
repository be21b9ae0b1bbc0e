//! The program a plan ends in, or that an exec adds to a running container, and its rights.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Bytes;

/// A program to execute. Applied in the order that the kernel's rules force: limits, session and terminal,
/// bounding capabilities, groups and user, remaining capabilities, working directory, security labels,
/// no_new_privs, system call filter, `execve`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments; a name without a slash is looked up in the `PATH` of `environment`.
    pub arguments: Vec<Bytes>,
    /// `NAME=value`.
    pub environment: Vec<Bytes>,
    /// Absolute, inside the container. Made if it is missing (by a container's first process, not by an exec).
    pub working_directory: Bytes,
    /// Its identity.
    pub user: User,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// Its system call filter.
    pub seccomp: Option<Filter>,
    /// The AppArmor profile it changes to on exec.
    pub apparmor: Option<String>,
    /// The SELinux label it changes to on exec, which its keys get too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<String>,
    /// Resource limits beside those it inherits.
    pub rlimits: Vec<Rlimit>,
    /// /proc/self/oom_score_adj; a refusal by the kernel (EACCES, EPERM) is not an error.
    pub oom_score_adj: Option<i32>,
    /// Whether standard streams are a terminal of its own, which also becomes `/dev/console`.
    pub terminal: bool,
}

impl fmt::Debug for Process {
    /// The environment may hold secrets and is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("arguments", &self.arguments)
            .field("working_directory", &self.working_directory)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Numeric identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}

/// Capability sets as the kernel's bit masks (capabilities(7): bit n is capability number n).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the kernel's own five names
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// A resource limit (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The kernel's number of the resource (`RLIMIT_NOFILE` is 7).
    pub resource: u32,
    /// The limit in force.
    pub soft: u64,
    /// Its ceiling.
    pub hard: u64,
}

/// A compiled seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Classic BPF: an array of `struct sock_filter` in native byte order (seccomp(2)).
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

fn to_base64<S: Serializer>(program: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(program))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
