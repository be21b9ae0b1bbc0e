//! Which users of the node a pod's users are (user_namespaces(7), KEP-127).

use serde::{Deserialize, Serialize};

/// A pod's own users and groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Its users.
    pub uids: IdMapping,
    /// Its groups.
    pub gids: IdMapping,
}

/// Ids from 0 on inside are as many ids of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    host: u32,
    length: u32,
}

impl IdMapping {
    /// `length` ids, of which 0 is the node's `host`; `None` if there are none, or not that many. The highest number of
    /// all is no id: the kernel reads it as "no change".
    pub fn new(host: u32, length: u32) -> Option<Self> {
        let fits = length > 0 && host.checked_add(length).is_some();
        fits.then_some(Self { host, length })
    }

    /// The node's id that is 0 inside.
    pub fn host(self) -> u32 {
        self.host
    }

    /// How many ids there are.
    pub fn length(self) -> u32 {
        self.length
    }

    /// The node's id that is `id` inside; `None` if there is no such id inside.
    pub fn to_host(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.host + id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_ends_before_the_number_that_is_no_id() {
        assert!(IdMapping::new(u32::MAX - 10, 10).is_some());
        assert!(IdMapping::new(u32::MAX - 10, 11).is_none());
        assert!(IdMapping::new(65_536, 0).is_none());
        let last = IdMapping::new(u32::MAX - 10, 10).unwrap();
        assert_eq!((last.to_host(9), last.to_host(10)), (Some(u32::MAX - 1), None));
    }
}
