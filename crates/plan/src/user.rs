//! The user namespace of a pod (user_namespaces(7)): which users of the node its users are.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Where it is pinned.
    pub path: PathBuf,
    /// Its users.
    pub uids: IdMapping,
    /// Its groups.
    pub gids: IdMapping,
}

/// Ids from 0 on inside are ids from `host` on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The node's id that is 0 inside.
    pub host: u32,
    /// How many there are.
    pub length: u32,
}

impl IdMapping {
    /// The node's id that is `id` inside; `None` where nothing is mapped to it.
    pub fn to_host(self, id: u32) -> Option<u32> {
        if id < self.length { self.host.checked_add(id) } else { None }
    }
}

impl fmt::Display for IdMapping {
    /// A line of `/proc/<pid>/uid_map`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0 {} {}", self.host, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_within_the_mapping_have_one_outside() {
        let mapping = IdMapping { host: 65_536, length: 1_000 };
        assert_eq!([0, 999, 1_000].map(|id| mapping.to_host(id)), [Some(65_536), Some(66_535), None]);
        assert_eq!(mapping.to_string(), "0 65536 1000");
    }
}
